"""Sums over frames against the same figures computed at once, by their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeseg.measure.layers import (
    FACTORS,
    MOST_DB,
    Clipping,
    Difference,
    Rounding,
    clipping,
    compare,
    decibels,
    difference,
    rounding,
    weight_loss,
)


def arrays(seed: int = 0, shape: tuple[int, ...] = (2, 8, 61, 67)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(1.0, 3.0, shape).astype(np.float32)
    return x, x + rng.normal(0, 0.03, shape).astype(np.float32)


def test_a_difference_is_what_its_definition_says() -> None:
    x, y = arrays()
    found = difference(x, y)
    exact, noisy = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    assert found.count == x.size
    assert found.snr_db == pytest.approx(10 * math.log10((exact**2).sum() / ((noisy - exact) ** 2).sum()), rel=1e-9)
    assert found.cosine == pytest.approx(exact @ noisy / np.linalg.norm(exact) / np.linalg.norm(noisy), rel=1e-12)
    assert found.largest == pytest.approx(np.abs(noisy - exact).max(), rel=1e-12)


def test_frames_add_up_to_what_all_of_them_at_once_are() -> None:
    x, y = arrays(1, (3, 700, 701))  # more than is converted at once
    parts = sum((difference(x[k], y[k]) for k in range(3)), Difference())
    whole = difference(x, y)
    assert (parts.count, parts.largest) == (whole.count, whole.largest)
    for name in ("signal", "other", "product", "noise"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    streamed = compare(({"a": x[k], "b": x[0]}, {"a": y[k], "b": x[0], "c": y}) for k in range(3))
    assert set(streamed) == {"a", "b"}
    assert streamed["a"] == parts
    assert streamed["b"].snr_db is None  # nothing was lost


def test_a_tenth_of_the_error_is_twenty_decibels_more() -> None:
    x, y = arrays(2)
    first, second = (difference(x.astype(np.float64), x + factor * (y - x).astype(np.float64)) for factor in (1, 0.1))
    assert first.snr_db is not None
    assert second.snr_db == pytest.approx(first.snr_db + 20, abs=1e-9)


def test_edges() -> None:
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert difference(zero, zero).snr_db is None
    assert difference(zero, zero).cosine is None
    assert difference(zero, one).snr_db == -MOST_DB
    assert difference(one, -one).cosine == pytest.approx(-1)
    assert difference(one[:0], one[:0]) == Difference()
    assert difference(np.array([1, 2], np.float16), np.array([1, 2], np.float32)).snr_db is None
    assert difference(np.array([3], np.uint8), np.array([1], np.uint8)).largest == 2  # no wrapping
    with pytest.raises(ValueError, match="one shape"):
        difference(one, one[:2])
    with pytest.raises(KeyError):
        compare([({"a": one}, {})])
    assert decibels(1.0, math.inf) == -MOST_DB
    assert decibels(1e300, 1e-300) == MOST_DB


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    x, y = np.array([1, 2, 3, 4], np.float32), np.array([1, np.nan, 3.5, np.inf], np.float32)
    found = difference(x, y)
    assert (found.count, found.broken) == (4, 2)
    assert found.snr_db == pytest.approx(10 * math.log10(10 / 0.25))


def test_clipping_counts_what_rounding_does_not_explain() -> None:
    values = np.array([-1.0, -0.04, 0.0, 5.0, 10.04, 10.06, 20.0], np.float32)
    found = clipping(values, 0.0, 10.0, 0.1)
    assert (found.count, found.clipped) == (7, 3)  # 10.04 and -0.04 round to the ends
    assert (found.low, found.high) == (-1.0, 20.0)
    both = found + clipping(np.array([-7.0], np.float32), 0.0, 10.0, 0.1)
    assert (both.low, both.high, both.share) == (-7.0, 20.0, 0.5)
    assert Clipping().share == 0.0
    assert clipping(values[:0], 0.0, 1.0, 0.1) == Clipping()
    broken = clipping(np.array([np.nan, 1.0, np.inf], np.float32), 0.0, 10.0, 0.1)
    assert (broken.clipped, broken.low) == (2, 1.0)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_worst_channel_and_its_gain_are_found(axis: int) -> None:
    rng = np.random.default_rng(3)
    weights = rng.normal(0, 1, (5, 4, 3, 3)).astype(np.float32)
    rounded = np.rint(weights * 64) / 64
    found = weight_loss(weights, rounded, axis)
    moved, other = np.moveaxis(weights, axis, 0), np.moveaxis(rounded, axis, 0)
    powers = [
        (float((a.astype(np.float64) ** 2).sum()), float(((b - a).astype(np.float64) ** 2).sum()))
        for a, b in zip(moved, other, strict=True)
    ]
    worst = max(range(len(powers)), key=lambda channel: powers[channel][1])
    assert found.channel == worst
    assert found.channel_snr_db == pytest.approx(10 * math.log10(powers[worst][0] / powers[worst][1]), rel=1e-5)
    assert found.gain == pytest.approx(1, abs=0.01)

    np.moveaxis(rounded, axis, 0)[2] *= 20
    found = weight_loss(weights, rounded, axis)
    assert found.channel == 2
    assert found.gain == pytest.approx(20, rel=0.01)


def test_weights_that_are_exact_zero_or_broken() -> None:
    weights = np.ones((3, 2), np.float32)
    weights[1] = 0
    assert weight_loss(weights, weights).snr_db is None
    other = weights.copy()
    other[1] = 0.5  # a channel of zeros has no ratio; the whole does
    assert weight_loss(weights, other).channel_snr_db == -MOST_DB
    assert weight_loss(weights, other).gain == 1.0
    small = weights.copy()
    small[1] = 1e-6
    lost = small.copy()
    lost[1], lost[0] = 0, 1.01  # what is next to nothing may get lost
    assert weight_loss(small, lost).channel == 0
    other[2, 0] = np.nan
    broken = weight_loss(weights, other)
    assert (broken.channel, broken.channel_snr_db, broken.gain) == (2, -MOST_DB, 0.0)


@pytest.mark.parametrize("signed", [False, True])
def test_a_scale_that_is_wrong_is_avoidable_and_a_good_one_is_not(signed: bool) -> None:
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(0, 1, (1, 8, 40, 50))).astype(np.float32)
    levels = (-128, 127) if signed else (0, 255)

    def seen(scale: float) -> Rounding:
        return rounding(values, levels[0] * scale, levels[1] * scale, scale)

    good = float(values.max()) / levels[1]
    assert seen(good).avoidable_db < 3
    for factor in (20, 1 / 20):
        wrong = seen(good * factor)
        assert wrong.avoidable_db > 15
        assert 0.5 < factor * wrong.factor < 2
    exact = np.clip(np.rint(values / good), *levels) * good
    error = ((exact - values).astype(np.float64) ** 2).sum()
    assert seen(good).noise[FACTORS.index(1.0)] == pytest.approx(error, rel=1e-4)


def test_of_tensors_that_share_a_scale_the_large_one_decides() -> None:
    rng = np.random.default_rng(1)
    large, small = rng.uniform(0, 10, 5000), rng.uniform(0, 0.1, 5000)
    scale = 10 / 255
    alone = rounding(small, 0, 10, scale)
    assert alone.avoidable_db > 20
    assert (alone + rounding(large, 0, 10, scale)).avoidable_db < 3


def test_rounding_of_nothing_and_of_broken_scales() -> None:
    assert rounding(np.zeros(0, np.float32), 0, 1, 0.1) == Rounding()
    assert rounding(np.ones(3, np.float32), 0, 1, 0.0) == Rounding()
    assert rounding(np.ones(3, np.float32), 0, np.inf, np.inf) == Rounding()
    assert Rounding().avoidable_db == 0.0
    assert rounding(np.array([np.nan, np.inf, 0.05]), 0, 25.5, 0.1).noise[FACTORS.index(1.0)] == pytest.approx(0.05**2)
    assert rounding(np.full(9, 0.5), 0, 25.5, 1.0).avoidable_db == MOST_DB  # half a step, and exact with half of it
