"""The moving average of frames' extremes: what torch keeps, in one run or merged from several."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration import Extremes, Scheme, Seen, merge, moving_average, quantizer, see, unite, update
from calibration.extremes import follow

Values = NDArray[np.float32]
UNSIGNED = Scheme(signed=False, symmetric=False)
SYMMETRIC = Scheme(signed=True, symmetric=True)


def frames(count: int, seed: int = 0) -> list[Values]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(200) * rng.uniform(0.2, 5) + rng.normal()).astype(np.float32) for _ in range(count)]


def seen_of(parts: list[Values]) -> Seen:
    seen: Seen | None = None
    for part in parts:
        seen = update(seen, part)
    assert seen is not None
    return seen


def averaged(parts: list[Values]) -> tuple[float, float]:
    """As a weighted mean: 0.01 for the last, 0.99 times that for each before, and the rest for the first."""
    weights = np.array([0.01 * 0.99 ** (len(parts) - 1 - i) for i in range(len(parts))])
    weights[0] = 0.99 ** (len(parts) - 1)
    assert weights.sum() == pytest.approx(1)
    lows, highs = (np.array([end(part) for part in parts], np.float64) for end in (np.min, np.max))
    return float(weights @ lows), float(weights @ highs)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_it_is_a_weighted_mean_of_the_frames(count: int) -> None:
    seen = seen_of(frames(count))
    assert seen.extremes is not None
    assert seen.extremes.frames == count
    assert seen.extremes.average == pytest.approx(averaged(frames(count)), rel=1e-12)
    low, high = averaged(frames(count))
    assert moving_average(seen, UNSIGNED) == pytest.approx((min(low, 0), max(high, 0)), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("relu", [False, True])
def test_it_is_that_of_torch(count: int, relu: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from torch.ao.quantization.observer import MinMaxObserver, MovingAverageMinMaxObserver

    parts = [np.maximum(part, 0) if relu else part for part in frames(count, 5)]
    seen = seen_of(parts)
    for method, observer in (
        ("moving-average", MovingAverageMinMaxObserver(dtype=torch.quint8, quant_min=0, quant_max=255)),
        ("minmax", MinMaxObserver(dtype=torch.quint8, quant_min=0, quant_max=255)),
    ):
        for part in parts:
            observer(torch.from_numpy(part))
        scale, zero_point = observer.calculate_qparams()
        found = quantizer(seen, method, UNSIGNED)  # type: ignore[arg-type]
        assert found.scale == pytest.approx(float(scale), rel=2e-5)
        assert abs(found.zero_point - int(zero_point)) <= 1  # its average is float32; a tie may round otherwise


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 9), st.randoms(use_true_random=False))
def test_merged_in_their_order_parts_give_what_one_run_gives(sizes: list[int], seed: int, random: object) -> None:
    all_frames = frames(sum(sizes), seed)
    ends = np.cumsum(sizes).tolist()
    parts = [seen_of(all_frames[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    whole = seen_of(all_frames)
    from_left, from_right = reduce(merge, parts), parts[-1]
    for part in reversed(parts[:-1]):
        from_right = merge(part, from_right)
    for merged in (from_left, from_right):
        assert merged.extremes is not None
        assert whole.extremes is not None
        assert (merged.extremes.frames, merged.extremes.first) == (whole.extremes.frames, whole.extremes.first)
        assert merged.extremes.average == pytest.approx(whole.extremes.average, rel=1e-9, abs=1e-12)


def test_the_order_matters_and_is_kept() -> None:
    one, other = see(np.array([-1.0, 1.0], np.float32)), see(np.array([-3.0, 5.0], np.float32))
    first, second = merge(one, other).extremes, merge(other, one).extremes
    assert first is not None
    assert second is not None
    assert first.average == pytest.approx((-1.02, 1.04))
    assert second.average == pytest.approx((-2.98, 4.96))


def test_one_odd_frame_hardly_counts() -> None:
    """What minmax would follow: a single frame a thousand times larger."""
    parts = [np.array([0.0, 1.0], np.float32)] * 20 + [np.array([0.0, 1000.0], np.float32)]
    seen = seen_of(parts)
    assert moving_average(seen, UNSIGNED) == pytest.approx((0.0, 0.99 + 10.0))
    assert quantizer(seen, "minmax", UNSIGNED).high == pytest.approx(1000)


def test_tensors_on_one_scale_are_united_and_not_appended() -> None:
    small, large = see(np.array([-1.0, 2.0], np.float32)), see(np.array([-0.5, 40.0], np.float32))
    both = unite(small, large)
    assert both.extremes == Extremes(1, (-1.0, 40.0), (-1.0, 40.0))
    assert both.counts.sum() == 4
    assert moving_average(both, SYMMETRIC) == (-1.0, 40.0)
    assert moving_average(merge(small, large), SYMMETRIC)[1] < 3  # as if the large one were one more frame


def test_a_range_stays_within_what_was_seen() -> None:
    for value in (0.1, -7.3, 1e-30, 3e38, 1e-45):
        seen = seen_of([np.full(3, value, np.float32)] * 50)
        low, high = moving_average(seen, UNSIGNED)
        assert min(seen.minimum, 0.0) <= low <= 0 <= high <= max(seen.maximum, 0.0)
        assert low < high


def test_impossible_extremes_are_refused() -> None:
    with pytest.raises(ValueError, match="one frame or more"):
        Extremes(0, (0, 1), (0, 1))
    with pytest.raises(ValueError, match="finite"):
        Extremes(1, (0, float("nan")), (0, 1))
    with pytest.raises(ValueError, match="above no greatest"):
        Extremes(1, (0, 1), (2, 1))
    assert follow(None, Extremes(1, (0, 1), (0, 1))) is None
