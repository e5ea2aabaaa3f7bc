"""SegNet: max-pooling remembers where each largest value was, and the decoder puts its values back there.

Badrinarayanan, Kendall and Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
PAMI 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from edgeseg.zoo.blocks import ConvNorm, check
from edgeseg.zoo.fcn import VGG16


class SegNet(nn.Module):
    """Images float32 (N, 3, H, W) to logits (N, classes, H, W); H and W from 2 ** stages."""

    def __init__(self, classes: int, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        widths = [width << min(number, 3) for number in range(len(depths))]
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)
        self.down = nn.ModuleList(
            _stage([before] + [after] * depth)
            for before, after, depth in zip((3, *widths), widths, depths, strict=False)
        )
        self.up = nn.ModuleList(
            _stage([after] * depth + [before])
            for before, after, depth in zip((widths[0], *widths), widths, depths, strict=False)
        )
        self.up[0] = nn.Sequential(*_stage([widths[0]] * depths[0]), nn.Conv2d(widths[0], classes, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for stage in self.down:
            full = stage(x)
            x, places = self.pool(full)
            kept.append((places, full.shape[-2:]))
        for number in reversed(range(len(kept))):
            places, size = kept[number]
            x = self.up[number](self.unpool(x, places, output_size=size))
        return x


def _stage(channels: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(ConvNorm(a, b) for a, b in pairwise(channels)))


def segnet(classes: int = 11, width: int = 64, depths: Sequence[int] = VGG16) -> nn.Module:
    """SegNet: the 13 convolutions of VGG-16, and as many back.

    Badrinarayanan, Kendall and Cipolla, PAMI 2017. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W).
    `width`: channels of the first stage, 64 in the paper. `depths`: convolutions of each stage. The default has 29.4
    million parameters. Raises ValueError for no stages.
    """
    check(classes, width)
    if not depths or min(depths) < 1:
        raise ValueError(f"wanted at least one stage of at least one convolution, came depths={tuple(depths)}")
    return SegNet(classes, width, tuple(depths))
