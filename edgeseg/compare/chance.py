"""How sure a change is: an estimate with its standard error, p-values by Student's t, and Holm's correction.

Many metrics are judged at once, and each has a chance to alarm where nothing changed. Holm 1979, "A simple
sequentially rejective multiple test procedure", keeps the chance of any false alarm among them below one level,
whatever their dependence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeseg.measure.bootstrap import student_t

LEVEL = 0.01  # the chance of any false alarm among all metrics that are judged together
INTERVAL = 0.95  # of the intervals that are shown, each by itself


@dataclass(frozen=True, slots=True)
class Estimate:
    """A change on its metric's scale (log ratio, or difference), its standard error and degrees of freedom."""

    change: float
    error: float = 0.0  # 0: known exactly
    freedom: float = math.inf  # of Student's t

    def bounds(self, level: float = INTERVAL) -> tuple[float, float]:
        """The two-sided interval of that level."""
        if self.error == 0.0:
            return self.change, self.change
        # Whole degrees, rounded down: the safe side.
        width = self.error * student_t((1 + level) / 2, int(min(max(self.freedom, 1), 1e6)))
        return self.change - width, self.change + width

    def chance_above(self, limit: float) -> float:
        """The p-value of "the true change is at most `limit`": small where it is surely more."""
        if self.error == 0.0:
            return 0.0 if self.change > limit else 1.0
        return upper_tail((self.change - limit) / self.error, self.freedom)

    def chance_equal(self) -> float:
        """The two-sided p-value of "nothing changed"."""
        if self.error == 0.0:
            return 1.0 if self.change == 0.0 else 0.0
        return min(1.0, 2 * upper_tail(abs(self.change) / self.error, self.freedom))


def upper_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t; degrees of freedom may be fractions (Welch), or infinite for the normal.

    With t = sqrt(v) tan(a) the density becomes cos(a) ** (v - 1) up to its constant: smooth, so Simpson's rule holds.
    """
    if freedom > 1e6:
        return 0.5 * math.erfc(t / math.sqrt(2))
    if t < 0:
        return 1.0 - upper_tail(-t, freedom)
    angles = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, 4001)
    weights = np.ones(4001)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    height = np.cos(angles).clip(0.0) ** (freedom - 1.0)
    area = float(weights @ height) * float(angles[1] - angles[0]) / 3
    logarithm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    return min(1.0, area * math.exp(logarithm) / math.sqrt(math.pi))


def holm(chances: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which null hypotheses fall, so that with `level` at most any true one does.

    >>> holm([0.003, 0.2, 0.005], 0.01)
    [True, False, True]
    """
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    fallen = [False] * len(chances)
    for rank, i in enumerate(order):
        if chances[i] > level / (len(chances) - rank):
            break
        fallen[i] = True
    return fallen


def welch(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The difference of two means with its error between runs; at least two values each.

    Welch 1947, "The generalization of 'Student's' problem when several different population variances are involved".
    """
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    of_a, of_b = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    change = float(b.mean() - a.mean())
    if of_a + of_b == 0.0:
        return Estimate(change)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return Estimate(change, math.sqrt(of_a + of_b), freedom)
