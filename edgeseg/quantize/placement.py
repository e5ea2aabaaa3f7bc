"""Which tensors are quantized, with which other tensors they share a scale, and why the rest is not.

Convolutions are quantized by the rules of reasons.py and what stands between them stays float. A quantizer is placed at
the source of a convolution's input, above what only moves values (max-pooling, nearest resizing, reshaping,
concatenation), so that those run on integers too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.quantize.dialects import Dialect
from edgeseg.quantize.edges import (
    activated,
    gives_scores,
    inner_convolutions,
    is_convolution,
    kind_of,
    moves_only,
    refuse_foreign,
)
from edgeseg.quantize.reasons import Rule, can_run, rule
from edgeseg.types import FRAME

if TYPE_CHECKING:
    import onnx

_BY_REQUEST = "runs in float by request"
_ASKED = "runs in INT8 by request, against the rule"
__all__ = ["Placement", "moves_only", "place"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where quantizers go.

    `convolutions`: names of the nodes that run in INT8. `quantizers`: tensor → the tensors whose common range it uses.
    `moves`: tensors behind an op that only moves values, requantized with the same scale in closed dialects:
    tensor → the quantized tensor whose scale they keep. `floats`: convolution → why it stays float.
    `reasons`: node → why it runs as it does, convolutions or not. `edges`: tensor → why it carries a quantizer.
    `sums`: names of the additions that read integers where there are any. `groups`: convolutions in INT8 that read
    the same tensors, in order of the graph: with one of them in float, those tensors are needed in both types.
    """

    convolutions: tuple[str, ...]
    quantizers: dict[str, tuple[str, ...]]
    moves: dict[str, str]
    floats: dict[str, str]
    reasons: dict[str, str] = field(default_factory=dict)
    edges: dict[str, str] = field(default_factory=dict)
    sums: frozenset[str] = frozenset()
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def observed(self) -> set[str]:
        """The tensors whose ranges must be known."""
        return {tensor for group in self.quantizers.values() for tensor in group}


def place(graph: Graph, dialect: Dialect, *, keep_float: Iterable[str] = (), also: Iterable[str] = ()) -> Placement:
    """Decide where quantizers go for a dialect. `keep_float`: names of convolutions to leave alone.

    `also`: names of convolutions to run in INT8 where the rules would not, to try it: the first one, transposed ones.
    Raises ModelError for a graph that holds quantized parts already or lacks its weights, for names that it does not
    have, and for one in `also` that cannot run in INT8.
    """
    refuse_foreign(graph)
    chosen, floats, reasons = _chosen(graph, dialect, set(keep_float), set(also))
    groups = _Groups()
    sources: dict[str, None] = {}
    concats: dict[str, None] = {}
    edges: dict[str, str] = {}
    reads: dict[tuple[str, ...], list[str]] = {}
    for node in chosen:
        found = tuple(_sources(graph, node.input[0], concats))
        reads.setdefault(found, []).append(node.name)
        for tensor in found:
            sources[tensor] = None
            edges.setdefault(tensor, f"what {node.name} reads: a convolution in INT8 reads integers")
    if dialect.closed:
        # What a closed convolution gives must be quantized; it stands before the next one's input or before float ops.
        for node in chosen:
            tensor = activated(graph, node)
            sources.setdefault(tensor, None)
            edges.setdefault(tensor, f"what {node.name} gives: this engine's INT8 convolution writes integers only")
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
            edges.setdefault(concat, "parts of different scales are joined on one: integers need it behind them")
    if dialect.at_convolutions:
        for node in chosen:
            tensor = node.input[0]
            if tensor not in sources and (above := next(_sources(graph, tensor, {}), None)) is not None:
                moves[tensor] = above  # with one scale a concatenation, that of any of its parts
    edges |= {tensor: f"moved values of {above}, on its scale: no rounding" for tensor, above in moves.items()}
    quantizers = {tensor: groups.of(tensor) for tensor in (*sources, *(concats if dialect.closed else ()))}
    sums = frozenset(node.name for node in graph.nodes if dialect.sums and kind_of(graph, node) == "sum")
    together = tuple(tuple(names) for names in reads.values())
    return Placement(tuple(node.name for node in chosen), quantizers, moves, floats, reasons, edges, sums, together)


def _chosen(
    graph: Graph, dialect: Dialect, kept: set[str], also: set[str]
) -> tuple[list[onnx.NodeProto], dict[str, str], dict[str, str]]:
    """The convolutions in INT8, why the others are not, and the reason of every node that a rule speaks of."""
    if unknown := sorted((kept | also) - {node.name for node in graph.nodes}):
        raise ModelError(f"float or INT8 was asked for nodes that the graph does not have: {', '.join(unknown)}")
    chosen: list[onnx.NodeProto] = []
    floats: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for node in graph.nodes:
        floats |= {inner: rule("inside", dialect).why for inner in inner_convolutions(node)}
        kind = kind_of(graph, node)
        if not is_convolution(node):
            if kind:
                reasons[node.name] = rule(kind, dialect).why
            continue
        found = rule(kind, dialect)
        if found.int8 and gives_scores(graph, node):
            found = rule("transposed scores" if node.op_type == "ConvTranspose" else "scores", dialect)
        if node.name in kept:
            found = Rule(False, _BY_REQUEST)
        elif node.name in also:
            if not can_run(kind, dialect):
                raise ModelError(f"INT8 was asked for node {node.name}, which cannot: {found.why}")
            found = Rule(True, _ASKED)
        reasons[node.name] = found.why
        if found.int8:
            chosen.append(node)
        else:
            floats[node.name] = found.why
    return chosen, floats, reasons | floats


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
