"""An engine that computes nothing and takes a scripted time: what is left of a stream's time is the stream's own.

It waits without using the CPU, as a host waits for a GPU. For measurements and tests; no bundle can name it.
"""

from __future__ import annotations

import time

import numpy as np

from edgeseg.backends.base import Session
from edgeseg.types import Frames, Masks


class NullSession(Session):
    """Masks that are the two high bits of the frames' second channel: classes 0 to 3, after `delay_ms`."""

    batch = 0

    def __init__(self, delay_ms: float = 0.0) -> None:
        self._delay_ns = round(delay_ms * 1e6)

    def run(self, frames: Frames, out: Masks | None = None) -> Masks:
        due = time.perf_counter_ns() + self._delay_ns
        masks = np.empty(frames.shape[:3], np.uint8) if out is None else out
        np.right_shift(frames[..., 1], 6, out=masks)
        if (left := due - time.perf_counter_ns()) > 0:
            time.sleep(left / 1e9)
        return masks

    def close(self) -> None:
        """Nothing is held."""
