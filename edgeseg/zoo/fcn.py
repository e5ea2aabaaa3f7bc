"""FCN-32s, FCN-16s and FCN-8s on VGG-16, and FCN-32s on AlexNet.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015: the fully connected
layers of a classifier are convolutions, its scores are enlarged by transposed convolutions that start as bilinear
interpolation, and the scores of earlier maps are added on the way. Simonyan and Zisserman, ICLR 2015; Krizhevsky,
Sutskever and Hinton, NIPS 2012.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from edgeseg.zoo.blocks import Bilinear, check

Padding = Literal["same", "caffe"]
VGG16 = (2, 2, 3, 3, 3)  # convolutions of each stage; the third to fifth are of 4, 8 and 8 times the first's channels
CAFFE = {32: (19,), 16: (5, 27), 8: (5, 9, 31)}  # rows and columns cropped at the skips, and at the end


def vgg16_stages(width: int, first_padding: int = 1) -> nn.ModuleList:
    """The convolutions of VGG-16 in five stages, each ending in a pooling that rounds sizes up."""
    made, inputs = nn.ModuleList(), 3
    for number, count in enumerate(VGG16):
        outputs, stage = width << min(number, 3), nn.Sequential()
        for step in range(count):
            padding = first_padding if number == step == 0 else 1
            stage.extend([nn.Conv2d(inputs, outputs, 3, padding=padding), nn.ReLU()])
            inputs = outputs
        stage.append(nn.MaxPool2d(2, ceil_mode=True))
        made.append(stage)
    return made


def alexnet_stages(width: int, groups: int, first_padding: int, lrn: bool = False) -> nn.ModuleList:
    """The convolutions of AlexNet, up to a 32nd of the size in steps of 4, 2, 2 and 2."""
    a, b, c = width, 8 * width // 3, 4 * width

    def pooled() -> list[nn.Module]:
        # The paper's alpha is 1e-4 times the sum; torch, like ONNX, divides by the size first.
        norms = [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)] if lrn else []
        return [nn.ReLU(), *norms, nn.MaxPool2d(3, 2, ceil_mode=True)]

    return nn.ModuleList(
        [
            nn.Sequential(nn.Conv2d(3, a, 11, 4, first_padding), *pooled()),
            nn.Sequential(nn.Conv2d(a, b, 5, 1, 2, groups=groups), *pooled()),
            nn.Sequential(
                nn.Conv2d(b, c, 3, 1, 1),
                nn.ReLU(),
                nn.Conv2d(c, c, 3, 1, 1, groups=groups),
                nn.ReLU(),
                nn.Conv2d(c, b, 3, 1, 1, groups=groups),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, ceil_mode=True),
            ),
        ]
    )


class FCN(nn.Module):
    """Images float32 (N, 3, H, W) to logits (N, classes, H, W).

    `stages` from the image on, `deep` after the last. `skips`: channels of the maps whose scores are added, from the
    deepest on: those of the stages before the last. `crops`: rows and columns cut off before each addition and at the
    end; the rest that is too much is cut off at the other side.
    """

    def __init__(
        self,
        stages: nn.ModuleList,
        deep: nn.Module,
        channels: int,
        skips: Sequence[int],
        classes: int,
        stride: int,
        crops: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self.stages, self.deep, self.crops = stages, deep, crops
        self.score = nn.Conv2d(channels, classes, 1)
        self.skips = nn.ModuleList(nn.Conv2d(count, classes, 1) for count in skips)
        padding = None if crops is None else 0
        self.twice = nn.ModuleList(Bilinear(classes, 2, padding=padding) for _ in skips)
        self.last = Bilinear(classes, stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        size, maps = x.shape[-2:], []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = self.score(self.deep(x))
        offsets = self.crops or (0,) * (len(self.skips) + 1)
        for number, (skip, twice) in enumerate(zip(self.skips, self.twice, strict=True)):
            x, other = twice(x), skip(maps[-2 - number])
            if self.crops is None:
                x = _cropped(x, other.shape[-2:], 0)
            else:
                other = _cropped(other, x.shape[-2:], offsets[number])
            x = x + other
        return _cropped(self.last(x), size, offsets[-1])


def _cropped(x: Tensor, size: Sequence[int], start: int) -> Tensor:
    if start == 0 and tuple(x.shape[-2:]) == tuple(size):
        return x
    return x[..., start : start + size[0], start : start + size[1]]


def connected(inputs: int, outputs: int, kernel: int, padding: int) -> nn.Sequential:
    """Fully connected layers 6 and 7 of a classifier as convolutions."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding),
        nn.ReLU(),
        nn.Dropout2d(0.5),
        nn.Conv2d(outputs, outputs, 1),
        nn.ReLU(),
        nn.Dropout2d(0.5),
    )


def _fcn(classes: int, width: int, padding: Padding, stride: int) -> nn.Module:
    check(classes, width, padding=(padding, ("same", "caffe")))
    caffe = padding == "caffe"
    stages = vgg16_stages(width, 100 if caffe else 1)
    deep = connected(8 * width, 64 * width, 7, 0 if caffe else 3)
    skips = (8 * width, 4 * width)[: {32: 0, 16: 1, 8: 2}[stride]]
    return FCN(stages, deep, 64 * width, skips, classes, stride, CAFFE[stride] if caffe else None)


def fcn32s(classes: int = 21, width: int = 64, padding: Padding = "same") -> nn.Module:
    """FCN-32s on VGG-16: its scores at a 32nd of the size, enlarged by one transposed convolution.

    Long, Shelhamer and Darrell, CVPR 2015. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). `width`:
    channels of the first stage, 64 in the paper; the fully connected layers have 64 times as many. `padding`: "same"
    keeps the maps over the image; "caffe" is the authors' way, 100 rows and columns around the image and crops later.
    134 million parameters at 21 classes, without the transposed
    convolution. Raises ValueError for another padding.
    """
    return _fcn(classes, width, padding, 32)


def fcn16s(classes: int = 21, width: int = 64, padding: Padding = "same") -> nn.Module:
    """FCN-16s: as fcn32s, with the scores of the fourth stage added."""
    return _fcn(classes, width, padding, 16)


def fcn8s(classes: int = 21, width: int = 64, padding: Padding = "same") -> nn.Module:
    """FCN-8s: as fcn32s, with the scores of the fourth and third stage added."""
    return _fcn(classes, width, padding, 8)


def fcn_alexnet(classes: int = 21, width: int = 96, groups: int = 2, lrn: bool = False) -> nn.Module:
    """FCN-32s on AlexNet, whose second, fourth and fifth convolutions are in two groups.

    Long, Shelhamer and Darrell, CVPR 2015, on Krizhevsky, Sutskever and Hinton, NIPS 2012. Takes float32 (N, 3, H, W),
    H and W from 64, returns logits (N, classes, H, W). `width`: channels of the first convolution, 96 in the paper, a
    multiple of 3 and of `groups`. `lrn`: with the local response normalisation of 2012, which has no parameters and
    which later weights, torchvision's among them, do without. 57 million parameters at 21 classes. Raises ValueError
    for other widths.
    """
    check(classes, width)
    if groups < 1 or width % 3 or width % groups:
        raise ValueError(f"wanted a width that is a multiple of 3 and of the groups, came {width=}, {groups=}")
    channels = 128 * width // 3
    deep = connected(8 * width // 3, channels, 6, 0)
    return FCN(alexnet_stages(width, groups, 100, lrn), deep, channels, (), classes, 32, (18,))
