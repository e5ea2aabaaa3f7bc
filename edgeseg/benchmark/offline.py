"""Throughput: all frames are there from the start, and the way that gets through them fastest may be taken.

What pays differs from engine to engine, so it is tried: batches where the graph takes any number of frames, and on the
CPU several sessions with one thread each beside one session with all threads. One session loses what its layers cannot
share among threads; many sessions lose the cache to one another.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeseg.benchmark.opened import Opened, Runs
from edgeseg.benchmark.scenarios import Clock, Until, Work, in_turns
from edgeseg.errors import ModelError

BATCH = 8  # tried where an engine takes any number
SEGMENT_S = 0.5  # about what a sample takes: many frames, one number
_TRIES = 3  # of each way, in turns
MOST_SESSIONS = 8  # each holds the network's weights and tensors


@dataclass(frozen=True, slots=True)
class Way:
    """How frames are worked through: so many sessions side by side, frames at once and threads in each."""

    sessions: int
    batch: int
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.sessions} session{'s' * (self.sessions > 1)} of {self.threads} thread{'s' * (self.threads > 1)}, "
            f"{self.batch} frame{'s' * (self.batch > 1)} at once"
        )


def ways(one: Opened) -> list[Way]:
    """Those worth a try, the plainest first."""
    batch = one.session.batch or 1
    found = [Way(1, batch, one.threads)]
    if one.session.batch == 0:
        found.append(Way(1, BATCH, one.threads))
    if one.again is not None and 1 < one.threads <= MOST_SESSIONS:
        found.append(Way(one.threads, batch, 1))
    return found


class Throughput:
    """One way to work through frames with an open engine: `engine(n)` and `whole(n)` do n frames."""

    def __init__(self, one: Opened, way: Way, stack: ExitStack) -> None:
        """Opens what the way needs beside the session that is open. Raises ModelError if that is refused."""
        sessions: list[Runs] = [one.session]
        if way.sessions > 1:
            if one.again is None:
                raise ModelError(f"{way} needs several sessions, and this engine can be opened once only")
            sessions = [stack.enter_context(one.again(way.threads)) for _ in range(way.sessions)]
        self.way = way
        self._works = [one.works(way.batch, way.batch, session) for session in sessions]
        self._pool = stack.enter_context(ThreadPoolExecutor(len(sessions))) if len(sessions) > 1 else None

    def engine(self, frames: int) -> None:
        """Masks of `frames` frames of the network's size, a whole number of batches."""
        self._run([engine for engine, _ in self._works], frames)

    def whole(self, frames: int) -> None:
        """From so many frames of any size to masks of that size."""
        self._run([whole for _, whole in self._works], frames)

    def _run(self, works: Sequence[Work], frames: int) -> None:
        waiting = deque(range(-(-frames // self.way.batch)))
        if self._pool is None:
            for k in waiting:
                works[0](k)
            return

        def drain(work: Work) -> None:
            while True:
                try:
                    k = waiting.popleft()  # one step, so that no two threads get the same
                except IndexError:
                    return
                work(k)

        for done in [self._pool.submit(drain, work) for work in works]:
            done.result()


def choose(
    one: Opened, stack: ExitStack, clock: Clock, seconds: float = SEGMENT_S
) -> tuple[Throughput, list[dict[str, Any]]]:
    """The way with the most frames a second of the engine, of short turns; and what each of them gave."""
    tried: list[tuple[Throughput, ExitStack]] = []
    rows: list[dict[str, Any]] = []
    for way in ways(one):
        own = stack.enter_context(ExitStack())
        try:
            tried.append((Throughput(one, way, own), own))
        except ModelError as error:
            rows.append(_row(way, None) | {"refused": str(error)})
    if len(tried) == 1:
        return tried[0][0], [*rows, _row(tried[0][0].way, None)]
    count = pace(tried[0][0].engine, max(t.way.batch * t.way.sessions for t, _ in tried), clock, seconds)
    runs = {str(t.way): _times(t.engine, count) for t, _ in tried}
    found = in_turns(runs, Until(0.0, _TRIES), clock=clock, warmup=1).samples
    speeds = [count * 1e9 / statistics.median(found[str(t.way)]) for t, _ in tried]
    best = max(range(len(tried)), key=lambda i: speeds[i])
    for i, (_, own) in enumerate(tried):
        if i != best:
            own.close()
    return tried[best][0], [*rows, *(_row(t.way, speed) for (t, _), speed in zip(tried, speeds, strict=True))]


def pace(work: Callable[[int], object], multiple: int, clock: Clock, seconds: float = SEGMENT_S) -> int:
    """How many frames take about so many seconds, a multiple of `multiple`."""
    work(multiple)
    start = clock()
    work(multiple)
    took = max(clock() - start, 1)
    return multiple * max(1, round(seconds * 1e9 / took))


def offline(
    opened: Mapping[str, Opened],
    until: Until,
    *,
    stack: ExitStack,
    clock: Clock,
    after: Callable[[], object] | None = None,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, Any]], list[int]]:
    """Throughput of all, in turns of about half a second.

    Per name: ns a frame of each turn, of "engine" and "whole"; what its document says under "offline"; and when each
    round of turns ended.
    """
    # A limit leaves room for some turns of each.
    piece = SEGMENT_S if until.limit_s is None else min(SEGMENT_S, until.limit_s / (8 * max(1, len(opened))))
    runs: dict[str, Work] = {}
    counts: dict[str, int] = {}
    tried: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, Way] = {}
    for name, one in opened.items():
        best, tried[name] = choose(one, stack, clock, piece)
        chosen[name] = best.way
        for kind, work in (("engine", best.engine), ("whole", best.whole)):
            key = f"{name}/{kind}"
            counts[key] = pace(work, best.way.batch * best.way.sessions, clock, piece)
            runs[key] = _times(work, counts[key])
    turns = in_turns(runs, until, clock=clock, warmup=0, after=after)
    each = {key: [ns / counts[key] for ns in samples] for key, samples in turns.samples.items()}
    samples = {name: {kind: each[f"{name}/{kind}"] for kind in ("engine", "whole")} for name in opened}
    documents = {}
    for name in opened:
        way = chosen[name]
        said: dict[str, Any] = {"sessions": way.sessions, "batch": way.batch, "threads": way.threads}
        documents[name] = {"way": said, "ways": tried[name]} | {
            kind: throughput(samples[name][kind], counts[f"{name}/{kind}"]) for kind in ("engine", "whole")
        }
    return samples, documents, turns.ended


def throughput(ns_a_frame: Sequence[float], frames: int, seed: int = 0) -> dict[str, Any]:
    """Frames a second over all turns of `frames` frames each, and a 95 % interval: a bootstrap over turns."""
    times = np.asarray(ns_a_frame, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(times), (2000, len(times)))
    low, high = np.quantile(1e9 / times[drawn].mean(axis=1), (0.025, 0.975))
    return {
        "frames": frames * len(times),
        "seconds": float(times.sum() * frames / 1e9),
        "frames_per_second": float(1e9 / times.mean()),
        "interval": [float(low), float(high)] if len(times) > 1 else None,
        "turns": len(times),
    }


def _times(work: Callable[[int], object], count: int) -> Work:
    return lambda _: work(count)


def _row(way: Way, speed: float | None) -> dict[str, Any]:
    return {
        "sessions": way.sessions,
        "batch": way.batch,
        "threads": way.threads,
        "frames_per_second": speed,
    }
