"""Fake quantization: the values that integers stand for, with gradients that pass as if nothing was rounded.

Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons" (2013), for the straight-through
gradient; Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(CVPR 2018), for training with it. Numbers are those of ONNX: round_half_even(x / scale) + zero_point, saturated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> Tensor:
        codes = torch.round(x / scale).add_(zero)
        ctx.save_for_backward((codes >= lowest) & (codes <= highest))
        return codes.clamp_(lowest, highest).sub_(zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, most: float) -> Tensor:
        return torch.round(x / scale).clamp_(-most, most).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None, None


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, *, lowest: int, highest: int) -> Tensor:
    """What QuantizeLinear and DequantizeLinear give for x float32; no gradient where it saturates.

    scale, zero: float32 scalars; zero is a whole number. lowest, highest: the codes that there are.
    """
    found: Tensor = _Activation.apply(x, scale, zero, lowest, highest)  # type: ignore[no-untyped-call]
    return found


def quantized_weights(weights: Tensor, scales: Tensor, most: float) -> Tensor:
    """Weights (or biases) on the grid of `scales`, which broadcasts with them: integers from -most to most.

    The gradient passes everywhere: a weight that is clipped today may come back, since scales follow the weights.
    """
    found: Tensor = _Rounded.apply(weights, scales, most)  # type: ignore[no-untyped-call]
    return found
