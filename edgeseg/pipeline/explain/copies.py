"""Parts of one graph read, and copied into another: quantizers, constants, and what stands between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import ModelError
from edgeseg.graph import Graph

if TYPE_CHECKING:
    import onnx

STEM = "edgeseg/explain"  # of the names of what is copied


@dataclass(frozen=True, slots=True)
class Quantizer:
    """A pair of QuantizeLinear and DequantizeLinear. `low`, `high`: the least and the largest value that survives."""

    node: str
    tensor: str  # of the FP32 graph: where its values come from
    scale: float  # what a step is worth where the integers are made; the largest, where channels have their own
    zero_point: int
    low: float
    high: float


class Copy:
    """Copies what stands between quantizers and their readers from one graph into another, in float32."""

    def __init__(self, source: Graph, target: Graph, traced: dict[str, tuple[Quantizer, ...]]) -> None:
        self._source, self._target, self._traced = source, target, traced
        self._done: dict[str, str] = {}
        self.added: list[onnx.NodeProto] = []

    def expression(self, tensor: str) -> str:
        """The name that a tensor of the source has in the target, where what computes it is copied if need be."""
        from onnx import NodeProto, helper

        if tensor in self._done:
            return self._done[tensor]
        node = self._source.producer(tensor)
        name = f"{STEM}/{tensor}"
        if node is None:
            name = self._constant(tensor)
        elif node.op_type == "Cast":
            name = self.expression(node.input[0])
        elif not self._traced.get(tensor):
            name = tensor  # computed from here on up as in FP32
        elif node.op_type == "DequantizeLinear":
            above = self._source.producer(node.input[0])
            assert above is not None  # it was traced
            scale, zero = grid(self._source, above)
            back, back_zero = grid(self._source, node)
            axis = next((found.i for found in node.attribute if found.name == "axis"), 1)
            names = [
                self._target.add_constant(f"{name}/{at}", value)
                for at, value in enumerate((scale, zero, back, back_zero))
            ]
            begin = self.expression(above.input[0])
            self.added += [
                helper.make_node("QuantizeLinear", [begin, *names[:2]], [f"{name}/q"], f"{name}/quantize", axis=axis),
                helper.make_node(
                    "DequantizeLinear", [f"{name}/q", *names[2:]], [name], f"{name}/dequantize", axis=axis
                ),
            ]
        else:
            made = NodeProto.FromString(node.SerializeToString())
            made.name = f"{STEM}/{node.name}"
            for at, read in enumerate(node.input):
                made.input[at] = self.expression(read) if read else ""
            for at, given in enumerate(node.output):
                made.output[at] = f"{STEM}/{given}" if given else ""
            self.added.append(made)
        self._done[tensor] = name
        return name

    def _constant(self, tensor: str) -> str:
        value = self._source.constant(tensor)
        if value is None:
            return tensor  # an input of the graph
        name = f"{STEM}/constant/{tensor}"
        return self._target.add_constant(name, value.astype(np.float32) if value.dtype == np.float16 else value)


def grid(graph: Graph, node: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Scale, float32, and zero point of a QuantizeLinear or DequantizeLinear."""
    scale = graph.constant(node.input[1])
    if scale is None:
        raise ModelError(f"the deployed graph computes the scale of {node.name}; only constant ones can be explained")
    zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.uint8(0)
    if zero is None:
        raise ModelError(f"the deployed graph computes the zero point of {node.name}; wanted a constant")
    return scale.astype(np.float32), np.asarray(zero)


def value_of(graph: Graph, tensor: str) -> NDArray[Any] | None:
    """A constant, or integers behind a DequantizeLinear as what they stand for, through casts; None if computed."""
    found = graph.constant(tensor)
    node = graph.producer(tensor)
    if found is not None or node is None:
        return found
    if node.op_type == "Cast":
        return value_of(graph, node.input[0])
    if node.op_type != "DequantizeLinear" or (integers := graph.constant(node.input[0])) is None:
        return None
    scale, zero = grid(graph, node)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if scale.ndim == 1 and integers.ndim:
        shape = [1] * integers.ndim
        shape[axis % integers.ndim] = -1
        scale = scale.reshape(shape)
        zero = zero.reshape(shape) if zero.ndim == 1 else zero
    with np.errstate(invalid="ignore"):  # a broken scale is found by what it makes of the weights
        value: NDArray[Any] = (integers.astype(np.int64) - zero.astype(np.int64)) * scale.astype(np.float64)
    return value.astype(np.float32)
