"""Windows that hold enough of a class, against counting each one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeseg.data.crops import drawn_class, positive_crop, positive_window, window_counts
from edgeseg.types import Mask, Pixels


def scene(height: int = 40, width: int = 60) -> tuple[Pixels, Mask]:
    """Background 0, one square of class 2 in a corner, three pixels of class 1; each pixel says where it is."""
    label = np.zeros((height, width), np.uint8)
    label[30:38, 50:58], label[5, 5:8] = 2, 1
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, label], axis=2), label


def brute(positive: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.int64]:
    shape = (positive.shape[0] - size[0] + 1, positive.shape[1] - size[1] + 1)
    counts = np.zeros(shape, np.int64)
    for top, left in np.ndindex(*shape):
        counts[top, left] = sum(bool(v) for v in positive[top : top + size[0], left : left + size[1]].ravel())
    return counts


@given(st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_each_window(height: int, width: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    positive = np.random.default_rng(data.draw(st.integers(0, 99))).random((height, width)) < 0.4
    assert np.array_equal(window_counts(positive, size), brute(positive, size))


def test_every_window_that_holds_enough_is_equally_probable() -> None:
    _, label = scene(12, 12)
    label[:] = 0
    label[4:7, 4:7] = 3
    random, size, least = np.random.default_rng(0), (5, 5), 6 / 25
    good = {(int(t), int(left)) for t, left in zip(*np.nonzero(brute(label == 3, size) >= 6), strict=True)}
    drawn = [positive_window(label, size, [3], least, random) for _ in range(3000)]
    assert set(drawn) == good
    shares = [drawn.count(place) / len(drawn) for place in good]
    assert max(shares) < 2 / len(good)
    assert min(shares) > 0.5 / len(good)


def test_the_most_is_taken_where_there_is_not_enough() -> None:
    _, label = scene()
    random = np.random.default_rng(1)
    for _ in range(20):
        top, left = positive_window(label, (8, 8), [1], 0.5, random)  # three pixels are all there is of class 1
        assert int((label[top : top + 8, left : left + 8] == 1).sum()) == 3
    places = {positive_window(label, (39, 59), [9], 0.5, random) for _ in range(60)}
    assert places == {(0, 0), (0, 1), (1, 0), (1, 1)}  # nothing of class 9: from anywhere
    assert positive_window(label, label.shape, [2], 1.0, random) == (0, 0)


def test_classes_are_drawn_by_their_weights_among_those_there() -> None:
    _, label = scene()
    random = np.random.default_rng(2)
    drawn = [drawn_class(label, (0.0, 3.0, 1.0, 100.0), random) for _ in range(2000)]
    assert set(drawn) == {1, 2}  # 0 has no weight, 3 is not there
    assert drawn.count(1) / len(drawn) == pytest.approx(0.75, abs=0.04)
    assert drawn_class(label, (0.0, 0.0, 0.0), random) is None
    assert drawn_class(np.full((3, 3), 255, np.uint8), (1.0, 1.0), random) is None


def test_positive_crops_hold_what_random_ones_rarely_do() -> None:
    pixels, label = scene()
    size, weights = (10, 10), (0.0, 0.0, 1.0)
    shares = {}
    for share in (0.0, 0.5, 1.0):
        random = np.random.default_rng(3)
        enough = []
        for _ in range(400):
            crop, cut = positive_crop(pixels, label, size, weights, random, least=0.2, share=share)
            assert crop.shape == (10, 10, 3)
            assert np.array_equal(crop[..., 2], cut)  # frame and label are of one place
            enough.append(int((cut == 2).sum()) >= 20)
        shares[share] = float(np.mean(enough))
    assert shares[1.0] == 1.0
    assert shares[0.0] < 0.1
    assert shares[0.5] == pytest.approx((shares[0.0] + 1) / 2, abs=0.08)


def test_the_seed_decides() -> None:
    pixels, label = scene()
    found = [positive_crop(pixels, label, (9, 9), (0.1, 1, 1), np.random.default_rng(4))[0] for _ in range(2)]
    assert np.array_equal(found[0], found[1])


def test_what_does_not_fit_is_refused() -> None:
    pixels, label = scene()
    random = np.random.default_rng(0)
    for size in ((41, 10), (10, 61), (0, 5)):
        for share in (0.0, 1.0):
            with pytest.raises(ValueError, match="does not fit"):
                positive_crop(pixels, label, size, (1.0, 1.0, 1.0), random, share=share)
    with pytest.raises(ValueError, match="one size was wanted"):
        positive_crop(pixels[1:], label, (5, 5), (1.0,), random)
