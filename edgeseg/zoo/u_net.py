"""U-Nets: a compact one, the reference network of the examples and the tests, and the one of the paper.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015. The
compact one pads its convolutions and has batch norm after each (Ioffe and Szegedy, 2015), so that sizes are kept and
the norm folds into the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeseg.zoo.blocks import check
from edgeseg.zoo.patch import mirrored

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


class PaperUNet(nn.Module):
    """Images float32 (N, 3, H, W) to logits (N, classes, H, W). See unet_paper."""

    def __init__(self, classes: int, width: int, depth: int, padded: bool) -> None:
        super().__init__()
        widths, padding = [width << level for level in range(depth + 1)], int(padded)
        self.depth, self.padded = depth, padded
        self.down = nn.ModuleList(
            _two(before, after, padding) for before, after in zip((3, *widths), widths, strict=False)
        )
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(2 * to, to, 2, stride=2) for to in widths[-2::-1])
        self.up = nn.ModuleList(_two(2 * to, to, padding) for to in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        before, (down, right) = margins((height, width), self.depth, self.padded)
        if self.padded:
            x = functional.pad(x, (0, right, 0, down)) if down or right else x
        else:
            x = mirrored(x, before, max(down, right))[..., : before + height + down, : before + width + right]
        skips = []
        for level, pair in enumerate(self.down):
            x = pair(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for enlarge, pair in zip(self.enlarge, self.up, strict=True):
            x, skip = enlarge(x), skips.pop()
            top, left = (skip.shape[axis] - x.shape[axis] for axis in (2, 3))
            if top or left:
                skip = skip[..., top // 2 : top // 2 + x.shape[2], left // 2 : left // 2 + x.shape[3]]
            x = pair(torch.cat([skip, x], dim=1))
        scores = cast(Tensor, self.head(x))
        return scores if scores.shape[-2:] == (height, width) else scores[..., :height, :width]


def _two(inputs: int, outputs: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=padding),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=padding),
        nn.ReLU(),
    )


def margins(size: tuple[int, int], depth: int, padded: bool) -> tuple[int, tuple[int, int]]:
    """Rows and columns to add to an image: on the first side, and on the other, at least so many that all maps that
    are pooled are of even size, and that the scores are no smaller than the image."""
    step = 1 << depth
    if padded:
        return 0, (-size[0] % step, -size[1] % step)
    lost = 12 * step - 8  # by unpadded convolutions, on both sides together: 184 for a depth of 4
    first = lost // 2
    fits = (lost + 4) % step  # a size is 188 + 16 n for a depth of 4
    whole = [length + lost for length in size]
    down, right = (first + (fits - length) % step for length in whole)
    return first, (down, right)


def unet_paper(
    classes: int = 2, width: int = 64, depth: int = 4, skips: Literal["cropped", "padded"] = "cropped"
) -> nn.Module:
    """The U-Net of the paper: 23 convolutions, none of them padded, no batch norm, transposed convolutions of 2 x 2.

    Ronneberger, Fischer and Brox, MICCAI 2015. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). One class
    means one channel: foreground or not. `width`: channels of the first level, 64 in the paper. `depth`: poolings, 4
    in the paper. `skips`: "cropped" as in the paper, where maps shrink by what convolutions do not pad: the image is
    mirrored at its borders first, so that there are scores for all of it. "padded": convolutions pad, and images whose
    sizes are no multiples of 2 ** depth get zeros at the bottom and the right. 31.0 million parameters. Raises
    ValueError for other `skips`, and for a depth below 1.
    """
    check(classes, width, skips=(skips, ("cropped", "padded")))
    if depth < 1:
        raise ValueError(f"depth must be at least 1, but it is {depth}")
    return PaperUNet(classes, width, depth, skips == "padded")
