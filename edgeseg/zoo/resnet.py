"""ResNets and ResNeXts as encoders, and the networks that score their last map.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Xie et al., "Aggregated Residual Transformations
for Deep Neural Networks", CVPR 2017. The names of the parameters are those of torchvision's networks.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from edgeseg.zoo.blocks import ConvNorm, FCNHead, Segmenter, check

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STRIDES = (8, 16, 32)


class Basic(nn.Module):
    """Two 3 x 3 convolutions and the input added."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, inner: int, stride: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return cast(Tensor, self.relu(y + (x if self.downsample is None else self.downsample(x))))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 in groups with the stride, 1 x 1, and the input added."""

    expansion = 4

    def __init__(
        self, inputs: int, planes: int, inner: int, stride: int, dilation: int, groups: int, shuffle: bool = False
    ) -> None:
        super().__init__()
        outputs, points = planes * self.expansion, groups if shuffle else 1
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=points if inputs % points == 0 else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.shuffle = nn.ChannelShuffle(groups) if shuffle else None
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, dilation, dilation, groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, groups=points, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = y if self.shuffle is None else self.shuffle(y)
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return cast(Tensor, self.relu(y + (x if self.downsample is None else self.downsample(x))))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Images (N, 3, H, W) to {"layer1", "layer2", "layer3", "out"}: maps at 1/4, 1/8, 1/16 and 1/32 of the size.

    `output_stride` 8 or 16 keeps the deeper ones at that size, with dilated convolutions instead of strides (Chen et
    al. 2017; the first block after a stride that was left out keeps the dilation before it, as torchvision's does).
    `deep_stem`: three 3 x 3 convolutions instead of one 7 x 7. Attribute `channels`: those of each map.
    """

    def __init__(
        self,
        depth: int = 50,
        width: int = 64,
        output_stride: int = 32,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        shuffle: bool = False,
        deep_stem: bool = False,
    ) -> None:
        super().__init__()
        kind = Bottleneck if depth >= 50 else Basic
        stem = 2 * width if deep_stem else width
        self.conv1: nn.Module
        if deep_stem:
            self.conv1 = nn.Sequential(
                ConvNorm(3, width, 3, 2), ConvNorm(width, width), nn.Conv2d(width, stem, 3, padding=1, bias=False)
            )
        else:
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(stem), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        inputs, dilation, reached = stem, 1, 4
        self.channels: dict[str, int] = {}
        for number, count in enumerate(BLOCKS[depth], 1):
            planes, stride, before = width << (number - 1), 1 if number == 1 else 2, dilation
            if reached * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            inner = max(planes * width_per_group // 64, 1) * groups
            layer = nn.Sequential()
            for block in range(count):
                given = (inputs, planes, inner, stride if block == 0 else 1, dilation if block else before, groups)
                layer.append(Bottleneck(*given, shuffle=shuffle) if kind is Bottleneck else kind(*given))
                inputs = planes * kind.expansion
            self.add_module(f"layer{number}", layer)
            self.channels["out" if number == 4 else f"layer{number}"] = inputs

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = {}
        for number, name in enumerate(self.channels, 1):
            maps[name] = x = self.get_submodule(f"layer{number}")(x)
        return maps


def auxiliary_of(backbone: ResNet, classes: int, auxiliary: bool) -> dict[str, tuple[str, nn.Module]]:
    """The head on the third stage that DeepLabV3, FCN and PSPNet are trained with."""
    head = FCNHead(backbone.channels["layer3"], classes)
    return {"aux_classifier": ("layer3", head)} if auxiliary else {}


def fcn_resnet(
    classes: int = 21, depth: int = 50, width: int = 64, output_stride: int = 8, auxiliary: bool = False
) -> nn.Module:
    """A fully convolutional network on a dilated ResNet, as torchvision's fcn_resnet50 and fcn_resnet101.

    Long, Shelhamer and Darrell, CVPR 2015, on He et al., CVPR 2016. Takes float32 (N, 3, H, W), returns logits
    (N, classes, H, W). `width`: channels of the stem, 64 in the paper. `auxiliary`: see edgeseg.zoo.blocks.Segmenter.
    With 21 classes and the auxiliary head 35.3 million parameters (depth 101: 54.3). Raises ValueError for a depth
    that is not 18, 34, 50, 101 or 152, and an output stride that is not 8, 16 or 32.
    """
    check(classes, width, depth=(depth, tuple(BLOCKS)), output_stride=(output_stride, STRIDES))
    backbone = ResNet(depth, width, output_stride)
    head = FCNHead(backbone.channels["out"], classes)
    return Segmenter(backbone, head, auxiliary_of(backbone, classes, auxiliary))


def resnext(
    classes: int = 21,
    depth: int = 50,
    width: int = 64,
    groups: int = 32,
    width_per_group: int = 4,
    output_stride: int = 8,
    shuffle: bool = False,
    auxiliary: bool = False,
) -> nn.Module:
    """The same on a ResNeXt, whose 3 x 3 convolutions are in groups: 32 x 4d by default (Xie et al., CVPR 2017).

    `shuffle`: its 1 x 1 convolutions are in groups too, with a channel shuffle between so that groups meet (Zhang et
    al., "ShuffleNet", CVPR 2018). Raises ValueError as fcn_resnet does, and for a depth that has no bottlenecks.
    """
    deep = tuple(number for number in BLOCKS if number >= 50)
    check(classes, width, depth=(depth, deep), output_stride=(output_stride, STRIDES))
    if groups < 1 or width_per_group < 1:
        raise ValueError(f"groups and their width are positive: {groups=}, {width_per_group=}")
    backbone = ResNet(depth, width, output_stride, groups=groups, width_per_group=width_per_group, shuffle=shuffle)
    head = FCNHead(backbone.channels["out"], classes)
    return Segmenter(backbone, head, auxiliary_of(backbone, classes, auxiliary))
