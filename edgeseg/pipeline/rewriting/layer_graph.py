"""One layer as a network of its own, to be timed: a complete graph around it whose cost can be subtracted.

    frame uint8 → float → 1x1 convolution to the layer's inputs → ReLU → [the layer → ReLU] → max-pooling → 1x1
    convolution to two scores → decision

The layer stands between convolutions, as in a network: what a runtime does to its neighbours' memory layout, and INT8
on both sides, is as it would be there. The pooling reads all that the layer gives and leaves next to nothing for what
follows it; it stays in every runtime's blocked layout and, quantized, on integers. Weights and frames are random.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.rewrite.values import Conv, Fork, Pair, Piece, Shuffle, Take, convs
from edgeseg.types import FRAME, LOGITS, MASK, Frames, InputSpec, ModelSpec, OnnxModel, OutputSpec

if TYPE_CHECKING:
    import onnx

OPSET, IR = 17, 8
_WINDOW = 8  # of the pooling behind the layer, in each direction


def layer_graph(inputs: int, size: Pair, pieces: Sequence[Piece]) -> OnnxModel:
    """The graph for `pieces` in a row on an input (1, inputs, *size); without pieces what is to be subtracted."""
    import onnx
    from onnx import TensorProto, helper

    build = _Builder()
    value = build.node("Cast", [FRAME], to=TensorProto.FLOAT)
    value = build.node("Transpose", [value], perm=[0, 3, 1, 2])
    value = build.node("Relu", [build.conv(value, Conv(3, inputs), gain=1 / 128, bias=True)])
    channels, shape = inputs, size
    for index, piece in enumerate(pieces):
        value = build.piece(value, piece, channels, shape, bias=index == len(pieces) - 1)
        channels, shape = after(piece, channels, shape)
    if pieces:
        value = build.node("Relu", [value])
    window = [min(_WINDOW, length) for length in shape]
    value = build.node("MaxPool", [value], kernel_shape=window, strides=window)
    build.conv(value, Conv(channels, 2), bias=True, output=LOGITS)
    classes = build.node("ArgMax", [LOGITS], axis=1, keepdims=0)
    build.node("Cast", [build.node("Cast", [classes], to=TensorProto.FLOAT)], MASK, to=TensorProto.UINT8)
    pooled = [length // part for length, part in zip(shape, window, strict=True)]
    graph = helper.make_graph(
        build.nodes,
        "layer",
        [helper.make_tensor_value_info(FRAME, TensorProto.UINT8, [1, *size, 3])],
        [helper.make_tensor_value_info(MASK, TensorProto.UINT8, [1, *pooled])],
        build.weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    spec = ModelSpec("layer", InputSpec(size), OutputSpec(classes=("first", "second")))
    return OnnxModel(inferred.SerializeToString(), spec)


def frames_for(size: Pair, count: int = 2) -> list[Frames]:
    """Batches of one random frame uint8 (1, H, W, 3)."""
    chance = np.random.default_rng(0)
    return [chance.integers(0, 256, (1, *size, 3), np.uint8) for _ in range(count)]


def after(piece: Piece, channels: int, size: Pair) -> tuple[int, Pair]:
    """Channels and size of what a piece gives."""
    if isinstance(piece, Take):
        return piece.count, size
    if found := convs(piece):
        return sum(conv.outputs for conv in found), found[0].after(size)
    return channels, size


class _Builder:
    """Nodes and weights of a graph, one after another."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._chance = np.random.default_rng(0)

    def node(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], f"{op}{len(self.nodes)}", **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(value, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def conv(self, value: str, conv: Conv, *, bias: bool, gain: float = 1.0, output: str = "") -> str:
        shape = (conv.outputs, conv.inputs // conv.groups, *conv.kernel)
        weight = self._chance.standard_normal(shape, np.float32) * np.float32(gain * sqrt(2 / conv.depth))
        inputs = [value, self.constant(weight)]
        if bias:
            inputs.append(self.constant(self._chance.standard_normal(conv.outputs, np.float32)))
        return self.node(
            "Conv",
            inputs,
            output,
            kernel_shape=list(conv.kernel),
            strides=list(conv.stride),
            pads=[*conv.padding, *conv.padding],
            dilations=list(conv.dilation),
            group=conv.groups,
        )

    def piece(self, value: str, piece: Piece, channels: int, size: Pair, *, bias: bool) -> str:
        if isinstance(piece, Conv):
            return self.conv(value, piece, bias=bias)
        if isinstance(piece, Fork):
            return self.node("Concat", [self.conv(value, conv, bias=bias) for conv in piece.convs], axis=1)
        if isinstance(piece, Take):
            index = np.sort(self._chance.choice(channels, piece.count, replace=False)).astype(np.int64)
            return self.node("Gather", [value, self.constant(index)], axis=1)
        return self._shuffle(value, piece, channels, size)

    def _shuffle(self, value: str, piece: Shuffle, channels: int, size: Pair) -> str:
        apart = self.constant(np.array([1, piece.groups, channels // piece.groups, *size], np.int64))
        whole = self.constant(np.array([1, channels, *size], np.int64))
        value = self.node("Reshape", [value, apart])
        value = self.node("Transpose", [value], perm=[0, 2, 1, 3, 4])
        return self.node("Reshape", [value, whole])
