"""The Unet, FPN and DeepLabV3Plus of segmentation_models_pytorch on its ResNet encoders, for checkpoints of it.

The names of their parameters are that library's below `decoder`; edgeseg.intake translates the rest. Each takes
float32 (N, 3, H, W) and returns logits (N, classes, H, W); that library wants sizes that are multiples of 32 (of 16
for DeepLabV3Plus), others are taken here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeseg.zoo.blocks import ConvNorm, Segmenter, check, resized
from edgeseg.zoo.deeplab import ImagePooling
from edgeseg.zoo.resnet import BLOCKS, ResNet


class Encoder(ResNet):
    """A ResNet that also gives the map before its pooling, "stem", at half the size."""

    def __init__(self, depth: int, width: int, output_stride: int = 32) -> None:
        super().__init__(depth, width, output_stride)
        self.channels = {"stem": width, **self.channels}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.relu(self.bn1(self.conv1(x)))
        maps, x = {"stem": x}, self.maxpool(x)
        for number, name in enumerate([*self.channels][1:], 1):
            maps[name] = x = self.get_submodule(f"layer{number}")(x)
        return maps


class Double(nn.Module):
    """The deeper map enlarged by repetition, the skip beside it, two 3 x 3 convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(inputs, outputs), ConvNorm(outputs, outputs)

    def forward(self, x: Tensor, size: Sequence[int], skip: Tensor | None) -> Tensor:
        x = functional.interpolate(x, size=tuple(size), mode="nearest")
        return cast(Tensor, self.conv2(self.conv1(x if skip is None else torch.cat([x, skip], 1))))


class UnetDecoder(nn.Module):
    def __init__(self, channels: Mapping[str, int], widths: Sequence[int], classes: int) -> None:
        super().__init__()
        sources = list(channels.values())[::-1]
        inputs = [sources[0], *widths[:-1]]
        skips = [*sources[1:], 0]
        self.blocks = nn.ModuleList(Double(i + s, o) for i, s, o in zip(inputs, skips, widths, strict=True))
        self.score = nn.Conv2d(widths[-1], classes, 3, padding=1)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        x, *skips = [*maps.values()][::-1]
        for block, skip in zip(self.blocks, skips, strict=False):
            x = block(x, skip.shape[-2:], skip)
        # the stem is at half the size, rounded up: the last block doubles that, and the rest is cut off by resizing
        x = self.blocks[-1](x, [2 * side for side in x.shape[-2:]], None)
        return cast(Tensor, self.score(x))


