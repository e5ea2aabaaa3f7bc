"""The tables of `tools/bench gpu`, as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from edgeseg.report.text import DASH, number

HEADER = (
    *("way", "p50 ms", "quartiles", "p90", "p99", "device ms", "mIoU %", "agrees %"),
    *("build s", "engine MB", "works in MB", "W", "mJ a frame"),
)
OVERHEAD = ("engine", "bare loop, ms", "edgeseg, ms", "more, µs", "quartiles", "of the bare loop")
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def text(document: dict[str, Any], markdown: Table) -> str:
    """All tables, what was missing, and where and how it was measured."""
    gpu = document["gpu"]
    capability = ".".join(map(str, gpu["compute_capability"]))
    blocks = [
        f"{gpu['name']} (compute capability {capability}, {gpu['memory_bytes'] / 2**30:.0f} GiB, driver for CUDA "
        f"{gpu['driver_cuda'] // 1000}.{gpu['driver_cuda'] % 1000 // 10}); "
        + ", ".join(f"{name} {version}" for name, version in document["libraries"].items())
        + f". {document['rounds']} rounds in turns. p50 to p99: frame in to mask out, with transfers; device: median "
        "by CUDA events, without; agrees: with the first row of its half; works in: memory besides the weights."
    ]
    for model in document["models"]:
        blocks += _model(model, markdown)
    blocks += [f"* not measured: {name}: {why}" for name, why in document["missing"].items()]
    for part in document.get("parts", ()):
        machine = part["machine"]
        packages = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
        blocks.append(
            f"Machine: {machine['cpu']}, {machine['cores_usable']:g} cores; Python {machine['python']}, {packages}."
        )
        blocks.append(f"Command: `{shlex.join(['tools/bench', *part['command']])}`")
    return "\n\n".join(blocks)


def _model(model: dict[str, Any], markdown: Table) -> list[str]:
    height, width = model["size"]
    seen = model["evaluation"]
    rows = [_row(row) for row in model["rows"]]
    blocks = [
        f"**{model['model']}**, {width} x {height}; accuracy on {seen['frames']} frames of '{seen['split']}'",
        markdown(HEADER, rows),
    ]
    notes = [f"* {row['way']}: {row['made_of']['summary']}" for row in model["rows"] if row.get("made_of")]
    notes += [
        f"* {row['way']}: {repair}" for row in model["rows"] for repair in (row.get("made_of") or {}).get("repairs", ())
    ]
    notes += [f"* {row['way']}: failed: {row['failure']}" for row in model["rows"] if row.get("failure")]
    notes += [f"* {note}" for note in model["notes"]]
    blocks += ["\n".join(dict.fromkeys(notes))] if notes else []
    if model["overhead"]:
        blocks.append(markdown(OVERHEAD, [_more(row) for row in model["overhead"]]))
    return blocks


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    if row.get("failure"):
        return (row["way"], "failed", *[DASH] * (len(HEADER) - 2))
    latency, device = row["latency_ms"], row.get("device_ms") or {}
    return (
        row["way"],
        number(latency["p50"], 3),
        f"{latency['p25']:.3f} to {latency['p75']:.3f}",
        number(latency["p90"], 3),
        number(latency["p99"], 3),
        number(device.get("p50"), 3),
        number(row.get("miou"), 2, 100),
        number(row.get("agreement"), 2, 100),
        number(row.get("build_s"), 1),
        number(row.get("engine_bytes"), 2, 1e-6),
        number(row.get("device_bytes"), 1, 1e-6),
        number(row.get("power_w"), 0),
        number(row.get("mj_per_frame"), 1),
    )


def _more(row: dict[str, Any]) -> tuple[str, ...]:
    ours, bare, more = row["edgeseg_ms"]["p50"], row["bare_ms"]["p50"], row["more_us"]
    share = DASH if not ours or not bare else f"{100 * ours / bare:.1f} %"
    return (
        row["engine"],
        number(bare, 3),
        number(ours, 3),
        f"{more['p50']:.1f}",
        f"{more['p25']:.1f} to {more['p75']:.1f}",
        share,
    )
