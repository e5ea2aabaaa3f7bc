from __future__ import annotations

import doctest
import importlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.errors import BadInput, CannotTell, DatasetError, ModelError
from edgeseg.measure import confusion, scores
from edgeseg.types import Mask
from tests import reference


def masks(seed: int, size: tuple[int, int], classes: int, ignore: int | None) -> tuple[Mask, Mask]:
    chance = np.random.default_rng(seed)
    prediction = chance.integers(0, classes, size, dtype=np.uint8)
    label = np.where(chance.random(size) < 0.6, prediction, chance.integers(0, classes, size)).astype(np.uint8)
    if ignore is not None:
        label[chance.random(size) < 0.2] = ignore
    return prediction, label


@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 256),
    st.none() | st.integers(0, 255),
)
@settings(max_examples=150, deadline=None)
def test_as_counting_by_hand(seed: int, size: tuple[int, int], classes: int, ignore: int | None) -> None:
    prediction, label = masks(seed, size, classes, ignore)
    matrix = confusion(prediction, label, classes, ignore)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == reference.confusion(prediction, label, classes, ignore)


@pytest.mark.parametrize("classes", [1, 2, 11, 12, 15, 16, 19, 150, 256])
@pytest.mark.parametrize("ignore", [None, 0, 255])
def test_both_ways_of_counting_at_a_real_size(classes: int, ignore: int | None) -> None:
    """15 classes is where a byte no longer holds label and prediction; odd widths leave a last pixel alone."""
    prediction, label = masks(classes, (61, 83), classes, ignore)
    assert confusion(prediction, label, classes, ignore).tolist() == reference.confusion(
        prediction, label, classes, ignore
    )


def test_masks_need_not_be_contiguous() -> None:
    prediction, label = masks(0, (20, 30), 5, 255)
    flipped = confusion(prediction[::-1, ::2], label[::-1, ::2], 5, 255)
    assert (flipped == confusion(prediction[:, ::2].copy(), label[:, ::2].copy(), 5, 255)).all()


def test_the_sum_over_images_gives_the_scores_of_the_set() -> None:
    pairs = [masks(seed, (12, 14), 6, 255) for seed in range(4)]
    total = sum((confusion(p, t, 6, 255) for p, t in pairs), np.zeros((6, 6), np.int64))
    result = scores(total, list("abcdef"))
    expected = reference.iou_and_dice([p for p, _ in pairs], [t for _, t in pairs], 6, 255)
    for name, pair in zip("abcdef", expected, strict=True):
        assert pair is not None
        assert result.iou[name] == pytest.approx(pair[0], abs=1e-15)
        assert result.dice_per_class[name] == pytest.approx(pair[1], abs=1e-15)
    labels = np.concatenate([t.ravel() for _, t in pairs])
    correct = np.concatenate([(p == t).ravel() for p, t in pairs])
    assert result.pixel_accuracy == pytest.approx(correct[labels != 255].mean())
    assert result.miou == pytest.approx(np.mean([pair[0] for pair in expected if pair]))
    assert sum(result.frequency.values()) == pytest.approx(1)
    per_image = np.mean([scores(confusion(p, t, 6, 255), list("abcdef")).miou for p, t in pairs])
    assert result.miou != pytest.approx(per_image, abs=1e-6)  # averaging over images is another number


def test_who_is_absent() -> None:
    label = np.array([[0, 0, 0, 1, 255, 255]], np.uint8)
    prediction = np.array([[0, 0, 2, 0, 3, 1]], np.uint8)
    result = scores(confusion(prediction, label, 4, 255), ["seen", "missed", "invented", "nowhere"])
    assert result.iou == {"seen": 0.5, "missed": 0.0, "invented": 0.0, "nowhere": None}
    assert result.dice_per_class == {"seen": 4 / 6, "missed": 0.0, "invented": 0.0, "nowhere": None}
    assert result.miou == pytest.approx(0.5 / 3)
    assert result.dice == pytest.approx(4 / 6 / 3)
    assert result.frequency == {"seen": 0.75, "missed": 0.25, "invented": 0.0, "nowhere": 0.0}


def test_the_ship_example() -> None:
    label = np.zeros((10, 10), np.uint8)
    label[4, :5] = 1
    ship = scores(confusion(np.zeros_like(label), label, 2), ["background", "ship"])
    assert ship.pixel_accuracy == 0.95
    assert ship.miou == 0.475
    assert ship.dice == pytest.approx(190 / 195 / 2)


def test_json_is_plain() -> None:
    result = scores(np.array([[1, 1, 0], [0, 2, 0], [0, 0, 0]]), ["a", "b", "c"])
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert list(content) == ["miou", "pixel_accuracy", "dice", "iou", "dice_per_class", "frequency"]
    assert content["iou"] == {"a": 0.5, "b": pytest.approx(2 / 3), "c": None}


def test_what_does_not_fit_is_refused() -> None:
    zeros = np.zeros((4, 4), np.uint8)
    with pytest.raises(BadInput, match=r"\(4, 4\) and the label \(2, 2\); resize .* nearest"):
        confusion(zeros, zeros[:2, :2], 3)
    with pytest.raises(BadInput, match="uint8"):
        confusion(zeros.astype(np.int64), zeros, 3)
    with pytest.raises(BadInput, match="1 to 256"):
        confusion(zeros, zeros, 257)
    with pytest.raises(BadInput, match="2 class names"):
        scores(np.eye(3, dtype=np.int64), ["a", "b"])
    with pytest.raises(CannotTell, match="No labelled pixel"):
        scores(confusion(zeros, zeros + 255, 3, 255), ["a", "b", "c"])


@pytest.mark.parametrize("classes", [3, 40])
def test_values_that_are_no_class_are_refused(classes: int) -> None:
    zeros = np.zeros((4, 4), np.uint8)
    wrong = zeros.copy()
    wrong[1, 2] = classes
    with pytest.raises(ModelError, match=f"predicts class {classes}, but there are {classes}"):
        confusion(wrong, zeros, classes)
    with pytest.raises(ModelError):
        confusion(wrong, zeros + 255, classes, 255)  # even where nothing is scored
    with pytest.raises(DatasetError, match=f"holds the value {classes}, "):
        confusion(zeros, wrong, classes)
    wrong[0, 0] = 255
    with pytest.raises(DatasetError, match=f"holds the value {classes}, "):
        confusion(zeros, wrong, classes, 255)
    wrong[1, 2] = 254
    with pytest.raises(DatasetError, match="holds the value 254, "):
        confusion(zeros, wrong, classes, 255)


def test_doctests() -> None:
    # By path: edgeseg.measure.confusion, as an attribute, is the function.
    for name in ("edgeseg.measure.confusion", "edgeseg.measure.latency", "edgeseg.data.splits"):
        outcome = doctest.testmod(importlib.import_module(name))
        assert outcome.attempted
        assert not outcome.failed
