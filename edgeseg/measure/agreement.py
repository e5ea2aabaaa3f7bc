"""How far two label maps of the same frame agree, overall and along the boundaries of the first.

Where labels are missing, and between engines, this is the tolerance: scores of logits say little about masks, and
errors of a worse engine gather at boundaries, where the overall figure hides them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import BadInput, need
from edgeseg.types import Mask


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts of pixels; add them up over frames."""

    pixels: int = 0
    equal: int = 0
    band_pixels: int = 0
    band_equal: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.pixels + other.pixels,
            self.equal + other.equal,
            self.band_pixels + other.band_pixels,
            self.band_equal + other.band_equal,
        )

    @property
    def overall(self) -> float:
        """Share of all pixels that agree, 0 to 1; 1 if there are none."""
        return self.equal / self.pixels if self.pixels else 1.0

    @property
    def boundary(self) -> float:
        """Share of the band's pixels that agree, 0 to 1; 1 if there are none."""
        return self.band_equal / self.band_pixels if self.band_pixels else 1.0


def boundary_band(mask: Mask, width: int) -> NDArray[np.bool_]:
    """Which pixels of uint8 (H, W) have another class within `width` pixels, diagonals included (Chebyshev distance).

    Both sides of a boundary belong to it: width 2 marks two pixels either side. Width 0 marks none.
    """
    if width < 0:
        raise ValueError(f"the width of a band is at least 0, got {width}")
    cv2 = need("cv2", extra="run", why="finding class boundaries")
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    # More than one class in the window <=> its maximum is not its minimum. Outside the image nothing counts.
    band: NDArray[np.bool_] = cv2.dilate(mask, window) != cv2.erode(mask, window)
    return band


def agreement(reference: Mask, other: Mask, band: int = 2) -> Agreement:
    """Compare two class maps uint8 (H, W) of one size; the band lies along the boundaries of `reference`.

    Raises BadInput for different sizes.
    """
    if reference.shape != other.shape:
        raise BadInput(
            f"The masks are {reference.shape} and {other.shape}; to be compared they must have one size "
            "(edgeseg.data.to_size resizes nearest)."
        )
    same = reference == other
    near = boundary_band(reference, band)
    equal, band_pixels = int(np.count_nonzero(same)), int(np.count_nonzero(near))
    return Agreement(same.size, equal, band_pixels, int(np.count_nonzero(same & near)))
