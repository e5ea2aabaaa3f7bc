"""The numbers a quantized tensor is stored in, and the reference arithmetic of going there and back.

As ONNX defines QuantizeLinear and DequantizeLinear: code = saturate(round_half_even(x / scale) + zero_point) and
x = (code - zero_point) * scale, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Codes = NDArray[np.int8] | NDArray[np.uint8]
Number = TypeVar("Number", np.float32, np.int32)

SMALLEST_SCALE = 2.0**-126  # the smallest normal float32: its reciprocal is finite, and no device flushes it to zero


@dataclass(frozen=True, slots=True)
class Scheme:
    """Which integers a tensor is stored in. TensorRT takes Scheme(signed=True, symmetric=True); ONNX Runtime is
    fastest on x86 with Scheme(signed=False, symmetric=False)."""

    signed: bool
    symmetric: bool  # zero point 0
    bits: int = 8  # 2 to 8
    narrow: bool = False  # leave out the lowest code: -127 to 127

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"2 to 8 bits were expected, got {self.bits}")
        if self.symmetric and not self.signed:
            raise ValueError(
                "a symmetric scheme must be signed: unsigned codes with zero point 0 have no negative values. "
                "Use Scheme(signed=False, symmetric=False); it gives zero point 0 wherever nothing negative was seen."
            )

    @property
    def lowest(self) -> int:
        return (-(1 << (self.bits - 1)) if self.signed else 0) + int(self.narrow)

    @property
    def highest(self) -> int:
        return (1 << (self.bits - int(self.signed))) - 1

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        return np.int8 if self.signed else np.uint8


@dataclass(frozen=True, slots=True)
class Quantizer:
    """One tensor's scale and zero point. `low` and `high` are the values of the lowest and the highest code."""

    scale: float  # a float32 value, positive
    zero_point: int
    low: float  # (lowest - zero_point) * scale, at most 0
    high: float  # (highest - zero_point) * scale, at least 0


def affine(low: ArrayLike, high: ArrayLike, scheme: Scheme) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scales and zero points for clipping ranges low <= 0 <= high, elementwise. Zero always has a code of its own.

    Symmetric: the smallest scale that reaches both ends, so a range with one side only uses just that side.
    Asymmetric: the scale of the whole range; rounding the zero point then shifts the ends by at most half a step.
    An empty range gets scale 1.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if scheme.symmetric:
        exact = np.maximum(high / scheme.highest, low / scheme.lowest)
    else:
        exact = (high - low) / (scheme.highest - scheme.lowest)
    scale = np.where(exact > 0, np.maximum(exact, SMALLEST_SCALE), 1.0).astype(np.float32)
    if scheme.symmetric:
        return scale, np.zeros(scale.shape, np.int64)
    zero_point = np.clip(np.rint(scheme.lowest - low / scale), scheme.lowest, scheme.highest)
    return scale, zero_point.astype(np.int64)


def quantize_array(
    values: NDArray[np.float32], scale: ArrayLike, zero_point: ArrayLike, scheme: Scheme, axis: int | None = None
) -> Codes:
    """Codes (int8 or uint8) of float32 values, as QuantizeLinear gives them.

    `scale` and `zero_point` are single numbers, or with `axis` one for each index along that axis.
    """
    divided = np.rint(np.asarray(values, np.float32) / _along(np.asarray(scale, np.float32), values.ndim, axis))
    codes = divided + _along(np.asarray(zero_point, np.float32), values.ndim, axis)
    saturated: Codes = np.clip(codes, scheme.lowest, scheme.highest).astype(scheme.dtype)
    return saturated


def dequantize_array(
    codes: Codes, scale: ArrayLike, zero_point: ArrayLike, axis: int | None = None
) -> NDArray[np.float32]:
    """float32 values of codes, as DequantizeLinear gives them."""
    shifted = codes.astype(np.int32) - _along(np.asarray(zero_point, np.int32), codes.ndim, axis)
    values: NDArray[np.float32] = shifted.astype(np.float32) * _along(np.asarray(scale, np.float32), codes.ndim, axis)
    return values


def _along(parameter: NDArray[Number], dimensions: int, axis: int | None) -> NDArray[Number]:
    if axis is None or parameter.ndim == 0:
        return parameter
    shape = [1] * dimensions
    shape[axis] = -1
    return parameter.reshape(shape)
