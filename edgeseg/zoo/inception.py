"""GoogLeNet, Inception v2 and v3 and MiniGoogLeNet as encoders, each with the same small decoder.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015 (here with batch norm, Ioffe and Szegedy 2015), and
"Rethinking the Inception Architecture for Computer Vision", CVPR 2016. MiniGoogLeNet: Zhang et al., "Understanding Deep
Learning Requires Rethinking Generalization", ICLR 2017, appendix A. What the papers leave unpadded is padded here, so
that maps of all stages lie over one another.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from edgeseg.zoo.blocks import Branches, ConvNorm, Decoder, Segmenter, check

Scale = Callable[[int], int]

# 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool; None: pooling
GOOGLENET: dict[str, tuple[int, int, int, int, int, int]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
MINI = (("1", (32, 32)), ("2", (32, 48)), ("down", 80), ("3", (112, 48)), ("4", (96, 64)), ("5", (80, 80)))
MINI_DEEP = (("6", (48, 96)), ("down2", 96), ("7", (176, 160)), ("8", (176, 160)))


class Stages(nn.Module):
    """Pieces one after the other; those in `kept` give the maps, under the names that it says.

    Attribute `channels`: those of each map.
    """

    def __init__(self, kept: dict[str, str]) -> None:
        super().__init__()
        self.pieces, self.kept = nn.ModuleDict(), kept
        self.channels: dict[str, int] = {}
        self.now = 3

    def add(self, name: str, piece: nn.Module, outputs: int | None = None) -> None:
        self.pieces[name] = piece
        self.now = self.now if outputs is None else outputs
        if name in self.kept:
            self.channels[self.kept[name]] = self.now

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for name, piece in self.pieces.items():
            x = piece(x)
            if name in self.kept:
                maps[self.kept[name]] = x
        return maps


def _scale(width: int, whole: int) -> Scale:
    return lambda channels: max(round(channels * width / whole), 1)


def _pool(kernel: int = 3, stride: int = 2) -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel, stride, kernel // 2)


def _chain(inputs: int, *steps: tuple[int, int | tuple[int, int]]) -> nn.Sequential:
    """Convolutions of (channels, kernel) one after the other."""
    made = nn.Sequential()
    for channels, kernel in steps:
        made.append(ConvNorm(inputs, channels, kernel))
        inputs = channels
    return made


def _pooled(inputs: int, outputs: int, average: bool) -> nn.Sequential:
    pool = nn.AvgPool2d(3, 1, 1) if average else _pool(3, 1)
    return nn.Sequential(pool, ConvNorm(inputs, outputs, 1))


def _segmenter(encoder: Stages, classes: int, width: int, auxiliary: dict[str, tuple[str, nn.Module]]) -> nn.Module:
    inputs = {name: channels for name, channels in encoder.channels.items() if not name.startswith("side")}
    return Segmenter(encoder, Decoder(inputs, width, classes), auxiliary, every=True)


def _side(inputs: int, inner: int, classes: int) -> nn.Module:
    """An auxiliary head: it scores places where GoogLeNet's classifies means."""
    return nn.Sequential(ConvNorm(inputs, inner, 1), nn.Dropout(0.7), nn.Conv2d(inner, classes, 1))


def googlenet(classes: int = 21, width: int = 64, decoder: int = 128, auxiliary: bool = False) -> nn.Module:
    """GoogLeNet: nine modules of 1 x 1, 3 x 3, 5 x 5 and pooling side by side; and a decoder back to the image.

    Szegedy et al., CVPR 2015. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). `width`: channels of the
    first convolution, 64 in the paper. `decoder`: its channels. `auxiliary`: the two heads after modules 4a and 4d,
    "aux1" and "aux2", see edgeseg.zoo.blocks.Segmenter. The encoder's convolutions have 6.0 million weights.
    """
    check(classes, width)
    n = _scale(width, 64)
    made = Stages({"conv2": "quarter", "3b": "eighth", "4e": "sixteenth", "5b": "out", "4a": "side1", "4d": "side2"})
    made.add("conv1", ConvNorm(3, n(64), 7, 2), n(64))
    made.add("pool1", _pool())
    made.add("conv2", nn.Sequential(ConvNorm(n(64), n(64), 1), ConvNorm(n(64), n(192))), n(192))
    made.add("pool2", _pool())
    for name, (one, reduce3, three, reduce5, five, pool) in GOOGLENET.items():
        branches = [
            ConvNorm(made.now, n(one), 1),
            _chain(made.now, (n(reduce3), 1), (n(three), 3)),
            _chain(made.now, (n(reduce5), 1), (n(five), 5)),
            _pooled(made.now, n(pool), average=False),
        ]
        made.add(name, Branches(branches), n(one) + n(three) + n(five) + n(pool))
        if name in ("3b", "4e"):
            made.add(f"pool{name[0]}", _pool())
    sides = {f"aux{k}_classifier": (f"side{k}", _side(made.channels[f"side{k}"], n(128), classes)) for k in (1, 2)}
    return _segmenter(made, classes, decoder, sides if auxiliary else {})


