"""Lite R-ASPP on MobileNetV3-Large, as torchvision's lraspp_mobilenet_v3_large, whose parameters it names.

Howard et al., "Searching for MobileNetV3", ICCV 2019: sections 5 and 6.4, Tables 1 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from edgeseg.zoo.blocks import Segmenter, check, resized

# Table 1: kernel, expanded channels, channels, squeeze and excitation, hard swish in place of ReLU, stride
LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
LOW = 4  # the block whose map, an eighth of the image's size, is scored beside the last one
DILATED = 13  # from this block on dilation 2 in place of its stride, so that a sixteenth of the size is the least


def rounded(channels: float) -> int:
    """To a multiple of 8, of at least 90 percent."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class Unit(nn.Sequential):
    """Convolution, batch norm and an activation, or none."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, act: nn.Module | None, stride: int = 1, dilation: int = 1,
        groups: int = 1,
    ) -> None:  # fmt: skip
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
        norm = nn.BatchNorm2d(outputs, eps=0.001, momentum=0.01)
        super().__init__(conv, norm, *([] if act is None else [act]))


class Excitation(nn.Module):
    """Squeeze and excitation (Hu et al., CVPR 2018) to a quarter of the channels, with a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = rounded(channels // 4)
        self.pool, self.fc1, self.fc2 = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, few, 1),
            nn.Conv2d(few, channels, 1),
        )
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.gate(self.fc2(self.relu(self.fc1(self.pool(x)))))) * x


class Inverted(nn.Module):
    """1 x 1 to more channels, a depthwise convolution, 1 x 1 to few again, and the input added where it fits."""

    def __init__(
        self, inputs: int, kernel: int, wide: int, outputs: int, excite: bool, hard: bool, stride: int, dilation: int
    ) -> None:
        super().__init__()
        act = nn.Hardswish if hard else nn.ReLU
        parts: list[nn.Module] = [] if wide == inputs else [Unit(inputs, wide, 1, act())]
        parts.append(Unit(wide, wide, kernel, act(), 1 if dilation > 1 else stride, dilation, wide))
        parts += [Excitation(wide)] if excite else []
        self.block = nn.Sequential(*parts, Unit(wide, outputs, 1, None))
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.block(x))
        return y + x if self.added else y


class MobileNetV3(nn.Sequential):
    """Images (N, 3, H, W) to {"low", "out"}: maps at 1/8 and 1/16 of the size. Attribute `channels`: those of each."""

    def __init__(self, width: float) -> None:
        inputs = rounded(16 * width)
        layers: list[nn.Module] = [Unit(3, inputs, 3, nn.Hardswish(), 2)]
        self_channels = {}
        for number, (kernel, wide, outputs, excite, hard, stride) in enumerate(LARGE, 1):
            dilation, sizes = 2 if number >= DILATED else 1, (rounded(wide * width), rounded(outputs * width))
            layers.append(Inverted(inputs, kernel, *sizes, excite, hard, stride, dilation))
            inputs = sizes[1]
            if number == LOW:
                self_channels["low"] = inputs
        self_channels["out"] = 6 * inputs
        super().__init__(*layers, Unit(inputs, 6 * inputs, 1, nn.Hardswish()))
        self.channels = self_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for number, layer in enumerate(self):
            x = layer(x)
            if number == LOW:
                maps["low"] = x
        return maps | {"out": x}


class LiteHead(nn.Module):
    """The deep map, weighed by what the whole of it shows, and the larger one: the scores of both are added."""

    def __init__(self, low: int, high: int, inner: int, classes: int) -> None:
        super().__init__()
        self.cbr = nn.Sequential(nn.Conv2d(high, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, inner, 1, bias=False), nn.Sigmoid())
        self.low_classifier, self.high_classifier = nn.Conv2d(low, classes, 1), nn.Conv2d(inner, classes, 1)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        low, high = maps["low"], maps["out"]
        x = resized(self.cbr(high) * self.scale(high), low.shape[-2:])
        return cast(Tensor, self.low_classifier(low) + self.high_classifier(x))


def lraspp_mobilenet_v3_large(classes: int = 21, width: float = 1.0, inner: int = 128) -> nn.Module:
    """Lite R-ASPP on a dilated MobileNetV3-Large.

    Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). `width`: multiplies all channels of the backbone,
    which are then rounded to multiples of 8; `inner`: channels of the head. 3.22 million parameters at 21 classes.
    Raises ValueError for no class, and a width that is not positive.
    """
    check(classes, inner)
    if not width > 0:
        raise ValueError(f"wanted a width above 0, came {width}")
    backbone = MobileNetV3(width)
    head = LiteHead(backbone.channels["low"], backbone.channels["out"], inner, classes)
    return Segmenter(backbone, head, every=True)
