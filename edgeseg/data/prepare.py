"""Frames to the network's size, masks to the labels' size: the two resizes that happen outside the graph."""

from __future__ import annotations

import numpy as np

from edgeseg.errors import need
from edgeseg.types import Interpolation, Mask, Pixels


def fit(
    pixels: Pixels, size: tuple[int, int], interpolation: Interpolation = "bilinear", out: Pixels | None = None
) -> Pixels:
    """The frame uint8 (h, w, 3) resized to `size` (H, W), contiguous; the same array if nothing is to be done.

    With `out` (H, W, 3) it is written there in any case.

    OpenCV's filters, which map pixel centres onto pixel centres: INTER_LINEAR (2x2 pixels, no smoothing when it
    shrinks, unlike PIL's bilinear), INTER_CUBIC, INTER_AREA; nearest takes the same pixels as `to_size`.
    """
    height, width = size
    if pixels.shape[:2] == (height, width) or interpolation == "nearest":
        same = pixels if pixels.shape[:2] == (height, width) else _nearest(pixels, size)
        if out is None:
            return np.ascontiguousarray(same)
        np.copyto(out, same)
        return out
    cv2 = need("cv2", extra="run", why="resizing frames")
    flags = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "bicubic": cv2.INTER_CUBIC}
    resized: Pixels = cv2.resize(pixels, (width, height), dst=out, interpolation=flags[interpolation])
    return resized


def to_size(mask: Mask, size: tuple[int, int]) -> Mask:
    """The class map uint8 (h, w) at `size` (H, W), nearest; the same array if it has that size already.

    Pixel centres are aligned: row y comes from row floor((y + 1/2) * h / H), columns alike, in exact integers. This is
    what cv2.INTER_NEAREST_EXACT (which misses by a pixel at one size in five), PIL and torch's "nearest-exact" mean;
    cv2.INTER_NEAREST and torch's "nearest" take floor(y * h / H) instead and shift the map by up to half a pixel.
    """
    return mask if mask.shape == tuple(size) else _nearest(mask, size)


def _nearest(array: Mask | Pixels, size: tuple[int, int]) -> Mask | Pixels:
    if min(size) < 1 or array.size == 0:
        raise ValueError(f"cannot resize {array.shape} to {tuple(size)}: a side is empty")
    rows, columns = (
        (2 * np.arange(new, dtype=np.int64) + 1) * old // (2 * new)
        for old, new in zip(array.shape[:2], size, strict=True)
    )
    resized: Mask | Pixels = array.take(rows, axis=0).take(columns, axis=1)
    return resized
