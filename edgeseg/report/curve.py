"""The trade-off curve of a rewrite: accuracy against measured latency, one point for each budget.

Documents of the schema edgeseg.rewrite/1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeseg.report.plots import Dot, scatter

# Labels of the network before it was rewritten, and of what is handed over; the others are budgets.
ORIGINAL, REWRITTEN = "original", "rewritten"


@dataclass(frozen=True, slots=True)
class _Point:
    ms: float
    value: float  # percent
    share: float | None  # of the original's MACs
    label: str

    @property
    def is_original(self) -> bool:
        return self.label == ORIGINAL


def curve_plot(document: Mapping[str, Any]) -> str:
    """A figure; an empty text if no point has both a time and an accuracy.

    The original, a square, is the point with the label "original", else what `latency` and `accuracy` say of before.
    """
    metric = "miou" if any(point.get("miou") is not None for point in document["curve"]) else "agreement"
    points = _points(document, metric)
    if not points:
        return ""
    name = {"miou": "mIoU", "agreement": "agreement with the original"}[metric]
    latency = document["latency"]
    on = f" on {latency['backend']}, {latency['precision'].upper()}" if latency else ""
    front = _front(points)
    dots = [
        Dot(
            point.ms,
            point.value,
            _label(point),
            f"{point.label}: {point.ms:.2f} ms, {point.value:.2f} %"
            + ("" if point.share is None else f", {100 * point.share:.3g} % of the MACs"),
            colour="s2" if point.is_original else "s1",
            hollow=not point.is_original and point not in front,
            square=point.is_original,
            bold=point.label == REWRITTEN,
        )
        for point in points
    ]
    return scatter(
        dots,
        x=f"latency{on}, p50 in ms",
        y=f"{name}, %",
        title=f"{document['name']}: {name} against latency{on}",
        line=[(point.ms, point.value) for point in front],
        note="percentages: MACs left" + ("; hollow: another is faster and better" if len(front) < len(points) else ""),
        most=100.0,
        span=0.2,
    )


def _label(point: _Point) -> str:
    share = "" if point.share is None else f"{100 * point.share:.3g} %"
    return ", ".join(filter(None, (point.label, share))) if point.label in (ORIGINAL, REWRITTEN) else share


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
