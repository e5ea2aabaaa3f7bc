"""Weights as integers: symmetric, one scale for each output channel, clipped where that lowers the squared error."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration import weight_scales


def rounded(
    weights: NDArray[np.float32], bits: int, least: ArrayLike = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers int8 of the weights' shape (K, ...), from -(2^(bits-1) - 1) to its opposite, and scales float32 (K,).

    `least`: no scale is smaller, one number or (K,).
    """
    scales = np.maximum(
        weight_scales(weights, axis=0, bits=bits, narrow=True, method="mse"), np.asarray(least, np.float32)
    )
    limit = 2 ** (bits - 1) - 1
    integers = np.clip(np.rint(weights / scales.reshape(-1, *[1] * (weights.ndim - 1))), -limit, limit)
    return integers.astype(np.int8), scales
