"""Slow, obvious versions of what the package computes fast, to test against. Plain Python loops, no cleverness."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion(prediction: NDArray[Any], label: NDArray[Any], classes: int, ignore: int | None) -> list[list[int]]:
    """Pixels by label (rows) and prediction (columns)."""
    matrix = [[0] * classes for _ in range(classes)]
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        if t != ignore:
            matrix[t][p] += 1
    return matrix


def iou_and_dice(
    predictions: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]], classes: int, ignore: int | None
) -> list[tuple[float, float] | None]:
    """(IoU, Dice) of each class from sets of pixels, over all images together; None for a class that is nowhere."""
    found: list[tuple[float, float] | None] = []
    for index in range(classes):
        a: set[tuple[int, int]] = set()
        b: set[tuple[int, int]] = set()
        for image, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
            for pixel, (p, t) in enumerate(zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True)):
                if t != ignore:
                    if p == index:
                        a.add((image, pixel))
                    if t == index:
                        b.add((image, pixel))
        found.append((len(a & b) / len(a | b), 2 * len(a & b) / (len(a) + len(b))) if a | b else None)
    return found


def boundary_band(mask: NDArray[Any], width: int) -> NDArray[np.bool_]:
    """Pixels with another class within `width` pixels, diagonals included."""
    height, wide = mask.shape
    band = np.zeros(mask.shape, bool)
    for y in range(height):
        for x in range(wide):
            for dy in range(-width, width + 1):
                for dx in range(-width, width + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < wide and mask[y + dy, x + dx] != mask[y, x]:
                        band[y, x] = True
    return band


def nearest(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Each target pixel's centre, carried over to the source; the pixel that it falls into (exact fractions)."""
    height, width = size
    out = np.zeros((height, width, *mask.shape[2:]), mask.dtype)
    for y in range(height):
        for x in range(width):
            row = int((y + Fraction(1, 2)) * mask.shape[0] / height)
            column = int((x + Fraction(1, 2)) * mask.shape[1] / width)
            out[y, x] = mask[row, column]
    return out


def percentile(samples: Sequence[int], percent: int) -> int:
    """The smallest sample with at least `percent` % of the samples at or below it."""
    for sample in sorted(samples):
        if 100 * sum(other <= sample for other in samples) >= percent * len(samples):
            return sample
    raise AssertionError("the largest sample has all samples at or below it")


def allowed_above(count: int, p: Fraction) -> int:
    """The largest t with P(at most t of `count` events of probability 1 - p) <= 1 %, in exact integers; -1 if none."""
    total, t = 0, -1
    while t < count:
        k = t + 1
        total += comb(count, k) * (p.denominator - p.numerator) ** k * p.numerator ** (count - k)
        if 100 * total > p.denominator**count:
            break
        t = k
    return t
