"""The table of benchmarks.families, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeseg.report.text import DASH, number

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
HEADER = (
    *("family", "M parameters", "GMAC", "left", "mIoU % FP32", "rewritten", "INT8", "agree % rewritten", "INT8"),
    *("ms FP32", "rewritten", "INT8"),
)


def text(document: Mapping[str, Any], table: Table) -> str:
    """What was measured, and a row a network; DASH where something was not."""
    height, width = document["size"]
    untrained = [row for row in document["rows"] if not row["trained"]]
    widths = "published widths" if document["paper"] else "a quarter of the published widths"
    said = (
        f"`edgeseg build --int8 --rewrite all` on ONNX Runtime, to {document['budget']}, nothing learned; "
        f"{document['samples']} frames of '{document['data']}' to calibrate, {document['frames']} for the verdict. "
        "left: of the operations, in the rewritten network; INT8 is of the rewritten one, or of the original where "
        "nothing could be rewritten so (–). agree: with the masks of FP32."
    )
    if untrained:
        said += f" Weights by chance, {height} x {width}, {widths}: agreement says how much a step changes, no more."
    return f"{said}\n\n{table(HEADER, [_cells(row) for row in document['rows']])}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    if row["failure"]:
        return [row["name"], row["failure"].splitlines()[0].replace("|", "/"), *[DASH] * (len(HEADER) - 2)]
    miou, agree = row["miou"] if row["trained"] else {}, row["agreement"]
    left = row["rewritten_macs"]
    return [
        row["name"],
        number(row["parameters"] / 1e6, 2),
        number(row["macs"] / 1e9, 2),
        DASH if left is None else f"{100 * left / row['macs']:.0f} %",
        *(number(miou.get(step), 1, 100) for step in ("fp32", "rewritten", "int8")),
        *(number(agree.get(step), 1, 100) for step in ("rewritten", "int8")),
        *(number((row["latency_ms"].get(step) or {}).get("p50"), 1) for step in ("fp32", "rewritten", "int8")),
    ]
