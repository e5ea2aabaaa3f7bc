"""Which share of the picture each class takes: of the mask at hand, smoothed for a viewer, and over the whole run."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np

from edgeseg.errors import need
from edgeseg.types import Mask

SMOOTH_S = 1.0  # time constant of what a viewer sees


class Shares:
    """Of all streams together. One thread updates, any may ask."""

    def __init__(self, classes: int) -> None:
        self._cv2 = need("cv2", extra="run", why="streaming")
        self._classes = classes
        self._sum = np.zeros(classes)
        self._count = 0
        self._smooth = np.zeros(classes)
        self._last_ns: int | None = None
        self._lock = threading.Lock()

    def update(self, mask: Mask, now_ns: int) -> tuple[float, ...]:
        """The shares of a mask uint8 (H, W), 0 to 1, by class; what is no class counts for none."""
        counts = self._cv2.calcHist([mask], [0], None, [self._classes], [0, self._classes])
        shares = np.asarray(counts, np.float64).ravel() / mask.size
        with self._lock:
            passed = 0.0 if self._last_ns is None else max(0, now_ns - self._last_ns) / 1e9
            keep = math.exp(-passed / SMOOTH_S) if self._last_ns is not None else 0.0
            self._smooth *= keep
            self._smooth += (1.0 - keep) * shares
            self._sum += shares
            self._count += 1
            self._last_ns = now_ns
        return tuple(shares.tolist())

    def smoothed(self, names: Sequence[str]) -> dict[str, float]:
        with self._lock:
            return dict(zip(names, self._smooth.tolist(), strict=False))

    def mean(self, names: Sequence[str]) -> dict[str, float]:
        """Over all frames since the start; empty before the first."""
        with self._lock:
            return dict(zip(names, (self._sum / self._count).tolist(), strict=False)) if self._count else {}
