"""From changes with their uncertainty to words: what became better or worse, and whether the gate opens.

Two questions, asked apart. The verdict: did it change at all? The gate: is it worse by more than is allowed? Each is
asked for many metrics at once, so Holm's correction holds the chance of any false alarm below `LEVEL`: among the
budgeted metrics for the gate; for the verdicts half of it among the budgeted metrics and half among all others, so that
naming few in a budget keeps them sharp. "Same" is a finding too: the whole interval lies within what is allowed, or
within the metric's margin where no budget names it. Anything between is "cannot tell".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgeseg.compare.budget import Rule
from edgeseg.compare.chance import LEVEL, Estimate, holm
from edgeseg.compare.vocabulary import Metric

PASSED, FAILED, UNKNOWN = "passed", "failed", "cannot tell"
_EXACT = 1e-9


@dataclass(frozen=True, slots=True)
class Judged:
    """One metric before and after. Values are in the metric's unit, changes in points or percent."""

    metric: Metric
    before: float | None
    after: float | None
    change: Estimate | None = None  # on the metric's scale; None where it cannot be known
    level: Estimate | None = None  # the new value by itself, on that scale
    reason: str | None = None  # why there is no estimate, or why it is so wide
    verdict: str = UNKNOWN  # "better", "same", "worse", "cannot tell"
    rule: Rule | None = None
    gate: str | None = None  # "passed", "failed", "cannot tell"; None without a rule
    gate_reason: str | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, in points or percent; None where nothing is known."""
        if self.change is None:
            return None
        low, high = self.change.bounds()
        return self.metric.change(low), self.metric.change(high)

    @property
    def p(self) -> float | None:
        """That so much would come where nothing changed, uncorrected."""
        return None if self.change is None else self.change.chance_equal()


def judge(rows: Sequence[Judged], budget: Mapping[str, Rule]) -> list[Judged]:
    """Verdicts for all, and the gate's word for those in the budget."""
    rows = [replace(row, rule=budget.get(row.metric.name)) for row in rows]
    surely: set[int] = set()
    for budgeted in (True, False):
        family = [i for i, row in enumerate(rows) if (row.rule is not None) is budgeted and row.change is not None]
        surely |= {
            i for i, sure in zip(family, holm([rows[i].p or 0.0 for i in family], LEVEL / 2), strict=True) if sure
        }
    gated = _gates(rows)
    return [
        replace(_verdict(row, i in surely), gate=gated[i][0], gate_reason=gated[i][1])
        if i in gated
        else _verdict(row, i in surely)
        for i, row in enumerate(rows)
    ]


def exit_code(rows: Sequence[Judged]) -> int:
    """1: something in the budget is surely worse than allowed; 4: something in it cannot be told; 0: neither."""
    gates = {row.gate for row in rows}
    return 1 if FAILED in gates else 4 if UNKNOWN in gates else 0


def _verdict(row: Judged, sure: bool) -> Judged:
    if row.change is None or row.interval is None:
        return row
    if sure and row.change.change != 0.0:
        worse = (row.change.change > 0) is row.metric.less_is_better
        return replace(row, verdict="worse" if worse else "better", reason=None)
    allowed = row.rule.allowed_from(row.before) if row.rule is not None and row.before else None
    margin = allowed or row.metric.margin
    low, high = row.interval
    if -margin <= low and high <= margin:
        return replace(row, verdict="same", reason=None)
    unit = row.metric.change_unit
    wide = f"it may be anything from {low:+.2f} to {high:+.2f} {unit}"
    if low > 0 or high < 0:
        wide = f"p is {row.p:.2g}, too much where many metrics are judged at once"
    return replace(row, reason=f"{row.reason or 'too few samples'}: {wide}")


def _gates(rows: Sequence[Judged]) -> dict[int, tuple[str, str | None]]:
    """For every row with a rule: its gate and the reason."""
    questions: list[tuple[int, float, float, str]] = []  # row, p of "it is within", upper bound - limit, in words
    found: dict[int, tuple[str, str | None]] = {}
    for i, row in enumerate(rows):
        rule = row.rule
        if rule is None:
            continue
        found[i] = (PASSED, None)
        if rule.allowed is not None:
            allowed = rule.allowed_from(row.before) if row.before else rule.allowed
            if row.change is None or allowed is None:
                found[i] = (UNKNOWN, row.reason or "it has no value")
            else:
                questions.append((i, *_asked(row.metric, row.change, allowed), "is worse by more than is allowed"))
        if rule.limit is not None:
            level = row.level or (None if row.after is None else _exactly(row.metric, row.after))
            if level is None:
                found[i] = (UNKNOWN, row.reason or "it has no value")
            else:
                questions.append((i, *_bounded(row.metric, level, rule.limit), "is beyond its limit"))
    failed = holm([p for _, p, _, _ in questions])
    for (i, _, beyond, what), fails in zip(questions, failed, strict=True):
        row = rows[i]
        if fails:
            found[i] = (FAILED, f"it surely {what}")
        elif beyond > _EXACT and found[i][0] != FAILED:
            why = row.reason or "too few samples"
            found[i] = (UNKNOWN, f"{why}: it cannot be ruled out that it {what}")
    return found


def _asked(of: Metric, change: Estimate, allowed: float) -> tuple[float, float]:
    """The p-value of "no more than allowed", and by how much the interval's bad end lies beyond that."""
    if of.less_is_better:
        return _above(change, of.difference(allowed))
    return _above(replace(change, change=-change.change), -of.difference(-allowed))


def _bounded(of: Metric, level: Estimate, limit: float) -> tuple[float, float]:
    bound = of.scaled(limit)
    return _above(level, bound) if of.less_is_better else _above(replace(level, change=-level.change), -bound)


def _above(worse: Estimate, limit: float) -> tuple[float, float]:
    return worse.chance_above(limit + _EXACT), worse.bounds()[1] - limit


def _exactly(of: Metric, value: float) -> Estimate | None:
    return None if not of.points and not (value > 0 and math.isfinite(value)) else Estimate(of.scaled(value))
