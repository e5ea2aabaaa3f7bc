"""The verdict: the fastest engine whose accuracy stays within the allowed loss, and why it is that one.

A pure function of what was measured. The yardstick is the FP32 graph of the network that was given, also where a
rewritten one is among the engines: the accuracy allowed is its accuracy less `max_drop`,
the time to beat is that of the fastest FP32 engine in the same interleaved run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeseg.errors import AccuracyFailed
from edgeseg.types import Precision


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine as it was measured. `accuracy` in points of 100: mIoU, or agreement with FP32 without labels."""

    name: str
    backend: str
    precision: Precision
    p50_ms: float
    accuracy: float | None  # None where no frames were given
    rewritten: bool = False  # of the network that was rewritten, not of the one that was given
    worst_class: tuple[str, float] | None = None  # that lost most IoU against FP32, and how many points


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine to hand over, and in sentences why it and not another."""

    name: str
    reasons: tuple[str, ...]


def choose(
    measured: Sequence[Measured],
    asked: Precision,
    max_drop: float,
    what: str = "mIoU",
    max_class_drop: float | None = None,
) -> Choice:
    """The fastest engine within `max_drop` points of FP32. `asked` is the precision that the user named.

    `max_class_drop`: no class may lose more points of IoU than that.

    Raises AccuracyFailed when no engine qualifies, which takes an FP32 engine that differs from FP32.
    """
    floats = [m for m in measured if m.precision == "fp32" and not m.rewritten]
    reference = next((m.accuracy for m in floats if m.accuracy is not None), None)
    reasons: list[str] = []
    qualified: list[Measured] = []
    for m in measured:
        drop = None if reference is None or m.accuracy is None else reference - m.accuracy
        if drop is not None and not drop <= max_drop:
            lost = f"{drop:.2f}" if drop >= max_drop + 0.005 else f"{drop:.2g}"
            reasons.append(f"{m.name} is out: it loses {lost} points of {what}, {max_drop:g} are allowed.")
        elif max_class_drop is not None and m.worst_class is not None and not m.worst_class[1] <= max_class_drop:
            reasons.append(
                f"{m.name} is out: '{m.worst_class[0]}' loses {m.worst_class[1]:.2f} points of IoU, {max_class_drop:g} "
                "are allowed to a class."
            )
        else:
            qualified.append(m)
    if not qualified:
        raise AccuracyFailed(
            "no engine stays within the allowed loss: " + " ".join(reasons) + " Raise --max-miou-drop, or force "
            "another runtime with --backend."
        )
    best = min(qualified, key=lambda m: m.p50_ms)
    baseline = min((m.p50_ms for m in floats), default=None)
    if any(m.rewritten for m in measured) and not best.rewritten:
        reasons.append(_why_not_rewritten(measured, qualified, best))
    if reference is None and (best.precision != "fp32" or best.rewritten):
        reasons.append("What it costs in accuracy is unknown: there were no frames to evaluate on.")
    if baseline is not None and (best.precision != "fp32" or best.rewritten):
        of = " of the original" if best.rewritten else ""
        reasons.append(f"{best.name} is {baseline / best.p50_ms:.2f} times as fast as the fastest FP32 engine{of}.")
    if not _meets(best, asked):
        reasons.append(_why_not(measured, qualified, asked, best))
    return Choice(best.name, tuple(reasons))


def _meets(m: Measured, asked: Precision) -> bool:
    return m.precision == asked or (asked == "fp16" and m.precision == "bf16")  # half precision of either kind


def _why_not(measured: Sequence[Measured], qualified: Sequence[Measured], asked: Precision, best: Measured) -> str:
    wanted = [m for m in measured if _meets(m, asked)]
    if not wanted:
        return f"No {asked.upper()} engine could be made here, so the choice is {best.name}."
    in_time = [m for m in wanted if m in qualified]
    if not in_time:
        return f"{asked.upper()} is not handed over: it loses too much accuracy, so the choice is {best.name}."
    fastest = min(in_time, key=lambda m: m.p50_ms)
    return (
        f"{asked.upper()} is not handed over: {fastest.name} takes {fastest.p50_ms:.2f} ms, "
        f"{best.name} takes {best.p50_ms:.2f} ms."
    )


def _why_not_rewritten(measured: Sequence[Measured], qualified: Sequence[Measured], best: Measured) -> str:
    in_time = [m for m in qualified if m.rewritten]
    if not in_time:
        return f"The rewritten network is not handed over: it loses too much accuracy, so the choice is {best.name}."
    fastest = min(in_time, key=lambda m: m.p50_ms)
    return (
        f"The rewritten network is not handed over: {fastest.name} takes {fastest.p50_ms:.2f} ms, "
        f"{best.name} takes {best.p50_ms:.2f} ms."
    )
