"""Local response normalisation (AlexNet: Krizhevsky, Sutskever and Hinton, NIPS 2012) in a few cheap operations.

    y[c] = x[c] / (k + alpha / size * sum of x[j]^2) ^ beta,    j from c - size // 2 to c + (size - 1) // 2

torch's exporters write a padding and an average over five dimensions. ONNX has an operator, LRN, but ONNX Runtime
needs three times as long for it as for torch's form; ONNX Runtime and TensorRT refuse even sizes (for which ONNX's
window reaches one channel further up where torch's reaches one further down); OpenVINO (2026.4) cuts k to a whole
number on CPUs, and is slow with it in INT8 graphs. Here the sum is a product with a matrix of zeros and ones:

    t = k + ones * (x * sqrt(alpha / size))^2,    y = x / t^beta,    t^0.75 = sqrt(t) * sqrt(sqrt(t))

Scaled before it is squared, x fits into float16 up to some ten thousands. An AlexNet of width 24 on 180 x 240 takes
with torch's form, LRN and this one 11.4, 18.9 and 9.8 ms on ONNX Runtime, 18.7, 14.5 and 15.1 on OpenVINO; in INT8 8.8,
16.4 and 7.3, and 14.5, 22.6 and 10.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.export.graph import attribute, keep_output
from edgeseg.graph import Graph

if TYPE_CHECKING:
    import onnx

Shape = tuple[int | str, ...]

_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Identity"}  # elements stay in their order


@dataclass(frozen=True, slots=True)
class _Norm:
    source: str
    shape: Shape  # (N, C, H, W); free ones are names
    before: int  # channels of the window below the one that is normalised
    after: int
    alpha: float
    beta: float
    k: float


def normalized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its local response normalisations so, torch's and LRN nodes; all else is as it was.

    float32 (N, C, H, W) in and out, N, H and W free if they are.
    """
    from onnx import load_from_string, shape_inference

    if not {"LRN", "AveragePool"} & {node.op_type for node in proto.graph.node}:
        return proto
    inferred = shape_inference.infer_shapes(proto, data_prop=True)
    shapes: dict[str, Shape] = {}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims)
    graph = Graph(proto.SerializeToString())
    added: list[onnx.NodeProto] = []
    for node in graph.nodes:
        norm = _torchs(graph, shapes, node) if node.op_type == "Div" else None
        if node.op_type == "LRN":
            norm = _onnxs(shapes, node)
        if norm is not None and isinstance(norm.shape[1], int) and norm.alpha >= 0:
            output = node.output[0]
            node.output[0] = f"edgeseg/lrn/{output}/before"
            added += _written(graph, norm, output)
    if not added:
        return proto
    proto = load_from_string(graph.finish(added))
    keep_output(proto, proto.graph.output[0].name)
    return proto


def _written(graph: Graph, norm: _Norm, output: str) -> list[onnx.NodeProto]:
    from onnx import helper

    nodes: list[onnx.NodeProto] = []

    def node(op: str, *inputs: str, name: str = "") -> str:
        name = name or f"edgeseg/lrn/{output}/{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], f"{name}/{op.lower()}"))
        return name

    def constant(name: str, value: NDArray[Any]) -> str:
        return graph.add_constant(f"edgeseg/lrn/{output}/{name}", value)

    channels = np.arange(norm.shape[1])
    apart = channels[None] - channels[:, None]
    ones = constant("ones", ((-norm.before <= apart) & (apart <= norm.after)).astype(np.float32))
    scale = constant("scale", np.array((norm.alpha / (norm.before + norm.after + 1)) ** 0.5, np.float32))
    scaled = node("Mul", norm.source, scale)
    flat = node("Reshape", node("Mul", scaled, scaled), constant("flat", np.array([0, 0, -1], np.int64)))
    total = node("MatMul", ones, flat)
    if all(isinstance(length, int) for length in norm.shape):
        shape = constant("shape", np.array(norm.shape, np.int64))
    else:
        shape = node("Shape", norm.source)
    power = node("Add", node("Reshape", total, shape), constant("k", np.array(norm.k, np.float32)))
    if norm.beta in (0.5, 0.75):
        root = node("Sqrt", power)
        power = root if norm.beta == 0.5 else node("Mul", root, node("Sqrt", root))
    elif norm.beta != 1:
        power = node("Pow", power, constant("beta", np.array(norm.beta, np.float32)))
    node("Div", norm.source, power, name=output)
    return nodes


