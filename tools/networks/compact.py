"""A compact residual network: stages of few channels, dilated in the last, and transposed convolutions up again.

Its sums of branches and its batch norm behind a concatenation are what quantizers find hard. Imports torch alone, so
that a copy beside the weights is all that a spec's factory needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """Two 3x3 convolutions, the first dilated, added to what came in."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(x + self.second_norm(self.second(inner)))


class Down(nn.Module):
    """Half the size: a convolution and a pooling beside each other, normalised together."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs - inputs, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.max_pool2d(x, 2, ceil_mode=True)
        return functional.relu(self.norm(torch.cat([self.conv(x), pooled], dim=1)))


class Up(nn.Module):
    """Twice the size, cut to that of the skip that is added."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.block = Residual(outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        larger = functional.relu(self.norm(self.conv(x)))[..., : skip.shape[-2], : skip.shape[-1]]
        out: Tensor = self.block(larger + skip)
        return out


class Compact(nn.Module):
    """Input (N, 3, H, W) of any H and W from 16; output logits (N, classes, H, W)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = Down(3, 16), Down(16, 40), Down(40, 80)
        self.middle = nn.Sequential(*(Residual(40, dilation) for dilation in (1, 1, 2)))
        self.deep = nn.Sequential(*(Residual(80, dilation) for dilation in (1, 2, 4, 8, 2, 4)))
        self.up2, self.up1 = Up(80, 40), Up(40, 16)
        self.head = nn.ConvTranspose2d(16, classes, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        half = self.down1(x)
        quarter = self.middle(self.down2(half))
        deep = self.deep(self.down3(quarter))
        scores: Tensor = self.head(self.up1(self.up2(deep, quarter), half))
        return scores[..., : x.shape[-2], : x.shape[-1]]


def compact(classes: int = 11) -> Compact:
    return Compact(classes)
