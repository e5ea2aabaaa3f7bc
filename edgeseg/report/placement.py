"""What runs in INT8 and what in float, and why: a line for a terminal, tables for a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeseg.report import parts

NAMED = 3  # convolutions of one reason in a line
REASONS = 4  # in a line
_LONG = 44  # characters of a node's name in a line


def placement_line(name: str, row: Mapping[str, Any]) -> str:
    """One line: how many convolutions run in INT8, and the others by reason, cut where they are many.

    >>> row = {"int8": 2, "float": [{"node": "conv1", "module": None, "reason": "reads the image, three channels"}]}
    >>> placement_line("onnxruntime-int8", row)
    'onnxruntime-int8: 2 of 3 convolutions in INT8; in float: conv1 (reads the image)'
    """
    total = row["int8"] + len(row["float"])
    said = f"{name}: {row['int8']} of {total} convolution{'s' * (total != 1)} in INT8"
    by_reason: dict[str, list[str]] = {}
    for layer in row["float"]:
        by_reason.setdefault(short(layer["reason"]), []).append(_cut(layer["module"] or layer["node"]))
    some = []
    for reason, nodes in list(by_reason.items())[:REASONS]:
        more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
        some.append(f"{', '.join(nodes[:NAMED])}{more} ({reason})")
    left = sum(len(nodes) for nodes in list(by_reason.values())[REASONS:])
    some += [f"{left} more"] if left else []
    return said + (f"; in float: {'; '.join(some)}" if some else "")


def edges_line(edges: Mapping[str, int] | Sequence[Mapping[str, Any]]) -> str:
    """How many tensors carry quantizers, and how many pass on the integers of others. `edges`: by kind, or each."""
    if not isinstance(edges, Mapping):
        edges = {kind: sum(edge["kind"] == kind for edge in edges) for kind in ("quantized", "passed")}
    passed = f", {edges['passed']} more pass integers through" if edges["passed"] else ""
    return f"edges: {edges['quantized']} tensor{'s' * (edges['quantized'] != 1)} quantized{passed}"


def placement_tables(row: Mapping[str, Any]) -> str:
    """Convolutions and edges with their reasons, folded up, for a page: all of them as far as the document has them."""
    listed = row.get("convolutions") or [{**layer, "precision": "float"} for layer in row["float"]]
    layers = [
        (escape(layer["node"]), escape(layer["module"] or ""), escape(layer["precision"]), escape(layer["reason"]))
        for layer in listed
    ]
    found = f"<p>{escape(placement_line('placement', row))}; {escape(edges_line(row['edges']))}.</p>"
    if layers:
        title = "Convolutions, in INT8 or float" if "convolutions" in row else "Convolutions in float"
        found += _folded(title, parts.table(("convolution", "module", "runs", "why"), layers, "words"))
    if isinstance(row["edges"], Mapping):
        return found
    edges = [(escape(edge["tensor"]), escape(edge["kind"]), escape(edge["reason"])) for edge in row["edges"]]
    return found + _folded("Edges, with a quantizer or without", parts.table(("tensor", "edge", "why"), edges, "words"))


def short(reason: str) -> str:
    """A reason up to where it goes into particulars."""
    return re.split(r"[:,;]", reason, maxsplit=1)[0].strip()


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _cut(name: str) -> str:
    return name if len(name) <= _LONG else f"…{name[1 - _LONG :]}"
