"""Crops against class imbalance: a window that holds enough of a class, in place of one from just anywhere.

A crop from anywhere mostly shows background, and often a few pixels of the foreground at its edge, too few to learn
from. Here all windows that hold enough are found, in one pass over the label, and one of them is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeseg.types import Mask, Pixels


def window_counts(positive: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.int64]:
    """How many pixels of bool (H, W) are set in each window of `size` (h, w): int64 (H - h + 1, W - w + 1), by its
    upper left corner. Raises ValueError for a window that is empty or larger than the map."""
    (height, width), (h, w) = positive.shape, size
    if not (1 <= h <= height and 1 <= w <= width):
        raise ValueError(f"a window of {tuple(size)} does not fit into {positive.shape}")
    sums = np.zeros((height + 1, width + 1), np.int64)
    np.cumsum(np.cumsum(positive, axis=0, dtype=np.int64), axis=1, out=sums[1:, 1:])
    counts: NDArray[np.int64] = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    return counts


def positive_window(
    label: Mask, size: tuple[int, int], classes: Sequence[int], least: float, random: np.random.Generator
) -> tuple[int, int]:
    """Upper left corner (top, left) of a window `size` (h, w) in which at least the fraction `least` is of `classes`.

    All such windows are equally probable. Where none holds as much, one of those that hold the most is drawn; where
    the label uint8 (H, W) has nothing of the classes, any window. Raises ValueError if `size` does not fit.
    """
    counts = window_counts(np.isin(label, np.asarray(classes)), size)
    wanted = min(max(1, int(np.ceil(least * size[0] * size[1]))), int(counts.max()))
    places = np.flatnonzero(counts >= wanted)  # of no foreground at all: wanted is 0, all windows
    top, left = np.unravel_index(int(places[random.integers(len(places))]), counts.shape)
    return int(top), int(left)


def drawn_class(label: Mask, weights: Sequence[float], random: np.random.Generator) -> int | None:
    """One of the classes that the label uint8 (H, W) holds, each as probable as its weight says; None if it holds none
    with a weight above 0. Weights (C), of one class each: rare ones high, background 0."""
    held = np.bincount(label.ravel(), minlength=256)[: len(weights)] > 0
    chances = np.where(held, np.asarray(weights, np.float64), 0.0)
    return int(random.choice(len(chances), p=chances / chances.sum())) if chances.sum() > 0 else None


def positive_crop(
    pixels: Pixels, label: Mask, size: tuple[int, int], weights: Sequence[float], random: np.random.Generator,
    *, least: float = 0.05, share: float = 1.0,
) -> tuple[Pixels, Mask]:  # fmt: skip
    """A piece `size` (h, w) of a frame uint8 (H, W, 3) and its label uint8 (H, W), both views of them.

    With the probability `share` it is a window that holds at least the fraction `least` of a class drawn by `weights`
    (see `drawn_class`, `positive_window`); else, and where nothing has a weight, it is from anywhere: what has no
    foreground must be learned too. Raises ValueError if `size` does not fit or frame and label differ in size.
    """
    if pixels.shape[:2] != label.shape:
        raise ValueError(f"the frame is {pixels.shape[:2]} and its label {label.shape}; one size was wanted")
    if not (1 <= size[0] <= label.shape[0] and 1 <= size[1] <= label.shape[1]):
        raise ValueError(f"a crop of {tuple(size)} does not fit into {label.shape}")
    chosen = drawn_class(label, weights, random) if random.random() < share else None
    if chosen is None:
        top, left = (int(random.integers(have - want + 1)) for have, want in zip(label.shape, size, strict=True))
    else:
        top, left = positive_window(label, size, (chosen,), least, random)
    window = slice(top, top + size[0]), slice(left, left + size[1])
    return pixels[window], label[window]
