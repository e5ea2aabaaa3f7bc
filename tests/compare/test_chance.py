"""Student's t and Holm against tables and the obvious slow way."""

import itertools
import math

import numpy as np
import pytest

from edgeseg.compare.chance import Estimate, holm, upper_tail, welch
from edgeseg.measure.bootstrap import student_t


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    # Tables of Student's t: 12.706 and 63.657 for 1, 2.571 for 5, 3.365 for 5, 1.960 for infinitely many.
    [(12.7062, 1, 0.025), (63.6567, 1, 0.005), (2.57058, 5, 0.025), (3.36493, 5, 0.01), (1.959964, math.inf, 0.025)],
)
def test_tails_are_those_of_the_tables(t: float, freedom: float, p: float) -> None:
    assert upper_tail(t, freedom) == pytest.approx(p, rel=1e-4)
    assert upper_tail(-t, freedom) == pytest.approx(1 - p, rel=1e-4)


def test_tails_and_quantiles_are_each_others_inverse() -> None:
    for freedom, p in itertools.product((1, 2, 3, 9, 40, 999), (0.6, 0.975, 0.9999)):
        assert upper_tail(student_t(p, freedom), freedom) == pytest.approx(1 - p, rel=1e-3)


def test_fractions_of_freedom_lie_between() -> None:
    assert upper_tail(2.0, 4) > upper_tail(2.0, 4.5) > upper_tail(2.0, 5)


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """A hypothesis falls if every set of hypotheses that holds it has a p-value below level / its size."""
    chance = np.random.default_rng(0)
    for _ in range(200):
        p = (chance.random(4) ** 3 * 0.1).tolist()
        sets = [s for size in range(1, 5) for s in itertools.combinations(range(4), size)]
        slow = [all(min(p[j] for j in s) <= 0.05 / len(s) for s in sets if i in s) for i in range(4)]
        assert holm(p, 0.05) == slow
    assert holm([]) == []


def test_welch_by_hand() -> None:
    found = welch([1.0, 2.0, 3.0], [4.0, 6.0, 8.0])
    assert found.change == 4.0
    assert found.error == pytest.approx(math.sqrt(1 / 3 + 4 / 3))
    assert found.freedom == pytest.approx((5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2))
    assert welch([1.0, 1.0], [2.0, 2.0]) == Estimate(1.0)


def test_an_exact_change_has_no_doubt() -> None:
    assert Estimate(0.0).chance_equal() == 1.0
    assert Estimate(0.1).chance_equal() == 0.0
    assert Estimate(0.1).bounds() == (0.1, 0.1)
    assert Estimate(0.1).chance_above(0.1) == 1.0
