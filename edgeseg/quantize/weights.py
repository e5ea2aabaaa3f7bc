"""Weights as integers: symmetric, one scale for each output channel, clipped where that lowers the squared error."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration import weight_scales

# Of the weights of late, by what they are: a search writes one network a hundred times, and to find the scales is most
# of the work of writing it.
_KNOWN: dict[tuple[bytes, tuple[int, ...], int], NDArray[np.float32]] = {}
_MOST = 2048


def rounded(
    weights: NDArray[np.float32], bits: int, least: ArrayLike = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers int8 of the weights' shape (K, ...), from -(2^(bits-1) - 1) to its opposite, and scales float32 (K,).

    `least`: no scale is smaller, one number or (K,).
    """
    scales = np.maximum(_scales(weights, bits), np.asarray(least, np.float32))
    limit = 2 ** (bits - 1) - 1
    integers = np.clip(np.rint(weights / scales.reshape(-1, *[1] * (weights.ndim - 1))), -limit, limit)
    return integers.astype(np.int8), scales


def _scales(weights: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    key = (hashlib.sha256(np.ascontiguousarray(weights).tobytes()).digest(), weights.shape, bits)
    if key not in _KNOWN:
        found = weight_scales(weights, axis=0, bits=bits, narrow=True, method="mse")
        while len(_KNOWN) >= _MOST:
            _KNOWN.pop(next(iter(_KNOWN)), None)
        _KNOWN[key] = found
    return _KNOWN[key]
