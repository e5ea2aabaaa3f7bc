"""The words of rewriting: what a convolution is without its weights, what may stand in its place, and what came of it.

Sizes are (height, width). A rewrite of one layer is a chain of pieces without a non-linearity between them, so it
computes what one convolution computes whose kernel has a structure: its `effective` kernel, a matrix (Co, D) with
D = Ci * kh * kw in the order of `weight.flatten(1)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution with zero padding, without its weights."""

    inputs: int
    outputs: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def depth(self) -> int:
        """D: how many products make one output."""
        return self.inputs // self.groups * self.taps

    @property
    def parameters(self) -> int:
        """Of the kernel, without the bias."""
        return self.outputs * self.depth

    def after(self, size: Pair) -> Pair:
        """The size of what it gives for an input of `size`."""
        height, width = (
            (size[axis] + 2 * self.padding[axis] - self.dilation[axis] * (self.kernel[axis] - 1) - 1)
            // self.stride[axis]
            + 1
            for axis in (0, 1)
        )
        return height, width


@dataclass(frozen=True, slots=True)
class Fork:
    """Convolutions of the same input side by side; their outputs are concatenated."""

    convs: tuple[Conv, ...]


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Channels (groups, n) become (n, groups), as in ShuffleNet (Zhang et al. 2018)."""

    groups: int


@dataclass(frozen=True, slots=True)
class Take:
    """Some of the input's channels, by an index."""

    count: int


Piece: TypeAlias = Conv | Fork | Shuffle | Take


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to rewrite one layer: a rule, how much it may keep, and the pieces that this gives."""

    rule: str
    ranks: tuple[int, ...]  # what they count is for the rule to say
    pieces: tuple[Piece, ...]  # the last is a Conv that gives all outputs of the layer, and carries the bias

    @property
    def label(self) -> str:
        return f"{self.rule} {'x'.join(map(str, self.ranks))}" if self.ranks else self.rule


@dataclass(frozen=True, slots=True)
class Fitted:
    """The weights of a choice: for each piece a kernel, a fork's kernels, a Take's index (int64), or None."""

    weights: tuple[Tensor | tuple[Tensor, ...] | None, ...]
    effective: Tensor  # float64 (Co, D)


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution of the network, by the name of its module."""

    name: str
    conv: Conv
    size: Pair  # of its input; of the largest, if it is called several times
    positions: int  # outputs per channel and image, summed over its calls
    calls: int = 1

    @property
    def macs(self) -> int:
        """Multiplications for one image."""
        return self.conv.parameters * self.positions


def parameters(pieces: Sequence[Piece]) -> int:
    return sum(conv.parameters for piece in pieces for conv in convs(piece))


def convs(piece: Piece) -> tuple[Conv, ...]:
    if isinstance(piece, Fork):
        return piece.convs
    return (piece,) if isinstance(piece, Conv) else ()


def macs(pieces: Sequence[Piece], size: Pair) -> int:
    """Multiplications for one image of `size`."""
    total = 0
    for piece in pieces:
        after = size
        for conv in convs(piece):
            after = conv.after(size)
            total += conv.parameters * prod(after)
        size = after
    return total
