"""Which convolutions hand their values straight to which: between two in float, INT8 would have two borders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeseg.graph import Graph
from edgeseg.quantize.edges import is_convolution


def neighbours(graph: Graph, nodes: Sequence[str]) -> dict[str, frozenset[str]]:
    """For each of the nodes, those of them that feed it or that it feeds, with no other convolution in between."""
    wanted = set(nodes)
    found: dict[str, set[str]] = {name: set() for name in nodes}
    for node in graph.nodes:
        if node.name in wanted:
            for reader in _next(graph, list(node.output)):
                if reader in wanted:
                    found[node.name].add(reader)
                    found[reader].add(node.name)
    return {name: frozenset(around) for name, around in found.items()}


def _next(graph: Graph, tensors: list[str]) -> Iterator[str]:
    """The convolutions that values of these tensors reach first."""
    pending, seen = list(tensors), set(tensors)
    while pending:
        for reader in graph.consumers(pending.pop()):
            if is_convolution(reader):
                yield reader.name
                continue
            fresh = [output for output in reader.output if output not in seen]
            seen.update(fresh)
            pending += fresh
