"""A network with the traits that today's quantizers lose accuracy on.

Parallel convolutions of few channels, dilated up to 16, are summed one after another and concatenated, so that the
parts of a concatenation differ in range; batch norm stands behind the concatenation, where no convolution can take it
up; PReLU; the image itself, made smaller, joins the features; transposed convolutions. Of the kind of ESPNet (Mehta et
al., 2018). Imports torch alone, so that a copy beside the weights is all that a spec's factory needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DILATIONS = (1, 2, 4, 8, 16)


class Bent(nn.Module):
    """Batch norm and PReLU, of what no convolution alone made."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(channels), nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(x))
        return out


class Conv(nn.Module):
    """Convolution, batch norm, PReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bent = Bent(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bent(self.conv(x))
        return out


class Pyramid(nn.Module):
    """Fewer channels, five dilated convolutions of them, their running sums side by side. `stride` 2: half the size."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        few = outputs // len(DILATIONS)
        first = outputs - few * (len(DILATIONS) - 1)
        kernel = 1 if stride == 1 else 3
        self.reduce = nn.Conv2d(inputs, few, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.branches = nn.ModuleList(
            nn.Conv2d(few, first if d == 1 else few, 3, padding=d, dilation=d, bias=False) for d in DILATIONS
        )
        self.bent = Bent(outputs)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        small = self.reduce(x)
        seen = [branch(small) for branch in self.branches]
        parts = seen[:2]
        for further in seen[2:]:
            parts.append(parts[-1] + further)
        joined = torch.cat(parts, dim=1)
        out: Tensor = self.bent(x + joined if self.residual else joined)
        return out


class Up(nn.Module):
    """Twice the size by a transposed convolution, cut to the size of `like`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)
        self.bent = Bent(channels)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        out: Tensor = self.bent(self.conv(x))
        return out[..., : like.shape[-2], : like.shape[-1]]


class Branchy(nn.Module):
    """Input (N, 3, H, W) of any H and W from 16; output logits (N, classes, H, W)."""

    def __init__(self, classes: int, middle: int = 2, deep: int = 3) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.level1, self.join1 = Conv(3, 16, 3, stride=2), Bent(16 + 3)
        self.down2, self.join2 = Pyramid(19, 64, stride=2), Bent(64 + 64 + 3)
        self.level2 = nn.Sequential(*(Pyramid(64, 64, residual=True) for _ in range(middle)))
        self.down3, self.join3 = Pyramid(131, 128, stride=2), Bent(128 + 128)
        self.level3 = nn.Sequential(*(Pyramid(128, 128, residual=True) for _ in range(deep)))
        self.classify, self.classify_norm = nn.Conv2d(256, classes, 1, bias=False), nn.BatchNorm2d(classes)
        self.up3, self.mix = Up(classes), Conv(classes + 131, 24, 1)
        self.combine, self.up2 = Pyramid(24, 20), Up(20)
        self.last = Conv(19 + 20, classes + 1, 3)
        self.head = nn.ConvTranspose2d(classes + 1, classes, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        half = self.pool(x)
        level1 = self.join1(torch.cat([self.level1(x), half], dim=1))
        down2 = self.down2(level1)
        level2 = self.join2(torch.cat([self.level2(down2), down2, self.pool(half)], dim=1))
        down3 = self.down3(level2)
        level3 = self.join3(torch.cat([down3, self.level3(down3)], dim=1))
        coarse = self.up3(self.classify_norm(self.classify(level3)), level2)
        finer = self.combine(self.mix(torch.cat([coarse, level2], dim=1)))
        finer = self.last(torch.cat([level1, self.up2(finer, level1)], dim=1))
        scores: Tensor = self.head(finer)
        return scores[..., : x.shape[-2], : x.shape[-1]]


def branchy(classes: int = 11) -> Branchy:
    return Branchy(classes)
