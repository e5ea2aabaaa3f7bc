"""Engines and a clock that a test moves: time passes only by what is run and slept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeseg.benchmark.opened import Opened, frames_digest
from edgeseg.types import Frames, InputSpec, Masks


class Clock:
    """Nanoseconds. Every look costs `look` of them."""

    def __init__(self, look: int = 0) -> None:
        self.now, self.look, self.slept = 0, look, 0

    def __call__(self) -> int:
        self.now += self.look
        return self.now

    def sleep(self, seconds: float) -> None:
        ns = max(1, round(seconds * 1e9))
        self.slept += ns
        self.now += ns

    def pass_ms(self, ms: float) -> None:
        self.now += round(ms * 1e6)


class FakeEngine:
    """Masks are the first channel; a run takes what `ms` says, in turn or by a rule of (how many frames)."""

    def __init__(self, clock: Clock, ms: float | Sequence[float] | Callable[[int], float], batch: int = 1) -> None:
        self._clock, self._ms, self.batch = clock, ms, batch
        self.seen: list[Frames] = []

    def run(self, frames: Frames, out: Masks | None = None) -> Masks:
        if callable(self._ms):
            took = self._ms(len(frames))
        elif isinstance(self._ms, int | float):
            took = self._ms
        else:
            took = self._ms[len(self.seen) % len(self._ms)]
        self.seen.append(frames.copy())
        self._clock.pass_ms(took)
        return frames[..., 0].copy()

    def close(self) -> None:
        """Nothing is held."""


def frames(count: int = 3, size: tuple[int, int] = (6, 8)) -> list[Any]:
    return [np.full((*size, 3), 10 + k, np.uint8) for k in range(count)]


def opened(engine: Any, name: str = "fake", *, threads: int = 1, own: Sequence[Any] | None = None) -> Opened:
    given = frames() if own is None else list(own)
    head = {
        "schema": "edgeseg.bench/2",
        "bundle": name,
        "path": f"{name}.edgeseg",
        "graph": "0",
        "variant": "v",
        "backend": "onnxruntime",
        "precision": "fp32",
        "settings": {},
        "cold_ms": {"open": 1.0, "first_frame": 2.0},
        "frames_digest": frames_digest(given),
    }
    return Opened(head, engine, InputSpec(size=(6, 8)), given, threads)