def inception_v2(classes: int = 21, width: int = 32, decoder: int = 128, auxiliary: bool = False) -> nn.Module:
    """Inception v2: 5 x 5 as two 3 x 3, then 3 x 3 as 1 x 3 and 3 x 1, at the end side by side in wider banks.

    Szegedy et al., CVPR 2016, figures 5 to 7. Otherwise as inception_v3.
    """
    return _inception(classes, width, decoder, auxiliary, across=3)


def inception_v3(classes: int = 21, width: int = 32, decoder: int = 128, auxiliary: bool = False) -> nn.Module:
    """Inception v3: as v2, with 1 x 7 and 7 x 1 in the middle, and batch norm in the auxiliary head.

    Szegedy et al., CVPR 2016. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). `width`: channels of the
    first convolution, 32 in the paper. `decoder`: its channels. `auxiliary`: the head on the last middle module,
    "aux", see edgeseg.zoo.blocks.Segmenter. The encoder has 21.8 million parameters.
    """
    return _inception(classes, width, decoder, auxiliary, across=7)


def _inception(classes: int, width: int, decoder: int, auxiliary: bool, *, across: int) -> nn.Module:
    check(classes, width)
    n = _scale(width, 32)
    made = Stages({"conv3": "half", "conv5": "quarter", "a3": "eighth", "b4": "sixteenth", "c2": "out"})
    for name, outputs, kernel, stride in (("conv1", 32, 3, 2), ("conv2", 32, 3, 1), ("conv3", 64, 3, 1)):
        made.add(name, ConvNorm(made.now, n(outputs), kernel, stride), n(outputs))
    made.add("pool1", _pool())
    for name, outputs, kernel in (("conv4", 80, 1), ("conv5", 192, 3)):
        made.add(name, ConvNorm(made.now, n(outputs), kernel), n(outputs))
    made.add("pool2", _pool())
    for name, pool in (("a1", 32), ("a2", 64), ("a3", 64)):
        branches = [
            ConvNorm(made.now, n(64), 1),
            _chain(made.now, (n(48), 1), (n(64), 5))
            if across == 7  # as the published weights of v3 have it
            else _chain(made.now, (n(48), 1), (n(64), 3), (n(64), 3)),
            _chain(made.now, (n(64), 1), (n(96), 3), (n(96), 3)),
            _pooled(made.now, n(pool), average=True),
        ]
        made.add(name, Branches(branches), n(64) + n(64) + n(96) + n(pool))
    halved = nn.Sequential(*_chain(made.now, (n(64), 1), (n(96), 3)), ConvNorm(n(96), n(96), 3, 2))
    made.add("down1", Branches([ConvNorm(made.now, n(384), 3, 2), halved, _pool()]), n(384) + n(96) + made.now)
    row, column = (1, across), (across, 1)
    for name, inner in (("b1", 128), ("b2", 160), ("b3", 160), ("b4", 192)):
        c = n(inner)
        branches = [
            ConvNorm(made.now, n(192), 1),
            _chain(made.now, (c, 1), (c, row), (n(192), column)),
            _chain(made.now, (c, 1), (c, column), (c, row), (c, column), (n(192), row)),
            _pooled(made.now, n(192), average=True),
        ]
        made.add(name, Branches(branches), 4 * n(192))
    first = nn.Sequential(ConvNorm(made.now, n(192), 1), ConvNorm(n(192), n(320), 3, 2))
    second = _chain(made.now, (n(192), 1), (n(192), row), (n(192), column))
    second.append(ConvNorm(n(192), n(192), 3, 2))
    made.add("down2", Branches([first, second, _pool()]), n(320) + n(192) + made.now)
    for name in ("c1", "c2"):
        wide = n(384)

        def spread(inputs: int, wide: int = wide) -> Branches:
            return Branches([ConvNorm(inputs, wide, (1, 3)), ConvNorm(inputs, wide, (3, 1))])

        branches = [
            ConvNorm(made.now, n(320), 1),
            nn.Sequential(ConvNorm(made.now, wide, 1), spread(wide)),
            nn.Sequential(*_chain(made.now, (n(448), 1), (wide, 3)), spread(wide)),
            _pooled(made.now, n(192), average=True),
        ]
        made.add(name, Branches(branches), n(320) + 4 * wide + n(192))
    side = {"aux_classifier": ("sixteenth", _side(made.channels["sixteenth"], n(128), classes))}
    return _segmenter(made, classes, decoder, side if auxiliary else {})


def minigooglenet(classes: int = 21, width: int = 96, decoder: int = 96) -> nn.Module:
    """MiniGoogLeNet: modules of 1 x 1 and 3 x 3 only, made for images of 32 x 32; the map at full size is kept.

    Zhang et al., ICLR 2017. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W). `width`: channels of the
    first convolution, 96 in the paper. The encoder has 1.6 million parameters.
    """
    check(classes, width)
    n = _scale(width, 96)
    made = Stages({"2": "full", "6": "half", "8": "out"})
    made.add("conv", ConvNorm(3, n(96)), n(96))
    for name, widths in (*MINI, *MINI_DEEP):
        if isinstance(widths, int):
            made.add(name, Branches([ConvNorm(made.now, n(widths), 3, 2), _pool()]), n(widths) + made.now)
        else:
            one, three = map(n, widths)
            made.add(name, Branches([ConvNorm(made.now, one, 1), ConvNorm(made.now, three)]), one + three)
    return _segmenter(made, classes, decoder, {})
