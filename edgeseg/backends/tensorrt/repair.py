"""A graph that a builder refuses because of one node, without what edgeseg wrote around that node.

"Could not find any implementation for node" is how TensorRT says that it has no kernel for a convolution in INT8 or
FP16 of just that shape. The node then runs in the next wider type, and the report names it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.graph import Graph

if TYPE_CHECKING:
    import onnx

_PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Repair:
    """One node that was given up, and in which way."""

    node: str
    how: str


def repaired(graph: bytes, names: Sequence[str]) -> tuple[bytes, Repair] | None:
    """The graph with the first of these nodes that has Q/DQ around it or runs in half precision freed of that.

    None where none of them has. Names of layers that the builder fused are matched by the nodes in them.
    """
    view = Graph(graph)
    by_name = {node.name: node for node in view.nodes}
    for name in names:
        for node in [by_name[found] for found in _named(name, list(by_name))]:
            if (added := _unquantize(view, node)) is not None:
                how = "runs without INT8: this TensorRT has no kernel for it"
                return _finish(view, added), Repair(node.name, how)
            if (added := _widen(view, node)) is not None:
                how = "runs in FP32: this TensorRT has no FP16 kernel for it"
                return _finish(view, added), Repair(node.name, how)
    return None


def _named(name: str, nodes: Sequence[str]) -> list[str]:
    """The nodes that the name of a layer tells of: itself, "a + b", "PWN(a, b)"; never "conv1" for "conv12"."""
    if name in nodes:
        return [name]
    told = [node for node in nodes if node and re.search(rf"(?<![\w/.]){re.escape(node)}(?![\w/.])", name)]
    if not told:  # with a suffix of the builder's: the longest, which is the whole name of a node
        inside = [node for node in nodes if node and node in name]
        told = [node for node in inside if not any(node != other and node in other for other in inside)]
    return sorted(told, key=name.index)


def _finish(graph: Graph, added: Sequence[onnx.NodeProto]) -> bytes:
    """Without the Q/DQ that nobody reads any more: a builder looks for kernels for them too."""
    nodes = [*graph.nodes, *added]
    if any(attribute.HasField("g") or attribute.graphs for node in nodes for attribute in node.attribute):
        return graph.finish(list(added))  # branches may read anything
    while True:
        read = {tensor for node in nodes for tensor in node.input} | graph.outputs
        kept = [n for n in nodes if n.op_type not in _PAIR or not read.isdisjoint(n.output)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.model.graph.node[:]
    return graph.finish(copies)


def _unquantize(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Let a node read the float tensors behind its DequantizeLinear inputs; None for a node without any.

    Gives the casts this takes: a pair may quantize a tensor of one type and give another.
    """
    changed = False
    added: list[onnx.NodeProto] = []
    for position, tensor in enumerate(node.input):
        dequantize = graph.producer(tensor)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        source = dequantize.input[0]
        quantize = graph.producer(source)
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            node.input[position] = _typed(graph, quantize, dequantize, node.name, added)
        elif (stored := graph.constant(source)) is not None:
            scale = graph.constant(dequantize.input[1])
            assert scale is not None
            axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1)
            shape = [1] * stored.ndim
            if scale.ndim:
                shape[axis] = scale.size
            weights = stored.astype(np.float32) * scale.astype(np.float32).reshape(shape)
            node.input[position] = _constant(graph, f"{tensor}/float", weights.astype(scale.dtype))
        else:
            continue
        changed = True
    return added if changed else None


def _typed(
    graph: Graph, quantize: onnx.NodeProto, dequantize: onnx.NodeProto, reader: str, added: list[onnx.NodeProto]
) -> str:
    """What is quantized, in the type that comes out behind; both are those of the scales."""
    from onnx import helper

    source = str(quantize.input[0])
    before, after = (graph.constant(pair.input[1]) for pair in (quantize, dequantize))
    if before is None or after is None or before.dtype == after.dtype:
        return source
    cast = f"{source}/{after.dtype.name}/{reader}"
    kind = helper.np_dtype_to_tensor_dtype(after.dtype)
    if cast not in {output for made in added for output in made.output}:
        added.append(helper.make_node("Cast", [source], [cast], f"{cast}/cast", to=kind))
    return cast


def _widen(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Casts around a node whose weights are float16, so that it computes in float32; None for another node."""
    from onnx import TensorProto, helper, shape_inference

    inputs = list(node.input)
    constants = [graph.constant(tensor) for tensor in inputs]
    if node.op_type in _PAIR or not any(value is not None and value.dtype == np.float16 for value in constants):
        return None
    inferred = shape_inference.infer_shapes(graph.model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    if any(types.get(tensor) != TensorProto.FLOAT16 for tensor in node.output if tensor):
        return None
    added: list[onnx.NodeProto] = []
    for position, (tensor, value) in enumerate(zip(inputs, constants, strict=True)):
        if value is not None:
            if value.dtype == np.float16:
                node.input[position] = _constant(graph, f"{tensor}/fp32", value.astype(np.float32))
        elif types.get(tensor) == TensorProto.FLOAT16:
            wide = f"{tensor}/fp32/{node.name}"
            added.append(helper.make_node("Cast", [tensor], [wide], f"{wide}/cast", to=TensorProto.FLOAT))
            node.input[position] = wide
    for position, tensor in enumerate(list(node.output)):
        if not tensor:
            continue
        wide = f"{tensor}/fp32"
        node.output[position] = wide
        added.append(helper.make_node("Cast", [wide], [tensor], f"{tensor}/cast", to=TensorProto.FLOAT16))
    return added


def _constant(graph: Graph, name: str, value: NDArray[Any]) -> str:
    """Layers that are called twice share their weights, and a repair of one may have come before."""
    return name if graph.constant(name) is not None else graph.add_constant(name, value)
