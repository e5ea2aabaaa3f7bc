"""A convolution of an ONNX graph as a layer that learns, its weights as they are or as the integers they will be.

What is trained is measured in the size of the channel: channels of one layer differ a hundredfold once batch norm is
folded into them, and an optimizer whose steps have one size for all would destroy the small ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration import weight_scales
from calibration.scheme import SMALLEST_SCALE
from edgeseg.recover.fake import quantized_weights
from edgeseg.recover.windows import conv, conv_transpose

EVERY = 25  # training passes after which the scales of weights are found anew; a search takes about one pass
MOST_BIAS = 2.0**31 - 1


@dataclass(frozen=True, slots=True)
class Integers:
    """How the weights of a convolution are stored: symmetric integers, one scale for each output channel."""

    bits: int
    axis: int  # of the weights, along which output channels lie
    bias_scale: float | None = None  # the scale of the input, where the bias is an int32 too; its scale is the product


class Convolution(nn.Conv2d):
    """Conv or ConvTranspose of ONNX. A Conv2d in name, so that it is trained as one; it runs by its attributes."""

    unit: Tensor  # float32, broadcasts with the weights: the size of a channel, a power of two
    bias_unit: Tensor  # float32 (K,), likewise

    def __init__(
        self,
        node: str,
        transposed: bool,
        attributes: Mapping[str, Any],
        weights: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        *,
        axis: int | None = None,
        integers: Integers | None = None,
        spread: NDArray[np.float32] | None = None,
    ) -> None:
        """`axis` of the output channels: with it weights are trained in units of their channel's size.

        `spread`: float32 (K,), the deviation of each output channel: the unit of biases.
        """
        super().__init__(1, 1, 1, bias=bias is not None, device="meta")
        self.node, self.transposed_kind, self.attributes, self.integers = node, transposed, dict(attributes), integers
        unit = np.ones([1] * weights.ndim, np.float32)
        if axis is not None:
            others = tuple(d for d in range(weights.ndim) if d != axis)
            unit = power_of_two(np.sqrt(np.mean(weights.astype(np.float64) ** 2, axis=others, keepdims=True)))
        self.register_buffer("unit", torch.from_numpy(unit))
        self.weight = nn.Parameter(torch.from_numpy(weights.astype(np.float32)) / self.unit)
        if bias is not None:
            given = np.ones(len(bias), np.float32) if spread is None else power_of_two(spread)
            self.register_buffer("bias_unit", torch.from_numpy(given))
            self.bias = nn.Parameter(torch.from_numpy(bias.astype(np.float32)) / self.bias_unit)
        if integers is not None:  # what it is shows in the state, by which runs are told apart
            held = torch.tensor([integers.bits, integers.bias_scale or 0.0], dtype=torch.float64)
            self.register_buffer("integers_held", held)
        self.exact = False
        self._passes = 0
        self._found: tuple[Tensor, Tensor | None, Tensor] | None = None  # weights, bias, and the scales found for them

    def values(self) -> tuple[Tensor, Tensor | None]:
        """The weights and the bias (K,) as floats: what the FP32 graph is to hold."""
        return self.weight * self.unit, None if self.bias is None else self.bias * self.bias_unit

    def forward(self, x: Tensor) -> Tensor:
        weights, bias = self.values()
        if self.integers is not None:
            scales = self._scales(weights.detach(), None if bias is None else bias.detach())
            shape = [-1 if place == self.integers.axis else 1 for place in range(weights.dim())]
            weights = quantized_weights(weights, scales.view(shape), 2 ** (self.integers.bits - 1) - 1)
            if bias is not None and self.integers.bias_scale is not None:
                # in float64, as the writer computes them
                exact = quantized_weights(bias.double(), scales.double() * self.integers.bias_scale, MOST_BIAS)
                bias = exact.float()
        run = conv_transpose if self.transposed_kind else conv
        if self.exact and self.integers is not None:
            wide = None if bias is None else bias.double()
            return run(x.double(), weights.double(), wide, **self.attributes).float()
        return run(x, weights, bias, **self.attributes)

    def _scales(self, weights: Tensor, bias: Tensor | None) -> Tensor:
        """The scales (K,) that the writer of the INT8 graph would choose; in training those of some passes ago."""
        if torch.is_grad_enabled() and self._will_do():
            assert self._found is not None
            return self._found[2].to(weights.device)
        if self._found is not None and _same(self._found[0], weights) and _same(self._found[1], bias):
            return self._found[2].to(weights.device)
        assert self.integers is not None
        numbers = weights.cpu().numpy()
        scales = weight_scales(numbers, axis=self.integers.axis, bits=self.integers.bits, narrow=True, method="mse")
        if bias is not None and self.integers.bias_scale is not None:
            # As the writer: no steps too fine for the bias.
            size = np.abs(bias.cpu().numpy(), dtype=np.float64)
            least = np.maximum(size / 2.0**30, SMALLEST_SCALE) / self.integers.bias_scale
            scales = np.maximum(scales, least.astype(np.float32))
        found = torch.from_numpy(scales).to(weights.device)
        self._found = (weights.clone(), None if bias is None else bias.clone(), found)
        return found

    def _will_do(self) -> bool:
        """Whether the scales at hand will do for this pass of training, which is counted."""
        self._passes += 1
        return self._found is not None and self._passes % EVERY != 0


@contextmanager
def exactly(network: nn.Module) -> Iterator[None]:
    """Sums of products of integers without rounding errors, as integer kernels have them; slower by several times.

    A value next to the border of two codes else falls to either side by the order in which floats are added.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, Convolution)]
    for layer in layers:
        layer.exact = True
    try:
        yield
    finally:
        for layer in layers:
            layer.exact = False


def power_of_two(sizes: NDArray[Any]) -> NDArray[np.float32]:
    """The powers of two next to sizes, 1 for those that are 0: dividing by them and multiplying again is exact."""
    sizes = np.asarray(sizes, np.float64)
    exponents = np.rint(np.log2(np.where(sizes > 0, sizes, 1.0)))
    found: NDArray[np.float32] = np.exp2(np.clip(exponents, -60, 60)).astype(np.float32)
    return found


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.device == b.device and torch.equal(a, b)
