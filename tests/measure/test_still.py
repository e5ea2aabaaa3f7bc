"""Flicker where nothing moves, on made-up videos whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2", reason="frames are smoothed with OpenCV")

from edgeseg.measure.still import StillFlicker, still_pixels

SIZE = (40, 60)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def test_noise_is_no_movement_and_an_object_is() -> None:
    frame = np.full((*SIZE, 3), 100, np.uint8)
    noisy = (frame + np.random.default_rng(0).normal(0, 3, frame.shape)).clip(0, 255).astype(np.uint8)
    assert still_pixels(frame, noisy).mean() > 0.99
    moved = frame.copy()
    moved[10:20, 10:20] = 200
    still = still_pixels(frame, moved)
    assert not still[8:22, 8:22].any()  # and what is near it
    assert still[30:].all()


def test_only_changes_on_still_pixels_count() -> None:
    frame, after = picture(), picture()
    after[:, :20] = picture(1)[:, :20]
    mask = np.zeros(SIZE, np.uint8)
    steady, restless = mask.copy(), mask.copy()
    steady[:, :15] = 3  # where it moves: no flicker
    restless[20:25, 40:50] = 3  # where it does not: 50 pixels
    found = StillFlicker()
    found.update(frame, {"a": mask, "b": mask})
    found.update(after, {"a": steady, "b": restless})
    document = found.document()
    still = np.count_nonzero(still_pixels(frame, after))
    assert 0 < still < mask.size
    assert document["pairs"] == 1
    assert document["still"] == pytest.approx(still / mask.size)
    assert document["changed"] == {"a": 0.0, "b": pytest.approx(50 / still)}


def test_there_and_back_again_is_counted_over_three_frames() -> None:
    frame, mask, other = picture(), np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    other[:10] = 1
    found = StillFlicker()
    for seen in (mask, other, mask):
        found.update(frame, {"a": seen})
    document = found.document()
    assert document["changed"]["a"] == pytest.approx(0.25)
    assert document["wavering"]["a"] == pytest.approx(0.25)


def test_a_cut_and_no_frames() -> None:
    frame, mask = picture(), np.zeros(SIZE, np.uint8)
    found = StillFlicker()
    assert found.document() == {"pairs": 0, "still": None, "changed": {}, "wavering": {}}
    found.update(frame, {"a": mask})
    found.cut()
    found.update(frame, {"a": mask + 1})
    assert found.document()["pairs"] == 0
    assert found.document()["changed"] == {"a": None}
    moving = StillFlicker()
    moving.update(picture(2), {"a": mask})
    moving.update(255 - picture(2), {"a": mask + 1})
    assert moving.document()["changed"]["a"] is None or moving.document()["still"] > 0
