"""Normalisations that exporters leave in a graph, folded into convolutions: each is an island of float less.

A batch norm with constant statistics, or arithmetic with a constant for each channel, is y = scale · x + shift.
Backwards it goes through what moves values about, through pooling, concatenations (each part takes its slice) and sums,
into the convolutions that make them, if nobody else reads what lies between: exact always. Forwards it goes into every
convolution that reads it: exact where that pads nothing, or where there is no shift; with a shift, padding would have
to be -shift / scale and not zero. What stays says why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.graph import Graph
from edgeseg.quantize.channels import attribute, by_group, from_groups, own_constant, shapes
from edgeseg.types import LOGITS, OnnxModel

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.float64]
Shapes = dict[str, tuple[int | None, ...]]

_ARITHMETIC = {"Mul", "Div", "Add", "Sub"}
_MOVES = {"Identity", "Dropout", "GlobalAveragePool"}  # every value comes from, or is a mean of, those of its channel
_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_MOST = 1e15  # of a factor or a shift: times weights, float32 still holds it


@dataclass(frozen=True, slots=True)
class Fold:
    """One normalisation and the convolutions that took it over, by node."""

    node: str
    into: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Folded:
    """The same function with fewer nodes. `left`: normalisation → why it stays."""

    model: OnnxModel
    done: tuple[Fold, ...]
    left: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Affine:
    scale: Array  # (C,)
    shift: Array  # (C,)

    def part(self, start: int, length: int) -> _Affine:
        return _Affine(self.scale[start : start + length], self.shift[start : start + length])


class _NotExact(Exception):
    """Why a normalisation cannot be folded in one direction."""


def folded(model: OnnxModel) -> Folded:
    """The model with every normalisation folded that exact arithmetic allows; the same scores to float32 rounding.

    Only those behind a convolution count: what prepares the frame stays as it is.
    """
    done: list[Fold] = []
    current = model
    while True:
        graph = Graph(current.graph)
        sizes = shapes(graph)
        behind = _behind_convolutions(graph)
        left: dict[str, str] = {}
        for node in graph.nodes:
            affine = _affine(graph, node, sizes) if node.name in behind else None
            if affine is None:
                continue
            position, map_ = affine
            if not _usable(map_):
                left[node.name] = f"its constants are not finite, or beyond {_MOST:g}"
                continue
            try:
                into = _backward(graph, node, position, map_, sizes)
            except _NotExact as before:
                try:
                    into = _forward(graph, node, position, map_, sizes)
                except _NotExact as after:
                    left[node.name] = f"into what comes before: {before}; into what comes after: {after}"
                    continue
            done.append(Fold(node.name, tuple(dict.fromkeys(into))))
            current = replace(current, graph=graph.finish([]))
            break
        else:
            return Folded(current, tuple(done), left)


def _behind_convolutions(graph: Graph) -> set[str]:
    """The nodes that compute with what a convolution gave."""
    made: set[str] = set()
    found: set[str] = set()
    for node in graph.nodes:
        if any(tensor in made for tensor in node.input):
            found.add(node.name)
        if node.op_type in _CONVOLUTIONS or node.name in found:
            made.update(node.output)
    return found


def _affine(graph: Graph, node: onnx.NodeProto, sizes: Shapes) -> tuple[int, _Affine] | None:
    """The position of the input that a node maps channel by channel, and how; None for other nodes."""
    if node.op_type == "BatchNormalization":
        values = [graph.constant(tensor) for tensor in node.input[1:5]]
        if len(node.output) > 1 or attribute(node, "training_mode", 0):
            return None
        scale, shift, mean, variance = (None if v is None else v.astype(np.float64) for v in values)
        if scale is None or shift is None or mean is None or variance is None:
            return None
        factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        affine = _Affine(factor, shift - mean * factor)
        return 0, affine
    if node.op_type not in _ARITHMETIC:
        return None
    constants = [graph.constant(tensor) for tensor in node.input]
    known = [index for index, value in enumerate(constants) if value is not None]
    shape = sizes.get(node.output[0], ())
    if len(known) != 1 or len(shape) != 4 or shape[1] is None or sizes.get(node.input[1 - known[0]]) != shape:
        return None
    value = constants[known[0]]
    assert value is not None
    padded = value.reshape((1,) * (4 - value.ndim) + value.shape)
    if value.dtype != np.float32 or padded.size != padded.shape[1] or padded.shape[1] not in (1, shape[1]):
        return None
    each = np.broadcast_to(padded.ravel().astype(np.float64), (shape[1],))
    ones, zeros = np.ones(shape[1]), np.zeros(shape[1])
    first = known[0] == 1  # the tensor comes first
    if node.op_type == "Div" and (not first or not each.all()):
        return None
    affine = {
        "Mul": lambda: _Affine(each, zeros),
        "Div": lambda: _Affine(1 / each, zeros),
        "Add": lambda: _Affine(ones, each),
        "Sub": lambda: _Affine(ones if first else -ones, -each if first else each),
    }[node.op_type]()
    return 1 - known[0], affine


def _usable(affine: _Affine) -> bool:
    """Whether float32 weights can hold it."""
    largest = max(np.abs(affine.scale).max(initial=0.0), np.abs(affine.shift).max(initial=0.0))
    return bool(np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all() and largest < _MOST)


def _backward(graph: Graph, node: onnx.NodeProto, position: int, affine: _Affine, sizes: Shapes) -> list[str]:
    into: list[tuple[onnx.NodeProto, _Affine]] = []
    source = node.input[position]
    _absorb(graph, source, node, affine, sizes, into)
    names = [one.name for one, _ in into]
    if len(set(names)) < len(names):
        raise _NotExact("one convolution is read twice")
    for one, map_ in into:
        _scale_outputs(graph, one, map_)
    _bypass(graph, node, source)
    return names


def _absorb(
    graph: Graph,
    tensor: str,
    reader: onnx.NodeProto,
    affine: _Affine,
    sizes: Shapes,
    into: list[tuple[onnx.NodeProto, _Affine]],
) -> None:
    """Finds the convolutions that can give `tensor` mapped already. Raises _NotExact."""
    node = graph.producer(tensor)
    if node is None or tensor in graph.outputs or tensor == LOGITS:
        raise _NotExact(f"'{tensor}' is an input or an output of the network")
    if [other.name for other in graph.consumers(tensor)] != [reader.name] or list(reader.input).count(tensor) > 1:
        raise _NotExact(f"'{tensor}' is read elsewhere too")
    if node.op_type in _CONVOLUTIONS:
        _require_constants(graph, node)
        into.append((node, affine))
    elif node.op_type == "Concat" and _axis(node, sizes) == 1:
        start = 0
        for part in node.input:
            length = _channels(sizes, part)
            _absorb(graph, part, node, affine.part(start, length), sizes, into)
            start += length
    elif node.op_type in ("Add", "Sub") and all(sizes.get(part, ()) == sizes.get(tensor) for part in node.input):
        _absorb(graph, node.input[0], node, affine, sizes, into)
        _absorb(graph, node.input[1], node, _Affine(affine.scale, 0 * affine.shift), sizes, into)
    elif _commutes(graph, node, affine, sizes) and _channels(sizes, node.input[0]) == len(affine.scale):
        _absorb(graph, node.input[0], node, affine, sizes, into)
    else:
        raise _NotExact(f"{node.op_type} '{node.name}' lies between")


def _commutes(graph: Graph, node: onnx.NodeProto, affine: _Affine, sizes: Shapes) -> bool:
    """Whether the map of the channels may as well come before this node as behind it."""
    if node.op_type in _MOVES:
        return True
    if node.op_type in ("Resize", "Upsample"):  # weights that sum to one
        plain = attribute(node, "coordinate_transformation_mode", b"") != b"tf_crop_and_resize"
        return plain and len(node.output) == 1
    if node.op_type in ("MaxPool", "GlobalMaxPool"):
        return bool((affine.scale >= 0).all()) and len(node.output) == 1
    if node.op_type == "AveragePool":
        return not affine.shift.any() or not _pads(node) or not attribute(node, "count_include_pad", 0)
    if node.op_type == "Slice" and len(node.input) > 3:
        axes, rank = graph.constant(node.input[3]), len(sizes.get(node.input[0], ()))
        return axes is not None and rank == 4 and not {int(axis) % rank for axis in axes} & {0, 1}
    return False


def _pads(node: onnx.NodeProto) -> bool:
    return any(attribute(node, "pads", [])) or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")


def _forward(graph: Graph, node: onnx.NodeProto, position: int, affine: _Affine, sizes: Shapes) -> list[str]:
    sinks: list[tuple[onnx.NodeProto, _Affine]] = []
    _spread(graph, node.output[0], affine, sizes, sinks)
    names = [one.name for one, _ in sinks]
    if len(set(names)) < len(names):
        raise _NotExact("one convolution reads it twice")
    for one, map_ in sinks:
        _scale_inputs(graph, one, map_)
    _bypass(graph, node, node.input[position])
    return names


def _spread(
    graph: Graph, tensor: str, affine: _Affine, sizes: Shapes, sinks: list[tuple[onnx.NodeProto, _Affine]]
) -> None:
    """Finds all convolutions that read `tensor` and can map it themselves. Raises _NotExact."""
    readers = graph.consumers(tensor)
    if not readers or tensor in graph.outputs or tensor == LOGITS:
        raise _NotExact(f"'{tensor}' is an output of the network")
    for node in readers:
        if list(node.input).count(tensor) > 1 or (tensor != node.input[0] and node.op_type != "Concat"):
            raise _NotExact(f"{node.op_type} '{node.name}' reads it elsewise")
        if node.op_type in _CONVOLUTIONS:
            _require_constants(graph, node)
            if affine.shift.any() and (_pads(node) or node.op_type == "ConvTranspose"):
                raise _NotExact(f"'{node.name}' has zeros around its input, which a shift would have to change")
            sinks.append((node, affine))
        elif node.op_type == "Concat" and _axis(node, sizes) == 1:
            lengths = [_channels(sizes, part) for part in node.input]
            before = sum(lengths[: list(node.input).index(tensor)])
            after = sum(lengths) - before - len(affine.scale)
            scale = np.concatenate([np.ones(before), affine.scale, np.ones(after)])
            shift = np.concatenate([np.zeros(before), affine.shift, np.zeros(after)])
            _spread(graph, node.output[0], _Affine(scale, shift), sizes, sinks)
        elif _commutes(graph, node, affine, sizes) and _channels(sizes, node.output[0]) == len(affine.scale):
            _spread(graph, node.output[0], affine, sizes, sinks)
        else:
            raise _NotExact(f"{node.op_type} '{node.name}' lies between")


def _require_constants(graph: Graph, node: onnx.NodeProto) -> None:
    for tensor in node.input[1:]:
        value = graph.constant(tensor)
        if tensor and (value is None or value.dtype != np.float32):
            raise _NotExact(f"'{node.name}' has weights that are computed or not float32")


def _axis(node: onnx.NodeProto, sizes: Shapes) -> int:
    rank = len(sizes.get(node.output[0], ()))
    axis = int(attribute(node, "axis", 1))
    return axis + rank if axis < 0 else axis


def _channels(sizes: Shapes, tensor: str) -> int:
    shape = sizes.get(tensor, ())
    if len(shape) < 2 or shape[1] is None:
        raise _NotExact(f"the number of channels of '{tensor}' is not known")
    return shape[1]


def _scale_outputs(graph: Graph, node: onnx.NodeProto, affine: _Affine) -> None:
    weights, bias = _constants(graph, node)
    grouped = by_group(weights, node)
    by = affine.scale.reshape(grouped.shape[0], -1, 1, 1)
    _write(graph, node, grouped * by, weights.shape, bias * affine.scale + affine.shift)


def _scale_inputs(graph: Graph, node: onnx.NodeProto, affine: _Affine) -> None:
    weights, bias = _constants(graph, node)
    grouped = by_group(weights, node)
    scale, shift = (one.reshape(grouped.shape[0], 1, -1, 1) for one in (affine.scale, affine.shift))
    _write(graph, node, grouped * scale, weights.shape, bias + (grouped * shift).sum((2, 3)).ravel())


def _constants(graph: Graph, node: onnx.NodeProto) -> tuple[Array, Array]:
    weights = graph.constant(node.input[1])
    assert weights is not None
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    outputs = by_group(weights, node).shape[:2]
    return weights.astype(np.float64), np.zeros(outputs[0] * outputs[1]) if bias is None else bias.astype(np.float64)


def _write(graph: Graph, node: onnx.NodeProto, grouped: Array, shape: tuple[int, ...], bias: Array) -> None:
    own_constant(graph, node, 1, from_groups(grouped, node, shape).astype(np.float32))
    if bias.any() or (len(node.input) > 2 and node.input[2]):
        own_constant(graph, node, 2, bias.astype(np.float32))


def _bypass(graph: Graph, node: onnx.NodeProto, source: str) -> None:
    """Takes a node out; where its result has a name that others know, what comes before takes that name."""
    result = node.output[0]
    if result in graph.outputs or result == LOGITS:
        producer = graph.producer(source)
        readers: list[Any] = [other for other in graph.consumers(source) if other is not node]
        assert producer is not None
        producer.output[list(producer.output).index(source)] = result
        graph.rewire(source, result, readers)
    else:
        graph.rewire(result, source, graph.consumers(result))
    graph.model.graph.node.remove(node)
