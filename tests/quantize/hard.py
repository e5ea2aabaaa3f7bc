"""Networks with what published ones have and quantizers trip over; seeded, small, uint8 frame to uint8 mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeseg.types import OnnxModel
from tests.quantize.making import Net


class HardNet(Net):
    """`Net` with the operators that such networks are made of."""

    def plain(
        self, x: str, name: str, channels: int, kernel: int = 3, step: int = 1, dilation: int = 1, **a: Any
    ) -> str:
        """A convolution of any stride and dilation that keeps the size (divided by `step`)."""
        self.conv(x, name, channels, kernel, **a)
        node = self.nodes[-1]
        for attribute in node.attribute:
            if attribute.name == "pads":
                attribute.ints[:] = [dilation * (kernel // 2)] * 4
        from onnx import helper

        node.attribute.append(helper.make_attribute("strides", [step, step]))
        node.attribute.append(helper.make_attribute("dilations", [dilation, dilation]))
        return name

    def norm(self, x: str, name: str, spread: float = 1.0) -> str:
        """Batch norm that is not behind a convolution; factors of the channels from 1 / 2^spread to 2^spread."""
        count = self.channels[x]
        values = {
            "scale": 2 ** self.rng.uniform(-spread, spread, count),
            "shift": self.rng.normal(0, 0.5, count),
            "mean": self.rng.normal(0, 0.5, count),
            "variance": self.rng.uniform(0.5, 2, count),
        }
        given = [self.weight(f"{name}.{key}", value.astype(np.float32)) for key, value in values.items()]
        return self.op("BatchNormalization", [x, *given], name)

    def prelu(self, x: str, name: str) -> str:
        slopes = self.rng.uniform(-0.1, 0.4, (self.channels[x], 1, 1)).astype(np.float32)
        return self.op("PRelu", [x, self.weight(f"{name}.slope", slopes)], name)

    def up(self, x: str, name: str, channels: int, kernel: int = 2, group: int = 1) -> str:
        """A transposed convolution to twice the size; the range of its weights differs much between outputs."""
        shape = (self.channels[x], channels // group, kernel, kernel)
        weights = self.rng.normal(0, 0.2, shape) * np.exp(self.rng.normal(0, 1, (1, shape[1], 1, 1)))
        given = [x, self.weight(f"{name}.w", weights.astype(np.float32))]
        given.append(self.weight(f"{name}.b", self.rng.normal(0, 0.1, channels).astype(np.float32)))
        pads = (kernel - 2) // 2
        return self.op("ConvTranspose", given, name, channels, strides=[2, 2], pads=[pads] * 4, group=group)

    def sum(self, a: str, b: str, name: str) -> str:
        return self.op("Add", [a, b], name)


def branches(net: HardNet, x: str, stem: str, channels: int) -> str:
    """Dilated branches of few channels, of ever larger ranges, summed one after another, joined, then normalised."""
    few = channels // 4
    low = net.plain(x, f"{stem}_reduce", few, 1, bias=False)
    parts = [net.plain(low, f"{stem}_d1", few, bias=False)]
    total = ""
    for index, dilation in enumerate((2, 4, 8)):
        part = net.plain(low, f"{stem}_d{dilation}", few, dilation=dilation, bias=False, gain=0.4 * 3**index)
        total = net.sum(total, part, f"{stem}_s{dilation}") if total else part
        parts.append(total)
    joined = net.op("Concat", parts, f"{stem}_joined", channels, axis=1)
    return net.prelu(net.norm(joined, f"{stem}_norm"), f"{stem}_act")


def branchy() -> OnnxModel:
    """PReLU, hierarchical sums and concatenations of branches with different ranges, batch norm behind them."""
    net = HardNet(11)
    first = net.prelu(net.plain(net.image(), "first", 16, step=2), "first_act")
    body = branches(net, branches(net, first, "a", 48), "b", 48)
    joined = net.op("Concat", [body, first], "skip", 64, axis=1)
    mixed = net.prelu(net.plain(joined, "mix", 12, 1), "mix_act")
    large = net.prelu(net.up(mixed, "large", 12), "large_act")
    return net.model(net.plain(large, "head", 5, gain=2.0))


def separable() -> OnnxModel:
    """Depthwise convolutions whose channels differ a hundredfold, a squeeze-excite gate, hard swish."""
    net = HardNet(12)
    x = net.relu(net.plain(net.image(), "first", 16, step=2), "first_act")
    for index in range(2):
        depthwise = net.plain(x, f"depthwise{index}", 16, group=16)
        net.weights[f"depthwise{index}.w"] *= np.exp(net.rng.uniform(-2.3, 2.3, (16, 1, 1, 1))).astype(np.float32)
        active = net.op("HardSwish", [depthwise], f"swish{index}")
        mean = net.op("GlobalAveragePool", [active], f"mean{index}")
        gate = net.conv(net.relu(net.conv(mean, f"squeeze{index}", 4, 1), f"squeezed{index}"), f"excite{index}", 16, 1)
        weighed = net.op("Mul", [active, net.op("HardSigmoid", [gate], f"gate{index}")], f"weighed{index}")
        x = net.sum(net.plain(weighed, f"pointwise{index}", 16, 1), x, f"sum{index}")
    return net.model(net.nearest(net.conv(x, "head", 4, 1, gain=2.0), "enlarged"))


def residual() -> OnnxModel:
    """Blocks with a way around, average pooling, a bilinear resize, transposed convolutions with and without groups."""
    net = HardNet(13)
    x = net.relu(net.plain(net.image(), "first", 12), "first_act")
    x = net.op("AveragePool", [x], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    for index, dilation in enumerate((1, 2)):
        inner = net.relu(net.plain(x, f"in{index}", 12, dilation=dilation), f"in{index}_act")
        x = net.relu(net.sum(net.plain(inner, f"out{index}", 12), x, f"around{index}"), f"block{index}")
    small = net.up(net.halved(x, "halved"), "up", 12, kernel=4)
    single = net.up(net.halved(small, "again"), "single", 12, group=12)
    grouped = net.up(net.halved(single, "third"), "grouped", 12, group=3)
    x = net.relu(net.sum(grouped, x, "joined"), "joined_act")
    scales = net.weight("double", np.array([1, 1, 2, 2], np.float32))
    x = net.op("Resize", [net.plain(x, "last", 12), "", scales], "smooth", mode="linear")
    return net.model(net.plain(x, "head", 5, gain=2.0))


ALL: dict[str, Callable[[], OnnxModel]] = {"branchy": branchy, "separable": separable, "residual": residual}
