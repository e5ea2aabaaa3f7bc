from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.errors import CannotTell
from edgeseg.measure import (
    InTurn,
    early_stopping_bound,
    interleave,
    percentile,
    ratio_interval,
    samples_needed,
    summarize,
)
from tests import reference


@given(st.lists(st.integers(1, 10**9), min_size=64, max_size=150), st.sampled_from([1, 7, 10, 50, 63, 90]))
@settings(max_examples=60, deadline=None)
def test_percentiles_as_found_by_counting(samples: list[int], percent: int) -> None:
    found = percentile(samples, percent / 100)
    if len(samples) >= found.needed:
        assert found.value_ms == reference.percentile(samples, percent) / 1e6
        assert found.reason is None
    else:
        assert found.value_ms is None


@pytest.mark.parametrize(("p", "needed"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.97, 219), (0.99, 662), (0.999, 6636)])
def test_enough_samples_by_the_early_stopping_rule(p: float, needed: int) -> None:
    assert samples_needed(p) == needed
    assert reference.allowed_above(needed, Fraction(str(p))) == 1
    assert reference.allowed_above(needed - 1, Fraction(str(p))) == 0
    short = percentile([5] * (needed - 1), p)
    assert (short.value_ms, short.needed, short.have) == (None, needed, needed - 1)
    assert short.reason == f"p{100 * p:g} needs {needed} samples, there are {needed - 1}"
    assert percentile([5_000_000] * needed, p).value_ms == 5.0


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("count", [10, 11, 64, 65, 300, 662, 1000])
def test_the_bound_sets_aside_what_chance_allows(p: float, count: int) -> None:
    samples = list(range(1, count + 1))
    above = reference.allowed_above(count, Fraction(str(p)))
    bound = early_stopping_bound(samples[::-1], p)
    if above > 0:
        assert bound == (count - (above - 1)) / 1e6
        value = percentile(samples, p).value_ms
        assert value is not None
        assert bound >= value
    else:
        assert bound is None


def test_the_bound_of_very_many_samples_does_not_underflow() -> None:
    bound = early_stopping_bound(range(100_000), 0.5)
    assert bound is not None
    assert bound * 1e6 == pytest.approx(50_000 + 2.33 * np.sqrt(25_000), abs=30)  # the normal approximation


def test_a_percentile_is_a_share() -> None:
    for p in (0.0, 1.0, 90):
        with pytest.raises(ValueError, match="between 0 and 1"):
            percentile([1], p)


def test_a_summary_keeps_the_tail() -> None:
    samples = [1_000_000] * 661 + [900_000_000]
    found = summarize(samples)
    assert (found.count, found.min, found.max, found.p50, found.p90, found.p99) == (662, 1.0, 900.0, 1.0, 1.0, 1.0)
    assert found.mean == pytest.approx(np.mean(samples) / 1e6)
    assert found.stdev == pytest.approx(np.std(samples, ddof=1) / 1e6)
    assert found.reasons == {}


def test_too_few_samples_give_reasons() -> None:
    found = json.loads(json.dumps(summarize([2_000_000] * 64).to_json()))
    assert (found["p50"], found["p90"], found["p99"], found["stdev"]) == (2.0, 2.0, None, 0.0)
    assert found["reasons"] == {"p99": "p99 needs 662 samples, there are 64"}
    assert summarize([3]).stdev == 0.0
    with pytest.raises(CannotTell, match="No latency"):
        summarize([])


