"""Which metrics there are: their names, units, which way is better, and on what scale a change is counted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# What a change is allowed to be, at most, to be called the same where no budget says so.
MARGIN_POINTS, MARGIN_PERCENT = 0.5, 5.0

_LATENCIES = ("p50", "p90", "p99", "mean")
_KINDS = {
    "bench": {
        *(f"{what}.{p}" for what in ("latency", "end_to_end") for p in _LATENCIES),
        *("fps", "cold.open", "cold.first_frame", "missed", "size", "memory"),
    },
    "eval": {"miou", "pixel_accuracy", "dice", "boundary.1.miou", "boundary.3.miou", "boundary.5.miou"},
    "build": {*(f"latency.{p}" for p in _LATENCIES), *("miou", "pixel_accuracy", "dice", "size", "build_memory")},
    "stream": {
        *(f"latency.{p}" for p in _LATENCIES),
        *("fps", "dropped", "missed", "miou", "memory", "streaming_miou", "flicker"),
    },
}
_FAMILIES = {"eval": ("iou", "sequence"), "build": ("iou",), "stream": ("iou",), "bench": ()}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Shares (0 to 1 in the documents) change by points of 100, all else by percent."""

    name: str  # such as "latency.p50"
    unit: str  # of before and after: "points" (of 100), "ms", "frames/s", "MB"
    less_is_better: bool

    @property
    def points(self) -> bool:
        return self.unit == "points"

    @property
    def margin(self) -> float:
        """In points, or in percent."""
        return MARGIN_POINTS if self.points else MARGIN_PERCENT

    @property
    def change_unit(self) -> str:
        return "points" if self.points else "%"

    def scaled(self, value: float) -> float:
        """A value in `unit`, on the scale on which changes add up: a logarithm where they are ratios."""
        return value if self.points else math.log(value)

    def change(self, difference: float) -> float:
        """A difference on that scale, in points or in percent."""
        return difference if self.points else 100 * math.expm1(difference)

    def difference(self, change: float) -> float:
        """A change in points or percent, on that scale."""
        return change if self.points else math.log1p(change / 100)


def metric(name: str) -> Metric:
    """The metric of that name, whether or not a document has it."""
    head = name.split(".")[0]
    if head in ("latency", "end_to_end", "cold"):
        return Metric(name, "ms", True)
    if head == "fps":
        return Metric(name, "frames/s", False)
    if head in ("size", "memory", "build_memory"):
        return Metric(name, "MB", True)
    return Metric(name, "points", head in ("dropped", "missed", "flicker"))


def fixed_names() -> set[str]:
    """All names but those that classes and sequences make."""
    return set().union(*_KINDS.values())


def judged_in(name: str, kinds: Iterable[str]) -> bool:
    """Whether documents of one of these kinds have such a metric."""
    return any(name in _KINDS[kind] or name.split(".")[0] in _FAMILIES[kind] for kind in kinds)
