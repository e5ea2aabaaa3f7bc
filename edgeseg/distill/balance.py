"""Weights of classes that labels hold unevenly: what pixels were counted becomes `LabelLoss.class_weights`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import BadInput
from edgeseg.types import Mask

Balance = Literal["none", "root", "effective", "median"]
Integers = NDArray[np.int64]


def count_classes(labels: Iterable[Mask], classes: int) -> Integers:
    """Pixels of each class in each label map uint8 (H, W): int64 (N, classes). Other values do not count."""
    rows = [np.bincount(np.asarray(label).ravel(), minlength=256)[:classes] for label in labels]
    return np.array(rows, dtype=np.int64).reshape(len(rows), classes)


def class_weights(counts: Integers, how: Balance, *, beta: float | None = None) -> tuple[float, ...]:
    """A weight a class by pixel counts int64 (N, C) of N frames, so scaled that a labelled pixel has the mean weight 1.

    "none": all alike. "root": one over the root of a class's share of all pixels (shares below 1e-4 as that).
    "effective": (1 - beta) / (1 - beta^n) for a class of n pixels, one over the effective number of samples (Cui et
    al. 2019); beta 0 weighs all alike, towards 1 it tends to one over n. Without `beta` it is 1 - 1/N, N all pixels.
    "median": the median of all classes' frequencies over a class's own, which is its share of the pixels of those
    frames that hold it (Eigen and Fergus 2015). A class that no label holds has weight 0 by the last two.
    Raises BadInput for an unknown way, a beta outside [0, 1), and counts without a labelled pixel.
    """
    if how not in get_args(Balance):
        raise BadInput(f"classes are weighted by {', '.join(get_args(Balance))}, not by {how!r}")
    if counts.ndim != 2 or counts.sum() <= 0 or (counts < 0).any():
        raise BadInput("class weights want the pixels of each class in each frame; there is no labelled pixel")
    if beta is not None and not 0 <= beta < 1:
        raise BadInput(f"beta must be from 0 to below 1, got {beta}")
    pixels = counts.sum(0).astype(np.float64)
    if how == "effective":
        weights = _effective(pixels, 1 - 1 / pixels.sum() if beta is None else beta)
    elif how == "median":
        weights = _median(counts)
    elif how == "root":
        weights = 1 / np.sqrt(np.maximum(pixels / pixels.sum(), 1e-4))
    else:
        weights = np.ones_like(pixels)
    mean = float((weights * pixels).sum() / pixels.sum())
    return tuple(float(weight) / mean for weight in weights)


def _effective(pixels: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    # 1 - beta^n would round to 0 where beta is near 1
    logarithm = np.log1p(-(1 - beta)) if beta > 0 else -np.inf
    held = pixels > 0
    number = -np.expm1(np.where(held, pixels, 1.0) * logarithm) / (1 - beta)
    return np.where(held, 1 / number, 0.0)


def _median(counts: Integers) -> NDArray[np.float64]:
    there = counts > 0
    frames = np.where(there, counts.sum(1, keepdims=True), 0).sum(0).astype(np.float64)
    held = frames > 0
    frequency = counts.sum(0) / np.where(held, frames, 1.0)
    return np.where(held, np.median(frequency[held]) / np.where(held, frequency, 1.0), 0.0)
