"""The section of a page about what each layer costs on paper. Documents of the schema edgeseg.profile/1."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from edgeseg.report.parts import bar, listed, table
from edgeseg.report.rewriting import count

HEADER = ("layer", "operation", "", "output", "MACs", "parameters", "activations")


def profile_section(document: Mapping[str, Any]) -> str:
    """A row for each layer, in order, with its share of the multiplications as a bar, and the sums."""
    layers = document["layers"]
    most = max((layer["macs"] for layer in layers), default=0) or 1
    rows: list[tuple[str, ...]] = [
        (
            escape(layer["name"]),
            escape(layer["op"]),
            escape(layer["detail"]),
            "x".join(f"{side:d}" for side in layer["output"]),
            bar(layer["macs"] / most, count(layer["macs"])),
            count(layer["parameters"]),
            count(layer["activations"]),
        )
        for layer in layers
    ]
    sums = (count(sum(layer[key] for layer in layers)) for key in ("macs", "parameters", "activations"))
    rows.append(("<b>together</b>", "", "", "", *(f"<b>{value}</b>" for value in sums)))
    uncounted = [f"multiplies, and is not counted: {escape(name)}" for name in document["uncounted"]]
    return f"<h2>Layers on paper</h2>{table(HEADER, rows)}{listed(uncounted)}"
