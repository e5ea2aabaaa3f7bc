"""What of a network must run again when some of it changes: the part behind the change, from tensors known before it.

Emulation on ONNX Runtime of graphs in any engine's dialect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.graph import Graph
from edgeseg.types import FRAME

if TYPE_CHECKING:
    import onnx

Arrays = Mapping[str, NDArray[Any]]
_OPENVINO_DOMAIN = "org.openvinotoolkit"


def emulated(graph: bytes) -> bytes:
    """The graph with FakeQuantize as QuantizeLinear and DequantizeLinear, for ONNX Runtime; others as they are.

    The two are equal where 0 is a step of the grid, which calibration sees to. Raises ValueError where it is not.
    """
    from onnx import helper

    opened = Graph(graph)
    fakes = [node for node in opened.nodes if node.domain == _OPENVINO_DOMAIN and node.op_type == "FakeQuantize"]
    if not fakes:
        return graph
    added: list[onnx.NodeProto] = []
    for node in fakes:
        low, high = (np.float64(np.ravel(opened.constant(node.input[at]))[0]) for at in (1, 2))  # type: ignore[arg-type]
        levels = next(found.i for found in node.attribute if found.name == "levels")
        scale = (high - low) / (levels - 1)
        zero = -low / scale
        if levels != 256 or abs(zero - np.rint(zero)) > 1e-2 or not -0.5 < zero < 255.5:
            raise ValueError(f"'{node.name}': FakeQuantize from {low} to {high} in {levels} levels is no uint8 grid")
        stem = f"{node.output[0]}/emulated"
        at = [
            opened.add_constant(f"{stem}/scale", np.array(scale, np.float32)),
            opened.add_constant(f"{stem}/zero_point", np.array(np.rint(zero), np.uint8)),
        ]
        added += [
            helper.make_node("QuantizeLinear", [node.input[0], *at], [f"{stem}/q"], f"{stem}/quantize"),
            helper.make_node("DequantizeLinear", [f"{stem}/q", *at], [node.output[0]], f"{stem}/dequantize"),
        ]
        opened.model.graph.node.remove(node)
    return opened.finish(added)


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a graph that differs from another's, and all behind it.

    `inputs`: tensors that both graphs compute alike and that it starts from, FRAME maybe among them. `outputs`: those
    asked for that may differ; the others are as the other graph gives them.
    """

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def graph(self, values: Arrays) -> bytes:
        """The part as a model whose inputs have the types and shapes of these arrays."""
        import onnx
        from onnx import helper

        made = onnx.ModelProto.FromString(self.model.SerializeToString())
        for name in self.inputs:
            value = values[name]
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            made.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
        made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.outputs)
        serialized: bytes = made.SerializeToString()
        return serialized


def differing(base: bytes, other: bytes, wanted: Sequence[str]) -> Part:
    """What of `other` must run to give `wanted`, if all tensors of `base` are known.

    Nodes are the same if they do the same to the same tensors and constants, whatever they are called.
    """
    import onnx

    one, two = Graph(base), Graph(other)
    known = {tuple(node.output): _said(node) for node in one.nodes}
    fixed_one, fixed_two = _constants(one), _constants(two)
    changed: set[str] = set()
    again: list[onnx.NodeProto] = []
    whole = any(attribute.HasField("g") or attribute.graphs for node in two.nodes for attribute in node.attribute)
    for node in two.nodes:  # what a branch inside a node reads is not followed: such a graph runs as a whole
        same = (
            not whole
            and known.get(tuple(node.output)) == _said(node)
            and all(tensor not in changed and fixed_one.get(tensor) == fixed_two.get(tensor) for tensor in node.input)
        )
        if not same:
            again.append(node)
            changed.update(node.output)
    outputs = tuple(tensor for tensor in wanted if tensor in changed)
    needed = again if whole else _needed(again, outputs)
    made = {tensor for node in needed for tensor in node.output}
    reads = dict.fromkeys(tensor for node in needed for tensor in node.input if tensor and tensor not in made)
    inputs = tuple(tensor for tensor in reads if tensor not in fixed_two)
    kept = onnx.GraphProto(name=two.model.graph.name)
    kept.node.extend(needed)
    kept.initializer.extend(weights for weights in two.model.graph.initializer if weights.name in reads)
    ends = {node.output[0] for node in needed}
    kept.node.extend(
        node
        for node in two.nodes
        if node.op_type == "Constant" and node.output[0] in reads and node.output[0] not in ends
    )
    constants = [node for node in kept.node if node.op_type == "Constant"]
    rest = [node for node in kept.node if node.op_type != "Constant"]
    del kept.node[:]
    kept.node.extend([*constants, *rest])
    model = onnx.ModelProto(ir_version=two.model.ir_version, opset_import=two.model.opset_import, graph=kept)
    return Part(model, inputs, outputs)


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """Those of the nodes, in topological order, that the outputs depend on."""
    asked, found = set(outputs), []
    for node in reversed(nodes):
        if asked & set(node.output):
            asked.update(node.input)
            found.append(node)
    return found[::-1]


def _said(node: onnx.NodeProto) -> bytes:
    """What a node does and to what, without its name."""
    import onnx

    copy = onnx.NodeProto.FromString(node.SerializeToString())
    copy.name = copy.doc_string = ""
    said: bytes = copy.SerializeToString(deterministic=True)
    return said


def _constants(graph: Graph) -> dict[str, bytes]:
    """Constant tensors by name, as bytes that can be compared."""
    import hashlib

    found = {}
    names = [tensor.name for tensor in graph.model.graph.initializer]
    names += [node.output[0] for node in graph.nodes if node.op_type == "Constant"]
    for name in names:
        value = graph.constant(name)
        if value is not None and name != FRAME:
            found[name] = hashlib.sha256(repr((value.dtype, value.shape)).encode() + value.tobytes()).digest()
    return found
