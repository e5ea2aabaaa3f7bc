"""Which channels of which tensors must be scaled together, if the network is to stay what it is.

A convolution takes a scaling of its inputs, and gives any scaling of its outputs, by its weights. Between convolutions
every channel belongs to a class: ReLU, pooling and resizing hand a class on, a concatenation puts classes side by side,
a sum makes the classes of both sides one. What does not commute with positive factors pins a class to the factor 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.graph import Graph
from edgeseg.types import LOGITS

if TYPE_CHECKING:
    import onnx

Classes = NDArray[np.int64]  # (C,), the class of each channel

# f(s x) = s f(x) for s > 0, whatever the other inputs are, channel by channel.
_COMMUTE = {
    *("Relu", "LeakyRelu", "PRelu", "Abs", "Neg", "Identity", "Dropout", "Resize", "Upsample"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
}
_SPATIAL = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceL1"}
_TOGETHER = {"Add", "Sub", "Sum", "Max", "Min", "Mean"}


@dataclass(frozen=True, slots=True)
class Shift:
    """A constant that is scaled with a class: what is added to a tensor, or a mean and a shift of a batch norm."""

    node: onnx.NodeProto
    position: int  # among the node's inputs
    classes: Classes
    rank: int  # of the tensor it is added to; 1 for a constant (C,)


class Channels:
    """The classes of all channels of a graph.

    `of[tensor]`: classes (C,) for what convolutions can scale. `pinned[class]`: why it cannot. `shifts`: see Shift.
    `scalable`: the convolutions and transposed ones that have constant float32 weights.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}
        self._shapes = shapes(graph)
        self.shifts: list[Shift] = []
        self.scalable: list[onnx.NodeProto] = []
        self.of: dict[str, Classes] = {}
        for node in graph.nodes:
            self._visit(node)
        for tensor in (*graph.outputs, LOGITS):
            self._pin(tensor, "it is an output of the network")
        self.of = {tensor: self._roots(classes) for tensor, classes in self.of.items()}
        self.shifts = [Shift(one.node, one.position, self._roots(one.classes), one.rank) for one in self.shifts]
        self.pinned: dict[int, str] = {}
        for one, reason in self._reasons.items():
            self.pinned.setdefault(self._find(one), reason)

    def __len__(self) -> int:
        """Classes lie in [0, len)."""
        return len(self._parent)

    def _visit(self, node: onnx.NodeProto) -> None:
        known = [tensor for tensor in node.input if tensor in self.of]
        inner = _inner(node)
        made = "runs them in a graph of its own" if inner else self._through(node, known)
        if isinstance(made, str):
            for tensor in (*known, *inner):
                self._pin(tensor, f"{node.op_type} '{node.name}' {made}")
        elif made is not None:
            self.of[node.output[0]] = made

    def _through(self, node: onnx.NodeProto, known: list[str]) -> Classes | str | None:
        """The classes of the node's output; or why its inputs cannot be scaled."""
        kind = node.op_type
        if kind in ("Conv", "ConvTranspose"):
            return self._convolved(node)
        if not known or kind in ("Shape", "Size"):  # these do not look at values
            return None
        first = self.of[known[0]]
        if attribute(node, "coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
            return "fills in a constant"
        if kind in _COMMUTE:
            return self._handed_on(node, first) if known == [node.input[0]] else "computes with other scaled inputs"
        if kind == "Concat":
            return self._concatenated(node)
        if kind in ("Mul", "Div"):
            constant = [tensor for tensor in node.input if self._graph.constant(tensor) is not None]
            if len(known) > 1 or not constant or (kind == "Div" and known[0] != node.input[0]):
                return "takes scaled inputs on both sides" if not constant else "divides by it"
            return self._handed_on(node, first)
        if kind in _TOGETHER:
            return self._joined(node, known)
        if kind == "BatchNormalization":
            parts = [self._graph.constant(tensor) for tensor in node.input[1:]]
            if len(node.output) > 1 or any(part is None or part.dtype != np.float32 for part in parts):
                return "is not a normalisation with constant float32 statistics"
            self.shifts += [Shift(node, position, first, 1) for position in (2, 3)]
            return first
        if kind in _SPATIAL:
            return self._reduced(node, first)
        if kind == "Pad":
            return self._padded(node, first)
        if kind in ("Slice", "Split"):
            return self._cut(node, first)
        return "does not commute with factors"

    def _convolved(self, node: onnx.NodeProto) -> Classes | str | None:
        weights = self._graph.constant(node.input[1])
        bias = self._graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1, np.float32)
        if weights is None or bias is None or weights.dtype != np.float32 or bias.dtype != np.float32:
            return "has weights that are computed or not float32"
        self.scalable.append(node)
        groups = groups_of(node)
        return self._new(len(weights) if node.op_type == "Conv" else weights.shape[1] * groups)

    def _handed_on(self, node: onnx.NodeProto, classes: Classes) -> Classes | str:
        return classes if self._channels(node.output[0]) == len(classes) else "changes the number of channels"

    def _concatenated(self, node: onnx.NodeProto) -> Classes | str:
        rank = len(self._shapes.get(node.output[0], ()))
        axis = attribute(node, "axis", 1)
        axis = axis + rank if axis < 0 else axis
        if axis != 1:
            return self._joined(node, list(dict.fromkeys(node.input))) if axis > 1 else "mixes channels of images"
        parts = []
        for tensor in node.input:
            length = self._channels(tensor)
            if length is None:
                return "has parts of unknown size"
            if tensor not in self.of:
                self.of[tensor] = self._new(length)
                self._pin(tensor, f"'{tensor}' is not made by a convolution")
            parts.append(self.of[tensor])
        return np.concatenate(parts)

    def _joined(self, node: onnx.NodeProto, known: list[str]) -> Classes | str:
        """Sums: every side must be scaled alike."""
        first = self.of.get(known[0])
        if first is None:
            return "takes what is not made by a convolution"
        for position, tensor in enumerate(node.input):
            value = self._graph.constant(tensor)
            if value is not None:
                rank = len(self._shapes.get(node.output[0], ()))
                broadcast = value.ndim < 3 or value.ndim > rank or value.shape[-3] in (1, len(first))
                if node.op_type not in ("Add", "Sub") or value.dtype != np.float32 or rank != 4 or not broadcast:
                    return "adds or compares with a constant of another kind"
                self.shifts.append(Shift(node, position, first, rank))
                continue
            other = self.of.get(tensor)
            if other is None or len(other) != len(first):
                return "takes what is not made by a convolution, or is of another size"
            for one, two in zip(first.tolist(), other.tolist(), strict=True):
                self._union(one, two)
        return self._handed_on(node, first)

    def _reduced(self, node: onnx.NodeProto, classes: Classes) -> Classes | str:
        axes = attribute(node, "axes", None)
        if axes is None and len(node.input) > 1:
            found = self._graph.constant(node.input[1])
            axes = None if found is None else found.tolist()
        rank = len(self._shapes.get(node.input[0], ()))
        over = {axis % rank for axis in axes} if axes and rank else {1}
        return classes if not over & {0, 1} and attribute(node, "keepdims", 1) else "reduces channels"

    def _padded(self, node: onnx.NodeProto, classes: Classes) -> Classes | str:
        value = self._graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        if attribute(node, "mode", b"constant") == b"constant" and (value is None or bool(np.any(value))):
            return "pads with another value than zero"
        return self._handed_on(node, classes)

    def _cut(self, node: onnx.NodeProto, classes: Classes) -> Classes | str:
        if node.op_type == "Split":
            if attribute(node, "axis", 0) != 1:
                return "splits along another axis than the channels"
            start = 0
            for output in node.output:
                length = self._channels(output)
                if length is None:
                    return "has parts of unknown size"
                self.of[output] = classes[start : start + length]
                start += length
            return self.of[node.output[0]]
        axes = self._graph.constant(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        rank = len(self._shapes.get(node.input[0], ()))
        if axes is None or not rank or {int(axis) % rank for axis in axes} & {0, 1}:
            return "cuts channels"
        return self._handed_on(node, classes)

    def _channels(self, tensor: str) -> int | None:
        shape = self._shapes.get(tensor, ())
        return shape[1] if len(shape) > 1 else None

    def _new(self, count: int) -> Classes:
        first = len(self._parent)
        self._parent += range(first, first + count)
        return np.arange(first, first + count)

    def _pin(self, tensor: str, reason: str) -> None:
        for one in self.of.get(tensor, np.zeros(0, np.int64)).tolist():
            self._reasons.setdefault(one, reason)

    def _find(self, one: int) -> int:
        while self._parent[one] != one:
            self._parent[one] = self._parent[self._parent[one]]
            one = self._parent[one]
        return one

    def _union(self, one: int, other: int) -> None:
        roots = sorted((self._find(one), self._find(other)))
        self._parent[roots[1]] = roots[0]

    def _roots(self, classes: Classes) -> Classes:
        return np.array([self._find(one) for one in classes.tolist()], np.int64)


def shapes(graph: Graph) -> dict[str, tuple[int | None, ...]]:
    """Shapes as ONNX infers them; None where a length is not known."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(graph.model, data_prop=True).graph
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    found = [one for one in node.attribute if one.name == name]
    return helper.get_attribute_value(found[0]) if found else default


def groups_of(node: onnx.NodeProto) -> int:
    return int(attribute(node, "group", 1))


def by_group(weights: NDArray[Any], node: onnx.NodeProto) -> NDArray[Any]:
    """A view (groups, outputs a group, inputs a group, kh·kw) of the weights of a convolution or transposed one."""
    groups = groups_of(node)
    if node.op_type == "Conv":  # (K, C / groups, kh, kw)
        return weights.reshape(groups, len(weights) // groups, weights.shape[1], -1)
    return weights.reshape(groups, len(weights) // groups, weights.shape[1], -1).transpose(0, 2, 1, 3)


def from_groups(grouped: NDArray[Any], node: onnx.NodeProto, shape: tuple[int, ...]) -> NDArray[Any]:
    """The opposite of `by_group`."""
    ordered = grouped if node.op_type == "Conv" else grouped.transpose(0, 2, 1, 3)
    return np.ascontiguousarray(ordered).reshape(shape)


def own_constant(graph: Graph, node: onnx.NodeProto, position: int, value: NDArray[np.float32]) -> None:
    """Give one input of a node a constant of its own: others may read the one that it had."""
    stem = f"{node.name}/{position}"
    name = stem
    count = 1
    while graph.constant(name) is not None:
        count += 1
        name = f"{stem}/{count}"
    while len(node.input) <= position:
        node.input.append("")
    node.input[position] = graph.add_constant(name, value)


def _inner(node: onnx.NodeProto) -> list[str]:
    """What the branches of an If or the body of a Loop read."""
    found: list[str] = []
    for one in node.attribute:
        for inner in (one.g, *one.graphs):
            for part in inner.node:
                found += [*part.input, *_inner(part)]
            found += [output.name for output in inner.output]
    return found
