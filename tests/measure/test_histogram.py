from __future__ import annotations

import json
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.errors import CannotTell
from edgeseg.measure import Histogram, percentile, summarize

# Some of all sizes: a clock's tick, a frame, a week.
durations = st.one_of(st.integers(0, 300), st.integers(10**5, 10**8), st.integers(0, 10**15))
many = st.lists(durations, min_size=1, max_size=900)


@given(many)
@settings(max_examples=60, deadline=None)
def test_it_tells_what_the_samples_tell(samples: list[int]) -> None:
    found, wanted = Histogram(samples).latency(), summarize(samples)
    assert (found.count, found.min, found.max, found.reasons) == (wanted.count, wanted.min, wanted.max, wanted.reasons)
    assert found.mean == pytest.approx(wanted.mean)
    assert found.stdev == pytest.approx(wanted.stdev, rel=1e-9, abs=1e-9)
    for name in ("p50", "p90", "p99"):
        have, exact = getattr(found, name), getattr(wanted, name)
        assert (have is None) == (exact is None)
        assert have is None or have == pytest.approx(exact, rel=0.004)
    assert found.to_json().keys() == wanted.to_json().keys()


@given(many, many, many, st.booleans())
@settings(max_examples=40, deadline=None)
def test_merging_is_adding_in_any_order(a: list[int], b: list[int], c: list[int], packed: bool) -> None:
    first, second, third = Histogram(a), Histogram(b), Histogram(c)
    if packed:
        second.pack()
    whole = Histogram([*a, *b, *c])
    assert (first + second) + third == first + (second + third) == (third + second) + first == whole
    assert first == Histogram(a)  # adding changed neither
    assert second == Histogram(b)
    assert (first + second).latency() != whole.latency()


@pytest.mark.parametrize("p", [0.07, 0.5, 0.9, 0.95, 0.99])
def test_percentiles_have_the_rank_that_they_say(p: float) -> None:
    samples = [3_000_000 + 7919 * i % 1_000_000 for i in range(1000)]
    found = Histogram(samples).percentile(p)
    assert found.value_ms == pytest.approx(sorted(samples)[ceil(Fraction(str(p)) * 1000) - 1] / 1e6, rel=0.004)
    assert found.value_ms == pytest.approx(percentile(samples, p).value_ms, rel=0.004)


def test_short_durations_are_exact() -> None:
    histogram = Histogram([*range(256)] * 3)
    assert histogram.percentile(0.5).value_ms == 127e-6
    assert Histogram([0] * 20).latency().p50 == 0.0


def test_the_tail_is_kept() -> None:
    found = Histogram([1_000_000] * 661 + [10**12]).latency()
    assert found.p50 == found.p99 == pytest.approx(1.0, rel=0.004)
    assert (found.min, found.max) == (1.0, 1e6)
    assert "p99 needs 662 samples" in Histogram([1] * 661).latency().reasons["p99"]


def test_packing_changes_nothing() -> None:
    histogram = Histogram(range(0, 10**9, 10**6))
    told = histogram.to_json()
    histogram.pack()
    assert histogram.to_json() == told
    histogram.pack()
    histogram.add(5)
    assert histogram == Histogram([*range(0, 10**9, 10**6), 5])
    assert histogram != Histogram(range(0, 10**9, 10**6))


def test_memory_does_not_grow_with_the_samples() -> None:
    histogram = Histogram(20_000_000 + i * 7919 % 4_000_000 for i in range(20_000))
    assert histogram.count == 20_000
    assert len(histogram.to_json()["bins_ms"]) < 40


def test_the_json_lists_every_bin() -> None:
    told = json.loads(json.dumps(Histogram([0, 0, 300, 1000, 10**9]).to_json()))
    assert told["count"] == sum(count for *_, count in told["bins_ms"]) == 5
    assert told["bins_ms"][0] == [0.0, 1e-6, 2]
    for (low, below, _), ns in zip(told["bins_ms"][1:], (300, 1000, 10**9), strict=True):
        assert low <= ns / 1e6 < below <= low * 1.008


def test_what_it_cannot_take() -> None:
    histogram = Histogram()
    with pytest.raises(ValueError, match="clock set back"):
        histogram.add(-1)
    assert histogram.count == 0
    with pytest.raises(CannotTell):
        histogram.latency()
    with pytest.raises(CannotTell):
        histogram.to_json()
