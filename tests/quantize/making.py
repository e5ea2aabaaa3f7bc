"""Small complete graphs, uint8 frame to uint8 mask, written with onnx.helper: no torch needed, milliseconds to make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration import ScaleTable, calibrate, load_recipe
from edgeseg.backends.onnxruntime import inference_session, probe
from edgeseg.quantize import DIALECTS, Graph, place
from edgeseg.quantize.edges import is_convolution, kind_of
from edgeseg.quantize.reasons import can_run
from edgeseg.types import FRAME, LOGITS, MASK, Frames, InputSpec, ModelSpec, OnnxModel, OutputSpec

SIZE = (24, 32)
Array = NDArray[Any]


def frames(count: int = 6, size: tuple[int, int] = SIZE, seed: int = 0) -> Frames:
    """Waves and boxes of chance colours, uint8 (count, H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float64)
    made = np.empty((count, *size, 3), np.uint8)
    for frame in made:
        phase = rng.uniform(0, 6.28, 3)
        wave = np.sin(x[..., None] * rng.uniform(0.05, 0.5, 3) + y[..., None] * rng.uniform(0.05, 0.5, 3) + phase)
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        frame[:] = np.clip(128 + 100 * wave, 0, 255)
        frame[top : top + size[0] // 3, left : left + size[1] // 3] = rng.integers(0, 256, 3)
    return made


class Net:
    """Nodes one after another. Tensors carry the names of their nodes, so that graphs can be read as text."""

    def __init__(self, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
        self.rng = np.random.default_rng(seed)
        self.size = size
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.channels: dict[str, int] = {}

    def weight(self, name: str, value: Array) -> str:
        self.weights[name] = value
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, channels: int | None = None, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], f"node_{name}", **attributes))
        self.channels[name] = self.channels.get(inputs[0], 0) if channels is None else channels
        return name

    def image(self) -> str:
        """The frame as float32 (1, 3, H, W), about -2 to 2."""
        cast = self.op("Cast", [FRAME], "float", to=TensorProto.FLOAT)
        moved = self.op("Transpose", [cast], "nchw", perm=[0, 3, 1, 2])
        scaled = self.op("Mul", [moved, self.weight("factor", np.array(4 / 255, np.float32))], "scaled")
        return self.op("Add", [scaled, self.weight("shift", np.array(-2, np.float32))], "image", channels=3)

    def conv(
        self, x: str, name: str, channels: int, kernel: int = 3, bias: bool = True, group: int = 1, gain: float = 1.0
    ) -> str:
        inputs = self.channels[x] // group
        spread = gain * np.sqrt(2 / (inputs * kernel * kernel))
        weights = self.rng.normal(0, spread, (channels, inputs, kernel, kernel)).astype(np.float32)
        given = [x, self.weight(f"{name}.w", weights)]
        if bias:
            given.append(self.weight(f"{name}.b", self.rng.normal(0, 0.3, channels).astype(np.float32)))
        return self.op("Conv", given, name, channels, pads=[kernel // 2] * 4, group=group)

    def relu(self, x: str, name: str) -> str:
        return self.op("Relu", [x], name)

    def nearest(self, x: str, name: str, factor: float = 2.0) -> str:
        scales = self.weight(f"{name}.scales", np.array([1, 1, factor, factor], np.float32))
        attributes: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.op("Resize", [x, "", scales], name, mode="nearest", **attributes)

    def halved(self, x: str, name: str) -> str:
        return self.op("MaxPool", [x], name, kernel_shape=[2, 2], strides=[2, 2])

    def model(self, scores: str | None = None, *, threshold: float = 0.5, mask_of: str | None = None) -> OnnxModel:
        """The complete model of scores (renamed LOGITS), or of a float class map `mask_of` (1, H, W)."""
        classes = 0
        if scores is not None:
            classes = self.channels[scores]
            for node in self.nodes:
                for names in (node.input, node.output):
                    for position, name in enumerate(names):
                        if name == scores:
                            names[position] = LOGITS
            if classes > 1:
                self.op("ArgMax", [LOGITS], "classes", axis=1, keepdims=0)
            else:
                level = np.array(np.log(threshold / (1 - threshold)), np.float32)
                self.op("GreaterOrEqual", [LOGITS, self.weight("threshold", level)], "chosen")
                self.op("Cast", ["chosen"], "chosen_float", to=TensorProto.FLOAT)
                self.op("Squeeze", ["chosen_float", self.weight("one", np.array([1], np.int64))], "classes")
        self.op("Cast", [mask_of or "classes"], MASK, to=TensorProto.UINT8)
        height, width = self.size
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info(FRAME, TensorProto.UINT8, (1, height, width, 3))],
            [helper.make_tensor_value_info(MASK, TensorProto.UINT8, (1, height, width))],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(proto, full_check=True)
        names = tuple(f"class {index}" for index in range(max(classes, 2)))
        output = OutputSpec(classes=names, threshold=threshold)
        return OnnxModel(proto.SerializeToString(), ModelSpec("tiny", InputSpec(self.size), output))


def unet(seed: int = 0) -> OnnxModel:
    """Two levels, a skip, a nearest resize, a concatenation: what every dialect quantizes in full but the scores."""
    net = Net(seed)
    first = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    low = net.relu(net.conv(net.halved(first, "pool"), "conv2", 12), "relu2")
    both = net.op("Concat", [net.nearest(low, "up"), first], "concat", 20, axis=1)
    return net.model(net.conv(net.relu(net.conv(both, "conv3", 8), "relu3"), "head", 4, 1, gain=3.0))


def everything() -> OnnxModel:
    """Every kind of neighbour that a convolution has in published networks."""
    net = Net(1)
    first = net.relu(net.conv(net.image(), "conv1", 8), "relu1")  # batch norm is in the convolution already
    low = net.relu(net.conv(net.halved(first, "pool"), "conv2", 8), "relu2")
    both = net.op("Concat", [net.nearest(low, "up"), first], "concat", 16, axis=1)
    body = net.relu(net.conv(both, "conv3", 8), "relu3")
    added = net.relu(net.op("Add", [net.conv(body, "residual", 8), body], "sum"), "relu4")  # residual
    slope = net.weight("slope", np.full((8, 1, 1), 0.2, np.float32))
    bent = net.op("PRelu", [net.conv(added, "conv4", 8, bias=False), slope], "prelu")
    depthwise = net.conv(bent, "depthwise", 8, group=8)
    zero, six = net.weight("zero", np.array(0, np.float32)), net.weight("six", np.array(6, np.float32))
    capped = net.op("Clip", [depthwise, zero, six], "relu6")
    gate = net.op("Sigmoid", [net.conv(capped, "gate", 8, 1)], "gated")
    small = net.halved(net.op("Mul", [gate, capped], "weighted"), "pool2")
    kernel = net.weight("up2.w", net.rng.normal(0, 0.3, (8, 8, 2, 2)).astype(np.float32))
    large = net.relu(net.op("ConvTranspose", [small, kernel], "up2", 8, strides=[2, 2]), "relu5")
    return net.model(net.conv(net.relu(net.conv(large, "conv5", 8), "relu6a"), "head", 4, 1, gain=3.0))


def table_of(model: OnnxModel, count: int = 6, recipe: str = "minmax") -> ScaleTable:
    """What was seen of every tensor that any dialect wants."""
    graph = Graph(model.graph)
    placed = [place(graph, dialect) for dialect in DIALECTS.values()]
    for dialect in DIALECTS.values():  # and what it can be asked for
        known = [node for node in graph.nodes if is_convolution(node)]
        asked = [node.name for node in known if can_run(kind_of(graph, node), dialect)]
        placed.append(place(graph, dialect, also=asked))
    tensors = sorted(set().union(*(found.observed for found in placed)))
    size = model.spec.input.size
    seen = probe(model.graph, tensors, (frame[None] for frame in frames(count, size)))
    return calibrate(seen, load_recipe(recipe), model=model.digest, data="waves and boxes")


def parsed(graph: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(graph)


def tensors_of(graph: bytes, names: Sequence[str], frame: Frames, optimization: str = "off") -> dict[str, Array]:
    """Tensors inside a graph, nothing fused: what its nodes mean one by one."""
    model = parsed(graph)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = inference_session(model.SerializeToString(), optimization, threads=1)
    return dict(zip(names, session.run(list(names), {FRAME: frame}), strict=True))


def constants(graph: bytes) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in parsed(graph).graph.initializer}


def dump(graph: bytes) -> str:
    """The graph as text: nodes in order with what they read and give, then constants with dtype and shape."""
    model = parsed(graph)
    lines = []
    for node in model.graph.node:
        told = [f"{a.name}={helper.get_attribute_value(a)}" for a in node.attribute if a.name in ("axis", "levels")]
        op = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        given, made = (", ".join(name or "-" for name in names) for names in (node.input, node.output))
        lines.append(f"{op}({given}) -> {made}{' ' if told else ''}{' '.join(told)}")
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        kind = TensorProto.DataType.Name(tensor.data_type).lower()
        lines.append(f"{tensor.name}: {kind} {list(tensor.dims)}")
    return "\n".join(lines) + "\n"


def snr_db(reference: Array, other: Array) -> float:
    noise = float(np.sum((reference.astype(np.float64) - other) ** 2))
    return 10 * float(np.log10(np.sum(reference.astype(np.float64) ** 2) / max(noise, 1e-30)))


def plain_network(size: tuple[int, int] = (48, 64), classes: int = 10, inverse: bool = False) -> bytes:
    """A network as someone exports it, float32 (1, 3, H, W) to scores (1, classes, H, W): no frame, no decision.

    `inverse`: with an operator that ONNX Runtime has and OpenVINO does not.
    """
    net = Net(7, size)
    net.channels["x"] = 3
    first = net.relu(net.conv("x", "conv1", 8), "relu1")
    low = net.relu(net.conv(net.halved(first, "pool"), "conv2", 12), "relu2")
    both = net.op("Concat", [net.nearest(low, "up"), first], "concat", 20, axis=1)
    body = net.relu(net.conv(both, "conv3", 8), "relu3")
    domains = [helper.make_opsetid("", 17)]
    if inverse:
        pooled = net.op("GlobalAveragePool", [body], "mean")
        net.nodes.append(helper.make_node("Inverse", [pooled], ["inverted"], "node_inverted", domain="com.microsoft"))
        body = net.op("Mul", [body, net.op("Tanh", ["inverted"], "factor")], "product", 8)
        domains.append(helper.make_opsetid("com.microsoft", 1))
    scores = net.conv(body, "head", classes, 1)

    def written() -> bytes:
        graph = helper.make_graph(
            net.nodes,
            "plain",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, *size))],
            [helper.make_tensor_value_info(scores, TensorProto.FLOAT, (1, classes, *size))],
            [numpy_helper.from_array(value, name) for name, value in net.weights.items()],
        )
        return bytes(helper.make_model(graph, opset_imports=domains, ir_version=8).SerializeToString())

    # Scores of mean 0 and deviation 3, so that every class wins somewhere.
    image = (frames(1, size).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    (seen,) = inference_session(written(), threads=1).run([scores], {"x": image.astype(np.float32)})
    mean, factor = seen.mean((0, 2, 3)), 3 / seen.std((0, 2, 3))
    net.weights["head.w"] *= factor[:, None, None, None]
    net.weights["head.b"] = ((net.weights["head.b"] - mean) * factor).astype(np.float32)
    return written()


PLAIN_SPEC = """name = "tiny"
[input]
size = [48, 64]
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
"""
STREET = """name = "street"
ignore_index = 255
[splits.train]
street = { seed = 1, drives = 6, frames = 2, size = [48, 64], stride = 7 }
[splits.val]
street = { seed = 101, drives = 2, frames = 2, size = [60, 80], stride = 7 }
"""
