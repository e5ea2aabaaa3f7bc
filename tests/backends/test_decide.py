"""The host's decision against numpy.argmax: equal scores, odd sizes, several frames, one channel."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseg.backends.decide import decide


@pytest.mark.parametrize("classes", [2, 3, 12, 256])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (1, 300), (301, 5), (33, 1025)])
@pytest.mark.parametrize("count", [1, 3])
def test_the_highest_class_wins(classes: int, size: tuple[int, int], count: int) -> None:
    rng = np.random.default_rng(classes)
    scores = rng.normal(size=(count, classes, *size)).astype(np.float32)
    masks = decide(scores)
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks, scores.argmax(1))


def test_equal_scores_go_to_the_lower_class() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (2, 6, 40, 41)).astype(np.float32)  # ties nearly everywhere
    np.testing.assert_array_equal(decide(scores), scores.argmax(1))
    assert not decide(np.zeros((1, 5, 3, 3), np.float32)).any()


def test_infinite_and_negative_scores() -> None:
    scores = np.full((1, 3, 2, 2), -np.inf, np.float32)
    scores[0, 2, 0, 0], scores[0, 1, 1, 1] = -1e30, np.inf
    np.testing.assert_array_equal(decide(scores), scores.argmax(1))


def test_a_row_wider_than_a_block() -> None:
    scores = np.random.default_rng(1).normal(size=(1, 3, 2, 70_000)).astype(np.float32)
    np.testing.assert_array_equal(decide(scores), scores.argmax(1))


def test_scores_that_are_not_contiguous() -> None:
    scores = np.random.default_rng(2).normal(size=(2, 9, 11, 4)).astype(np.float32).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(decide(scores), scores.argmax(1))


def test_one_channel_counts_from_its_threshold_on() -> None:
    scores = np.array([[[[-1.0, 0.0, 0.5], [0.49, 0.51, 2.0]]]], np.float32)
    np.testing.assert_array_equal(decide(scores, 0.5), [[[0, 0, 1], [0, 1, 1]]])
    np.testing.assert_array_equal(decide(scores), [[[0, 1, 1], [1, 1, 1]]])
    assert decide(scores).dtype == np.uint8


def test_the_answer_is_a_new_array() -> None:
    scores = np.random.default_rng(3).normal(size=(1, 3, 8, 8)).astype(np.float32)
    before = scores.copy()
    masks = decide(scores)
    np.testing.assert_array_equal(scores, before)
    assert not np.shares_memory(scores, masks)
