"""One network of every family that edgeseg meets or makes, as complete graphs: what TensorRT-RTX is given to build."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.export import fuse, to_onnx
from edgeseg.intake import load
from edgeseg.rewrite.modules import blank
from edgeseg.rewrite.rules import RULES
from edgeseg.spec import read_spec
from edgeseg.types import InputSpec, ModelSpec, OnnxModel, OutputSpec, Torch
from edgeseg.zoo import unet
from tests import models
from tests.export.making import SPEC, made
from tests.models import CLASSES, Block
from tests.quantize import making
from tests.rewrite import nets, teachers
from tests.rewrite.networks import of

STREET = Path(__file__).resolve().parents[2] / "examples" / "street" / "unet_street.pt"
LIMIT = ModelSpec("tiny", InputSpec(models.SIZE), OutputSpec(classes=("no", "yes"), threshold=0.3))

CHANCE = ModelSpec("tiny", LIMIT.input, replace(LIMIT.output, activation="probabilities"))


def exported(make: Callable[[], nn.Module], spec: ModelSpec = SPEC, dynamic: bool = False) -> OnnxModel:
    module = Torch(models.seeded(make), "state_dict")
    return fuse(to_onnx(module, spec, quick=True, dynamic=dynamic).graph, spec, dynamic=dynamic)


def with_layer(layer: Callable[[], nn.Module], inputs: int = 8, outputs: int = 8) -> Callable[[], nn.Module]:
    """A network with that layer between two convolutions, at half of the size."""
    return lambda: nn.Sequential(Block(3, inputs, stride=2), layer(), nn.Conv2d(outputs, CLASSES, 1))


def resized(**how: Any) -> Callable[[], nn.Module]:
    return of(
        lambda s, x: F.interpolate(s.head(F.relu(s.a(F.interpolate(s.stem(x), scale_factor=2.0, **how)))), x.shape[2:]),
        stem=lambda: Block(3, 8, stride=4),
        a=lambda: nn.Conv2d(8, 8, 3, padding=1),
        head=lambda: nn.Conv2d(8, CLASSES, 1),
    )


class SegNet(nn.Module):
    """Max-pooling whose places the decoder puts its values back to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(3, 8), Block(8, 12)
        self.back = Block(12, 8)
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)
        self.head = nn.Conv2d(8, CLASSES, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        full = self.first(x)
        small, places = self.pool(full)
        less, others = self.pool(self.second(small))
        y = self.back(self.unpool(less, others, output_size=small.shape[-2:]))
        return self.head(self.unpool(y, places, output_size=full.shape[-2:]))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head attention over all positions of a small map, as transformers' stages have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = Block(3, 8, 9, stride=8), nn.Conv2d(8, 24, 1)
        self.norm, self.head = nn.LayerNorm(8), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        height, width = y.shape[-2:]
        q, k, v = self.qkv(y).view(-1, 3, 2, 4, height * width).unbind(1)
        seen = torch.softmax(q.transpose(-1, -2) @ k / 2.0, -1) @ v.transpose(-1, -2)
        y = y + seen.transpose(-1, -2).reshape(-1, 8, height, width)
        y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear", align_corners=False)


class Gated(nn.Module):
    """Squeeze and excitation, with hard sigmoid and hard swish, as MobileNetV3 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Block(3, 8, stride=2), nn.Conv2d(8, CLASSES, 1)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.stem(x))
        gate = F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return self.head(y * gate)  # type: ignore[no-any-return]


def student(rule: str) -> OnnxModel:
    """A network with every layer that the rule applies to rewritten by it; kernels of 5 x 5, so that each applies."""
    network = teachers.network_of(
        lambda: nn.Sequential(Block(3, 8, stride=2), Block(8, 16, 5), Block(16, 16, 5), nn.Conv2d(16, CLASSES, 1))
    )
    changed = 0
    for layer in teachers.rewritable(network):
        if offered := RULES[rule].choices(layer.conv, 4):
            network.set_submodule(layer.name, blank(offered[0]))
            changed += 1
    assert changed, f"{rule} applies to no layer here"
    network.recompile()
    spec = ModelSpec("student", InputSpec(teachers.SIZE), OutputSpec(classes=SPEC.output.classes))
    return fuse(to_onnx(Torch(network.eval(), "state_dict"), spec, quick=True).graph, spec)


def street() -> OnnxModel:
    spec = read_spec(STREET.with_suffix(".toml"))
    found = load(STREET, spec)
    assert isinstance(found, Torch)
    return fuse(to_onnx(found, spec, quick=True).graph, spec)


def class_map() -> OnnxModel:
    net = making.Net(3)
    net.op("ArgMax", [net.conv(net.image(), "scores", 4)], "map", axis=1, keepdims=0)
    return net.model(mask_of="map")


def _dilated_up() -> nn.Module:
    return nn.ConvTranspose2d(8, 8, (3, 2), (2, 3), (1, 0), (1, 1), groups=4, dilation=(2, 3))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "prelu": lambda: nn.PReLU(8),
    "one slope": nn.PReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "relu6": nn.ReLU6,
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1, 1),
    "transposed in groups": lambda: nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2),
    "transposed, dilated and in groups": _dilated_up,
    "dilated": lambda: nn.Conv2d(8, 8, 3, padding=12, dilation=12),
    "depthwise, dilated": lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
    "in groups": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=4),
    "uneven": lambda: nn.Conv2d(8, 8, (1, 5), (1, 2), (0, 2)),
    "reflected": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    "replicated": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate"),
    "pixel shuffle": lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2)),
    "channel shuffle": lambda: nn.Sequential(nn.Conv2d(8, 8, 1, groups=4), nn.ChannelShuffle(4)),
    "group norm": lambda: nn.GroupNorm(4, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "pools": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(2, 2, ceil_mode=True)),
}
RESIZES: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest"},
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bilinear, corners aligned": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
}
FAMILIES: dict[str, Callable[[], OnnxModel]] = {
    **{name: functools.partial(lambda name: made(name, True).fused, name) for name in models.ALL},
    **{f"student: {rule}": functools.partial(student, rule) for rule in RULES},
    **{f"resize: {name}": functools.partial(exported, resized(**how)) for name, how in RESIZES.items()},
    **{f"layer: {name}": functools.partial(exported, with_layer(layer)) for name, layer in LAYERS.items()},
    **{f"act: {name}": functools.partial(exported, with_layer(layer)) for name, layer in ACTIVATIONS.items()},
    "zoo: nearest": lambda: exported(lambda: unet(CLASSES, widths=(8, 12, 16))),
    "zoo: bilinear": lambda: exported(lambda: unet(CLASSES, widths=(8, 12, 16), upsample="bilinear")),
    "zoo: transposed": lambda: exported(lambda: unet(CLASSES, widths=(8, 12, 16), upsample="transposed")),
    "residual": lambda: exported(nets.Residual),
    "segnet": lambda: exported(SegNet),
    "attention": lambda: exported(Attention),
    "gated": lambda: exported(Gated),
    "one channel": lambda: exported(models.OneChannel, LIMIT),
    "one channel, probabilities": lambda: exported(lambda: models.OneChannel(sigmoid=True), CHANCE),
    "class map": class_map,
    "handmade u-net": making.unet,
    "handmade, every neighbour": making.everything,
    "street": street,
}
