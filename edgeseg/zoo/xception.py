"""Aligned Xception, the encoder of DeepLabV3+.

Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, as Chen et al., ECCV 2018, changed
it: strides instead of max pooling, batch norm and ReLU after each depthwise convolution, more blocks in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from edgeseg.zoo.blocks import ConvNorm, SeparableConv


class Block(nn.Module):
    """Three separable convolutions, the last with the stride, and the input (through a 1 x 1 if it changes) added."""

    def __init__(self, inputs: int, widths: Sequence[int], stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential()
        before = inputs
        for number, width in enumerate(widths):
            last = number == len(widths) - 1
            self.body.append(SeparableConv(before, width, stride if last else 1, dilation))
            before = width
        self.shortcut = None
        if stride > 1 or before != inputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, before, 1, stride, bias=False), nn.BatchNorm2d(before))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return cast(Tensor, shortcut + self.body(x))


class AlignedXception(nn.Module):
    """Images (N, 3, H, W) to {"low", "out"}: maps at 1/4 and at 1/output_stride of the size.

    Attribute `channels`: those of each map, 256 and 2048 at the paper's width of 32.
    """

    def __init__(self, width: int = 32, depth: int = 16, output_stride: int = 16) -> None:
        super().__init__()
        middle = 91 * width // 4  # 728 for a width of 32
        third, rates = (2, (1, 2)) if output_stride == 16 else (1, (2, 4))  # rates of the middle, of what follows
        self.stem = nn.Sequential(ConvNorm(3, width, 3, 2), ConvNorm(width, 2 * width))
        self.entry1 = Block(2 * width, (4 * width,) * 3, 2)
        self.entry2 = Block(4 * width, (8 * width,) * 3, 2)
        self.entry3 = Block(8 * width, (middle,) * 3, third)
        self.middle = nn.Sequential(*(Block(middle, (middle,) * 3, 1, rates[0]) for _ in range(depth)))
        self.exit = Block(middle, (middle, 32 * width, 32 * width), 1, rates[0])
        self.end = nn.Sequential(
            SeparableConv(32 * width, 48 * width, dilation=rates[1]),
            SeparableConv(48 * width, 48 * width, dilation=rates[1]),
            SeparableConv(48 * width, 64 * width, dilation=rates[1]),
        )
        self.channels = {"low": 8 * width, "out": 64 * width}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.entry1(self.stem(x))
        low = self.entry2.body[:2](x)  # before the stride: at a quarter of the size
        assert self.entry2.shortcut is not None
        x = self.entry2.shortcut(x) + self.entry2.body[2](low)
        return {"low": low, "out": self.end(self.exit(self.middle(self.entry3(x))))}
