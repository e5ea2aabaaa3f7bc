"""Which nodes stay in float32, and why. All others compute in half precision.

By rule, whatever the frames: the preprocessing; sums over more than 256 elements, which lose half of float16's bits
and overflow (engines need not accumulate reductions in float32, as they do convolutions); normalisations, which
square; functions whose results leave float16's range for ordinary arguments (exp from 11.1 on, a quotient by
something tiny); positions (GridSample, RoiAlign): float16 has steps of a quarter of a pixel across 480.
By what was seen: tensors within a factor of four of float16's end, and constants that float16 cannot hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edgeseg.quantize.half_ranges import HEADROOM, MOST, NORMAL, constant_needs_float, half_scales, partial_sums
from edgeseg.quantize.half_types import TypedGraph, attribute
from edgeseg.quantize.placement import moves_only
from edgeseg.types import FRAME

if TYPE_CHECKING:
    import onnx

_LIMIT = MOST / HEADROOM
_LONG_SUM = 256
_PREPROCESSING = {
    *("Cast", "Transpose", "Gather", "Slice", "Split", "Concat", "Identity"),
    *("Mul", "Add", "Sub", "Div", "Squeeze", "Unsqueeze", "Reshape"),
}
HEAVY = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "QuantizeLinear", "DequantizeLinear"}
_SQUARES = {
    *("InstanceNormalization", "LayerNormalization", "GroupNormalization", "MeanVarianceNormalization", "LRN"),
    *("LpNormalization", "LpPool", "GlobalLpPool", "ReduceL2", "ReduceSumSquare", "RMSNormalization"),
}
_MULTIPLIES = {"ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "CumSum"}
_SUMS = {"ReduceMean", "ReduceSum", "ReduceL1", "Softmax", "LogSoftmax", "AveragePool", "GlobalAveragePool"}
_STEEP = {"Exp", "Pow", "Reciprocal", "Sinh", "Cosh", "Tan"}  # fine where their results are known to be small
_SMALL = {"Log", "Sqrt"}  # read numbers next to zero, which float16 flushes
_EXP_INSIDE = {"Softplus", "Mish"}
_POSITIONS = {"GridSample": 1, "RoiAlign": 1, "AffineGrid": 0}
_WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": None, "MatMul": -1}  # axis of the outputs in the weights
_COMPARES = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
# A number too large here means "nothing beyond": the end of float16 says the same.
SATURATES = {"Clip", "Where", "Pad", "Max", "Min"}
_NARROW = (9, 2, 3)  # TensorProto.BOOL, UINT8, INT8: their numbers are float16 numbers


def stay_float(typed: TypedGraph, largest: Mapping[str, float], keep: set[str]) -> dict[str, str]:
    """Node → why it computes in float32. Nodes that do not depend on the frame are not in it."""
    nodes = [node for node in typed.graph.nodes if typed.is_data(node)]
    floats: dict[str, str] = {}
    before: set[str] = {FRAME}
    for node in nodes:
        first = node.op_type in _PREPROCESSING and all(t in before for t in node.input if t in typed.data)
        if first and any(t in before for t in node.input):
            before.update(node.output)
            floats[node.name] = "preprocessing: rounded once, where the network begins"
        elif node.name in keep:
            floats[node.name] = "runs in float32 by request"
        elif (why := _why(typed, node, largest)) is not None:
            floats[node.name] = why
    for node in nodes:
        if node.op_type in _POSITIONS and len(node.input) > _POSITIONS[node.op_type]:
            for maker in _before(typed, node.input[_POSITIONS[node.op_type]]):
                floats.setdefault(maker.name, f"gives the positions that {node.name} reads")
    _float_inputs(typed, nodes, floats)
    _between(typed, nodes, floats)
    return floats


def _why(typed: TypedGraph, node: onnx.NodeProto, largest: Mapping[str, float]) -> str | None:
    """The reason that lies in the node itself."""
    op = node.op_type
    if not typed.can_halve(node):
        return f"ONNX has no {op} in half precision in opset {typed.opset}"
    for tensor in typed.reals(node):
        if (seen := _seen(typed, tensor, largest)) is not None and not seen < _LIMIT:
            verb = "gives" if tensor in node.output else "reads"
            return f"{verb} {tensor} of up to {seen:.3g}, and half precision ends at {MOST:.0f}"
    if op == "Cast":
        whole = typed.kinds.get(node.input[0]) not in (*_NARROW, None) and not typed.real(node.input[0])
        return "gives whole numbers, which half precision holds up to 2048 only" if whole else None
    return (
        _by_rule(typed, node, largest)
        or _quantizers(typed, node)
        or _constants(typed, node)
        or _sums(typed, node, largest)
    )


def _by_rule(typed: TypedGraph, node: onnx.NodeProto, largest: Mapping[str, float]) -> str | None:
    op = node.op_type
    if op in _POSITIONS:
        return "positions in half precision are off by a fraction of a pixel"
    if op in _SQUARES:
        return "squares what it reads: half precision overflows from 256 on"
    if op in _MULTIPLIES:
        return "its intermediate results may leave the range of half precision"
    if op in _SUMS:
        count = _summed(typed, node)
        if count is None or count > _LONG_SUM:
            return f"sums over {count or 'an unknown number of'} elements, more than {_LONG_SUM}"
    if op in _STEEP and not _seen_below(typed, node.output[0], largest, _LIMIT):
        return "its results may leave the range of half precision"
    if op in _EXP_INSIDE and not _seen_below(typed, node.input[0], largest, np.log(_LIMIT)):
        return "takes exp of what it reads: half precision overflows from 11.1 on"
    if op in _SMALL or (op == "Div" and typed.graph.constant(node.input[1]) is None):
        return "half precision flushes small numbers to zero, which it must not read"
    return None


def _summed(typed: TypedGraph, node: onnx.NodeProto) -> int | None:
    """How many elements go into one sum."""
    op, source = node.op_type, node.input[0]
    if op == "AveragePool":
        return int(np.prod(cast("list[int]", attribute(node, "kernel_shape", []))))
    rank = len(typed.shapes.get(source, ()))
    if op == "GlobalAveragePool":
        return typed.elements(source, tuple(range(2, rank))) if rank else None
    if op in ("Softmax", "LogSoftmax"):
        axis = cast("int", attribute(node, "axis", -1 if typed.opset >= 13 else 1))
        return typed.elements(source, (axis,) if typed.opset >= 13 else tuple(range(axis, rank)))
    axes: Any = attribute(node, "axes")
    if len(node.input) > 1 and node.input[1]:
        axes = typed.graph.constant(node.input[1])
        if axes is None:
            return None
    return typed.elements(source, None if axes is None or not len(axes) else tuple(int(axis) for axis in axes))


def _quantizers(typed: TypedGraph, node: onnx.NodeProto) -> str | None:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        scales = typed.graph.constant(node.input[1])
        if typed.graph.constant(node.input[0]) is not None:
            return None  # weights take the type that their convolution wants
        if scales is None or float(scales.min()) < NORMAL or float(scales.max()) > MOST:
            return "its scale is not a normal number of half precision"
    return None


def _constants(typed: TypedGraph, node: onnx.NodeProto) -> str | None:
    signature = typed.signatures[node.name]
    assert signature is not None
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return None
    adapts = node.op_type in SATURATES or node.op_type in _COMPARES
    for index, tensor in enumerate(node.input):
        maker = typed.graph.producer(tensor)
        value = typed.graph.constant(tensor)
        if value is None and maker is not None and maker.op_type == "DequantizeLinear":
            why = _weight_scales(typed, maker)
        elif value is None or not typed.real(tensor) or signature.inputs[index] not in signature.halves or adapts:
            continue
        elif node.op_type == "Equal":
            same = np.array_equal(value, value.astype(np.float16).astype(value.dtype))
            why = None if same else "compares with a number that half precision does not have"
        else:
            why = constant_needs_float(value)
        if why is not None:
            return why
    return None


def _weight_scales(typed: TypedGraph, dequantize: onnx.NodeProto) -> str | None:
    integers, scales = (typed.graph.constant(tensor) for tensor in dequantize.input[:2])
    if integers is None or scales is None:
        return None
    if (attribute(dequantize, "axis", 1) not in (0, -integers.ndim)) and scales.ndim:
        least = float(scales.min())
        return None if least >= NORMAL and float(scales.max()) <= MOST else f"its weights' scales reach {least:.3g}"
    return half_scales(integers, scales)[2]


def _sums(typed: TypedGraph, node: onnx.NodeProto, largest: Mapping[str, float]) -> str | None:
    if node.op_type not in _WEIGHTED:
        return None
    weights, seen = _weights(typed, node.input[1]), _seen(typed, node.input[0], largest)
    if weights is None or seen is None or weights.ndim < 2:
        return None
    axis = _WEIGHTED[node.op_type]
    if node.op_type == "Gemm":
        axis = 0 if attribute(node, "transB", 0) else 1
    elif node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        axis = None
    reached = partial_sums(weights, axis, seen)
    return (
        f"its sums may reach {reached:.3g} on the way, and half precision ends at {MOST:.0f}"
        if reached > MOST
        else None
    )


def _weights(typed: TypedGraph, tensor: str) -> NDArray[Any] | None:
    """Constant weights, those behind a DequantizeLinear by its first axis included."""
    maker = typed.graph.producer(tensor)
    if maker is None or maker.op_type != "DequantizeLinear":
        return typed.graph.constant(tensor)
    integers, scales = (typed.graph.constant(name) for name in maker.input[:2])
    if integers is None or scales is None or (scales.ndim and len(scales) != len(integers)):
        return None
    return integers * scales.astype(np.float64).reshape((-1, *[1] * (integers.ndim - 1)) if scales.ndim else ())


def _seen(typed: TypedGraph, tensor: str, largest: Mapping[str, float]) -> float | None:
    """The largest magnitude of a tensor; behind a pair of quantizers, that of what went in."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        maker = typed.graph.producer(tensor)
        if maker is not None and maker.op_type == kind:
            tensor = maker.input[0]
    return largest.get(tensor)


