"""Statistics of one tensor: exact, the same in any order and any split, of constant size."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from calibration import BadActivations, Seen, merge, see, update
from calibration.seen import BINS, BLOCK, NARROWEST, grid
from tests.calibration.reference import bin_counts

Values = NDArray[np.float32]

FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-1, 1, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.0, 6.0, -6.0, 3.4028234663852886e38, 2.0**-126, -(2.0**20)]),
)
ARRAYS = hnp.arrays(np.float32, st.integers(1, 40), elements=FLOATS)


def assert_is_histogram_of(seen: Seen, values: Values) -> None:
    assert (seen.minimum, seen.maximum) == (values.min(), values.max())
    assert seen.zeros == int((values == 0).sum())
    assert seen.count == values.size
    counted = {seen.first + i: int(n) for i, n in enumerate(seen.counts) if n}
    assert counted == dict(bin_counts(values, seen.width))


def values_of(seen: Seen) -> Seen:
    """Without what is known of single frames: the rest does not depend on how values were divided into frames."""
    return replace(seen, extremes=None)


@settings(deadline=None)
@given(ARRAYS)
def test_histogram_is_that_of_exact_arithmetic(values: Values) -> None:
    assert_is_histogram_of(see(values), values)


@pytest.mark.parametrize("factor", [1e-42, 1e-30, 1e-3, 1.0, 5e3, 1e30])
@pytest.mark.parametrize("relu", [False, True])
def test_histogram_over_several_blocks(factor: float, relu: bool) -> None:
    values = (np.random.default_rng(1).standard_normal(BLOCK + 777) * factor).astype(np.float32)
    assert_is_histogram_of(see(np.maximum(values, 0) if relu else values), np.maximum(values, 0) if relu else values)


@given(st.lists(ARRAYS, min_size=2, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_merging_parts_equals_seeing_the_whole(parts: list[Values], random: object) -> None:
    whole = see(np.concatenate(parts))
    left = see(parts[0])
    for part in parts[1:]:
        left = update(left, part)
    right = see(parts[-1])
    for part in reversed(parts[:-1]):
        right = merge(see(part), right)
    assert values_of(left) == values_of(right) == values_of(whole)
    assert hash(values_of(left)) == hash(values_of(whole))


@pytest.mark.parametrize("factor", [1e-40, 1e-30, 1.0, 1e38])
def test_a_frame_of_zeros_changes_nothing_else(factor: float) -> None:
    values = (np.random.default_rng(0).uniform(-1, 1, 50) * factor).astype(np.float32)
    zeros = np.zeros(7, np.float32)
    whole = see(np.append(values, zeros))
    assert values_of(merge(see(zeros), see(values))) == values_of(merge(see(values), see(zeros))) == values_of(whole)


def test_unequal_statistics_are_unequal() -> None:
    values = np.array([0.0, 0.3, 1.0], np.float32)
    assert see(values) != see(np.array([0.0, 0.4, 1.0], np.float32))
    assert see(values) != see(np.array([0.3, 1.0], np.float32))
    assert see(values) != "a histogram"
    assert see(values) != update(see(values), values[:2])
    assert see(values) != replace(see(values), extremes=None)


@settings(deadline=None)
@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_grid_uses_its_bins(one: float, other: float) -> None:
    exponent, first, bins = grid(min(one, other), max(one, other))
    assert first <= 0 < first + bins
    assert bins <= BINS
    if exponent > NARROWEST:  # the next narrower grid would not have been enough
        low, high = min(one, other, 0.0), max(one, other, 0.0)
        assert np.floor(high * 2.0 ** (1 - exponent)) - np.floor(low * 2.0 ** (1 - exponent)) >= BINS


def test_layout_of_memory_does_not_matter() -> None:
    values = np.random.default_rng(2).standard_normal((3, 5, 7)).astype(np.float32)
    assert see(values) == see(values.transpose(2, 0, 1)) == see(values[:, ::-1]) == see(np.ascontiguousarray(values))


def test_half_precision_is_seen_as_it_is() -> None:
    values = np.array([0.1, -65504, 3], np.float16)
    assert see(values) == see(values.astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_and_named(bad: float) -> None:
    values = np.zeros((2, 3), np.float32)
    values[1, 2] = bad
    with pytest.raises(BadActivations, match=r"conv7.*1 of 6 are NaN or Inf.*\[1, 2\]"):
        see(values, "conv7")


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(BadActivations, match=r"conv7.*empty array of shape \(0, 3\)"):
        see(np.zeros((0, 3), np.float32), "conv7")
    with pytest.raises(BadActivations, match="float32 values were expected, got uint8"):
        see(np.zeros(3, np.uint8))  # type: ignore[arg-type]


def test_impossible_statistics_are_refused() -> None:
    good = see(np.array([-1.0, 2.0], np.float32))
    with pytest.raises(ValueError, match="minimum <= maximum"):
        Seen(2.0, -1.0, 0, good.counts)
    with pytest.raises(ValueError, match="int64 counts of shape"):
        Seen(-1.0, 2.0, 0, good.counts[:-1])
    with pytest.raises(ValueError, match="read-only"):
        good.counts[0] = 1


def test_memory_does_not_grow_with_updates() -> None:
    rng = np.random.default_rng(3)

    def peak(updates: int) -> int:
        seen = None
        tracemalloc.start()
        try:
            for i in range(updates):
                seen = update(seen, rng.standard_normal(20_000, dtype=np.float32) * np.float32(1 + i))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(5)  # what is allocated once
    assert peak(200) < peak(10) + 40_000
