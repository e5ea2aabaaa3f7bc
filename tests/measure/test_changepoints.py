"""Change points: found where they are, as often as promised by mistake, and not by one bad run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeseg.measure import changepoints
from edgeseg.measure.changepoints import changes

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
NOISES: dict[str, Draw] = {
    "normal": lambda random, n: random.normal(10, 0.1, n),
    "lognormal": lambda random, n: random.lognormal(0, 1, n),
    "cauchy": lambda random, n: random.standard_cauchy(n),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("length", [12, 40])
def test_false_alarms_are_as_rare_as_asked_for(noise: str, length: int) -> None:
    alarms = sum(bool(changes(NOISES[noise](np.random.default_rng(seed), length), p=0.05)) for seed in range(100))
    assert alarms <= 13  # of 5 expected: more has a chance of 1 in 2000


def test_a_stricter_chance_gives_no_more() -> None:
    series = [NOISES["normal"](np.random.default_rng(seed), 30) for seed in range(30)]
    loose, strict = (sum(len(changes(one, p=p)) for one in series) for p in (0.3, 0.01))
    assert strict < loose


def test_a_slow_down_of_five_percent_is_found_where_it_is() -> None:
    found = 0
    for seed in range(40):
        series = 10 * (1 + 0.015 * np.random.default_rng(seed).normal(size=30))
        series[24:] *= 1.05
        cuts = changes(series)
        found += len(cuts) == 1 and abs(cuts[0].index - 24) <= 2
        for cut in cuts:
            assert cut.before == pytest.approx(10, rel=0.03)
    assert found >= 36


def test_one_bad_run_is_no_change() -> None:
    for seed in range(30):
        series = 10 * (1 + 0.015 * np.random.default_rng(seed).normal(size=30))
        series[[7, 21]] *= 3
        assert changes(series, p=0.001) == []


def test_a_level_that_comes_and_goes() -> None:
    random = np.random.default_rng(3)
    series = np.concatenate([random.normal(level, 0.2, 18) for level in (10, 11, 10)])
    first, second = changes(series)
    assert abs(first.index - 18) <= 1
    assert abs(second.index - 36) <= 1
    assert first.after == second.before > first.before + 0.7
    assert first.p <= 0.01


def test_places_are_those_that_ruptures_finds() -> None:
    ruptures = pytest.importorskip("ruptures", reason="compares with ruptures")
    compared = 0
    for seed in range(15):
        random = np.random.default_rng(seed)
        series = np.concatenate([random.normal(level, 0.25, n) for level, n in ((10, 20), (11.2, 15), (9.8, 25))])
        own = [cut.index for cut in changes(series)]
        theirs = ruptures.Dynp(model="l2", min_size=3, jump=1).fit(series).predict(n_bkps=2)[:-1]
        assert len(own) >= 2
        if len(own) == 2:
            compared += 1
            assert all(abs(a - b) <= 2 for a, b in zip(own, theirs, strict=True)), (own, theirs)
    assert compared >= 13


def test_the_statistic_against_one_in_loops() -> None:
    values = np.random.default_rng(0).normal(size=11)
    first, last = np.array([0, 0, 3, 4]), np.array([3, 7, 9, 7])
    fast = changepoints._clear(values[None], first, last)[0]
    for clear, a, b in zip(fast, first.tolist(), last.tolist(), strict=True):
        inside, outside = values[a:b], np.concatenate([values[:a], values[b:]])
        # The difference of the means over its standard deviation when all orders of the values are as likely.
        spread = values.var(ddof=1) * (1 / len(inside) + 1 / len(outside))
        assert clear == pytest.approx(abs(inside.mean() - outside.mean()) / np.sqrt(spread))


@pytest.mark.parametrize(
    ("series", "places"),
    [
        ([5.0] * 8 + [7.0] * 4, [8]),
        ([5.0] * 8 + [7.0], [8]),  # the last run counts: a size does not change by chance
        ([5.0] * 4 + [7.0] + [5.0] * 4, []),
        ([5.0] * 4 + [7.0] * 3 + [5.0] * 4, [4, 7]),
        ([5.0] * 9, []),
        ([5.0], []),
        ([], []),
        ([5.0, 7.0], []),
        ([1.0, 2.0, 3.0, 4.0, 5.0], []),
    ],
)
def test_series_without_noise_and_short_ones(series: list[float], places: list[int]) -> None:
    cuts = changes(series)
    assert [cut.index for cut in cuts] == places
    assert all(cut.p == 0 for cut in cuts)


def test_levels_are_between_changes() -> None:
    cuts = changes([1.0] * 5 + [2.0] * 5 + [4.0] * 5)
    assert [(cut.before, cut.after) for cut in cuts] == [(1.0, 2.0), (2.0, 4.0)]


def test_what_is_no_series() -> None:
    for bad in ([1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="finite"):
            changes(bad)
    with pytest.raises(ValueError, match="2 values"):
        changes([1.0, 2.0], least=1)


def test_the_same_series_gives_the_same_answer() -> None:
    series = NOISES["lognormal"](np.random.default_rng(1), 40)
    assert changes(series, p=0.5) == changes(series, p=0.5)
