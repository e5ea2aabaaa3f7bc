"""Documents as tables for a terminal. Every number in them was measured; what was not is shown as a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeseg.report.placement import placement_line
from edgeseg.report.preparation import preparation_lines

DASH = "–"
QUALITY = {  # of a stream
    "miou": "mIoU of the processed frames",
    "streaming_miou": "mIoU of what is seen at each label's time",
    "agreement": "agreement with the FP32 network",
    "confidence": "mean confidence of the FP32 network",
    "flicker": "pixels that flicker",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join((first, *rest)).rstrip()

    return "\n".join((line(header), "  ".join("-" * width for width in widths), *map(line, rows)))


def number(value: float | None, digits: int = 2, factor: float = 1.0) -> str:
    """A number with a fixed count of decimals, a dash for None."""
    return DASH if value is None else f"{factor * value:.{digits}f}"


def size(count: int) -> str:
    """Bytes in units that people read."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def build_table(report: Mapping[str, Any]) -> str:
    """FP32 against the rest: accuracy, latency, size; then the verdict and its reasons."""
    engines = report["engines"]
    # Of the network that was given: a rewritten one is what is compared with it.
    yardsticks = [e for e in engines if e["precision"] == "fp32" and not e["name"].startswith("rewritten-")]
    baseline = min((e["latency_ms"]["p50"] for e in yardsticks if e["latency_ms"]["p50"]), default=None)
    rows = []
    for engine in engines:
        latency = engine["latency_ms"]
        rows.append(
            (
                ("* " if engine["name"] == report["chosen"] else "  ") + engine["name"],
                number(engine["miou"], 2, 100),
                number(engine["agreement"], 2, 100),
                number(engine["boundary_agreement"], 2, 100),
                number(latency["p50"]),
                number(latency["p90"]),
                DASH if baseline is None or not latency["p50"] else f"{baseline / latency['p50']:.2f}x",
                size(engine["bytes"]),
            )
        )
    header = ("engine", "mIoU %", "agree %", "edges %", "p50 ms", "p90 ms", "speed", "size")
    lines = [f"{report['name']}: {_frames(report)}", "", table(header, rows), ""]
    lines += [f"* handed over: {report['chosen']}"]
    lines += [f"  {reason}" for reason in report["reasons"]]
    for engine in engines:
        built = engine.get("built")  # documents of earlier versions have none
        if built:
            lines.append(f"  {engine['name']} runs in {built['summary']}")
            lines += [f"    {repair}" for repair in built["repairs"]]
        if engine.get("placement"):
            lines.append("  " + placement_line(engine["name"], engine["placement"]))
    lines += [f"  {line}" for line in preparation_lines(report)]
    lines += [f"  out: {row['name']}: {row['why']}" for row in report["rejected"]]
    missing = {r for e in engines for name, r in e["latency_ms"]["reasons"].items() if name == "p90"}
    lines += [f"  p90: {reason}" for reason in sorted(missing)]
    return "\n".join(lines)


def _frames(report: Mapping[str, Any]) -> str:
    evaluation = report["evaluation"]
    if evaluation is None:
        return "there were no frames to judge by, so nothing is known about accuracy"
    what = f"{evaluation['frames']} frames of '{evaluation['split']}'"
    if not evaluation["labelled"]:
        return f"accuracy is agreement with the FP32 masks on {what}, which have no labels"
    return f"mIoU on {what}; agreement is with the FP32 masks, 'edges' within 2 pixels of a class boundary"


def stream_table(document: Mapping[str, Any]) -> str:
    """Where the time went, what became of every frame, how good the masks were, and what a person should know."""
    rows = []
    for what, latency in (*document["stages_ms"].items(), ("camera to mask", document["latency_ms"])):
        cells = (number(latency[p]) for p in ("p50", "p90", "p99"))
        rows.append((what, *cells, number(latency.get("max")), str(latency["count"])))
    frames, deadline = document["frames"], document["deadline"]
    lines = [
        f"{document['bundle']}, {document['variant']}, policy {document['policy']}: {document['seconds']:.1f} s, "
        f"{document['fps']:.1f} frames/s; {document['ended']}",
        "",
        table(("milliseconds", "p50", "p90", "p99", "max", "frames"), rows),
        "",
        f"frames: {frames['captured']} captured = {frames['processed']} processed + {frames['dropped']} dropped + "
        f"{frames['failed']} failed",
    ]
    if deadline["of"]:
        share = 100 * deadline["missed"] / deadline["of"]
        lines.append(f"deadline of {deadline['ms']:.1f} ms: missed by {deadline['missed']} ({share:.2f} %)")
    lines += [f"{count} failed: {why}" for why, count in document["failures"].items()]
    if not document["timed"]:
        lines.append(
            "frames were read as fast as they were taken and waited in queues, which camera to mask includes; "
            "--fps gives them a camera's clock"
        )
    quality = document["quality"]
    for key, what in QUALITY.items():
        if quality[key] is not None:
            lines.append(f"{what}: {100 * quality[key]:.2f} %")
    for source in document["sources"]:
        if source["outages"]:
            lines.append(
                f"{source['name']}: {source['outages']} outage{'s' * (source['outages'] > 1)}, "
                f"{source['outage_seconds']:.1f} s in all, "
                f"the last: {source['last_outage']}"
            )
        if source["complaint"]:
            lines.append(f"{source['name']}: {source['complaint']}")
    for sink in document["sinks"]:
        if (frames_written := sink.get("written")) is not None:
            held = f", {sink['held']} of them the last picture again, to keep the time" if sink.get("held") else ""
            lines.append(f"{sink['name']}: {frames_written} frames{held}")
    lines += [f"warning: {warning}" for warning in document["warnings"]]
    reasons = {f"{p}: {why}" for p, why in document["latency_ms"]["reasons"].items()}
    return "\n".join([*lines, *sorted(reasons)])
