"""Small ONNX graphs, good ones and ones that a parser must refuse. Needs onnx."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FLOAT, HALF, BYTE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
CLASSES = 4
node, value = helper.make_node, helper.make_tensor_value_info


def weights(dtype: Any = np.float32, shape: tuple[int, ...] = (CLASSES, 3, 3, 3)) -> Any:
    return np.random.default_rng(3).normal(0, 0.5, shape).astype(dtype)


def model(
    nodes: Sequence[NodeProto],
    constants: dict[str, Any],
    taken: tuple[str, int, Sequence[int | str]] = ("x", FLOAT, (1, 3, 8, 8)),
    given: tuple[str, int] = ("y", FLOAT),
    opset: int = 17,
) -> bytes:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "g", [value(*taken)], [value(*given, None)], tensors)
    made: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(made.SerializeToString())


def convolution(opset: int = 17, lengths: Sequence[int | str] = (1, 3, 8, 8), dtype: int = FLOAT) -> bytes:
    kind = np.float16 if dtype == HALF else np.float32
    nodes = [node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])]
    return model(nodes, {"w": weights(kind)}, ("x", dtype, lengths), ("y", dtype), opset)


def quantized(
    zero: int = 0, scale: Any = np.float32, opset: int = 17, *, bias: bool = False, kind: Any = np.int8
) -> bytes:
    """Q/DQ around a convolution, as edgeseg writes it for TensorRT; `bias`: int32 behind a DequantizeLinear."""
    floats = HALF if scale is np.float16 else FLOAT
    constants = {
        "s": np.array(0.1, scale),
        "z": np.array(zero, kind),
        "wq": (weights() * 20).astype(np.int8),
        "ws": np.full(CLASSES, 0.05, scale),
        "wz": np.zeros(CLASSES, np.int8),
    }
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"], "q"),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dq"),
        node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], "wdq", axis=0),
    ]
    reads = ["xd", "wd"]
    if bias:
        more = {"bq": np.arange(CLASSES, dtype=np.int32), "bs": np.full(CLASSES, 0.005, scale)}
        constants.update(more, bz=np.zeros(CLASSES, np.int32))
        nodes.append(node("DequantizeLinear", ["bq", "bs", "bz"], ["bd"], "bdq", axis=0))
        reads.append("bd")
    nodes += [node("Conv", reads, ["c"], "conv", pads=[1, 1, 1, 1]), node("Relu", ["c"], ["y"], "relu")]
    return model(nodes, constants, ("x", floats, (1, 3, 8, 8)), ("y", floats), opset)


def segmenter(lengths: Sequence[int | str] = (1, 16, 24, 3), *, quantize: bool = False, half: bool = False) -> bytes:
    """uint8 frame (N, H, W, 3) → uint8 mask (N, H, W): the graphs that edgeseg exports, at their smallest."""
    floats = HALF if half else FLOAT
    dtype = np.float16 if half else np.float32
    constants: dict[str, Any] = {"w1": weights(dtype), "w2": weights(dtype, (CLASSES, CLASSES, 1, 1))}
    constants["scales"] = np.array([1, 1, 2, 2], np.float32)
    nodes = [
        node("Cast", ["frame"], ["float"], "to_float", to=floats),
        node("Transpose", ["float"], ["x"], "planes", perm=[0, 3, 1, 2]),
    ]
    reads = ["x", "w1"]
    if quantize:
        constants.update(s=np.array(2.0, np.float32), z=np.array(0, np.int8), w1q=(weights() * 40).astype(np.int8))
        constants.update(ws=np.full(CLASSES, 0.025, np.float32), wz=np.zeros(CLASSES, np.int8))
        nodes += [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"], "x/quantize"),
            node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "x/dequantize"),
            node("DequantizeLinear", ["w1q", "ws", "wz"], ["wd"], "conv1/weight/dequantize", axis=0),
        ]
        reads = ["xd", "wd"]
    nodes += [
        node("Conv", reads, ["c1"], "conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("Conv", ["r1", "w2"], ["c2"], "conv2"),
        node("Resize", ["c2", "", "scales"], ["up"], "resize", mode="linear"),
        node("ArgMax", ["up"], ["labels"], "argmax", axis=1, keepdims=0),
        node("Cast", ["labels"], ["numbers"], "to_number", to=FLOAT),
        node("Cast", ["numbers"], ["mask"], "to_byte", to=BYTE),
    ]
    return model(nodes, constants, ("frame", BYTE, lengths), ("mask", BYTE))


def bytes_early() -> bytes:
    """uint8 moved before it is a float: no release takes that."""
    nodes = [
        node("Transpose", ["frame"], ["planes"], "early", perm=[0, 3, 1, 2]),
        node("Cast", ["planes"], ["x"], "to_float", to=FLOAT),
        node("Conv", ["x", "w"], ["y"], "conv"),
    ]
    return model(nodes, {"w": weights()}, ("frame", BYTE, (1, 8, 8, 3)))


def bytes_between() -> bytes:
    nodes = [node("Cast", ["x"], ["u"], "narrow", to=BYTE), node("Cast", ["u"], ["y"], "wide", to=FLOAT)]
    return model(nodes, {})


def unknown(count: int = 1) -> bytes:
    names = ["x", *(f"m{index}" for index in range(1, count)), "y"]
    pairs = pairwise(names)
    return model([node(f"Foo{index}", [a], [b], f"foo{index}") for index, (a, b) in enumerate(pairs)], {})


_OPEN = ("n", 3, "h", "w")
CASES: dict[str, tuple[Any, ...]] = {
    "convolution": (convolution(),),
    "FP16": (convolution(dtype=HALF),),
    "an old opset": (convolution(11),),
    "opset 24": (convolution(24),),
    "Q/DQ": (quantized(),),
    "Q/DQ of uint8": (quantized(kind=np.uint8),),
    "Q/DQ of FP16, opset 19": (quantized(scale=np.float16, opset=19),),
    "Q/DQ of FP16, opset 17": (quantized(scale=np.float16),),
    "a zero point": (quantized(3),),
    "a bias of int32": (quantized(bias=True),),
    "frame to mask": (segmenter(),),
    "frame to mask, Q/DQ": (segmenter(quantize=True),),
    "frame to mask, FP16": (segmenter(half=True),),
    "uint8 moved": (bytes_early(),),
    "uint8 between": (bytes_between(),),
    "an unknown operator": (unknown(),),
    "two unknown operators": (unknown(2),),
    "garbage": (b"garbage",),
    "nothing": (b"",),
    "open lengths, no profile": (convolution(lengths=_OPEN),),
    "open lengths": (convolution(lengths=_OPEN), ("x", (1, 3, 8, 8), (1, 3, 16, 16), (2, 3, 32, 32))),
    "a profile out of order": (convolution(lengths=_OPEN), ("x", (1, 3, 8, 8), (1, 3, 6, 6), (2, 3, 32, 32))),
    "a profile against the graph": (convolution(lengths=_OPEN), ("x", (1, 4, 8, 8), (1, 4, 9, 9), (2, 4, 9, 9))),
    "a profile of another input": (convolution(lengths=_OPEN), ("z", (1, 3, 8, 8), (1, 3, 9, 9), (2, 3, 9, 9))),
    "a profile of another rank": (convolution(lengths=_OPEN), ("x", (1, 3, 8), (1, 3, 9), (2, 3, 9))),
    "a profile of a static graph": (convolution(), ("x", (1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))),
}
