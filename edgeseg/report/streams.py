"""The section of a report about a stream: where the time went, over time and in all, and what became of the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeseg.report import plots
from edgeseg.report.parts import bar, table
from edgeseg.report.text import QUALITY, number

COLOURS = {"p50": "s1", "p99": "s2", "max": "bad"}


def stream_section(document: Mapping[str, Any]) -> str:
    frames, deadline = document["frames"], document["deadline"]
    rows = []
    for what, latency in (*document["stages_ms"].items(), ("<b>camera to mask</b>", document["latency_ms"])):
        numbers = (number(latency[p]) for p in ("p50", "p90", "p99"))
        rows.append((what, *numbers, number(latency.get("max")), f"{latency['count']:d}"))
    facts = [
        f"{document['fps']:.1f} frames/s for {document['seconds']:.1f} s, policy {escape(document['policy'])}; ended: "
        f"{escape(document['ended'])}",
        f"{frames['captured']:d} frames captured = {frames['processed']:d} processed + {frames['dropped']:d} dropped + "
        f"{frames['failed']:d} failed",
    ]
    if deadline["of"]:
        facts.append(f"{deadline['missed']:d} of {deadline['of']:d} missed the deadline of {deadline['ms']:.1f} ms")
    if not document["timed"]:
        facts.append("frames were read as fast as they were taken, and waited in queues before the engine")
    for key, what in QUALITY.items():
        if document["quality"][key] is not None:
            facts.append(f"{what}: {100 * document['quality'][key]:.2f} %")
    facts += [f"<b>{escape(text)}</b>" for text in document["warnings"]]
    head = f"<h2>Stream of {escape(document['bundle'])}, {escape(document['variant'])}</h2>"
    return (
        head
        + f"<ul>{''.join(f'<li>{fact}</li>' for fact in facts)}</ul>"
        + table(("milliseconds", "p50", "p90", "p99", "max", "frames"), rows)
        + _over_time(document["timeline"])
        + _shares(document["class_shares"])
        + _sources(document["sources"])
    )


def _over_time(rows: Sequence[Mapping[str, Any]]) -> str:
    """Age from the camera to the mask by window, and beneath it what the machine did."""
    ages = {name: [(row["t"], row["age"][name]) for row in rows if row["age"]] for name in COLOURS}
    drawn = []
    if len(rows) > 1:
        title = "camera to mask, ms"
        drawn.append(plots.lines(ages, x="seconds", y="ms", title=title, colours=COLOURS, zero=True))
    for key, title, unit in (
        ("temperature_c", "temperature, °C", "°C"),
        ("gpu_clock_mhz", "GPU clock, MHz", "MHz"),
        ("cpu_clock_mhz", "CPU clock, MHz", "MHz"),
        ("cpu_percent", "CPU, %", "%"),
        ("power_w", "power, W", "W"),
    ):
        points = [(row["t"], row["machine"].get(key)) for row in rows]
        if sum(value is not None for _, value in points) > 1:
            colours = {title: "soft"}
            drawn.append(plots.lines({title: points}, x="seconds", y=unit, title=title, colours=colours, height=180))
    return f"<h3>Over time</h3>{''.join(drawn)}" if any(drawn) else ""


def _shares(shares: Mapping[str, float]) -> str:
    shown = sorted(((share, name) for name, share in shares.items() if share > 0), reverse=True)
    if not shown:
        return ""
    rows = [(escape(name), bar(share, number(share, 2, 100))) for share, name in shown]
    return f"<h3>Class shares</h3>{table(('class', '% of the pixels'), rows)}"


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            escape(source["name"]),
            *(f"{source[key]:d}" for key in ("captured", "processed", "dropped", "failed", "outages")),
            number(source["outage_seconds"], 1),
            escape(source["complaint"] or source["last_outage"] or ""),
        )
        for source in sources
    ]
    header = ("source", "captured", "processed", "dropped", "failed", "outages", "seconds out", "")
    return f"<h3>Sources</h3>{table(header, rows, 'notes')}"
