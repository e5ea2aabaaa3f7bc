"""The section of a page about a build (edgeseg.build/1): its engines, the verdict with its reasons, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeseg.report import plots
from edgeseg.report.parts import bar, listed, table
from edgeseg.report.placement import placement_tables
from edgeseg.report.preparation import preparation_lines
from edgeseg.report.search import search_section
from edgeseg.report.text import number, size

HEADER = ("engine", "mIoU %", "agree %", "edges %", "p50 ms", "p90 ms", "size", "settings")


def build_section(report: Mapping[str, Any]) -> str:
    """Tables and bars; cells of the engine that was handed over are ticked."""
    slowest = max((e["latency_ms"]["p50"] or 0.0) for e in report["engines"]) or 1.0
    rows = []
    for engine in report["engines"]:
        latency = engine["latency_ms"]
        rows.append(
            (
                f"<b>{escape(engine['name'])}</b> ✓" if engine["name"] == report["chosen"] else escape(engine["name"]),
                number(engine["miou"], 2, 100),
                number(engine["agreement"], 2, 100),
                number(engine["boundary_agreement"], 2, 100),
                bar((latency["p50"] or 0.0) / slowest, number(latency["p50"])),
                number(latency["p90"]),
                size(engine["bytes"]),
                escape(", ".join(f"{key}={value}" for key, value in engine["settings"].items())),
            )
        )
    reasons = [escape(reason) for reason in report["reasons"]]
    reasons += [f"out: {escape(r['name'])}: {escape(r['why'])}" for r in report["rejected"]]
    return (
        f"<h2>Build of {escape(report['name'])}</h2>{table(HEADER, rows, 'notes')}"
        f"<p>Handed over: <b>{escape(report['chosen'])}</b></p>{listed(reasons)}{listed(_facts(report))}"
        + _precisions(report["engines"])
        + _classes(report)
        + "".join(map(search_section, report.get("search") or ()))
    )


def baseline_of(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The fastest FP32 engine of the network that was given: a rewritten one is what is compared with it."""
    given = [e for e in report["engines"] if e["precision"] == "fp32" and not e["name"].startswith("rewritten-")]
    timed = [engine for engine in given if engine["latency_ms"]["p50"]]
    return min(timed, key=lambda engine: float(engine["latency_ms"]["p50"]), default=None)


def _facts(report: Mapping[str, Any]) -> list[str]:
    parity = report["intake"]["parity"]
    facts = [
        f"graph: {escape(report['intake']['form'])}, opset {report['intake']['opset']:d}; "
        f"{100 * parity['overall']:.3f} % of labels as the network gives them, {100 * parity['boundary']:.2f} % along "
        f"boundaries, on {parity['frames']:d} frames"
    ]
    if calibration := report["calibration"]:
        facts.append(
            f"calibration: {calibration['frames']:d} frames of “{escape(calibration['split'])}”, recipe "
            f"{escape(calibration['recipe']['name'])}, {len(calibration['skipped'])} frames skipped"
        )
    facts += [escape(line) for line in preparation_lines(report)]
    if evaluation := report["evaluation"]:
        facts.append(f"verdict on {evaluation['frames']:d} frames of “{escape(evaluation['split'])}”")
    return facts + [
        escape(f"{engine['name']} runs in " + "; ".join((engine["built"]["summary"], *engine["built"]["repairs"])))
        for engine in report["engines"]
        if engine.get("built")
    ]


def _precisions(engines: Sequence[Mapping[str, Any]]) -> str:
    """In what the layers of engines that were read back really run, and for how long."""
    rows = []
    for engine in engines:
        found = (engine.get("built") or {}).get("precisions") or {"layers": {}}
        for precision, count in found["layers"].items():
            ms = (found["ms"] or {}).get(precision)
            convolutions = found["convolutions"].get(precision, 0)
            rows.append((escape(engine["name"]), escape(precision), f"{count:d}", f"{convolutions:d}", number(ms, 3)))
    header = ("engine", "runs in", "layers", "convolutions", "ms")
    found = f"<h3>Precision of the layers</h3>{table(header, rows)}" if rows else ""
    for engine in engines:
        if engine.get("placement"):
            found += f"<h3>Layers of {escape(engine['name'])}</h3>{placement_tables(engine['placement'])}"
    return found


def _classes(report: Mapping[str, Any]) -> str:
    engines = [engine for engine in report["engines"] if engine.get("iou")]
    if not engines:
        return ""
    rows = [
        (escape(name), *(number(engine["iou"].get(name), 2, 100) for engine in engines)) for name in report["classes"]
    ]
    header = ("IoU %", *(escape(engine["name"]) for engine in engines))
    first = baseline_of(report) or engines[0]
    pair = {
        engine["name"]: {name: engine["iou"].get(name) for name in report["classes"]}
        for engine in engines
        if engine["name"] in (first["name"], report["chosen"])
    }
    drawn = plots.bars(pair, "IoU, %", "IoU by class", factor=100.0, most=100.0)
    return f"<h3>By class</h3>{drawn}{table(header, rows)}"
