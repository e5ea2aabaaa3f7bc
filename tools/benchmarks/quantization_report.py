"""The tables of `tools/bench quantization`: what must be reached, then for each model all ways side by side."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.quantization_aims import seconds, stopped
from edgeseg.report.text import DASH, number

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
LONGEST = 300  # characters of a note
MET = {True: "yes", False: "**no**", None: "cannot tell"}
ROWS = ("quantizer", "runtime", "mIoU %", "lost", "agree %", "p50 ms", "against FP32", "against NNCF", "s", "peak MB")
AIMS = ("aim", "runtime", "model", "wanted", "found", "met")


def text(document: Mapping[str, Any], table: Table) -> str:
    """All tables as Markdown."""
    good = [model for model in document["models"] if not model["failure"]]
    parts = [f"{model['model']}: {model['failure']}" for model in document["models"] if model["failure"]]
    if any(model["aims"] for model in good):
        parts.insert(0, table(AIMS, _aims(good)))
    for model in good:
        parts.append(_about(model, document["words"]))
        if model["rows"]:
            parts.append(table(ROWS, [_row(row) for row in model["rows"]]))
        if model["costs"]:
            header, rows = _costs(model["costs"])
            parts.append(table(header, rows))
            parts += _steps(model["costs"], model["calibration"]["frames"])
        if notes := [f"* {row['recipe']} ({row['runtime']}): {note}" for row in model["rows"] for note in _notes(row)]:
            parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _aims(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Aim by aim, so that the models stand under one another."""
    found = [(aim, model["model"]) for model in models for aim in model["aims"]]
    order = list(dict.fromkeys((aim["what"], aim["where"]) for aim, _ in found))
    found.sort(key=lambda one: order.index((one[0]["what"], one[0]["where"])))
    return [
        (aim["what"], aim["where"], model, aim["wanted"], _cell(aim["found"]), MET[aim["met"]]) for aim, model in found
    ]


def _about(model: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    return (
        f"**{model['model']}**: calibrated on the same {model['calibration']['frames']} frames of "
        f"'{model['calibration']['split']}', judged on {model['evaluation']['frames']} of "
        f"'{model['evaluation']['split']}' at the labels' resolution; lost: points of mIoU that FP32 has more; "
        f"{words['rounds']} interleaved rounds, medians as times as fast with 95 % intervals. "
        "tensorrt: its graph through ONNX Runtime, run as it is written, so no time. s, peak MB: the process that "
        "quantizes, for ours a whole build less what it measures."
    )


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["failure"]:
        return (row["recipe"], row["runtime"], _cell(row["failure"]), *[DASH] * (len(ROWS) - 3))
    if "miou" not in row:
        return (row["recipe"], row["runtime"], "no engine answers", *[DASH] * (len(ROWS) - 3))
    return (
        row["recipe"],
        row["runtime"],
        number(row["miou"], 2, 100),
        number(round(row["drop"], 4) + 0.0, 2, 100),  # never -0.00
        number(row["agreement"], 2, 100),
        number(row.get("latency_ms", {}).get("p50")),
        _ratio(row["speed_fp32"]),
        _ratio(row["speed_nncf"]),
        number(row["seconds"], 1),
        number(row["peak_rss_mb"], 0),
    )


def _notes(row: Mapping[str, Any]) -> list[str]:
    """Where several engines of one graph fail, the first says why for all."""
    failed = [note for note in row["notes"] if re.match(r"[\w-]+\[[^\]]*\]: ", note)]
    kept = [note for note in row["notes"] if note not in failed[1:]]
    return [f"{note[:LONGEST]}…" if len(note) > LONGEST else note for note in kept]


def _ratio(speed: Mapping[str, float] | None) -> str:
    return DASH if speed is None else f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})"


def _costs(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    counts = sorted({run["frames"] for row in rows for run in row["runs"]})
    header = ("from frames to INT8", "runtime", *(f"s, {n} frames" for n in counts), *(f"MB, {n}" for n in counts))
    cells = []
    for row in rows:
        times = [_median(seconds(row, count), 1) or _cell(stopped(row, count)) or DASH for count in counts]
        peaks = [
            _median([run["peak_rss_mb"] for run in row["runs"] if run["frames"] == count and run["peak_rss_mb"]], 0)
            for count in counts
        ]
        cells.append((row["recipe"], row["runtime"], *times, *(peak or DASH for peak in peaks)))
    return header, cells


def _steps(rows: Sequence[Mapping[str, Any]], frames: int) -> list[str]:
    """Where our own seconds go."""
    found = []
    for row in rows:
        runs = [run["steps"] for run in row["runs"] if run["frames"] == frames and run.get("steps")]
        if runs:
            shares = ", ".join(f"{name} {_median(seconds(row, frames, name), 1)} s" for name in runs[0])
            found.append(f"{row['recipe']} for {row['runtime']}, {frames} frames: {shares}.")
    return found


def _median(values: Sequence[float], digits: int) -> str:
    return number(statistics.median(values), digits) if values else ""


def _cell(words: str) -> str:
    return words.replace("|", "/").replace("\n", " ")
