"""PSPNet: means over a few coarse grids beside the map itself.

Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeseg.zoo.blocks import ConvNorm, Segmenter, check, resized
from edgeseg.zoo.resnet import BLOCKS, STRIDES, ResNet, auxiliary_of


class PyramidPooling(nn.Module):
    """The map, and beside it for each number of bins the means over bins x bins parts of it, spread over it again."""

    def __init__(self, inputs: int, outputs: int, bins: Sequence[int], align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(count), *ConvNorm(inputs, outputs, 1)) for count in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        return torch.cat([x, *(resized(level(x), size, self.align_corners) for level in self.levels)], 1)


def pspnet(
    classes: int = 21,
    depth: int = 50,
    width: int = 64,
    bins: Sequence[int] = (1, 2, 3, 6),
    output_stride: int = 8,
    auxiliary: bool = False,
    align_corners: bool = True,
) -> nn.Module:
    """PSPNet on a dilated ResNet whose stem is three 3 x 3 convolutions, as its authors' networks have it.

    Zhao et al., CVPR 2017. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). `width`: channels of the
    stem's first convolution, 64 in the paper. `bins`: rows and columns of each grid; they need not divide the map.
    `auxiliary`: see edgeseg.zoo.blocks.Segmenter. `align_corners`: how the grids are enlarged, aligned by the authors.
    Raises ValueError for no bins, and for a depth and an output stride that there are not.
    """
    check(classes, width, depth=(depth, tuple(BLOCKS)), output_stride=(output_stride, STRIDES))
    if not bins or min(bins) < 1:
        raise ValueError(f"wanted one number of bins or more, each from 1, came {tuple(bins)}")
    backbone = ResNet(depth, width, output_stride, deep_stem=True)
    channels = backbone.channels["out"]
    each, inner = max(channels // len(bins), 1), max(channels // 4, 1)
    head = nn.Sequential(
        PyramidPooling(channels, each, tuple(bins), align_corners),
        *ConvNorm(channels + len(bins) * each, inner),
        nn.Dropout(0.1),
        nn.Conv2d(inner, classes, 1),
    )
    return Segmenter(backbone, head, auxiliary_of(backbone, classes, auxiliary))
