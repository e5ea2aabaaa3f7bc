"""A compact U-Net, the reference network of the examples and the tests.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, with
padding in the convolutions and batch norm after each (Ioffe and Szegedy, 2015), so that sizes are kept and the norm
folds into the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Upsample = Literal["nearest", "bilinear", "transposed"]


class Pair(nn.Sequential):
    """Two times 3 x 3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class Up(nn.Module):
    """The deeper features brought to the size of the skip, joined with it, and convolved."""

    def __init__(self, inputs: int, skip: int, outputs: int, upsample: Upsample) -> None:
        super().__init__()
        self.mode = "bilinear" if upsample == "bilinear" else "nearest"
        self.enlarge = nn.ConvTranspose2d(inputs, inputs, 2, stride=2) if upsample == "transposed" else None
        self.pair = Pair(inputs + skip, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.enlarge is not None:
            x = self.enlarge(x)
        if x.shape[-2:] != skip.shape[-2:]:
            align = False if self.mode == "bilinear" else None
            x = functional.interpolate(x, size=skip.shape[-2:], mode=self.mode, align_corners=align)
        return cast(Tensor, self.pair(torch.cat([x, skip], dim=1)))


class UNet(nn.Module):
    """Images float32 (N, 3, H, W) to logits (N, classes, H, W), for any H and W that survive the poolings."""

    def __init__(self, classes: int, widths: Sequence[int], upsample: Upsample) -> None:
        super().__init__()
        self.down = nn.ModuleList(Pair(before, after) for before, after in zip((3, *widths), widths, strict=False))
        self.up = nn.ModuleList(
            Up(deep, skip, skip, upsample) for deep, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, pair in enumerate(self.down):
            x = pair(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        return cast(Tensor, self.head(x))


def unet(classes: int = 11, widths: Sequence[int] = (16, 24, 32, 64, 112), upsample: Upsample = "nearest") -> nn.Module:
    """A U-Net with one level a width, the first at full resolution and each further one at half of the one before.

    Takes float32 (N, 3, H, W), returns logits (N, classes, H, W); H and W need not be even, each at least
    2 ** (len(widths) - 1). `upsample` is how the decoder enlarges: by repetition, bilinearly (half-pixel centres), or
    with a learned 2 x 2 transposed convolution. The default has 0.46 million parameters and 1.05 GMAC at 180 x 240.
    Raises ValueError for fewer than one class, for no widths, and for an unknown `upsample`.
    """
    if classes < 1 or not widths or min(widths) < 1:
        raise ValueError(f"a U-Net needs at least one class and one width, all positive: {classes=}, {widths=}")
    if upsample not in get_args(Upsample):
        raise ValueError(f"upsample must be one of {', '.join(get_args(Upsample))}, but it is {upsample!r}")
    return UNet(classes, tuple(widths), upsample)
