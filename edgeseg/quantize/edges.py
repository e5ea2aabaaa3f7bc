"""Questions about a graph that the rules of reasons.py and the placement of quantizers ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.types import FRAME

if TYPE_CHECKING:
    import onnx

# Ops that only move values: they commute with quantization exactly.
_MOVES = {"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "DepthToSpace", "SpaceToDepth"}
_FUSED = ("Relu", "Clip")  # what every engine computes as the saturation of a convolution's integers
_POINTWISE = {"Relu", "Clip", "PRelu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Identity", "Dropout"}
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WIDE = 16  # inputs of one group from which ONNX Runtime runs it in INT8 as fast as in float
_IMAGE_CHANNELS = 4  # as many as a camera gives

_KINDS = {"Add": "sum", "Sub": "sum", "Concat": "concatenation", "PRelu": "prelu", "BatchNormalization": "batch norm"}
_KINDS |= dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), "average")
_KINDS |= dict.fromkeys(("Gemm", "MatMul", "Einsum"), "matrix")
_KINDS |= dict.fromkeys(("Mul", "Div", "Sigmoid", "HardSigmoid", "HardSwish", "Softmax", "Tanh", "Elu"), "pointwise")
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "ConvInteger"}
_QUANTIZED |= {"MatMulInteger", "QGemm"}


def refuse_foreign(graph: Graph) -> None:
    """Raise ModelError for a graph with quantized parts, which would be rounded twice, or weights outside of it."""
    for tensor in graph.model.graph.initializer:
        if tensor.data_location == tensor.EXTERNAL:
            raise ModelError(
                f"the values of '{tensor.name}' lie in another file: a whole graph was wanted. Load it with onnx.load, "
                "which reads that file, and save it in one piece"
            )
    for node in graph.nodes:
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            raise ModelError(
                f"a float network was wanted, and this one is quantized already: node {node.name} ({node.op_type}) at "
                f"tensor '{node.input[0]}'. Build from the network before it was quantized, or keep this one as it is "
                "with --fp32"
            )


def moves_only(node: onnx.NodeProto) -> bool:
    """Whether every output value of the node is one of its input values."""
    if node.op_type == "Resize":
        return bool(_attribute(node, "mode", b"nearest") == b"nearest")
    return node.op_type in _MOVES


def activated(graph: Graph, node: onnx.NodeProto) -> str:
    """The tensor that a convolution and the ReLU or Clip fused behind it give."""
    tensor = node.output[0]
    readers = graph.consumers(tensor)
    if len(readers) == 1 and readers[0].op_type in _FUSED and tensor not in graph.outputs:
        return str(readers[0].output[0])
    return str(tensor)


def is_convolution(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Conv", "ConvTranspose") and node.domain in ("", "ai.onnx")


def inner_convolutions(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the convolutions inside the branches of an If or the body of a Loop."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                if is_convolution(inner):
                    yield f"{node.name}/{inner.name or inner.output[0]}"
                yield from (f"{node.name}/{name}" for name in inner_convolutions(inner))


def output_axis(node: onnx.NodeProto, shape: tuple[int, ...]) -> int | None:
    """The axis of a convolution's weights along which its outputs lie: scales are one for each index of it.

    Weights are (K, C / group, ...) for Conv and (C, K / group, ...) for ConvTranspose: there, with several groups of
    more than one output, no axis counts the outputs, and None comes back.
    """
    if node.op_type == "Conv":
        return 0
    if _attribute(node, "group", 1) == 1:
        return 1
    return 0 if shape[1] == 1 else None


def outputs_of(node: onnx.NodeProto, shape: tuple[int, ...]) -> int:
    """How many channels a convolution with weights of this shape gives."""
    return int(shape[0] if node.op_type == "Conv" else shape[1] * _attribute(node, "group", 1))


def kind_of(graph: Graph, node: onnx.NodeProto) -> str:
    """What the rules call a node; "" for one that they do not speak of."""
    if not is_convolution(node):
        if moves_only(node):
            return "move"
        return "bilinear" if node.op_type == "Resize" else _KINDS.get(node.op_type, "")
    weights = graph.constant(node.input[1])
    if weights is None:
        return "computed"
    if weights.dtype != np.float32:
        return "typed"
    group = int(_attribute(node, "group", 1))
    if node.op_type == "ConvTranspose":
        if group > 1:
            return "transposed groups" if output_axis(node, weights.shape) is None else "transposed depthwise"
        return "transposed" if _never_negative(graph, node.input[0]) else "transposed signed"
    if weights.shape[1] * group <= _IMAGE_CHANNELS and _reads_the_frame(graph, node.input[0]):
        return "image"
    if _is_a_point(graph, node.input[0]):
        return "point"
    if group > 1:
        if weights.shape[1] == 1 and weights.shape[0] == group:
            return "depthwise"
        return "grouped narrow" if weights.shape[1] < _WIDE else "grouped"
    return "convolution"


def gives_scores(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether no other convolution stands between this one and the graph's output."""
    return not any(reader.op_type in _WEIGHTED for reader in _behind(graph, activated(graph, node)))


def _behind(graph: Graph, tensor: str) -> Iterator[onnx.NodeProto]:
    pending, seen = [tensor], {tensor}
    while pending:
        for reader in graph.consumers(pending.pop()):
            yield reader
            fresh = [output for output in reader.output if output not in seen]
            seen.update(fresh)
            pending += fresh


def _reads_the_frame(graph: Graph, tensor: str) -> bool:
    """Whether the tensor is the frame, prepared: nothing with weights in between, and nothing else flows in."""
    pending, seen = [tensor], {tensor}
    while pending:
        tensor = pending.pop()
        if tensor == FRAME or graph.constant(tensor) is not None or not tensor:
            continue
        node = graph.producer(tensor)
        if node is None or node.op_type in _WEIGHTED:
            return False
        fresh = [read for read in node.input if read not in seen]
        seen.update(fresh)
        pending += fresh
    return FRAME in seen


def _never_negative(graph: Graph, tensor: str) -> bool:
    """Whether the tensor's producers rule negative values out: its zero point is then 0 in an unsigned scheme."""
    node = graph.producer(tensor)
    if node is None:
        value = graph.constant(tensor)
        return value is not None and bool(np.all(value >= 0))
    if node.op_type == "Clip":
        least = graph.constant(node.input[1]) if len(node.input) > 1 else _attribute(node, "min", None)
        return least is not None and bool(np.all(np.asarray(least) >= 0))
    if moves_only(node) or node.op_type in ("AveragePool", "GlobalAveragePool"):
        return _never_negative(graph, node.input[0])
    if node.op_type in ("Concat", "Add", "Mul"):
        return all(_never_negative(graph, part) for part in node.input)
    return node.op_type in ("Relu", "Sigmoid", "HardSigmoid", "Softmax")


def _is_a_point(graph: Graph, tensor: str) -> bool:
    """Whether the tensor has one position a channel: a mean over the image, and what was computed from it alone."""
    while (node := graph.producer(tensor)) is not None:
        if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
            return True
        if node.op_type in ("ReduceMean", "ReduceMax"):
            axes = graph.constant(node.input[1]) if len(node.input) > 1 else _attribute(node, "axes", ())
            return axes is not None and {int(axis) % 4 for axis in axes} >= {2, 3}
        weights = graph.constant(node.input[1]) if node.op_type == "Conv" else None
        same_size = weights is not None and all(size == 1 for size in weights.shape[2:])
        if not (same_size or node.op_type in _POINTWISE or node.op_type == "BatchNormalization"):
            return False
        tensor = node.input[0]
    return False


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)
