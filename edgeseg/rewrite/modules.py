"""From values to modules: the pieces of a choice as what runs and exports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeseg.rewrite import values
from edgeseg.rewrite.values import Choice, Conv, Fitted


class Fork(nn.Module):
    """Convolutions of the same input side by side: (n, c, h, w) to their outputs, concatenated on the channels."""

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], 1)


class Shuffle(nn.Module):
    """Channels (groups, n) become (n, groups): output j * groups + i is input i * n + j (Zhang et al. 2018)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        # The batch is the free dimension of both views, so that an exported graph holds for any number of images; after
        # a transpose `reshape` would be exported with the number that it saw.
        _, channels, height, width = x.shape
        split = x.reshape(-1, self.groups, channels // self.groups, height, width)
        return split.transpose(1, 2).contiguous().view(-1, channels, height, width)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"


class Take(nn.Module):
    """Some of the input's channels, in the order of `index` (int64)."""

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.detach().to(torch.int64).clone())

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)

    def extra_repr(self) -> str:
        return f"count={len(self.index)}"


def assemble(choice: Choice, fitted: Fitted, bias: Tensor) -> nn.Sequential:
    """The modules of a choice with its fitted weights and the bias (Co) on the last convolution.

    float32, in eval mode, nothing requires a gradient; all tensors are copies.
    """
    last = choice.pieces[-1]
    assert isinstance(last, Conv), f"{choice.label} does not end in a convolution"
    assert len(choice.pieces) == len(fitted.weights), f"{choice.label} has a weight too many or too few"
    parts: list[nn.Module] = []
    for number, (piece, weight) in enumerate(zip(choice.pieces, fitted.weights, strict=True), 1):
        ends = number == len(choice.pieces)
        if isinstance(piece, values.Shuffle):
            parts.append(Shuffle(piece.groups))
        elif isinstance(piece, values.Take):
            assert isinstance(weight, Tensor)
            assert len(weight) == piece.count
            parts.append(Take(weight))
        elif isinstance(piece, values.Fork):
            assert isinstance(weight, tuple)
            parts.append(Fork([_conv(conv, kernel, None) for conv, kernel in zip(piece.convs, weight, strict=True)]))
        else:
            assert isinstance(weight, Tensor)
            parts.append(_conv(piece, weight, bias if ends else None))
    return nn.Sequential(*parts).eval().requires_grad_(False)


def blank(choice: Choice) -> nn.Sequential:
    """The modules of a choice with small random weights, always the same: for measuring time."""
    generator = torch.Generator().manual_seed(0)

    def kernel(conv: Conv) -> Tensor:
        # Of the scale that keeps the variance: denormal numbers would be slow, infinities too.
        shape = (conv.outputs, conv.inputs // conv.groups, *conv.kernel)
        return torch.randn(shape, generator=generator) / math.sqrt(conv.depth)

    weights: list[Tensor | tuple[Tensor, ...] | None] = []
    for piece in choice.pieces:
        if isinstance(piece, values.Shuffle):
            weights.append(None)
        elif isinstance(piece, values.Take):
            weights.append(torch.arange(piece.count))
        elif isinstance(piece, values.Fork):
            weights.append(tuple(map(kernel, piece.convs)))
        else:
            weights.append(kernel(piece))
    outputs = values.convs(choice.pieces[-1])[-1].outputs
    return assemble(choice, Fitted(tuple(weights), torch.empty(0)), torch.zeros(outputs))


def _conv(conv: Conv, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    made = nn.Conv2d(
        conv.inputs,
        conv.outputs,
        conv.kernel,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=bias is not None,
        device="meta",  # else it would draw its weights from the caller's random state
    )
    assert weight.shape == made.weight.shape, f"a kernel {tuple(weight.shape)} for {tuple(made.weight.shape)}"
    made.weight = nn.Parameter(weight.detach().to(torch.float32, copy=True).contiguous())
    if bias is not None:
        assert bias.shape == (conv.outputs,), f"a bias {tuple(bias.shape)} for {conv.outputs} outputs"
        made.bias = nn.Parameter(bias.detach().to(torch.float32, copy=True))
    return made
