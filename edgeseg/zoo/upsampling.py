"""A small encoder and decoder whose up-sampling is one of all the usual ones, to compare them."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeseg.zoo.blocks import Bilinear, ConvNorm, check

How = Literal["nearest", "replicate", "bilinear", "bicubic", "zeros", "unpool", "transposed"]


class Up(nn.Module):
    """Maps (N, C, H, W) to twice their size, or one row or column less."""

    def __init__(self, channels: int, how: How, align_corners: bool) -> None:
        super().__init__()
        self.how = how
        self.align_corners = align_corners if how in ("bilinear", "bicubic") else None
        self.learned = Bilinear(channels, 2) if how == "transposed" else None
        self.unpool = nn.MaxUnpool2d(2, 2) if how == "unpool" else None
        if how == "zeros":
            corner = torch.zeros(channels, 1, 2, 2)
            corner[:, :, 0, 0] = 1
            self.register_buffer("corner", corner, persistent=False)

    def forward(self, x: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
        if self.unpool is not None:
            return cast(Tensor, self.unpool(x, places, output_size=size))
        if self.how in ("nearest", "bilinear", "bicubic"):
            return functional.interpolate(x, size=size, mode=self.how, align_corners=self.align_corners)
        if self.learned is not None:
            x = self.learned(x)
        elif self.how == "zeros":
            x = functional.conv_transpose2d(x, cast(Tensor, self.corner), stride=2, groups=x.shape[1])
        else:
            count, channels, height, width = x.shape
            x = x.view(count, channels, height, 1, width, 1).expand(-1, -1, -1, 2, -1, 2)
            x = x.reshape(count, channels, 2 * height, 2 * width)
        return x[..., : size[0], : size[1]]


class Upsampler(nn.Module):
    """Images float32 (N, 3, H, W) to logits (N, classes, H, W)."""

    def __init__(self, classes: int, width: int, how: How, align_corners: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList([ConvNorm(3, width), ConvNorm(width, 2 * width), ConvNorm(2 * width, 2 * width)])
        self.up = nn.ModuleList(Up(channels, how, align_corners) for channels in (2 * width, width))
        self.after = nn.ModuleList([ConvNorm(2 * width, width), ConvNorm(width, width)])
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=how != "unpool", return_indices=True)
        self.score = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[tuple[Tensor, tuple[int, int]]] = []
        for number, conv in enumerate(self.down):
            x = conv(x)
            if number < len(self.up):
                size = (x.shape[-2], x.shape[-1])
                x, places = self.pool(x)
                kept.append((places, size))
        for up, after in zip(self.up, self.after, strict=True):
            x = after(up(x, *kept.pop()))
        return cast(Tensor, self.score(x))


def upsampler(classes: int = 11, width: int = 16, how: How = "nearest", align_corners: bool = False) -> nn.Module:
    """Two poolings and two up-samplings by 2, each followed by a 3 x 3 convolution. No skips, no published network.

    Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). `how`: "nearest" or "replicate" (the same, as an
    interpolation and as a repetition), "bilinear" and "bicubic" (`align_corners` or half-pixel centres), "zeros" (each
    value once, zeros around it), "unpool" (each value where the largest was that it is pooled from: SegNet's), or
    "transposed" (a learned transposed convolution that starts as bilinear). Raises ValueError for another.
    """
    check(classes, width, how=(how, get_args(How)))
    return Upsampler(classes, width, how, align_corners)
