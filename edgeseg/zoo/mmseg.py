"""The networks that MMSegmentation calls fcn, deeplabv3 and pspnet _r50-d8 and _r101-d8, for checkpoints of it.

They differ from those of edgeseg.zoo.resnet, deeplab and psp_net: the stem is three 3 x 3 convolutions (ResNetV1c; He
et al., "Bag of Tricks", CVPR 2019), and the heads have 512 channels and a 3 x 3 convolution more. The names of the
heads' parameters are MMSegmentation's but for those of a convolution with its norm; edgeseg.intake translates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edgeseg.zoo.blocks import ConvNorm, Segmenter, check, resized
from edgeseg.zoo.deeplab import ImagePooling
from edgeseg.zoo.resnet import ResNet, auxiliary_of

DEPTHS = (50, 101, 152)
RATES = (12, 24, 36)


def resnet_v1c(depth: int, width: int) -> ResNet:
    """A dilated ResNet, its last map at an eighth of the size, whose stem is three 3 x 3 convolutions."""
    backbone, half = ResNet(depth, width, 8), width // 2
    backbone.conv1 = nn.Sequential(
        ConvNorm(3, half, 3, 2), ConvNorm(half, half), nn.Conv2d(half, width, 3, padding=1, bias=False)
    )
    return backbone


class Convolutions(nn.Module):
    """FCNHead of MMSegmentation: two 3 x 3, and a third that sees the map beside what they made of it."""

    def __init__(self, inputs: int, inner: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNorm(inputs, inner), ConvNorm(inner, inner))
        self.conv_cat = ConvNorm(inputs + inner, inner)
        self.conv_seg = nn.Conv2d(inner, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv_seg(self.conv_cat(torch.cat([x, self.convs(x)], 1))))


class Atrous(nn.Module):
    """ASPPHead: the image's mean, a 1 x 1 and dilated 3 x 3 convolutions side by side, and a 3 x 3 of all."""

    def __init__(self, inputs: int, inner: int, classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        pooling = ImagePooling(inputs, inner)
        self.image_pool = nn.Sequential(pooling[0], nn.Sequential(*list(pooling)[1:]))
        wide = (ConvNorm(inputs, inner, dilation=rate) for rate in rates)
        self.aspp_modules = nn.ModuleList([ConvNorm(inputs, inner, 1), *wide])
        self.bottleneck = ConvNorm((len(rates) + 2) * inner, inner)
        self.conv_seg = nn.Conv2d(inner, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [resized(self.image_pool(x), x.shape[-2:]), *(module(x) for module in self.aspp_modules)]
        return cast(Tensor, self.conv_seg(self.bottleneck(torch.cat(parts, 1))))


class Pyramid(nn.Module):
    """PSPHead: the map, means over a few grids spread over it again, and a 3 x 3 of all."""

    def __init__(self, inputs: int, inner: int, classes: int, bins: Sequence[int]) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(count), ConvNorm(inputs, inner, 1)) for count in bins
        )
        self.bottleneck = ConvNorm(inputs + len(bins) * inner, inner)
        self.conv_seg = nn.Conv2d(inner, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x, *(resized(module(x), x.shape[-2:]) for module in self.psp_modules)]
        return cast(Tensor, self.conv_seg(self.bottleneck(torch.cat(parts, 1))))


def mmseg_fcn(classes: int = 19, depth: int = 50, width: int = 64, auxiliary: bool = False) -> nn.Module:
    """MMSegmentation's fcn_r50-d8 and, with depth 101, fcn_r101-d8.

    Long, Shelhamer and Darrell, CVPR 2015. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). `width`:
    channels of the stem, an eighth of those of the head; even. `auxiliary`: see edgeseg.zoo.blocks.Segmenter. Raises
    ValueError for another depth than 50, 101 and 152.
    """
    return _network(Convolutions(32 * width, 8 * width, classes), classes, depth, width, auxiliary)


def mmseg_deeplabv3(classes: int = 19, depth: int = 50, width: int = 64, auxiliary: bool = False) -> nn.Module:
    """MMSegmentation's deeplabv3_r50-d8 and deeplabv3_r101-d8 (Chen et al. 2017); see `mmseg_fcn`."""
    return _network(Atrous(32 * width, 8 * width, classes, RATES), classes, depth, width, auxiliary)


def mmseg_pspnet(
    classes: int = 19, depth: int = 50, width: int = 64, auxiliary: bool = False, bins: Sequence[int] = (1, 2, 3, 6)
) -> nn.Module:
    """MMSegmentation's pspnet_r50-d8 and pspnet_r101-d8 (Zhao et al., CVPR 2017); see `mmseg_fcn`."""
    return _network(Pyramid(32 * width, 8 * width, classes, bins), classes, depth, width, auxiliary)


def _network(head: nn.Module, classes: int, depth: int, width: int, auxiliary: bool) -> nn.Module:
    check(classes, width, depth=(depth, DEPTHS))
    backbone = resnet_v1c(depth, width)
    return Segmenter(backbone, head, auxiliary_of(backbone, classes, auxiliary))
