"""Which tensors are quantized, with which other tensors they share a scale, and why the rest is not.

The rule: convolutions are quantized and what stands between them stays float. A quantizer is placed at the source of
a convolution's input, above what only moves values (max-pooling, nearest resizing, reshaping, concatenation), so that
those run on integers too. The convolution that makes the scores gives float scores: eight bits there would decide
between classes by rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeseg.graph import Graph
from edgeseg.quantize.dialects import Dialect
from edgeseg.types import FRAME

if TYPE_CHECKING:
    import onnx

# Ops that only move values: they commute with quantization exactly.
_MOVES = {"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "DepthToSpace", "SpaceToDepth"}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where quantizers go.

    `convolutions`: names of the nodes that run in INT8. `quantizers`: tensor → the tensors whose common range it uses.
    `moves`: tensors behind an op that only moves values, requantized with the same scale in closed dialects:
    tensor → the quantized tensor whose scale they keep. `floats`: node → why it stays float.
    """

    convolutions: tuple[str, ...]
    quantizers: dict[str, tuple[str, ...]]
    moves: dict[str, str]
    floats: dict[str, str]

    @property
    def observed(self) -> set[str]:
        """The tensors whose ranges must be known."""
        return {tensor for group in self.quantizers.values() for tensor in group}


def moves_only(node: onnx.NodeProto) -> bool:
    """Whether every output value of the node is one of its input values."""
    if node.op_type == "Resize":
        return any(attribute.name == "mode" and attribute.s == b"nearest" for attribute in node.attribute) or not any(
            attribute.name == "mode" for attribute in node.attribute
        )
    return node.op_type in _MOVES


def convolutions(graph: Graph) -> Iterator[onnx.NodeProto]:
    """The nodes that could run in INT8: convolutions with constant weights."""
    for node in graph.nodes:
        if node.op_type == "Conv" and graph.constant(node.input[1]) is not None:
            yield node


def activated(graph: Graph, node: onnx.NodeProto) -> str:
    """The tensor that a convolution and the ReLU or Clip fused behind it give."""
    tensor = node.output[0]
    readers = graph.consumers(tensor)
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip") and tensor not in graph.outputs:
        return str(readers[0].output[0])
    return str(tensor)


def place(graph: Graph, dialect: Dialect, *, keep_float: Iterable[str] = ()) -> Placement:
    """Decide where quantizers go for a dialect. `keep_float`: names of convolutions to leave alone."""
    kept = set(keep_float)
    floats = {
        node.name: "runs in float by request" if node.name in kept else "its weights are computed, not constant"
        for node in graph.nodes
        if node.op_type == "Conv" and (node.name in kept or graph.constant(node.input[1]) is None)
    }
    floats |= {
        node.name: "transposed convolutions are not quantized yet: engines differ on their weight axis"
        for node in graph.nodes
        if node.op_type == "ConvTranspose"
    }
    chosen = [node for node in convolutions(graph) if node.name not in floats]
    if dialect.closed:
        for node in [node for node in chosen if _gives_scores(graph, node)]:
            floats[node.name] = "gives the scores, which stay float: without an INT8 output it would not run in INT8"
            chosen.remove(node)

    groups = _Groups()
    sources: dict[str, None] = {}
    concats: dict[str, None] = {}
    for node in chosen:
        for tensor in _sources(graph, node.input[0], concats):
            sources[tensor] = None
    if dialect.closed:
        # What a closed convolution gives must be quantized; it stands before the next one's input or before float ops.
        for node in chosen:
            sources.setdefault(activated(graph, node), None)
    for tensor in sources:
        groups.add(tensor)

    moves: dict[str, str] = {}
    for concat in concats:
        if dialect.one_scale_per_concat:
            groups.join(list(_sources(graph, concat, {})))
        else:
            producer = graph.producer(concat)
            parts = [_source_of(graph, tensor) for tensor in producer.input] if producer else []
            # Rounded once more at the concatenation anyway: what goes nowhere else takes its scale at once.
            groups.add(concat)
            groups.join([concat, *(p for p in parts if p in sources and _only_reaches(graph, p, concat))])
    if dialect.closed:
        for tensor in sources:
            moves |= _moved(graph, tensor, tensor)
        for concat in concats:
            moves |= _moved(graph, concat, concat)
    if dialect.at_convolutions:
        for node in chosen:
            tensor = node.input[0]
            if tensor not in sources and (above := next(_sources(graph, tensor, {}), None)) is not None:
                moves[tensor] = above  # with one scale a concatenation, that of any of its parts
    quantizers = {tensor: groups.of(tensor) for tensor in (*sources, *(concats if dialect.closed else ()))}
    return Placement(tuple(node.name for node in chosen), quantizers, moves, floats)


def _sources(graph: Graph, tensor: str, concats: dict[str, None]) -> Iterator[str]:
    """The tensors above moves and concatenations from which `tensor` takes its values; constants are none of them."""
    node = graph.producer(tensor)
    if node is not None and moves_only(node) and tensor != FRAME:
        yield from _sources(graph, node.input[0], concats)
    elif node is not None and node.op_type == "Concat":
        concats[tensor] = None
        for part in node.input:
            yield from _sources(graph, part, concats)
    elif graph.constant(tensor) is None:
        yield tensor


def _source_of(graph: Graph, tensor: str) -> str:
    """The tensor above moves only: a source, or the output of a concatenation."""
    while (node := graph.producer(tensor)) is not None and moves_only(node):
        tensor = node.input[0]
    return tensor


def _only_reaches(graph: Graph, tensor: str, target: str) -> bool:
    """Whether all that is computed from `tensor`, through moves only, is the concatenation `target`."""
    if tensor in graph.outputs:
        return False
    return all(
        target in node.output or (moves_only(node) and _only_reaches(graph, node.output[0], target))
        for node in graph.consumers(tensor)
    )


def _moved(graph: Graph, tensor: str, scale_of: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in graph.consumers(tensor):
        if moves_only(node) and node.output[0] not in graph.outputs:
            found[node.output[0]] = scale_of
            found |= _moved(graph, node.output[0], scale_of)
    return found


def _gives_scores(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether no other convolution stands between this one and the graph's output."""
    pending, seen = [activated(graph, node)], set()
    while pending:
        tensor = pending.pop()
        for reader in graph.consumers(tensor):
            if reader.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
                return False
            for output in reader.output:
                if output not in seen:
                    seen.add(output)
                    pending.append(output)
    return True


class _Groups:
    """Disjoint sets of tensors that share a scale, in order of appearance."""

    def __init__(self) -> None:
        self._sets: dict[str, list[str]] = {}

    def add(self, tensor: str) -> None:
        self._sets.setdefault(tensor, [tensor])

    def join(self, tensors: list[str]) -> None:
        merged: list[str] = []
        for tensor in tensors:
            self.add(tensor)
            merged += [member for member in self._sets[tensor] if member not in merged]
        for member in merged:
            self._sets[member] = merged

    def of(self, tensor: str) -> tuple[str, ...]:
        return tuple(self._sets[tensor])
