"""Slow and obvious versions of what `calibration` computes, from the definitions; no code is shared with it."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


def bin_counts(values: Values, width: float) -> Counter[int]:
    """How many nonzero values lie in [j * width, (j + 1) * width), in exact rational arithmetic."""
    return Counter(math.floor(Fraction(float(x)) / Fraction(width)) for x in values.ravel() if x != 0)


def quantization_error(values: NDArray[np.float64], scale: float, zero_point: int, lowest: int, highest: int) -> float:
    """Mean squared error of going there and back, in float64 on the raw values."""
    codes = np.clip(np.round(values / scale) + zero_point, lowest, highest)
    return float(np.mean((values - (codes - zero_point) * scale) ** 2))


def least_symmetric_error(values: NDArray[np.float64], lowest: int, highest: int) -> float:
    """The best of 250 evenly spaced clipping points."""
    largest = float(np.abs(values).max())
    return min(quantization_error(values, largest * i / 250 / highest, 0, lowest, highest) for i in range(1, 251))


def least_asymmetric_error(values: NDArray[np.float64], lowest: int, highest: int, steps: int = 30) -> float:
    """The best of steps x steps pairs of ends."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    best = math.inf
    for i in range(1, steps + 1):
        for j in range(1, steps + 1):
            scale = (high * j - low * i) / steps / (highest - lowest)
            zero_point = round(lowest - low * i / steps / scale)
            best = min(best, quantization_error(values, scale, zero_point, lowest, highest))
    return best


def divergence(counts: list[int], start: int, stop: int, levels: int) -> float:
    """KL(P || Q) after Migacz 2017, in plain loops; Q is not scaled up for what was clipped."""
    total = sum(counts)
    p = [float(c) for c in counts[start:stop]]
    q = [0.0] * len(p)
    p[0] += sum(counts[:start])
    p[-1] += sum(counts[stop:])
    levels = min(levels, len(p))
    for level in range(levels):
        members = range(level * len(p) // levels, (level + 1) * len(p) // levels)
        filled = [j for j in members if p[j] > 0]
        mass = sum(counts[start + j] for j in members)
        for j in filled:
            q[j] = mass / len(filled)
    result = 0.0
    for p_j, q_j in zip(p, q, strict=True):
        if p_j > 0:
            if q_j == 0:
                return math.inf
            result += p_j / total * math.log(p_j / q_j)
    return result