class Lateral(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.skip_conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        larger = functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
        return cast(Tensor, self.skip_conv(skip)) + larger


class Grouped(nn.Module):
    """3 x 3 convolution, group norm of 32 groups (Wu and He, ECCV 2018), ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(32, outputs), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.block(x))


class Raised(nn.Module):
    """A map brought to a quarter of the image's size, each step a convolution and a bilinear doubling, or one alone."""

    def __init__(self, inputs: int, outputs: int, steps: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*(Grouped(outputs if k else inputs, outputs) for k in range(max(steps, 1))))

    def forward(self, x: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        for number, part in enumerate(self.block):
            x = part(x)
            x = resized(x, sizes[number], True) if number < len(sizes) else x
        return x


class FPNDecoder(nn.Module):
    def __init__(self, channels: Mapping[str, int], pyramid: int, inner: int, classes: int) -> None:
        super().__init__()
        c2, c3, c4, c5 = [*channels.values()][1:]
        self.p5 = nn.Conv2d(c5, pyramid, 1)
        self.p4, self.p3, self.p2 = Lateral(c4, pyramid), Lateral(c3, pyramid), Lateral(c2, pyramid)
        self.seg_blocks = nn.ModuleList(Raised(pyramid, inner, steps) for steps in (3, 2, 1, 0))
        self.drop, self.score = nn.Dropout2d(0.2), nn.Conv2d(inner, classes, 1)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        _, c2, c3, c4, c5 = maps.values()
        p5 = self.p5(c5)
        p4 = self.p4(p5, c4)
        p3 = self.p3(p4, c3)
        sizes = [part.shape[-2:] for part in (c4, c3, c2)]
        parts = zip(self.seg_blocks, (p5, p4, p3, self.p2(p3, c2)), (sizes, sizes[1:], sizes[2:], []), strict=True)
        x = torch.stack([block(part, steps) for block, part, steps in parts]).sum(0)
        return cast(Tensor, self.score(self.drop(x)))


def depthwise(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """3 x 3 in each channel, then 1 x 1, with nothing between."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, 1, dilation, dilation, inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
    )


def normed(conv: nn.Module, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Pooled(nn.Module):
    """ASPP whose dilated convolutions are depthwise separable."""

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int]) -> None:
        super().__init__()
        wide = (normed(depthwise(inputs, outputs, rate), outputs) for rate in rates)
        self.convs = nn.ModuleList([ConvNorm(inputs, outputs, 1), *wide, ImagePooling(inputs, outputs)])
        self.project = nn.Sequential(*ConvNorm(len(self.convs) * outputs, outputs, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.project(torch.cat([conv(x) for conv in self.convs], 1)))


class PlusDecoder(nn.Module):
    def __init__(self, channels: Mapping[str, int], inner: int, classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        narrow = max(3 * inner // 16, 1)
        self.aspp = nn.Sequential(
            Pooled(channels["out"], inner, rates), *normed(depthwise(inner, inner), inner)
        )  # fmt: skip
        self.block1 = ConvNorm(channels["layer1"], narrow, 1)
        self.block2 = normed(depthwise(narrow + inner, inner), inner)
        self.score = nn.Conv2d(inner, classes, 1)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        low = self.block1(maps["layer1"])
        deep = resized(self.aspp(maps["out"]), low.shape[-2:], True)
        return cast(Tensor, self.score(self.block2(torch.cat([deep, low], 1))))


class Aligned(Segmenter):
    """Scores enlarged with their corners aligned, as that library does."""

    def forward(self, x: Tensor) -> Tensor:
        return resized(self.classifier(self.backbone(x)), x.shape[-2:], True)


def smp_unet(
    classes: int = 1, depth: int = 34, width: int = 64, widths: Sequence[int] = (256, 128, 64, 32, 16)
) -> nn.Module:
    """segmentation_models_pytorch's Unet("resnet<depth>"): a U-Net (Ronneberger et al. 2015) on a ResNet.

    `depth`: 18, 34, 50, 101 or 152. `width`: channels of the stem. `widths`: those of the decoder's five blocks, its
    `decoder_channels`. Raises ValueError for another depth, and for another number of widths.
    """
    check(classes, width, depth=(depth, tuple(BLOCKS)))
    if len(widths) != 5 or min(widths) < 1:
        raise ValueError(f"wanted channels of five decoder blocks, each from 1, came {tuple(widths)}")
    encoder = Encoder(depth, width)
    return Aligned(encoder, UnetDecoder(encoder.channels, tuple(widths), classes))


def smp_fpn(classes: int = 1, depth: int = 34, width: int = 64, pyramid: int = 256, inner: int = 128) -> nn.Module:
    """segmentation_models_pytorch's FPN("resnet<depth>"): Kirillov et al., CVPR 2019, on Lin et al., CVPR 2017.

    `pyramid` and `inner`: its `decoder_pyramid_channels` and `decoder_segmentation_channels`, a multiple of 32. See
    `smp_unet`; raises ValueError for other channels.
    """
    check(classes, width, depth=(depth, tuple(BLOCKS)))
    if pyramid < 1 or inner < 32 or inner % 32:
        raise ValueError(f"wanted {pyramid=} from 1 and {inner=} a multiple of 32")
    encoder = Encoder(depth, width)
    return Aligned(encoder, FPNDecoder(encoder.channels, pyramid, inner, classes))


def smp_deeplabv3plus(
    classes: int = 1, depth: int = 34, width: int = 64, inner: int = 256, rates: Sequence[int] = (12, 24, 36)
) -> nn.Module:
    """segmentation_models_pytorch's DeepLabV3Plus("resnet<depth>") with its output stride 16 (Chen et al., ECCV 2018).

    `inner`: its `decoder_channels`. In the last stage all 3 x 3 convolutions are dilated, the first too. See
    `smp_unet`.
    """
    check(classes, width, depth=(depth, tuple(BLOCKS)))
    encoder = Encoder(depth, width, 16)
    for module in encoder.get_submodule("layer4").modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation = module.padding = (2, 2)
    return Aligned(encoder, PlusDecoder(encoder.channels, inner, classes, tuple(rates)))
