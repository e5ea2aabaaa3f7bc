"""OpenVINO's IR as an ONNX graph that ONNX Runtime can look into: the FP32 graph with what the IR quantizes.

The IR has no ONNX in it, but it keeps the names of tensors. So its FakeQuantize operations and the weights and biases
of its convolutions are read through OpenVINO's own interface and written into a copy of the FP32 graph, at the tensors
of the same names. FakeQuantize becomes a pair of QuantizeLinear and DequantizeLinear: equal where 0 is a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.backends.openvino import core
from edgeseg.errors import ModelError, need
from edgeseg.graph import Graph
from edgeseg.quantize.edges import is_convolution

if TYPE_CHECKING:
    import onnx

_CONVOLUTIONS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"}
_FAR = 6  # operations between a convolution and the one that carries its tensor's name, at most
_OFF_GRID = 0.01  # steps by which 0 may miss the grid


def from_ir(fp32: bytes, xml: bytes, weights: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The FP32 graph with the IR's quantization, and what could not be carried over exactly, in words.

    Raises MissingOnMachine without OpenVINO, ModelError for an IR that is not of this graph or cannot be read.
    """
    runtime = need("openvino", extra="openvino", why="reading an OpenVINO engine")
    try:
        model = core().read_model(xml, weights)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot read the engine's IR: {str(error).strip().splitlines()[0]}") from error
    graph = Graph(fp32)
    known = {tensor: node for node in graph.nodes for tensor in node.output}
    operations = list(model.get_ordered_ops())
    notes: list[str] = []
    added: list[onnx.NodeProto] = []
    for operation in operations:
        if operation.get_type_name() == "FakeQuantize":
            tensor = next((name for name in operation.input_value(0).get_names() if name in known), None)
            if tensor is None:
                raise ModelError(
                    f"the IR quantizes at {operation.get_friendly_name()} a tensor that the FP32 graph does not have"
                )
            pair, note = _pair(graph, tensor, operation)
            notes += [note] if note else []
            graph.rewire(tensor, pair[-1].output[0], _readers(operation, known, graph, tensor))
            added += pair
    _weights(runtime, graph, operations)
    return graph.finish(added), tuple(notes)


def _pair(graph: Graph, tensor: str, operation: Any) -> tuple[list[onnx.NodeProto], str | None]:
    from onnx import helper

    low, high = (float(np.ravel(_constant(operation, at))[0]) for at in (1, 2))
    levels = int(operation.get_attributes()["levels"])
    scale = (high - low) / (levels - 1)
    if levels != 256 or not scale > 0:
        raise ModelError(
            f"{operation.get_friendly_name()}: FakeQuantize from {low} to {high} in {levels} levels; wanted 256"
        )
    zero = -low / scale
    note = None
    if abs(zero - np.rint(zero)) > _OFF_GRID or not -0.5 < zero < 255.5:
        note = (
            f"at '{tensor}' the engine's integers run from {low:g} to {high:g}, where 0 is no step: emulated with the "
            "nearest grid on which it is one"
        )
    stem = f"edgeseg/{tensor}"
    at = [
        graph.add_constant(f"{stem}/scale", np.array(scale, np.float32)),
        graph.add_constant(f"{stem}/zero_point", np.array(np.clip(np.rint(zero), 0, 255), np.uint8)),
    ]
    pair = [
        helper.make_node("QuantizeLinear", [tensor, *at], [f"{stem}/q"], f"{stem}/quantize"),
        helper.make_node("DequantizeLinear", [f"{stem}/q", *at], [f"{stem}/dq"], f"{stem}/dequantize"),
    ]
    return pair, note


def _readers(operation: Any, known: Mapping[str, onnx.NodeProto], graph: Graph, tensor: str) -> list[onnx.NodeProto]:
    """The nodes of the ONNX graph that read a FakeQuantize in the IR: those next behind it whose tensors have names."""
    found: dict[str, onnx.NodeProto] = {}
    pending = [(target.get_node(), 0) for target in operation.output(0).get_target_inputs()]
    while pending:
        at, far = pending.pop()
        names = [name for output in at.outputs() for name in output.get_names() if name in known]
        if names:
            found[known[names[0]].name] = known[names[0]]
        elif far < _FAR and at.get_type_name() not in ("ShapeOf", "Result"):
            pending += [(t.get_node(), far + 1) for output in at.outputs() for t in output.get_target_inputs()]
    readers = [node for node in graph.consumers(tensor) if node.name in found]
    if not readers:
        raise ModelError(f"nobody in the FP32 graph reads '{tensor}' where the IR does; they do not belong together")
    return readers


def _weights(runtime: Any, graph: Graph, operations: Sequence[Any]) -> None:
    """Put the weights and biases that the IR computes with in the place of the FP32 graph's."""
    by_name = {name: op for op in operations for output in op.outputs() for name in output.get_names()}
    asked = []
    for node in graph.nodes:
        own = graph.constant(node.input[1]) if is_convolution(node) else None
        if own is None:
            continue
        operation = by_name.get(node.output[0])
        if operation is None:
            raise ModelError(f"the IR has no tensor '{node.output[0]}', which the FP32 graph's {node.name} gives")
        bias = None
        for _ in range(_FAR):
            if operation.get_type_name() in _CONVOLUTIONS:
                break
            if operation.get_type_name() == "Add":
                bias = _behind(operation.input_value(1).get_node())
            operation = operation.input_value(0).get_node()
        else:
            raise ModelError(f"the IR computes '{node.output[0]}' by no convolution, the FP32 graph's {node.name} does")
        asked.append((node, own, operation.input_value(1), bias))
    values = _evaluated(runtime, [output for _, _, output, _ in asked])
    for (node, own, _, bias), found in zip(asked, values, strict=True):
        if found.size != own.size:
            raise ModelError(f"{node.name} has {own.size} weights in the FP32 graph and {found.size} in the IR")
        weights = found.reshape(own.shape).astype(np.float32)
        if not np.array_equal(weights, own):
            node.input[1] = graph.add_constant(f"edgeseg/{node.name}/weight", weights)
        if bias is not None:
            name = graph.add_constant(f"edgeseg/{node.name}/bias", bias.ravel().astype(np.float32))
            if len(node.input) > 2:
                node.input[2] = name
            else:
                node.input.append(name)


def _evaluated(runtime: Any, outputs: Sequence[Any]) -> list[NDArray[Any]]:
    """What constant parts of the IR come to."""
    if not outputs:
        return []
    try:
        compiled = runtime.compile_model(
            runtime.Model(list(outputs), [], "constants"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = compiled([])
    except RuntimeError as error:
        raise ModelError(f"the weights in the IR are not constant: {str(error).strip().splitlines()[0]}") from error
    return [np.array(found[at]) for at in range(len(outputs))]


def _behind(operation: Any) -> NDArray[Any] | None:
    """The constant behind reshaping and converting; None for what is computed."""
    for _ in range(_FAR):
        if operation.get_type_name() == "Constant":
            return np.array(operation.data)
        if operation.get_type_name() not in ("Reshape", "Convert"):
            return None
        operation = operation.input_value(0).get_node()
    return None


def _constant(operation: Any, position: int) -> NDArray[Any]:
    value = _behind(operation.input_value(position).get_node())
    if value is None:
        raise ModelError(f"{operation.get_friendly_name()}: its range is computed; wanted a constant")
    return value
