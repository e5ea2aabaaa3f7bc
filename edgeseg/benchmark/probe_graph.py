"""The graph that a runtime's peak is measured on: dense 3x3 convolutions, in FP32 or between quantizers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from edgeseg.errors import need
from edgeseg.types import FRAME, MASK

CHANNELS, SIZE, DEPTH = 128, 64, 3


def probe_graph(*, int8: bool, channels: int = CHANNELS, size: int = SIZE, depth: int = DEPTH) -> bytes:
    """An onnx.ModelProto from a frame uint8 (1, size, size, 3) to a mask uint8 (1, size, size).

    `depth` convolutions with ReLU and `channels` channels; with `int8` activations are uint8, weights int8 by channel,
    written as Q/DQ, as an INT8 build does.
    """
    onnx = need("onnx", extra="build", why="the peak of this machine")
    helper = need("onnx.helper", extra="build", why="the peak of this machine")
    numpy_helper = need("onnx.numpy_helper", extra="build", why="the peak of this machine")
    chance = np.random.default_rng(0)
    nodes, constants = [], []

    def constant(name: str, values: ArrayLike) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def quantized(name: str) -> str:
        scale, zero = constant(f"{name}.scale", np.float32(0.05)), constant(f"{name}.zero", np.uint8(0))
        node("QuantizeLinear", [name, scale, zero], f"{name}.q")
        return node("DequantizeLinear", [f"{name}.q", scale, zero], f"{name}.dq")

    def weights(name: str, outputs: int, inputs: int, kernel: int) -> str:
        shape = (outputs, inputs, kernel, kernel)
        if not int8:
            return constant(name, chance.standard_normal(shape).astype(np.float32) / np.float32(inputs**0.5 * kernel))
        q = constant(f"{name}.q", chance.integers(-127, 128, shape).astype(np.int8))
        scales = constant(f"{name}.scales", np.full(outputs, 0.02 / (inputs**0.5 * kernel), np.float32))
        zeros = constant(f"{name}.zeros", np.zeros(outputs, np.int8))
        return node("DequantizeLinear", [q, scales, zeros], name, axis=0)

    node("Cast", [FRAME], "float", to=onnx.TensorProto.FLOAT)
    node("Transpose", ["float"], "planes", perm=[0, 3, 1, 2])
    last = node("Mul", ["planes", constant("scale", np.float32(1 / 64))], "scaled")
    for k in range(depth + 1):
        inputs, kernel = (3, 1) if k == 0 else (channels, 3)
        given = quantized(last) if int8 else last
        filters = weights(f"w{k}", channels, inputs, kernel)
        node("Conv", [given, filters], f"c{k}", kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4)
        last = node("Relu", [f"c{k}"], f"r{k}")
    given = quantized(last) if int8 else last
    node("Conv", [given, weights("head", 1, channels, 1)], "score", kernel_shape=[1, 1])
    node("Squeeze", ["score", constant("axes", np.array([1], np.int64))], "flat")
    node("Clip", ["flat", constant("low", np.float32(0)), constant("high", np.float32(255))], "clipped")
    node("Cast", ["clipped"], MASK, to=onnx.TensorProto.UINT8)
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info(FRAME, onnx.TensorProto.UINT8, (1, size, size, 3))],
        [helper.make_tensor_value_info(MASK, onnx.TensorProto.UINT8, (1, size, size))],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
