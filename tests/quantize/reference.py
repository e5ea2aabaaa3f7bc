"""One INT8 convolution the slow way: integers, sums that cannot overflow, one rounding at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def quantized(values: Array, scale: float, zero_point: int, low: int, high: int) -> Array:
    """ONNX QuantizeLinear: round half to even, add the zero point, saturate."""
    codes: Array = np.clip(np.rint(values / np.float32(scale)) + zero_point, low, high).astype(np.int64)
    return codes


def convolved(codes: Array, zero_point: int, weights: Array, bias: Array, group: int = 1) -> Array:
    """Integer sums (K, H, W) of codes (C, H, W) and weights (K, C / group, k, k), stride 1, padded with real zeros."""
    pad = weights.shape[2] // 2
    inputs = np.pad(codes.astype(np.int64) - zero_point, ((0, 0), (pad, pad), (pad, pad)))
    height, width = codes.shape[1:]
    per_group = len(weights) // group
    sums = np.zeros((len(weights), height, width), np.int64)
    for k, kernel in enumerate(weights.astype(np.int64)):
        first = k // per_group * kernel.shape[0]
        for c, rows in enumerate(kernel):
            for dy, row in enumerate(rows):
                for dx, weight in enumerate(row):
                    sums[k] += int(weight) * inputs[first + c, dy : dy + height, dx : dx + width]
        sums[k] += int(bias[k])
    return sums


def requantized(
    sums: Array, input_scale: float, weight_scales: Array, scale: float, zero_point: int, low: int, high: int
) -> Array:
    """Codes (K, H, W) of the sums: one multiplication a channel, one rounding, saturation; ReLU is the saturation."""
    factors = np.float64(input_scale) * weight_scales.astype(np.float64) / np.float64(scale)
    codes: Array = np.clip(np.rint(sums * factors[:, None, None]) + zero_point, low, high).astype(np.int64)
    return codes
