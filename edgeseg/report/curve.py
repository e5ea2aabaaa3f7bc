"""The trade-off curve of a rewrite: accuracy against measured latency, one point for each budget, as SVG.

No script and no font of its own. Documents of the schema edgeseg.rewrite/1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 860, 440  # in the picture's own units, about pixels
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 44, 56
# Labels of the network before it was rewritten, and of what is handed over; the others are budgets.
ORIGINAL, REWRITTEN = "original", "rewritten"

_LIGHT = (("ink", "#1d2329"), ("soft", "#55606b"), ("grid", "#e3e7eb"), ("front", "#1f6fb2"), ("first", "#b8540f"))
_DARK = (("ink", "#e6eaee"), ("soft", "#a3adb8"), ("grid", "#333c46"), ("front", "#6bb3f0"), ("first", "#f0a35e"))
# Where a label may stand beside its point: shares of its width to the right, pixels down; the nearest first.
_NEAR = ((1, 16), (0, 21), (-1, -8), (0, -10), (1, 4), (-1, 4))
_SPOTS = (*_NEAR, *((dx, base + 15 * away) for away in (1, -1, 2, -2, 3, -3, 4, -4) for dx, base in _NEAR))


@dataclass(frozen=True, slots=True)
class _Point:
    ms: float
    value: float  # percent
    share: float | None  # of the original's MACs
    label: str

    @property
    def is_original(self) -> bool:
        return self.label == ORIGINAL


def curve_svg(document: Mapping[str, Any], *, dark: bool = True) -> str:
    """An SVG picture; an empty text if no point has both a time and an accuracy.

    The original is the point with the label "original", else what `latency` and `accuracy` say of before. With `dark`
    the colours follow the reader's preference; without they are those for a white page.
    """
    metric = "miou" if any(point.get("miou") is not None for point in document["curve"]) else "agreement"
    points = _points(document, metric)
    if not points:
        return ""
    name = {"miou": "mIoU", "agreement": "agreement with the original"}[metric]
    latency = document["latency"]
    on = f" on {latency['backend']}, {latency['precision'].upper()}" if latency else ""
    x_ticks = ticks(0.0, 1.05 * max(point.ms for point in points))
    low, high = min(point.value for point in points), max(point.value for point in points)
    pad = max(0.12 * (high - low), 0.05)
    y_ticks = ticks(low - pad, high + pad, whole=True)
    x = scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    y = scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    title = f"{document['name']}: {name} against latency{on}"
    drawn = [grid(x_ticks, y_ticks, x, y, f"latency{on}, p50 in ms", f"{name}, %")]
    front = _front(points)
    path = " ".join(f"{x(point.ms):.1f},{y(point.value):.1f}" for point in front)
    drawn.append(f'<polyline class="front" points="{path}"/>')
    key = "percentages: MACs left" + ("; hollow: another is faster and better" if len(front) < len(points) else "")
    drawn.append(f'<text class="key" x="{WIDTH - RIGHT - 8}" y="{HEIGHT - BOTTOM - 10}" text-anchor="end">{key}</text>')
    places = [(x(point.ms), y(point.value)) for point in points]
    labels = _labels(points, places)
    for point, (px, py), label in zip(points, places, labels, strict=True):
        kind = "first" if point.is_original else "on" if point in front else "off"
        shape = (
            f'<rect class="{kind}" x="{px - 5:.1f}" y="{py - 5:.1f}" width="10" height="10"/>'
            if point.is_original
            else f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="4.5"/>'
        )
        said = f"{point.label}: {point.ms:.2f} ms, {point.value:.2f} %" + (
            "" if point.share is None else f", {100 * point.share:.3g} % of the MACs"
        )
        drawn.append(f"<g>{shape}{label}<title>{escape(said)}</title></g>")
    return (
        f'<svg class="edgeseg-curve" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><style>{style(dark)}</style>'
        f'<text class="title" x="{LEFT}" y="22">{escape(title)}</text>{"".join(drawn)}</svg>'
    )


def _points(document: Mapping[str, Any], metric: str) -> list[_Point]:
    """From the fastest to the slowest, the original among them."""
    whole = document["macs"]["before"]
    found = []
    for point in document["curve"]:
        if point["ms"] is None or point.get(metric) is None:
            continue
        macs = point["macs"]
        share = None if macs is None else macs / whole if macs > 1 else float(macs)
        found.append(_Point(float(point["ms"]), 100 * float(point[metric]), share, str(point["label"])))
    latency, accuracy = document["latency"], document["accuracy"]
    if found and latency and not any(point.is_original for point in found):
        before = 1.0 if metric == "agreement" else (accuracy or {}).get("before")
        if before is not None and latency["before"]["p50"]:
            found.append(_Point(float(latency["before"]["p50"]), 100 * float(before), 1.0, ORIGINAL))
    return sorted(found, key=lambda point: (point.ms, -point.value))


def _front(points: Sequence[_Point]) -> list[_Point]:
    """The points that none is both faster and better than."""
    front: list[_Point] = []
    for point in points:
        if not front or point.value > front[-1].value:
            front.append(point)
    return front


def ticks(low: float, high: float, *, whole: bool = False, about: int = 6) -> list[float]:
    """Round numbers, the first and the last around `low` to `high`. `whole`: of a percentage, so at most 100."""
    rough = max(high - low, 1e-9) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [index * step for index in range(first, last + 1)]
    return [tick for tick in ticks if not whole or -1e-9 <= tick <= 100 + 1e-9] if whole else ticks


def scale(low: float, high: float, start: float, end: float) -> _Line:
    return _Line(low, (end - start) / (high - low), start)


@dataclass(frozen=True, slots=True)
class _Line:
    """A straight line from values to places."""

    low: float
    slope: float
    start: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.slope


def grid(x_ticks: Sequence[float], y_ticks: Sequence[float], x: _Line, y: _Line, below: str, beside: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = [
        f'<line x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{_said(tick, y_ticks)}</text>'
        for tick in y_ticks
    ]
    lines += [
        f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>'
        f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{_said(tick, x_ticks)}</text>'
        for tick in x_ticks
    ]
    middle = (TOP + bottom) / 2
    lines.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(below)}</text>')
    lines.append(
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">{escape(beside)}</text>'
    )
    return f'<g class="axes">{"".join(lines)}</g>'


def _said(tick: float, ticks: Sequence[float]) -> str:
    """With as many decimals as tell the ticks apart."""
    step = ticks[1] - ticks[0]
    decimals = next(count for count in range(12) if abs(round(step, count) - step) < 1e-6 * step)
    return f"{tick + 0.0:.{decimals}f}"


def _labels(points: Sequence[_Point], places: Sequence[tuple[float, float]]) -> list[str]:
    """A label beside each point, where it lies over no other and over no point."""
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in places]
    made = []
    for point, (px, py) in zip(points, places, strict=True):
        share = "" if point.share is None else f"{100 * point.share:.3g} %"
        text = ", ".join(filter(None, (point.label, share))) if point.label in (ORIGINAL, REWRITTEN) else share
        width = 7.0 * len(text)
        spots = [(px + dx * (width / 2 + 8) - width / 2, py + dy) for dx, dy in _SPOTS]
        boxes = [(left, base - 11, left + width, base + 3) for left, base in spots]
        inside = [
            at
            for at, (left, top, right, bottom) in enumerate(boxes)
            if left >= LEFT and right <= WIDTH - 4 and top >= TOP - 14 and bottom <= HEIGHT - BOTTOM
        ]
        free = [at for at in inside if not any(_overlap(boxes[at], other) for other in taken)]
        at = (free or inside or [0])[0]
        taken.append(boxes[at])
        kind = f' class="{point.label}"' if point.label in (ORIGINAL, REWRITTEN) else ""
        made.append(f'<text{kind} x="{spots[at][0]:.1f}" y="{spots[at][1]:.1f}">{escape(text)}</text>')
    return made


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def style(dark: bool) -> str:
    def rules(colours: Sequence[tuple[str, str]]) -> str:
        c = dict(colours)
        within = ".edgeseg-curve"
        return (
            f"{within} text{{fill:{c['ink']}}}{within} .axes text,{within} text.key{{fill:{c['soft']}}}"
            f"{within} .axes line{{stroke:{c['grid']}}}{within} .front{{fill:none;stroke:{c['front']}}}"
            f"{within} .on{{fill:{c['front']}}}{within} .off{{fill:none;stroke:{c['front']};stroke-width:1.5}}"
            f"{within} .first{{fill:{c['first']}}}{within} text.original{{fill:{c['first']}}}"
        )

    base = (
        ".edgeseg-curve{width:100%;max-width:860px;font:12px system-ui,sans-serif}"
        ".edgeseg-curve .title{font-size:14px;font-weight:600}.edgeseg-curve .front{stroke-width:1.6}"
        ".edgeseg-curve .rewritten{font-weight:600}"
    )
    return base + rules(_LIGHT) + (f"@media(prefers-color-scheme:dark){{{rules(_DARK)}}}" if dark else "")
