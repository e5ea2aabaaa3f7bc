"""Raising a graph's operator set without changing what it computes: float16 scales of quantizers exist from 19 on.

onnx.version_converter rewrites more than is asked for and has no adapters for some; the operators that networks use
either did not change what they mean since 13 (they took more types, or options whose defaults are the old meaning)
or are brought over here. Source: the changelog of operators in ONNX's documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeseg.errors import ModelError
from edgeseg.quantize.half_types import attribute

if TYPE_CHECKING:
    import onnx

_OLDEST = 13
_SAME = {
    *("Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape"),
    *("CumSum", "DequantizeLinear", "Div", "Equal", "GreaterOrEqual", "HardSwish", "Identity", "If", "LeakyRelu"),
    *("LessOrEqual", "Loop", "LpPool", "Mul", "PRelu", "Pad", "Pow", "QuantizeLinear", "Relu", "Reshape", "Resize"),
    *("Scan", "ScatterElements", "ScatterND", "Shape", "Size", "Sub", "Where", "Bernoulli", "Optional"),
}


def raised(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """The same graph at opset `target` (at most 19) or newer. Raises ModelError, naming a node that cannot follow."""
    import onnx

    now = next((int(e.version) for e in proto.opset_import if e.domain in ("", "ai.onnx")), 1)
    if now >= target:
        return proto
    if now < _OLDEST:
        raise ModelError(
            f"half precision around INT8 needs ONNX opset {target}, and the graph is of opset {now}: "
            f"export it again with opset {_OLDEST} or newer"
        )
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    _graph(result, result.graph, now, target)
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target
    result.ir_version = max(result.ir_version, 9)  # came with opset 19
    return result


def _graph(proto: onnx.ModelProto, graph: onnx.GraphProto, now: int, target: int) -> None:
    from onnx import defs, helper, numpy_helper

    for node in graph.node:
        for attr in node.attribute:
            for inner in [attr.g] if attr.HasField("g") else attr.graphs:
                _graph(proto, inner, now, target)
        if node.domain not in ("", "ai.onnx"):
            continue
        old = defs.get_schema(node.op_type, now)
        new = defs.get_schema(node.op_type, target)
        if old.since_version == new.since_version or node.op_type in _SAME:
            continue
        if node.op_type == "Split":
            if len(node.input) < 2 or not node.input[1]:
                node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))
        elif node.op_type.startswith("Reduce"):
            if (axes := attribute(node, "axes")) is not None:
                name = f"{node.output[0]}/axes"
                graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), name))
                node.input.append(name)
                kept = [attr for attr in node.attribute if attr.name != "axes"]
                del node.attribute[:]
                node.attribute.extend(kept)
        else:
            raise ModelError(
                f"half precision around INT8 needs ONNX opset {target}, and node {node.name or node.output[0]} "
                f"({node.op_type}) means something else there than in opset {now}: export the network again with "
                f"opset {target}, or build it without INT8"
            )