def _seen_below(typed: TypedGraph, tensor: str, largest: Mapping[str, float], limit: float) -> bool:
    seen = _seen(typed, tensor, largest)
    return seen is not None and seen < limit


def _before(typed: TypedGraph, tensor: str) -> Iterator[onnx.NodeProto]:
    """The nodes above a tensor that depend on the frame, up to the next convolution."""
    pending, done = [tensor], set()
    while pending:
        maker = typed.graph.producer(pending.pop())
        if maker is None or maker.name in done or maker.op_type in HEAVY or not typed.is_data(maker):
            continue
        done.add(maker.name)
        yield maker
        pending.extend(maker.input)


def _float_inputs(typed: TypedGraph, nodes: list[onnx.NodeProto], floats: dict[str, str]) -> None:
    """Convolutions behind a DequantizeLinear of float32 follow it: a cast in between would keep them from integers."""
    stuck = {t for node in nodes if node.op_type == "DequantizeLinear" and node.name in floats for t in node.output}
    for node in nodes:
        if not stuck.isdisjoint(node.input) and (
            node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm", "Concat") or moves_only(node)
        ):
            floats.setdefault(node.name, "reads integers whose scale is not a normal number of half precision")
            if node.op_type == "Concat" or moves_only(node):
                stuck.update(node.output)


