"""The section of a report about a stream: where the time went, over time and in all, and what became of the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeseg.report.parts import bar, table
from edgeseg.report.text import QUALITY, number

WIDTH, HEIGHT, LEFT, BOTTOM = 860, 180, 52, 24  # of a plot, in its own units

_LINES = (("p50", "#1f6fb2"), ("p99", "#d08a1d"), ("max", "#b23b3b"))


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
    ages = {name: [(row["t"], row["age"][name]) for row in rows if row["age"]] for name, _ in _LINES}
    parts = [_plot("camera to mask, ms", [(name, colour, ages[name]) for name, colour in _LINES])]
    for key, title in (
        ("temperature_c", "temperature, °C"),
        ("gpu_clock_mhz", "GPU clock, MHz"),
        ("cpu_clock_mhz", "CPU clock, MHz"),
        ("cpu_percent", "CPU, %"),
        ("power_w", "power, W"),
    ):
        points = [(row["t"], row["machine"].get(key)) for row in rows]
        if sum(value is not None for _, value in points) > 1:
            parts.append(_plot(title, [(key, "#55606b", points)]))
    return f"<h3>Over time</h3>{''.join(parts)}" if any(parts) else ""


def _plot(title: str, lines: Sequence[tuple[str, str, Sequence[tuple[float, float | None]]]]) -> str:
    known = [(t, value) for _, _, points in lines for t, value in points if value is not None]
    if len(known) < 2:
        return ""
    first, last = min(t for t, _ in known), max(t for t, _ in known)
    top = max(value for _, value in known) * 1.05 or 1.0
    wide = max(last - first, 1e-9)

    def place(t: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 8) * (t - first) / wide
        return f"{x:.1f},{(HEIGHT - BOTTOM) * (1 - value / top):.1f}"

    drawn = []
    for name, colour, points in lines:
        for run in _runs(points):
            path = " ".join(place(t, value) for t, value in run)
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}"><title>{name}</title></polyline>')
    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e7eb"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * (1 - y / (HEIGHT - BOTTOM)):.4g}</text>'
        for y in (0.05 * HEIGHT, 0.5 * (HEIGHT - BOTTOM), float(HEIGHT - BOTTOM))
    )
    ends = (
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{first:.0f} s</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">{last:.0f} s</text>'
    )
    key = "".join(f'<i style="background:{colour}"></i>{name} ' for name, colour, _ in lines) if len(lines) > 1 else ""
    return (
        f'<figure class="plot"><figcaption>{escape(title)} <span class="class">{key}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} over time">{grid}{ends}'
        f"{''.join(drawn)}</svg></figure>"
    )


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The stretches of points without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for t, value in points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((t, value))
    return [run for run in runs if len(run) > 1]


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
