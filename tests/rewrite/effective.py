"""What a chain of pieces really computes, found slowly: by running it with torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeseg.rewrite.values import Choice, Conv, Fitted, Fork, Piece, Shuffle, Take

Weights = Tensor | tuple[Tensor, ...] | None


def run(choice: Choice, fitted: Fitted, x: Tensor) -> Tensor:
    """The chain without its bias, in float64, on x (n, Ci, H, W). Raises AssertionError for weights of wrong shapes."""
    x = x.double()
    assert len(choice.pieces) == len(fitted.weights)
    assert isinstance(choice.pieces[-1], Conv)
    for piece, weights in zip(choice.pieces, fitted.weights, strict=True):
        x = _apply(piece, weights, x)
    return x


def dense(weight: Tensor, conv: Conv, x: Tensor) -> Tensor:
    """The layer with a kernel (Co, D) or (Co, Ci / groups, kh, kw) in its place, in float64, without bias."""
    kernel = weight.double().reshape(conv.outputs, conv.inputs // conv.groups, *conv.kernel)
    return F.conv2d(x.double(), kernel, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def effective_of(choice: Choice, fitted: Fitted, conv: Conv) -> Tensor:
    """The kernel (Co, D) float64 that the chain has as one convolution with the geometry of `conv` (groups of 1).

    A chain is linear, so the derivative of one output in the middle by every pixel of every input channel is what an
    impulse there makes of that output. Raises AssertionError if a pixel outside of the kernel's window reaches it too.
    """
    reach = [conv.dilation[axis] * (conv.kernel[axis] - 1) + 1 for axis in (0, 1)]
    middle = [2 + (reach[axis] + conv.padding[axis]) // conv.stride[axis] for axis in (0, 1)]
    first = [middle[axis] * conv.stride[axis] - conv.padding[axis] for axis in (0, 1)]
    size = [first[axis] + 2 * reach[axis] + 2 * conv.stride[axis] for axis in (0, 1)]
    image = torch.zeros(conv.outputs, conv.inputs, *size, dtype=torch.float64, requires_grad=True)
    answer = run(choice, fitted, image)
    assert not answer.any(), "it is not linear"
    answer[:, :, middle[0], middle[1]].diagonal().sum().backward()  # type: ignore[no-untyped-call]
    assert image.grad is not None
    seen = image.grad.clone()
    rows = slice(first[0], first[0] + reach[0], conv.dilation[0])
    columns = slice(first[1], first[1] + reach[1], conv.dilation[1])
    kernel = seen[:, :, rows, columns].clone()
    seen[:, :, rows, columns] = 0
    assert not seen.any(), "it sees pixels outside of the layer's window"
    return kernel.flatten(1)


def runs_like(choice: Choice, fitted: Fitted, conv: Conv, x: Tensor, margin: int = 0) -> bool:
    """Whether the chain gives on x, at every output pixel but the outermost `margin`, what one convolution gives with
    the effective kernel that the rule claims (relative to the largest output: 1e-6)."""
    answer, wanted = run(choice, fitted, x), dense(fitted.effective, conv, x)
    assert answer.shape == wanted.shape, f"{tuple(answer.shape)} instead of {tuple(wanted.shape)}"
    inside = (..., slice(margin, wanted.shape[-2] - margin), slice(margin, wanted.shape[-1] - margin))
    difference = float((answer - wanted)[inside].abs().max())
    return difference <= 1e-6 * float(wanted.abs().max())


def _apply(piece: Piece, weights: Weights, x: Tensor) -> Tensor:
    if isinstance(piece, Conv):
        assert isinstance(weights, Tensor)
        return _conv(piece, weights, x)
    if isinstance(piece, Fork):
        assert isinstance(weights, tuple)
        return torch.cat([_conv(part, kernel, x) for part, kernel in zip(piece.convs, weights, strict=True)], 1)
    if isinstance(piece, Shuffle):
        assert weights is None
        n, channels, height, width = x.shape
        grouped = x.reshape(n, piece.groups, channels // piece.groups, height, width)
        return grouped.transpose(1, 2).reshape(x.shape)
    assert isinstance(piece, Take)
    assert isinstance(weights, Tensor)
    assert weights.dtype == torch.int64
    assert weights.shape == (piece.count,)
    return x[:, weights]


def _conv(conv: Conv, kernel: Tensor, x: Tensor) -> Tensor:
    assert kernel.shape == (conv.outputs, conv.inputs // conv.groups, *conv.kernel), "the shape of a kernel"
    assert x.shape[1] == conv.inputs, "channels that come in"
    return F.conv2d(x, kernel.double(), None, conv.stride, conv.padding, conv.dilation, conv.groups)
