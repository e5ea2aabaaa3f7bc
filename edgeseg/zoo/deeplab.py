"""DeepLabV3 on ResNet, and DeepLabV3+ on Aligned Xception.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, and "Encoder-Decoder with Atrous
Separable Convolution for Semantic Image Segmentation", ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edgeseg.zoo.blocks import ConvNorm, Segmenter, SeparableConv, check, resized
from edgeseg.zoo.resnet import BLOCKS, ResNet, auxiliary_of
from edgeseg.zoo.xception import AlignedXception

RATES = {8: (12, 24, 36), 16: (6, 12, 18)}  # by output stride: they see the same part of the image


class ImagePooling(nn.Sequential):
    """The mean of the whole map through a 1 x 1 convolution, spread over the map again."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *ConvNorm(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x
        for step in self:
            mean = step(mean)
        return resized(mean, x.shape[-2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1 x 1, dilated 3 x 3 convolutions and the image's mean, side by side."""

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int], *, separable: bool = False) -> None:
        super().__init__()
        wide = [
            SeparableConv(inputs, outputs, dilation=rate) if separable else ConvNorm(inputs, outputs, dilation=rate)
            for rate in rates
        ]
        self.convs = nn.ModuleList([ConvNorm(inputs, outputs, 1), *wide, ImagePooling(inputs, outputs)])
        self.project = nn.Sequential(*ConvNorm(len(self.convs) * outputs, outputs, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.project(torch.cat([conv(x) for conv in self.convs], 1)))


class PlusHead(nn.Module):
    """ASPP of the deep map, enlarged, next to a narrow 1 x 1 of the map at a quarter of the size."""

    def __init__(self, low: int, deep: int, width: int, rates: Sequence[int], classes: int) -> None:
        super().__init__()
        narrow = max(3 * width // 16, 1)
        self.aspp = ASPP(deep, width, rates, separable=True)
        self.low = ConvNorm(low, narrow, 1)
        self.refine = nn.Sequential(SeparableConv(width + narrow, width), SeparableConv(width, width))
        self.score = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        low = self.low(maps["low"])
        deep = resized(self.aspp(maps["out"]), low.shape[-2:])
        return cast(Tensor, self.score(self.refine(torch.cat([deep, low], 1))))


def deeplabv3(
    classes: int = 21, depth: int = 101, width: int = 64, output_stride: int = 8, auxiliary: bool = False
) -> nn.Module:
    """DeepLabV3 on a ResNet, as torchvision's deeplabv3_resnet50 and deeplabv3_resnet101, whose parameters it names.

    Chen et al. 2017. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). `width`: channels of the ResNet's
    stem, a quarter of those of ASPP. `output_stride`: 8, or 16 with rates half as large. `auxiliary`: see
    edgeseg.zoo.blocks.Segmenter. With 21 classes and the auxiliary head 61.0 million parameters (depth 50: 42.0).
    Raises ValueError for another depth than ResNets have, and another output stride.
    """
    check(classes, width, depth=(depth, tuple(BLOCKS)), output_stride=(output_stride, tuple(RATES)))
    backbone = ResNet(depth, width, output_stride)
    inner = 4 * width
    head = nn.Sequential(
        ASPP(backbone.channels["out"], inner, RATES[output_stride]),
        *ConvNorm(inner, inner),
        nn.Conv2d(inner, classes, 1),
    )
    return Segmenter(backbone, head, auxiliary_of(backbone, classes, auxiliary))


def deeplabv3plus(classes: int = 21, width: int = 32, depth: int = 16, output_stride: int = 16) -> nn.Module:
    """DeepLabV3+ on Aligned Xception: depthwise separable convolutions throughout, and a decoder with one skip.

    Chen et al., ECCV 2018. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). `width`: channels of the
    first convolution, 32 in the paper; an eighth of those of ASPP. `depth`: blocks of the middle flow, 16 in the paper
    (Xception-65). `output_stride`: 16, or 8 with rates twice as large. Raises ValueError for another output stride.
    """
    check(classes, width, output_stride=(output_stride, tuple(RATES)))
    backbone = AlignedXception(width, depth, output_stride)
    head = PlusHead(backbone.channels["low"], backbone.channels["out"], 8 * width, RATES[output_stride], classes)
    return Segmenter(backbone, head, every=True)
