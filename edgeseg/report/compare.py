"""The section of a page about a comparison: what the gate says, and every metric before and after."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from edgeseg.compare.text import budget_line, cells, ordered, remarks, summary, title
from edgeseg.report.parts import listed, table

_HEADER = ("metric", "before", "after", "change", "95 % interval", "allowed", "verdict", "gate")
_LOUD = ("worse", "better", "FAILED", "cannot tell")


def compare_section(document: Mapping[str, Any]) -> str:
    """Markup for a document edgeseg.compare/1; budgeted metrics first, then all others."""
    parts = [f"<h2>Comparison</h2><p><b>{escape(summary(document))}</b></p><p>{escape(budget_line(document))}</p>"]
    for group in document["groups"]:
        parts.append(f"<h3>{escape(title(group))}</h3>")
        rows = [[_cell(text, one["gate"] is not None) for text in cells(one)] for one in ordered(group)]
        parts.append(table(_HEADER, rows))
        parts.append(listed([escape(text) for text in remarks(group)]))
    return "".join(parts) + listed([escape(text) for text in document["notes"]])


def _cell(text: str, budgeted: bool) -> str:
    return f"<b>{escape(text)}</b>" if text in _LOUD and (budgeted or text in ("worse", "better")) else escape(text)