def _between(typed: TypedGraph, nodes: list[onnx.NodeProto], floats: dict[str, str]) -> None:
    """What stands between nodes that stay float32 does too: casts there would cost more than they save."""

    def indifferent(node: onnx.NodeProto) -> bool:  # reads either type
        return node.op_type in ("Shape", "Size") or (node.op_type == "Cast" and not typed.real(node.output[0]))

    only_floats: set[str] = set()  # nodes whose results end, through light nodes, in float32 everywhere
    for node in reversed(nodes):
        readers = [reader for t in node.output for reader in typed.graph.consumers(t)]
        outside = any(t in typed.graph.outputs for t in node.output)
        light = node.op_type not in HEAVY and any(typed.real(t) for t in node.output) and not outside
        if light and all(r.name in floats or r.name in only_floats or indifferent(r) for r in readers):
            only_floats.add(node.name)
    for node in nodes:
        if node.name in floats or node.name not in only_floats:
            continue
        makers = [typed.graph.producer(t) for t in node.input if t in typed.data and typed.real(t)]
        # Behind the preprocessing alone it is the network's beginning, and may take half the memory.
        whys = [floats[maker.name] for maker in makers if maker is not None and maker.name in floats]
        if any(not why.startswith("preprocessing") for why in whys):
            floats[node.name] = "between nodes that stay float32"