def _onnxs(shapes: dict[str, Shape], node: onnx.NodeProto) -> _Norm | None:
    shape, size = shapes.get(node.input[0], ()), int(attribute(node, "size", 1))
    if len(shape) != 4:
        return None
    alpha, beta, k = (float(attribute(node, *what)) for what in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return _Norm(node.input[0], shape, (size - 1) // 2, size // 2, alpha, beta, k)


def _torchs(graph: Graph, shapes: dict[str, Shape], div: onnx.NodeProto) -> _Norm | None:
    """What a division computes, if that is a local response normalisation."""
    source, base = div.input
    shape = shapes.get(source, ())
    if len(shape) != 4:
        return None
    base, beta = _step(graph, base, "Pow", 1.0)
    base, k = _step(graph, base, "Add", 0.0)
    base, alpha = _step(graph, base, "Mul", 1.0)
    pool = graph.producer(_behind_views(graph, base))
    if pool is None or pool.op_type != "AveragePool" or shapes.get(base) != shape:
        return None
    size, *others = attribute(pool, "kernel_shape", [0])
    apart = (shape[0], 1, *shape[1:])  # one value deep, as high as there are channels
    before, padded = _padding(graph, pool)
    if others != [1, 1] or set(attribute(pool, "strides", [1])) != {1} or attribute(pool, "ceil_mode", 0):
        return None
    whole = [0, 0, size // 2, 0, 0, 0, 0, (size - 1) // 2, 0, 0]
    if padded != whole or shapes.get(before) != apart:
        return None
    square = graph.producer(_behind_views(graph, before))
    if square is None or not _squares(graph, square, source):
        return None
    return _Norm(source, shape, size // 2, (size - 1) // 2, alpha, beta, k)


def _step(graph: Graph, tensor: str, op: str, neutral: float) -> tuple[str, float]:
    """What the tensor is computed from by an operation with one number, and that number; or itself."""
    node = graph.producer(tensor)
    if node is not None and node.op_type == "Sqrt" and op == "Pow":
        return node.input[0], 0.5
    if node is None or node.op_type != op:
        return tensor, neutral
    for read, other in ((0, 1), (1, 0)) if op != "Pow" else ((0, 1),):
        value = graph.constant(node.input[other])
        if value is not None and value.size == 1:
            return node.input[read], float(value.item())
    return tensor, neutral


def _behind_views(graph: Graph, tensor: str) -> str:
    while (node := graph.producer(tensor)) is not None and node.op_type in _VIEWS:
        tensor = node.input[0]
    return tensor


def _padding(graph: Graph, pool: onnx.NodeProto) -> tuple[str, list[int] | None]:
    """What is averaged, before zeros are put around it, and how many (of each dimension, before and after)."""
    own = list(attribute(pool, "pads", [0] * 6))
    if attribute(pool, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or len(own) != 6:
        return pool.input[0], None
    if any(own):
        counted = attribute(pool, "count_include_pad", 0)
        return pool.input[0], [0, 0, *own[:3], 0, 0, *own[3:]] if counted else None
    pad = graph.producer(pool.input[0])
    if pad is None or pad.op_type != "Pad":
        return pool.input[0], [0] * 10
    counts = graph.constant(pad.input[1])
    value = graph.constant(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else 0
    zeros = attribute(pad, "mode", b"constant") == b"constant" and value is not None and not value
    if counts is None or not zeros or (len(pad.input) > 3 and pad.input[3]):
        return pool.input[0], None
    return pad.input[0], [int(count) for count in counts]


def _squares(graph: Graph, node: onnx.NodeProto, tensor: str) -> bool:
    if node.op_type == "Mul":
        return list(node.input) == [tensor, tensor]
    exponent = graph.constant(node.input[1]) if node.op_type == "Pow" else None
    return exponent is not None and exponent.size == 1 and float(exponent.item()) == 2 and node.input[0] == tensor