class Clock:
    """Time passes only by what the runs take."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[str] = []

    def __call__(self) -> int:
        return self.now

    def run(self, name: str, takes: int) -> None:
        self.calls.append(name)
        self.now += takes


def test_interleaving_times_each_run_once_a_round_in_every_place() -> None:
    clock = Clock()
    runs = {name: (lambda n=name, t=takes: clock.run(n, t)) for name, takes in (("a", 10), ("b", 20), ("c", 30))}
    samples = interleave(runs, rounds=60, warmup=2, clock=clock)
    assert samples == {"a": [10] * 60, "b": [20] * 60, "c": [30] * 60}
    rounds = [tuple(clock.calls[k : k + 3]) for k in range(6, 6 + 180, 3)]
    assert len(rounds) == 60
    for place in range(3):
        assert Counter(r[place] for r in rounds) == {"a": 20, "b": 20, "c": 20}
    assert len(set(rounds)) == 6  # all orders occur
    clock.calls.clear()
    interleave(runs, rounds=60, warmup=2, clock=clock)
    assert [tuple(clock.calls[k : k + 3]) for k in range(6, 6 + 180, 3)] == rounds  # the same seed, the same order
    clock.calls.clear()
    interleave(runs, rounds=60, warmup=2, clock=clock, seed=1)
    assert [tuple(clock.calls[k : k + 3]) for k in range(6, 6 + 180, 3)] != rounds


def test_interleaving_stops_after_the_round_in_which_time_is_up() -> None:
    clock = Clock()
    runs = {"a": lambda: clock.run("a", 400_000_000), "b": lambda: clock.run("b", 100_000_000)}
    samples = interleave(runs, rounds=100, warmup=5, limit_s=1.2, clock=clock)
    assert {name: len(s) for name, s in samples.items()} == {"a": 3, "b": 3}  # warm-up is not measured time
    samples = interleave(runs, rounds=2, warmup=0, seconds=1.2, clock=clock)
    assert {name: len(s) for name, s in samples.items()} == {"a": 3, "b": 3}  # at least two, and at least so long
    with pytest.raises(ValueError, match="rounds=0"):
        interleave(runs, rounds=0, warmup=0)


def test_items_come_in_turn() -> None:
    seen: list[int] = []
    interleave({"x": InTurn(seen.append, [1, 2, 3])}, rounds=4, warmup=1)
    assert seen == [1, 2, 3, 1, 2]
    with pytest.raises(CannotTell, match="no frame"):
        InTurn(seen.append, [])


def test_interleaving_real_time() -> None:
    samples = interleave({"idle": lambda: None, "busy": lambda: sum(range(20_000))}, rounds=15, warmup=1)
    assert min(samples["busy"]) > min(samples["idle"])


def test_drift_does_not_favour_one_run() -> None:
    """A machine that slows down steadily: one after the other, the second looks slower; in turn they look alike."""
    clock = Clock()

    def slowing(name: str) -> None:
        clock.run(name, 1000 + len(clock.calls))

    samples = interleave({"a": lambda: slowing("a"), "b": lambda: slowing("b")}, rounds=400, warmup=0, clock=clock)
    ratio, low, high = ratio_interval(samples["a"], samples["b"])
    assert ratio == pytest.approx(1, abs=0.01)
    assert low <= 1 <= high


def test_a_ratio_covers_the_truth_about_as_often_as_it_says() -> None:
    chance = np.random.default_rng(0)
    inside = 0
    for seed in range(60):
        common = chance.lognormal(0, 0.2, 40)  # both runs of a round feel the same neighbour
        a = (2e6 * common * chance.lognormal(0, 0.1, 40)).astype(int).tolist()
        b = (1e6 * common * chance.lognormal(0, 0.1, 40)).astype(int).tolist()
        ratio, low, high = ratio_interval(a, b, seed)
        assert low <= ratio <= high
        inside += low <= 2 <= high
    assert inside >= 52


def test_a_ratio_is_repeatable_and_paired() -> None:
    a = [1000 * 2**k for k in range(12)]
    assert ratio_interval(a, a) == (1, 1, 1)  # drawn together, the same rounds always cancel
    assert ratio_interval([2 * x for x in a], a) == (2, 2, 2)
    b = a[::-1]
    assert ratio_interval(a, b, seed=3) == ratio_interval(a, b, seed=3)
    assert ratio_interval(a, b).high > 1.5
    with pytest.raises(ValueError, match="12 and 11"):
        ratio_interval(a, a[1:])
    with pytest.raises(CannotTell, match="needs 11 paired samples, there are 10"):
        ratio_interval(a[:10], a[:10])
