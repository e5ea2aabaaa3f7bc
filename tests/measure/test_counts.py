"""Counts of frames against pixel by pixel loops; sums that do not depend on who counted which frames."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseg.errors import DatasetError, ModelError
from edgeseg.measure.confusion import scores
from edgeseg.measure.counts import BANDS, FrameCounts, frame_counts, gathered, joined
from edgeseg.types import Mask

CLASSES, IGNORE = 4, 9


def pair(seed: int) -> tuple[Mask, Mask]:
    random = np.random.default_rng(seed)
    label = np.repeat(np.repeat(random.integers(0, CLASSES, (4, 5)), 6, axis=0), 6, axis=1).astype(np.uint8)
    label[:3, :7] = IGNORE
    prediction = np.where(random.random(label.shape) < 0.7, np.minimum(label, 3), random.integers(0, 5, label.shape))
    return prediction.astype(np.uint8), label


def slow(prediction: Mask, label: Mask, width: int | None) -> list[list[int]]:
    height, wide = label.shape
    matrix = [[0] * (CLASSES + 1) for _ in range(CLASSES)]
    for y in range(height):
        for x in range(wide):
            window = range(0) if width is None else range(-width, width + 1)
            near = width is None or any(
                label[y + dy, x + dx] != label[y, x]
                for dy in window
                for dx in window
                if 0 <= y + dy < height and 0 <= x + dx < wide
            )
            if near and label[y, x] != IGNORE:
                matrix[label[y, x]][prediction[y, x]] += 1
    return matrix


def test_a_frame_is_counted_as_loops_do() -> None:
    prediction, label = pair(0)
    found = frame_counts(prediction, label, CLASSES, IGNORE, none=True)
    assert found.matrix.tolist() == slow(prediction, label, None)
    assert found.matrix[:, CLASSES].sum() > 0  # predictions of no class
    for band, matrix in zip(BANDS, found.bands, strict=True):
        assert matrix.tolist() == slow(prediction, label, band)


def test_a_small_map_goes_to_the_labels_size() -> None:
    small = np.array([[0, 1], [2, 3]], np.uint8)
    label = np.repeat(np.repeat(small, 5, axis=0), 7, axis=1)
    found = frame_counts(small, label, CLASSES, None, none=False)
    assert found.matrix.tolist() == [[35, 0, 0, 0, 0], [0, 35, 0, 0, 0], [0, 0, 35, 0, 0], [0, 0, 0, 35, 0]]


def test_no_class_is_refused_unless_it_is_meant() -> None:
    prediction, label = pair(0)
    with pytest.raises(ModelError, match="class 4"):
        frame_counts(prediction, label, CLASSES, IGNORE, none=False)
    with pytest.raises(DatasetError, match="value 9"):
        frame_counts(np.minimum(prediction, 3), label, CLASSES, None, none=False)


def test_parts_in_any_order_give_the_same_whole() -> None:
    seen: list[FrameCounts] = [frame_counts(*pair(k), CLASSES, IGNORE, none=True) for k in range(7)]
    whole = joined([gathered(range(7), seen, CLASSES)], CLASSES)
    parts = [gathered([k], [seen[k]], CLASSES) for k in (4, 0)]
    parts += [gathered([6, 5, 1], [seen[6], seen[5], seen[1]], CLASSES), gathered([2, 3], seen[2:4], CLASSES)]
    other = joined([*parts, gathered([], [], CLASSES)], CLASSES)
    for name in ("frames", "tp", "fp", "fn", "matrix", "bands", "near"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(other, name))
        assert getattr(other, name).dtype == np.int64
    matrix = sum(np.array(slow(*pair(k), None)) for k in range(7))
    np.testing.assert_array_equal(whole.tp.sum(axis=0), np.diagonal(matrix))
    np.testing.assert_array_equal((whole.tp + whole.fn).sum(axis=0), np.sum(matrix, axis=1))
    np.testing.assert_array_equal((whole.tp + whole.fp).sum(axis=0), np.sum(matrix, axis=0)[:CLASSES])
    assert joined([], CLASSES).tp.shape == (0, CLASSES)
    assert joined([], CLASSES).near.shape == (3, len(BANDS), 0, CLASSES)
    for at, width in enumerate(BANDS):
        for k in (0, 6):
            one = np.array(slow(*pair(k), width))
            tp, fp, fn = whole.near[:, at, k]
            assert tp.tolist() == np.diagonal(one).tolist()
            assert (tp + fn).tolist() == one.sum(axis=1).tolist()
            assert (tp + fp).tolist() == one.sum(axis=0)[:CLASSES].tolist()
    back = whole.chosen([6, 0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(back.near[:, :, 0], whole.near[:, :, 6])


def test_predictions_of_no_class_are_wrong_and_no_class_is_blamed() -> None:
    found = scores(np.array([[8, 0, 2], [0, 5, 5]]), ["a", "b"])
    assert found.iou == {"a": 0.8, "b": 0.5}
    assert found.pixel_accuracy == 13 / 20
    assert found.dice_per_class["b"] == pytest.approx(10 / 15)
