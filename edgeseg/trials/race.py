"""Engines against one another on real frames, in one interleaved run, so that a drift of the clock hits all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from edgeseg.backends import Engine, open_engine
from edgeseg.measure.latency import InTurn, interleave, samples_needed
from edgeseg.types import Frames

LEAST = samples_needed(0.5)


def race(
    engines: Sequence[Engine],
    frames: Sequence[Frames],
    *,
    rounds: int,
    warmup: int = 3,
    limit_s: float | None = None,
    on_round: Callable[[], object] | None = None,
) -> dict[str, list[int]]:
    """Latencies in nanoseconds by engine name: `rounds` of each, or fewer, but enough for a median, after `limit_s`.

    `frames`: batches uint8 (N, H, W, 3) of real frames, in turn; all engines see the same ones in the same order.
    """
    with ExitStack() as stack:
        runs = {engine.name: InTurn(stack.enter_context(open_engine(engine)).run, frames) for engine in engines}
        first = interleave(runs, rounds=min(rounds, LEAST), warmup=warmup, on_round=on_round)
        spent = sum(map(sum, first.values())) / 1e9
        if rounds <= LEAST or (limit_s is not None and spent >= limit_s):
            return first
        left = None if limit_s is None else limit_s - spent
        rest = interleave(runs, rounds=rounds - LEAST, warmup=0, limit_s=left, seed=1, on_round=on_round)
        return {name: first[name] + rest[name] for name in first}


def best_settings(engines: Sequence[Engine], frames: Sequence[Frames], *, rounds: int) -> tuple[Engine, float]:
    """Of engines that compute the same, the one with the lowest median, and that median in nanoseconds.

    Hopeless ones leave after a few rounds.
    """
    left = list(engines)
    if len(left) > 2:
        first = race(left, frames, rounds=max(3, rounds // 4), warmup=2, limit_s=10.0)
        fastest = min(min(times) for times in first.values())
        left = [engine for engine in left if min(first[engine.name]) <= 1.5 * fastest]
    times = race(left, frames, rounds=rounds, warmup=2, limit_s=20.0)
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    best = min(left, key=lambda engine: medians[engine.name])
    return best, medians[best.name]
