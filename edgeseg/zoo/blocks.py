"""What the architectures of this package are built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

AUXILIARY_WEIGHT = 0.3  # of each auxiliary loss: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015
Scores = Tensor | dict[str, Tensor]  # in training with auxiliary heads: "out" and the others by name


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, ReLU. Odd kernels keep the size unless `padding` says otherwise."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        stride: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        padding: int | tuple[int, int] | None = None,
    ) -> None:
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        if padding is None:
            padding = (dilation * (sides[0] // 2), dilation * (sides[1] // 2))
        super().__init__(
            nn.Conv2d(inputs, outputs, sides, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class SeparableConv(nn.Sequential):
    """Depthwise 3 x 3 and pointwise convolution, each with batch norm and ReLU (Howard et al., "MobileNets", 2017)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            ConvNorm(inputs, inputs, 3, stride, dilation=dilation, groups=inputs), ConvNorm(inputs, outputs, 1)
        )


class Branches(nn.ModuleList):
    """All of the modules on the same input, their outputs concatenated along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


def resized(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinearly to (height, width); nothing is done to what has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


class Bilinear(nn.ConvTranspose2d):
    """A transposed convolution that starts as bilinear up-sampling with half-pixel centres, each channel for itself.

    Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015. `factor`: even.
    With the default padding (H, W) becomes (factor * H, factor * W); near the border, beyond which there are zeros, it
    is less than interpolation gives.
    """

    def __init__(self, channels: int, factor: int, padding: int | None = None) -> None:
        if factor < 2 or factor % 2:
            raise ValueError(f"the factor of a bilinear transposed convolution is even, from 2, but it is {factor}")
        padding = factor // 2 if padding is None else padding
        super().__init__(channels, channels, 2 * factor, factor, padding, bias=False)

    def reset_parameters(self) -> None:
        size, factor = self.kernel_size[0], self.kernel_size[0] // 2
        line = 1 - (torch.arange(size, dtype=self.weight.dtype) + 0.5 - factor).abs() / factor
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.in_channels)[:, :, None, None] * torch.outer(line, line))


class FCNHead(nn.Sequential):
    """3 x 3 to a quarter of the channels, and a 1 x 1 that scores: the usual head, and the usual auxiliary one."""

    def __init__(self, inputs: int, classes: int) -> None:
        inner = max(inputs // 4, 1)
        super().__init__(*ConvNorm(inputs, inner), nn.Dropout(0.1), nn.Conv2d(inner, classes, 1))


class Decoder(nn.Module):
    """Scores from maps of several sizes: the deepest is resized to the next, added to a 1 x 1 of that, 3 x 3; again.

    Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, of which only the largest map is scored.
    """

    def __init__(self, inputs: Mapping[str, int], width: int, classes: int) -> None:
        super().__init__()
        self.names = tuple(inputs)
        self.lateral = nn.ModuleList(ConvNorm(channels, width, 1) for channels in inputs.values())
        self.smooth = nn.ModuleList(ConvNorm(width, width) for _ in self.names[1:])
        self.score = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        x: Tensor | None = None
        for number in reversed(range(len(self.names))):
            here = self.lateral[number](maps[self.names[number]])
            x = here if x is None else self.smooth[number](here + resized(x, here.shape[-2:]))
        return cast(Tensor, self.score(x))


class Segmenter(nn.Module):
    """Images float32 (N, 3, H, W) to logits (N, classes, H, W): backbone, classifier, bilinear to the image's size.

    `backbone` gives maps by name; `classifier` takes them all if `every`, else the one called "out". `auxiliary`:
    name of a head, such as "aux_classifier": the name of the map that it scores, and the head. The heads are used in
    training only: there the network returns a dict with "out" and, for "aux_classifier", "aux"; in evaluation, and so
    in whatever is exported, the logits alone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        auxiliary: Mapping[str, tuple[str, nn.Module]] | None = None,
        *,
        every: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.classifier, self.every = backbone, classifier, every
        self.sources = {name: source for name, (source, _) in (auxiliary or {}).items()}
        for name, (_, head) in (auxiliary or {}).items():
            self.add_module(name, head)

    def forward(self, x: Tensor) -> Scores:
        size, maps = x.shape[-2:], self.backbone(x)
        out = resized(self.classifier(maps if self.every else maps["out"]), size)
        if not self.training or not self.sources:
            return out
        scores = {"out": out}
        for name, source in self.sources.items():
            scores[name.removesuffix("_classifier")] = resized(self.get_submodule(name)(maps[source]), size)
        return scores


def training_loss(scores: Scores, loss: Callable[[Tensor], Tensor], weight: float = AUXILIARY_WEIGHT) -> Tensor:
    """The loss of the scores, and `weight` times that of each auxiliary head's; what `loss` gives for logits."""
    if isinstance(scores, Tensor):
        return loss(scores)
    others = [loss(value) for name, value in scores.items() if name != "out"]
    return loss(scores["out"]) + weight * torch.stack(others).sum() if others else loss(scores["out"])


def check(classes: int, width: int, **choices: tuple[object, Sequence[object]]) -> None:
    """Raises ValueError for fewer than one class or a width below 1, and for what is not among its choices."""
    if classes < 1 or width < 1:
        raise ValueError(f"wanted at least one class and a width from 1, came {classes=}, {width=}")
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, but it is {value!r}")
