from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.data import fit, to_size
from edgeseg.types import Interpolation
from tests import reference
from tests.data import files

SIDE = st.integers(1, 23)


@given(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE))
@settings(max_examples=80, deadline=None)
def test_to_size_takes_the_pixel_under_the_centre(old: tuple[int, int], new: tuple[int, int]) -> None:
    mask = files.label(size=old, classes=250)
    assert (to_size(mask, new) == reference.nearest(mask, new)).all()


def test_to_size_is_nearest_exact_not_nearest() -> None:
    mask = files.label(size=(360, 480), classes=11)
    exact = cv2.resize(mask, (160, 120), interpolation=cv2.INTER_NEAREST_EXACT)
    assert (to_size(mask, (120, 160)) == exact).all()
    assert (exact != cv2.resize(mask, (160, 120), interpolation=cv2.INTER_NEAREST)).any()


def test_the_same_array_where_nothing_is_to_be_done() -> None:
    pixels, mask = files.frame(), files.label()
    assert fit(pixels, (24, 32)) is pixels
    assert to_size(mask, (24, 32)) is mask


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "area", "bicubic"])
@pytest.mark.parametrize("size", [(24, 32), (12, 16), (31, 20)])
def test_fit_gives_a_contiguous_frame_of_the_size(interpolation: Interpolation, size: tuple[int, int]) -> None:
    flipped = files.frame()[:, ::-1]
    fitted = fit(flipped, size, interpolation)
    assert fitted.shape == (*size, 3)
    assert fitted.dtype == np.uint8
    assert fitted.flags.c_contiguous


def test_bilinear_is_bilinear_between_pixel_centres() -> None:
    pixels = files.frame(size=(7, 9))
    height, width = 11, 6
    expected = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * 7 / height - 0.5, 0), 6)
            u = min(max((x + 0.5) * 9 / width - 0.5, 0), 8)
            top, left = min(int(v), 5), min(int(u), 7)
            a, b = v - top, u - left
            patch = pixels[top : top + 2, left : left + 2].astype(float)
            rows = (1 - a) * patch[0] + a * patch[1]
            expected[y, x] = (1 - b) * rows[0] + b * rows[1]
    assert np.abs(fit(pixels, (height, width)) - expected).max() <= 1  # OpenCV works with 11-bit weights


def test_nearest_of_frames_is_that_of_masks() -> None:
    pixels = files.frame(size=(13, 10))
    assert (fit(pixels, (5, 21), "nearest") == reference.nearest(pixels, (5, 21))).all()


def test_empty_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="a side is empty"):
        to_size(files.label(), (0, 4))


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "area", "bicubic"])
@pytest.mark.parametrize("size", [(24, 32), (12, 16), (31, 20)])
def test_fit_writes_where_it_is_told(interpolation: Interpolation, size: tuple[int, int]) -> None:
    out = np.full((*size, 3), 7, np.uint8)
    assert fit(files.frame(), size, interpolation, out) is out
    np.testing.assert_array_equal(out, fit(files.frame(), size, interpolation))
