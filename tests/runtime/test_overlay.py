"""The pictures that sinks are given, against slow and obvious versions of them, and their cost in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeseg.data import street
from edgeseg.data.prepare import to_size
from edgeseg.runtime.overlay import SMALLEST_SHARE, Legends, Painter
from edgeseg.runtime.values import Shot
from edgeseg.types import Mask, Pixels

cv2 = pytest.importorskip("cv2")
BLOBS = np.random.default_rng(0)


def shot_of(pixels: Pixels, mask: Mask, *, shares: tuple[float, ...] = ()) -> Shot:
    return Shot(0, np.empty((1, *mask.shape, 3), np.uint8), mask, pixels, shares=shares)


def street_shot(size: tuple[int, int], engine: tuple[int, int], index: int = 30) -> Shot:
    pixels, truth = street.render(size, 7, index)
    return shot_of(pixels, to_size(truth, engine))


def painted(painter: Painter, shot: Shot) -> Pixels:
    painter.show(shot)
    return painter.overlay().copy()


def shares_of(mask: Mask) -> tuple[float, ...]:
    return tuple((np.bincount(mask.ravel(), minlength=len(street.CLASSES)) / mask.size).tolist())


def slow_overlay(pixels: Pixels, mask: Mask, strength: float) -> NDArray[np.float64]:
    """Pixel by pixel, with the contour rule in words: another class to the right or below."""
    height, width = mask.shape
    picture = np.empty(pixels.shape, np.float64)
    for y in range(height):
        for x in range(width):
            colour = np.array(street.PALETTE[mask[y, x]][::-1], np.float64)
            right = x + 1 < width and mask[y, x + 1] != mask[y, x]
            below = y + 1 < height and mask[y + 1, x] != mask[y, x]
            weight = 1.0 if right or below else strength
            picture[y, x] = (1 - weight) * pixels[y, x] + weight * colour
    return picture


def test_the_mask_has_the_pixels_of_to_size_at_every_size() -> None:
    painter = Painter(street.PALETTE, street.CLASSES)
    for _ in range(300):
        small, large = ((int(BLOBS.integers(1, most)), int(BLOBS.integers(1, most))) for most in (90, 700))
        for engine, size in ((small, large), (large, small)):
            mask = BLOBS.integers(0, 256, engine, np.uint8)
            painter.show(shot_of(np.zeros((*size, 3), np.uint8), mask))
            assert np.array_equal(painter.mask(), to_size(mask, size)), (engine, size)


def test_opencv_would_be_off_by_a_pixel() -> None:
    """Why the mask is not resized by OpenCV; when this fails, it may be."""
    ramp = np.arange(1232, dtype=np.uint16)[None]
    theirs = cv2.resize(ramp, (3927, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
    exact = (2 * np.arange(3927) + 1) * 1232 // (2 * 3927)
    assert not np.array_equal(theirs, exact)


def test_a_mask_of_the_frames_size_is_not_copied() -> None:
    shot = street_shot((48, 64), (48, 64))
    painter = Painter(street.PALETTE, street.CLASSES)
    painter.show(shot)
    assert painter.mask() is shot.mask


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_overlay_is_what_a_loop_over_pixels_paints(strength: float) -> None:
    shot = street_shot((60, 80), (45, 64))
    painter = Painter(street.PALETTE, street.CLASSES, legend=False, strength=strength)
    picture = painted(painter, shot)
    assert np.array_equal(painter.coloured(), np.array(street.PALETTE, np.uint8)[painter.mask()][..., ::-1])
    assert np.abs(picture - slow_overlay(shot.pixels, painter.mask(), strength)).max() <= 1.0


def test_contours_are_wider_in_larger_frames_and_can_be_left_out() -> None:
    mask = np.zeros((1080, 40), np.uint8)
    mask[:, 20:] = 2
    shot = shot_of(np.zeros((1080, 40, 3), np.uint8), mask)
    lines = painted(Painter(street.PALETTE, street.CLASSES, legend=False, strength=0.0), shot)
    assert np.flatnonzero(lines[500].any(axis=1)).tolist() == [18, 19]
    assert not painted(Painter(street.PALETTE, street.CLASSES, legend=False, contours=False, strength=0.0), shot).any()


def test_every_shot_is_painted_anew_and_only_when_asked() -> None:
    painter = Painter(street.PALETTE, street.CLASSES)
    shots = [street_shot((90, 120), (45, 60), index) for index in (0, 40)]
    fresh = [painted(Painter(street.PALETTE, street.CLASSES), shot) for shot in shots]
    assert not np.array_equal(fresh[0], fresh[1])
    for number in (0, 1, 0):
        assert np.array_equal(painted(painter, shots[number]), fresh[number])
    before = painter.overlay()
    painter.show(shots[1])  # nothing was asked for, so nothing was painted over
    assert np.array_equal(before, fresh[0])
    assert np.array_equal(painter.overlay(), fresh[1])
    assert painter.overlay() is before  # made once, in the buffer of the one before


def test_a_size_that_changes_in_mid_stream() -> None:
    painter = Painter(street.PALETTE, street.CLASSES)
    for size, engine in (((90, 120), (45, 60)), ((48, 64), (45, 60)), ((48, 64), (48, 64)), ((90, 120), (45, 60))):
        shot = street_shot(size, engine)
        assert np.array_equal(painted(painter, shot), painted(Painter(street.PALETTE, street.CLASSES), shot))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (17, 3), (2000, 2)])
def test_tiny_frames_are_painted(size: tuple[int, int]) -> None:
    mask = BLOBS.integers(0, 5, (4, 4), np.uint8)
    picture = painted(Painter(street.PALETTE, street.CLASSES), shot_of(np.zeros((*size, 3), np.uint8), mask))
    assert picture.shape == (*size, 3)


def test_the_legend_lists_the_classes_in_view() -> None:
    shot = street_shot((360, 480), (180, 240))
    with_legend = painted(Painter(street.PALETTE, street.CLASSES), shot)
    without = painted(Painter(street.PALETTE, street.CLASSES, legend=False), shot)
    touched = (with_legend != without).any(axis=2)
    rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
    assert rows[-1] - rows[0] < 0.4 * 360
    assert columns[-1] - columns[0] < 0.5 * 480
    corner = with_legend[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].reshape(-1, 3)[:, ::-1].tolist()
    order = np.argsort(shares_of(shot.mask))[::-1].tolist()
    listed, left_out = order[:7], order[7:]  # seven lines fit
    assert {street.CLASSES[index] for index in listed} >= {"sky", "road", "car", "building", "vegetation"}
    solid = [corner.count(list(colour)) >= 60 for colour in street.PALETTE]  # the swatch; the ground is darkened
    assert all(solid[index] for index in listed)
    assert not any(solid[index] for index in left_out)


def test_shares_that_come_with_the_shot_give_the_same_legend_as_counting() -> None:
    shot = street_shot((180, 240), (180, 240))
    counted = painted(Painter(street.PALETTE, street.CLASSES), shot)
    shot.shares = shares_of(shot.mask)
    assert np.array_equal(painted(Painter(street.PALETTE, street.CLASSES), shot), counted)


def test_of_too_many_classes_the_largest_are_listed() -> None:
    names = [f"class {index}" for index in range(150)]
    legends = Legends(np.zeros((256, 1, 3), np.uint8), names)
    shares = np.linspace(0.001, 0.012, 150)
    for height in (180, 360, 1080):
        shown = legends.shown(shares, height)
        assert 3 <= len(shown) <= 15
        assert shown == tuple(range(150 - len(shown), 150))
        picture = np.full((height, height, 3), 255, np.uint8)
        legends.draw(picture, shares)
        assert (picture != 255).any(axis=(1, 2)).sum() <= 0.4 * height


def test_specks_and_unknown_classes_are_not_listed() -> None:
    legends = Legends(np.zeros((256, 1, 3), np.uint8), ["a", "b", "c"])
    shares = np.zeros(256)
    shares[[0, 1, 200]] = 0.5, SMALLEST_SHARE / 2, 0.5
    assert legends.shown(shares, 360) == (0,)


@pytest.mark.parametrize("old", [False, True], ids=["the installed OpenCV", "as with OpenCV 4"])
def test_names_of_every_kind_fit(old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if old:
        monkeypatch.delattr(cv2, "FontFace", raising=False)
    names = ["swimming pool, natatorium, " * 9, "", "Straße 语义", "a\nb"]
    legends = Legends(np.zeros((256, 1, 3), np.uint8), names)
    for height, width in ((360, 480), (64, 20), (1080, 1920)):
        picture = np.full((height, width, 3), 255, np.uint8)
        legends.draw(picture, np.full(4, 0.25))
        changed = (picture != 255).any(axis=(0, 2))
        assert changed.sum() <= 0.5 * width
        assert changed.any() or width == 20


def test_legends_are_kept_but_not_without_end() -> None:
    names = [f"class {index}" for index in range(12)]
    legends = Legends(np.zeros((256, 1, 3), np.uint8), names)
    picture = np.zeros((90, 120, 3), np.uint8)
    for number in range(200):
        legends.draw(picture, np.array([number >> bit & 1 for bit in range(12)], np.float64))
    assert len(legends._made) <= 32


def test_it_allocates_nothing_of_a_frames_size() -> None:
    shots = [street_shot((360, 480), (180, 240), index) for index in (0, 5)]
    shots[1].shares = shares_of(shots[1].mask)
    painter = Painter(street.PALETTE, street.CLASSES)
    for shot in shots:
        painted(painter, shot)

    def peak(copies: int) -> int:
        tracemalloc.start()
        try:
            start = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            for number in range(200):
                painter.show(shots[number % 2])
                picture = painter.overlay()
                for _ in range(copies):
                    picture[..., 0].copy()
            return tracemalloc.get_traced_memory()[1] - start
        finally:
            tracemalloc.stop()

    assert peak(copies=0) < 360 * 480 // 8
    assert peak(copies=1) >= 360 * 480  # what the check is good for: one channel of a frame is seen


def test_what_cannot_be_painted_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Painter(street.PALETTE, street.CLASSES, strength=1.5)
    painter = Painter(street.PALETTE, street.CLASSES)
    with pytest.raises(ValueError, match="before `show`"):
        painter.overlay()
    painter.show(shot_of(np.zeros((0, 0, 3), np.uint8), np.zeros((4, 4), np.uint8)))
    with pytest.raises(ValueError, match="cannot be painted"):
        painter.mask()
