"""Feeds, engines and observers that do what a test says, for the flow and for the whole stream."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from edgeseg.backends.base import Session
from edgeseg.runtime.values import Grab, Shot, Unreadable
from edgeseg.types import Frames, InputSpec, Masks, Pixels

SIZE = (24, 32)
SPEC = InputSpec(SIZE)


def picture(index: int, size: tuple[int, int] = SIZE) -> Pixels:
    """A frame that can be told from its neighbours: every pixel is its number."""
    return np.full((*size, 3), index % 256, np.uint8)


class Scripted:
    """A feed of `count` frames; `each(index)` may wait, or give something else than the frame."""

    def __init__(
        self,
        count: int,
        each: Callable[[int], Unreadable | Pixels | None] = lambda index: None,
        *,
        size: tuple[int, int] = SIZE,
    ) -> None:
        self._count, self._each, self._size, self.given = count, each, size, 0
        self.read_ns = 0
        self.in_place = 0

    def next(self, into: Pixels | None) -> Grab | Unreadable | None:
        index = self.given
        if index >= self._count:
            return None
        self.given += 1
        other = self._each(index)
        if isinstance(other, Unreadable):
            return other
        pixels = picture(index, self._size) if other is None else other
        if into is not None and into.shape == pixels.shape:
            np.copyto(into, pixels)
            self.in_place += 1
            pixels = into
        return Grab(pixels, time.perf_counter_ns(), index, f"{index:06d}")


class Engine(Session):
    """Masks that hold each frame's number; `each(call)` may wait or raise."""

    def __init__(self, each: Callable[[int], object] = lambda call: None, batch: int = 1) -> None:
        self.batch, self._each, self.calls = batch, each, 0
        self.batches: list[int] = []

    def run(self, frames: Frames, out: Masks | None = None) -> Masks:
        self.calls += 1
        self.batches.append(len(frames))
        self._each(self.calls - 1)
        masks = np.empty(frames.shape[:3], np.uint8) if out is None else out
        np.copyto(masks, frames[..., 0])
        return masks

    def close(self) -> None:
        """Nothing is held."""


class Counting:
    """An observer that counts, and checks that no frame ends twice."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.fates: dict[tuple[int, int], str] = {}
        self.whys: Counter[str] = Counter()

    def captured(self, shot: Shot) -> None:
        with self.lock:
            self.counts["captured"] += 1

    def dropped(self, shot: Shot) -> None:
        self.end(shot, "dropped")

    def failed(self, shot: Shot, why: str) -> None:
        self.end(shot, "failed")
        self.whys[why] += 1

    def end(self, shot: Shot, how: str) -> None:
        with self.lock:
            key = (shot.stream, shot.index)
            assert key not in self.fates, f"{key} ended twice"
            self.fates[key] = how
            self.counts[how] += 1

    @property
    def accounted(self) -> bool:
        return self.counts["captured"] == self.counts["processed"] + self.counts["dropped"] + self.counts["failed"]
