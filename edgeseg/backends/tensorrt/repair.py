"""A graph that a builder refuses because of one node, without what edgeseg wrote around that node.

"Could not find any implementation for node" is how TensorRT says that it has no kernel for a convolution in INT8 or
FP16 of just that shape. The node then runs in the next wider type, and the report names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeseg.graph import Graph

if TYPE_CHECKING:
    import onnx


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
        for node in [by_name[name]] if name in by_name else [by_name[n] for n in by_name if n and n in name]:
            if _unquantize(view, node):
                return view.finish([]), Repair(node.name, "runs without INT8: this TensorRT has no kernel for it")
            if (added := _widen(view, node)) is not None:
                return view.finish(added), Repair(node.name, "runs in FP32: this TensorRT has no FP16 kernel for it")
    return None


def _unquantize(graph: Graph, node: onnx.NodeProto) -> bool:
    """Let a node read the float tensors behind its DequantizeLinear inputs."""
    changed = False
    for position, tensor in enumerate(node.input):
        dequantize = graph.producer(tensor)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        source = dequantize.input[0]
        quantize = graph.producer(source)
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            node.input[position] = quantize.input[0]
        elif (stored := graph.constant(source)) is not None:
            scale = graph.constant(dequantize.input[1])
            assert scale is not None
            axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1)
            shape = [1] * stored.ndim
            if scale.ndim:
                shape[axis] = scale.size
            weights = stored.astype(np.float32) * scale.astype(np.float32).reshape(shape)
            node.input[position] = graph.add_constant(f"{tensor}/float", weights.astype(scale.dtype))
        else:
            continue
        changed = True
    return changed


def _widen(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Casts around a node whose weights are float16, so that it computes in float32; None for another node."""
    from onnx import TensorProto, helper

    inputs = list(node.input)
    constants = [graph.constant(tensor) for tensor in inputs]
    if not any(value is not None and value.dtype == np.float16 for value in constants):
        return None
    added: list[onnx.NodeProto] = []
    for position, (tensor, value) in enumerate(zip(inputs, constants, strict=True)):
        if value is not None:
            if value.dtype == np.float16:
                node.input[position] = graph.add_constant(f"{tensor}/fp32", value.astype(np.float32))
        elif tensor:
            wide = f"{tensor}/fp32/{node.name}"
            added.append(helper.make_node("Cast", [tensor], [wide], f"{wide}/cast", to=TensorProto.FLOAT))
            node.input[position] = wide
    for position, tensor in enumerate(list(node.output)):
        wide = f"{tensor}/fp32"
        node.output[position] = wide
        added.append(helper.make_node("Cast", [wide], [tensor], f"{tensor}/cast", to=TensorProto.FLOAT16))
    return added
