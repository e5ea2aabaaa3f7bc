"""The rendered street as a camera: frames at their time, each with its exact labels."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from edgeseg.data import street
from edgeseg.runtime.sources.base import Source
from edgeseg.runtime.sources.schedule import Schedule
from edgeseg.runtime.values import Grab
from edgeseg.types import Pixels


class StreetSource(Source):
    """A drive, frame by frame, none left out: a machine too slow to render at `fps` gets them later.

    The drive is defined at 15 frames a second and each frame is the next of it, so at 30 it goes twice as fast.
    A frame is rendered before it is due: rendering stands for the camera, and only its share of the processor shows.
    """

    live = True

    def __init__(
        self,
        size: tuple[int, int],
        *,
        name: str,
        fps: float,
        seed: int,
        frames: int | None,
        clock: Callable[[], int],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.name, self.fps = name, fps
        self._size, self._seed, self._frames = size, seed, frames
        self._clock, self._sleep, self._next = clock, sleep, 0
        self._schedule = Schedule(fps)

    def read(self, into: Pixels | None) -> Grab | None:
        position = self._next
        if self._frames is not None and position >= self._frames:
            return None
        self._next += 1
        pixels, label = street.render(self._size, self._seed, position)
        if into is not None and into.shape == pixels.shape:
            np.copyto(into, pixels)
            pixels = into
        left = self._schedule.left_ns(self._clock())
        if left > 0:
            self._sleep(left / 1e9)
        now = self._clock()
        self._schedule.give(now)
        return Grab(pixels, now, position, f"{position:06d}", label)

    def close(self) -> None:
        """Nothing is held."""
