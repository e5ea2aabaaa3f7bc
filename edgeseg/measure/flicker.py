"""Temporal flicker of a stream: pixels that change their class and change back at once, which nothing that moves does.

Needs no labels. Between two masks a pixel changes because something moved or because the network wavers; A, B, A over
three consecutive masks is there and back again, and counts as flicker.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.types import Mask

GAP_S = 1.0  # masks further apart are no neighbours: what is seen may have changed meanwhile


class Flicker:
    """Flicker of one stream. `update` from one thread; `document` from any. Memory: four arrays of a mask's size."""

    def __init__(self, gap_s: float = GAP_S) -> None:
        self._gap_ns = round(gap_s * 1e9)
        self._lock = threading.Lock()
        self._size: tuple[int, ...] = ()
        self._older: Mask = np.empty((0, 0), np.uint8)  # the mask before the last one
        self._last: Mask = self._older
        self._changed: NDArray[np.bool_] = np.empty((0, 0), np.bool_)
        self._back = self._changed
        self._held = 0  # how many masks in a row are there to compare with, at most 2
        self._time_ns = 0
        self._steps, self._sum_changed, self._triples, self._sum_back = 0, 0.0, 0, 0.0

    def update(self, mask: Mask, time_ns: int) -> tuple[float, float] | None:
        """The shares (0 to 1) of pixels that changed since the last mask, and of those that also changed back.

        `mask`: uint8 (H, W), copied. `time_ns`: when its frame was captured. None until there are three in a row: a
        new size, a gap of more than `gap_s` and a clock that goes backwards each begin anew.
        """
        if mask.shape != self._size:
            self._size = mask.shape
            self._older, self._last = np.empty_like(mask, order="C"), np.empty_like(mask, order="C")
            self._changed, self._back = np.empty(mask.shape, np.bool_), np.empty(mask.shape, np.bool_)
            self._held = 0
        if self._held and not 0 <= time_ns - self._time_ns <= self._gap_ns:
            self._held = 0
        held, self._time_ns = self._held, time_ns
        changed = back = 0.0
        if held:
            np.not_equal(mask, self._last, out=self._changed)
            changed = np.count_nonzero(self._changed) / mask.size
        if held == 2:
            np.equal(mask, self._older, out=self._back)
            np.logical_and(self._back, self._changed, out=self._back)
            back = np.count_nonzero(self._back) / mask.size
        self._older, self._last = self._last, self._older
        np.copyto(self._last, mask)
        self._held = min(2, held + 1)
        with self._lock:
            if held:
                self._steps += 1
                self._sum_changed += changed
            if held == 2:
                self._triples += 1
                self._sum_back += back
        return (changed, back) if held == 2 else None

    def reset(self) -> None:
        """Begin anew with the next mask, by the thread that updates; what was counted stays."""
        self._held = 0

    def document(self) -> dict[str, Any]:
        """Means over the stream so far: `changed` over `steps`, `flicker` over `frames` (masks that had two before)."""
        with self._lock:
            return {
                "changed": self._sum_changed / self._steps if self._steps else None,
                "steps": self._steps,
                "flicker": self._sum_back / self._triples if self._triples else None,
                "frames": self._triples,
            }
