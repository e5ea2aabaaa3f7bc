"""Where a network runs in INT8, where in float, and why: rows of documents, from the placement of quantizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgeseg.backends import Engine
from edgeseg.graph import Graph
from edgeseg.pipeline.engines import REWRITTEN
from edgeseg.pipeline.explain.names import source_module
from edgeseg.pipeline.explain.transplant import Deployed
from edgeseg.pipeline.network import dialect_for
from edgeseg.quantize import Dialect, Placement, place
from edgeseg.quantize.edges import is_convolution, moves_only
from edgeseg.quantize.reasons import BY_SEARCH, FOUND_EDGE, FOUND_FLOAT, FOUND_INT8, JOINED, PASSED
from edgeseg.types import OnnxModel

if TYPE_CHECKING:
    import onnx

QUANTIZED, PASSES = "quantized", "passed"  # kinds of edges


def placement_row(model: OnnxModel, dialect: Dialect, kept: frozenset[str] = frozenset()) -> dict[str, Any]:
    """How a build quantizes an FP32 network in a dialect.

    `kept`: names of the convolutions that a search keeps in float. The row: `int8`: how many convolutions run in INT8;
    `float`: the others, {"node", "module" of the source network or None, "reason"}, in order of the graph; `edges`:
    how many tensors carry a quantizer of their own ("quantized") and how many pass on the integers of others
    ("passed"). Raises ModelError for a graph that cannot be quantized, and for names that it does not have.
    """
    graph = Graph(model.graph)
    placement = place(graph, dialect, keep_float=kept)
    ruled = place(graph, dialect).floats  # what the rules leave in float was not for the search to keep
    modules = {node.name: module_of(node) for node in graph.nodes}
    edges = [edge["kind"] for edge in edge_rows(graph, placement)]
    return {
        "int8": len(placement.convolutions),
        "float": [
            {"node": name, "module": modules.get(name), "reason": ruled.get(name, BY_SEARCH)}
            for name in placement.floats
        ],
        "edges": {kind: edges.count(kind) for kind in (QUANTIZED, PASSES)},
    }


def placements(
    engines: Iterable[Engine], fp32: OnnxModel, small: OnnxModel | None, kept: Mapping[str, frozenset[str]]
) -> dict[str, dict[str, Any]]:
    """The row of every engine in INT8, by its name. `small`: the rewritten network; `kept`: by name of the engine."""
    rows = {}
    for engine in engines:
        model = small if engine.name.startswith(REWRITTEN) else fp32
        if engine.precision == "int8" and model is not None:
            rows[engine.name] = placement_row(model, dialect_for(engine.backend), kept.get(engine.name, frozenset()))
    return rows


def found_row(fp32: bytes, backend: str, deployed: Deployed, *, searched: bool) -> dict[str, Any]:
    """How an engine is quantized as it was found, whatever the rules say; they give the reasons.

    `searched`: whether a search chose what it keeps in float. Besides "int8" and "float" of `placement_row` there are
    `convolutions`: all of them, {"node", "module", "precision", "reason"}, and `edges` is a list of `edge_rows`.
    Raises ModelError for an FP32 graph that the rules do not take.
    """
    graph, dialect = Graph(fp32), dialect_for(backend)
    ruled = place(graph, dialect)
    inside = {layer.node for layer in deployed.layers if layer.weights is not None}
    placement = place(graph, dialect, keep_float=set(ruled.convolutions) - inside)
    rows: list[dict[str, Any]] = []
    for node in graph.nodes:
        if not is_convolution(node):
            continue
        reason, fits = ruled.reasons[node.name], (node.name in inside) == (node.name in ruled.convolutions)
        if not fits and node.name in inside:
            reason = f"{FOUND_INT8} ({reason})"
        elif not fits:
            reason = BY_SEARCH if searched else FOUND_FLOAT
        precision = "int8" if node.name in inside else "float"
        rows.append({"node": node.name, "module": module_of(node), "precision": precision, "reason": reason})
    edges = edge_rows(graph, placement, {quantizer.tensor for quantizer in deployed.quantizers})
    return {
        "int8": len(inside),
        "float": [
            {key: row[key] for key in ("node", "module", "reason")} for row in rows if row["precision"] == "float"
        ],
        "convolutions": rows,
        "edges": [{**edge, "reason": edge["reason"] or FOUND_EDGE} for edge in edges],
    }


def edge_rows(graph: Graph, placement: Placement, quantized: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """{"tensor", "kind", "reason"} of every tensor that carries integers, in order of the graph.

    `quantized`: the tensors that are quantized in a graph as it was found, by default those of the placement.
    """
    found = set(placement.quantizers) if quantized is None else set(quantized) - set(placement.moves)
    passed = {**dict(_passed(graph, placement)), **{tensor: placement.edges[tensor] for tensor in placement.moves}}
    tensors = [value.name for value in graph.model.graph.input]
    tensors += [tensor for node in graph.nodes for tensor in node.output]
    for tensor in tensors:
        if tensor in found:
            yield {"tensor": tensor, "kind": QUANTIZED, "reason": placement.edges.get(tensor)}
        elif tensor in passed:
            yield {"tensor": tensor, "kind": PASSES, "reason": passed[tensor]}


def module_of(node: onnx.NodeProto) -> str | None:
    """The module of the source network that a node came from, as far as names tell."""
    return source_module(node.name, node.input[1] if len(node.input) > 1 else None)


def _passed(graph: Graph, placement: Placement) -> Iterator[tuple[str, str]]:
    """The tensors between a quantizer and the convolutions in INT8 that read its integers, and why they are so."""
    chosen = set(placement.convolutions)
    pending = [node.input[0] for node in graph.nodes if is_convolution(node) and node.name in chosen]
    seen = set(pending)
    while pending:
        tensor = pending.pop()
        node = graph.producer(tensor)
        joins = node is not None and node.op_type == "Concat"
        if node is None or not (joins or moves_only(node)):
            continue
        if tensor not in placement.quantizers:
            yield tensor, JOINED if joins else PASSED
        above = [part for part in (node.input if joins else node.input[:1]) if part not in seen]
        seen.update(above)
        pending += above
