"""Blocks, draws and intervals against slow loops, closed forms and simulated videos whose true score is known."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeseg.measure.bootstrap import (
    block_length,
    blocks,
    draws,
    expanded_tail,
    influence,
    interval,
    iou,
    student_t,
)

Counted = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def walk(random: np.random.Generator, count: int, rho: float, columns: int = 1) -> NDArray[np.float64]:
    """Columns of unit variance in which neighbours correlate by rho."""
    noise = random.normal(size=(count, columns))
    values = np.empty_like(noise)
    values[0] = noise[0]
    for k in range(1, count):
        values[k] = rho * values[k - 1] + math.sqrt(1 - rho**2) * noise[k]
    return values


def video(random: np.random.Generator, count: int, rho: float) -> Counted:
    """tp, fp, fn (count, 3) whose sizes and scores drift as slowly as rho says."""
    state = walk(random, count, rho, 3)
    union = np.rint(1000 * np.exp(0.3 * state))
    tp = np.rint(union / (1 + np.exp(-1 - 0.8 * state[:, ::-1])))
    return tp, np.zeros_like(tp), union - tp


def test_blocks_are_consecutive_even_and_of_one_sequence() -> None:
    assert blocks(["a"] * 7 + ["b"] * 2 + ["a"], 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert blocks([], 5).tolist() == []
    assert blocks(["x", "y", "z"], 9).tolist() == [0, 1, 2]
    for frames, length in product(range(1, 40), range(1, 12)):
        sizes = np.bincount(blocks(["a"] * frames, length))
        assert len(sizes) == math.ceil(frames / length)
        assert sizes.max() <= length
        assert sizes.max() - sizes.min() <= 1
    with pytest.raises(ValueError, match="length=0"):
        blocks(["a"], 0)


def test_draws_take_whole_blocks_as_many_as_there_are() -> None:
    numbers = blocks(["a"] * 10 + ["b"] * 3, 4)
    weights = draws(numbers, 500, seed=3)
    assert weights.shape == (500, 13)
    assert weights.dtype == np.int64
    first = np.unique(numbers, return_index=True)[1]
    assert (weights == weights[:, first][:, numbers]).all()
    assert (weights[:, first].sum(axis=1) == len(first)).all()
    assert weights.mean() == pytest.approx(1, abs=0.05)
    assert (weights == draws(numbers, 500, seed=3)).all()
    assert (weights != draws(numbers, 500, seed=4)).any()
    assert draws(np.zeros(0, np.int64), 5).shape == (5, 0)


def test_iou_is_nan_for_what_is_absent() -> None:
    found = iou([[3, 0, 0]], [[1, 2, 0]], [[2, 0, 0]])
    np.testing.assert_array_equal(found, [[0.5, 0.0, np.nan]])
    assert iou(np.zeros((4, 5, 2)), 0 * np.ones((4, 5, 2)), np.ones((4, 5, 2))).shape == (4, 5, 2)


def test_influence_is_the_derivative_in_a_frames_weight() -> None:
    tp, fp, fn = (np.random.default_rng(k).integers(0, 50, (6, 4)).astype(np.float64) for k in range(3))
    tp[:, 2] = fp[:, 2] = fn[:, 2] = 0  # a class that nowhere occurs

    def miou(weights: NDArray[np.float64]) -> float:
        return float(np.nanmean(iou(weights @ tp, weights @ fp, weights @ fn)))

    found = influence(tp, fp, fn)
    assert found.sum() == pytest.approx(0, abs=1e-12)
    for k in range(6):
        step = np.eye(6)[k] * 1e-6
        slope = (miou(np.ones(6) + step) - miou(np.ones(6) - step)) / 2e-6
        assert found[k] == pytest.approx(slope, rel=1e-5, abs=1e-9)
    assert influence(np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 2))).tolist() == [0, 0, 0]


def test_blocks_grow_with_the_correlation_and_stay_within_bounds() -> None:
    random = np.random.default_rng(0)
    lengths = {
        rho: [block_length(["v"] * 400, walk(random, 400, rho)[:, 0]) for _ in range(20)] for rho in (0.0, 0.5, 0.9)
    }
    assert np.median(lengths[0.0]) <= 2
    # For this process the optimum is known: ((2 rho / (1 - rho^2))^2 * 3/2 * N)^(1/3) = 11.0 and 51.2, bound 60.
    assert 5 <= np.median(lengths[0.5]) <= 15
    assert 20 <= np.median(lengths[0.9]) <= 60
    assert max(map(max, lengths.values())) <= 60


def test_frames_of_different_sequences_are_no_neighbours() -> None:
    values = walk(np.random.default_rng(1), 200, 0.95)[:, 0]
    assert block_length(["v"] * 200, values) > 5
    assert block_length([str(k) for k in range(200)], values) == 1
    assert block_length([str(k // 4) for k in range(200)], values) <= 4


@pytest.mark.parametrize("values", [[], [0.5], [0.1, 0.2, 0.3], [0.7] * 50, [0.0] * 50])
def test_without_variation_or_frames_a_block_is_one_frame(values: list[float]) -> None:
    assert block_length(["v"] * len(values), np.array(values)) == 1


def test_alternating_frames_need_no_blocks() -> None:
    assert block_length(["v"] * 100, np.array([1.0, -1.0] * 50)) == 1


def test_students_t_is_that_of_the_tables() -> None:
    table = {(0.975, 1): 12.706, (0.975, 2): 4.303, (0.975, 3): 3.182, (0.95, 10): 1.812, (0.995, 30): 2.750}
    for (probability, freedom), value in table.items():
        assert student_t(probability, freedom) == pytest.approx(value, abs=6e-4)
    assert student_t(0.975, 1001) == pytest.approx(1.9623, abs=1e-4)
    assert student_t(0.975, 10**7) == pytest.approx(1.95996, abs=1e-4)


def test_few_blocks_widen_an_interval() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    known = interval(values, blocks=10**6)
    assert known == pytest.approx((-1.96, 1.96), abs=0.05)
    wide = interval(values, blocks=8)
    assert wide == pytest.approx((-2.528, 2.528), abs=0.12)  # t(0.975, 7) = 2.365, times sqrt(8 / 7)
    assert expanded_tail(0.95, 8) == pytest.approx(0.00574, abs=1e-4)
    assert interval(values, blocks=1) is None
    assert interval(np.full(5, np.nan), blocks=9) is None
    assert interval(np.array([1.0, np.nan, 1.0]), blocks=9) == (1.0, 1.0)


def test_intervals_hold_the_truth_where_single_frames_do_not() -> None:
    """600 frames with a correlation of 0.8: about 95 of 100 intervals must hold the mIoU of an endless video."""
    truth = float(np.nanmean(iou(*(part.sum(axis=0) for part in video(np.random.default_rng(9), 100_000, 0.8)))))
    held = {"chosen": 0, "single": 0}
    random, tries = np.random.default_rng(4), 60
    for _ in range(tries):
        counts = video(random, 600, 0.8)
        length = block_length(["v"] * 600, influence(*counts))
        for name, size in (("chosen", length), ("single", 1)):
            numbers = blocks(["v"] * 600, size)
            weights = draws(numbers, 200).astype(np.float64)
            miou = iou(*(weights @ part for part in counts)).mean(axis=1)
            ends = interval(miou, blocks=int(numbers.max()) + 1)
            assert ends is not None
            held[name] += ends[0] <= truth <= ends[1]
    assert held["chosen"] >= 0.85 * tries
    assert held["single"] <= 0.7 * tries
