"""Flicker where nothing moves: pixels of a video that stay as they were while the network changes its mind about them.

Needs no labels. Two consecutive frames are compared first, smoothed so that a camera's noise is no movement; of the
pixels that stayed, those whose class changed are counted for every network that looked at both frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import need
from edgeseg.measure.flicker import Flicker
from edgeseg.types import Mask, Pixels

STILL = 3  # levels of 255 by which a smoothed pixel may differ and still has not moved
WINDOW = 5  # pixels a side of the smoothing, and of what must stay around a pixel
_FRAME_NS = 33_000_000  # a nominal distance in time: what counts is that frames follow one another


def still_pixels(before: Pixels, after: Pixels, tolerance: int = STILL) -> NDArray[np.bool_]:
    """Which pixels (H, W) of two frames uint8 (H, W, 3) show the same: no movement within WINDOW pixels of them."""
    cv2 = need("cv2", extra="run", why="finding what does not move in a video")
    smooth = [cv2.blur(frame, (WINDOW, WINDOW)) for frame in (before, after)]
    moved = (cv2.absdiff(*smooth).max(axis=2) > tolerance).astype(np.uint8)
    still: NDArray[np.bool_] = cv2.dilate(moved, np.ones((WINDOW, WINDOW), np.uint8)) == 0
    return still


class StillFlicker:
    """Of one video and several networks by name. Frames in their order; `cut` where the next one does not follow."""

    def __init__(self) -> None:
        self._last: tuple[Pixels, dict[str, Mask]] | None = None
        self._pairs = self._pixels = self._still = self._time = 0
        self._changed: dict[str, int] = {}
        self._wavering: dict[str, Flicker] = {}

    def update(self, frame: Pixels, masks: Mapping[str, Mask]) -> None:
        """A frame uint8 (H, W, 3) at the masks' size and what each network made of it, uint8 (H, W)."""
        self._time += _FRAME_NS
        for name, mask in masks.items():
            self._wavering.setdefault(name, Flicker()).update(mask, self._time)
        if self._last is not None:
            before, known = self._last
            still = still_pixels(before, frame)
            self._pairs += 1
            self._pixels += still.size
            self._still += int(np.count_nonzero(still))
            for name, mask in masks.items():
                changed = int(np.count_nonzero((mask != known[name]) & still))
                self._changed[name] = self._changed.get(name, 0) + changed
        self._last = frame.copy(), {name: mask.copy() for name, mask in masks.items()}

    def cut(self) -> None:
        """The next frame is of another scene."""
        self._last = None
        for wavering in self._wavering.values():
            wavering.reset()

    def document(self) -> dict[str, Any]:
        """`still`: share of pixels that did not move over `pairs` of frames. `changed`: by network, the share of these
        whose class changed; None where nothing stayed. `wavering`: share of all pixels that changed and changed back.
        """
        return {
            "pairs": self._pairs,
            "still": self._still / self._pixels if self._pixels else None,
            "changed": {
                name: self._changed.get(name, 0) / self._still if self._still else None for name in self._wavering
            },
            "wavering": {name: _float(found.document()["flicker"]) for name, found in self._wavering.items()},
        }


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
