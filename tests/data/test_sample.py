"""The frames chosen to calibrate on: every class, no two alike, spread, the same each time, better than even ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgeseg.data import Split, load_dataset, pick, read, sample
from edgeseg.data.sample import ALIKE, Coverage, calibration_frames
from edgeseg.errors import BadInput, DatasetError
from edgeseg.types import InputSpec, Mask, ModelSpec, OutputSpec, Pixels
from tests.data.files import CAMVID

NAMES = ("road", "car", "sign")
SPEC = ModelSpec("net", InputSpec((24, 32)), OutputSpec(classes=NAMES))


def scene(number: int) -> Pixels:
    """A picture like no other: coarse coloured squares, uint8 (48, 64, 3)."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def blank(sign: int = 0, car: int = 0) -> Mask:
    label = np.zeros((48, 64), np.uint8)
    label.reshape(-1)[:car] = 1
    label.reshape(-1)[-sign or label.size :] = 2
    return label


def folder(path: Path, frames: Sequence[Pixels], labels: Sequence[Mask] | None = None) -> Split:
    (path / "images").mkdir(parents=True)
    (path / "labels").mkdir()
    for k, frame in enumerate(frames):
        cv2.imwrite(str(path / "images" / f"{k:04d}.png"), frame)
    for k, label in enumerate(labels or ()):
        cv2.imwrite(str(path / "labels" / f"{k:04d}.png"), label)
    lines = f'name = "made"\nclasses = {json.dumps(NAMES)}\nignore_index = 255\n[splits.train]\nimages = "images"\n'
    (path / "dataset.toml").write_text(lines + ('labels = "labels"\n' if labels else ""), encoding="utf-8")
    return load_dataset(path).split("train")


def test_a_class_of_a_single_frame_is_chosen_and_even_spacing_misses_it(tmp_path: Path) -> None:
    labels = [blank(car=100) for _ in range(60)]
    labels[17] = blank(sign=9)
    split = folder(tmp_path, [scene(k) for k in range(60)], labels)
    assert 17 not in pick(60, 4)
    for count in (1, 4, 16):
        picked = calibration_frames(split, count, spec=SPEC)
        assert 17 in picked.indices
        assert len(picked.indices) == count
        assert list(picked.indices) == sorted(set(picked.indices))
    assert picked.missing == ()
    assert picked.known_by == "labels"


def test_coverage_is_that_of_the_pixels(tmp_path: Path) -> None:
    labels = [blank(car=10 * k, sign=int(k == 3)) for k in range(8)]
    labels[5][20:] = 255  # not known
    split = folder(tmp_path, [scene(k) for k in range(8)], labels)
    picked = calibration_frames(split, 3, spec=SPEC)
    for rows, shares, frames in (
        (range(8), [row.share_seen for row in picked.coverage], [row.frames_seen for row in picked.coverage]),
        (picked.indices, [row.share for row in picked.coverage], [row.frames for row in picked.coverage]),
    ):
        chosen = np.concatenate([labels[k].ravel() for k in rows])
        known = chosen[chosen != 255]
        np.testing.assert_allclose(shares, [np.mean(known == c) for c in range(3)], rtol=1e-12)
        assert frames == [sum(bool((labels[k] == c).any()) for k in rows) for c in range(3)]
    assert [row.name for row in picked.coverage] == list(NAMES)
    assert not picked.coverage[0].rare
    assert picked.coverage[2].rare
    assert any("rare" in note and "sign" in note for note in picked.notes)
    json.dumps(picked.to_json(), allow_nan=False)


def test_a_class_that_nothing_shows_is_told(tmp_path: Path) -> None:
    split = folder(tmp_path, [scene(k) for k in range(6)], [blank(car=50)] * 6)
    picked = calibration_frames(split, 3, spec=SPEC)
    assert picked.missing == ("sign",)
    assert any("no frame shows sign" in note for note in picked.notes)
    few = folder(tmp_path / "few", [scene(k) for k in range(2)], [np.full((48, 64), k, np.uint8) for k in (1, 2)])
    assert any("too few frames to show" in note for note in calibration_frames(few, 1, spec=SPEC).notes)


def test_frames_of_a_standing_camera_count_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    still = scene(99)
    frames = [scene(k) for k in range(6)]
    for _ in range(14):  # the same scene with noise of a camera
        frames.append(np.clip(still.astype(int) + rng.normal(0, 5, still.shape), 0, 255).astype(np.uint8))
    split = folder(tmp_path, frames)
    picked = calibration_frames(split, 7, spec=SPEC)
    assert picked.indices == (0, 1, 2, 3, 4, 5, 6)
    assert picked.dropped == tuple(range(7, 20))
    assert picked.known_by is None
    assert picked.coverage == ()
    more = calibration_frames(split, 12, spec=SPEC)
    assert len(more.indices) == 12
    assert set(range(7)) < set(more.indices)
    assert any("5 of the chosen frames look like others" in note for note in more.notes)


def test_what_is_alike_is_a_matter_of_grey_levels(tmp_path: Path) -> None:
    even = np.full((48, 64, 3), 100, np.uint8)
    frames = [even, even + np.uint8(ALIKE - 1), even + np.uint8(ALIKE + 1)]
    assert calibration_frames(folder(tmp_path, frames), 3, spec=SPEC).notes[0].startswith("1 of the chosen")
    assert calibration_frames(load_dataset(tmp_path).split("train"), 2, spec=SPEC).indices == (0, 2)


def test_a_twin_that_shows_another_class_is_none(tmp_path: Path) -> None:
    frames = [scene(1)] * 6
    labels = [blank(car=80)] * 6
    labels[4] = blank(car=80, sign=40)
    picked = calibration_frames(folder(tmp_path, frames, labels), 2, spec=SPEC)
    assert picked.indices == (0, 4)
    assert picked.dropped == (1, 2, 3, 5)


def test_without_labels_the_networks_masks_tell(tmp_path: Path) -> None:
    frames = [scene(k) for k in range(30)]
    frames[11][:] = 7  # what the network takes for a sign
    split = folder(tmp_path, frames)
    asked: list[tuple[int, ...]] = []

    def predicted(pixels: Pixels) -> Mask:
        asked.append(pixels.shape)
        return np.full(pixels.shape[:2], 2 if (pixels == 7).all() else 0, np.uint8)

    picked = calibration_frames(split, 16, spec=SPEC, predicted=predicted, model="abc")
    assert 11 in picked.indices
    assert picked.known_by == "predictions"
    assert asked == [(24, 32, 3)] * 30  # at the network's size
    assert picked.missing == ("car",)
    assert calibration_frames(split, 16, spec=SPEC, predicted=predicted, model="abc") == picked
    assert len(asked) == 30  # kept by the hash of the model
    calibration_frames(split, 16, spec=SPEC, predicted=predicted, model="another")
    assert len(asked) == 60
    few = calibration_frames(split, 3, spec=SPEC, predicted=predicted, model="abc")
    assert len(asked) == 66  # two a frame that is wanted
    assert len(few.indices) == 3


def test_the_same_frames_each_time_and_others_for_other_data(tmp_path: Path) -> None:
    labels = [blank(car=10 * (k % 7), sign=5 * (k % 3)) for k in range(40)]
    split = folder(tmp_path, [scene(k) for k in range(40)], labels)
    first = calibration_frames(split, 10, spec=SPEC)
    assert calibration_frames(split, 10, spec=SPEC) == first
    assert calibration_frames(split, 10, spec=SPEC, use_cache=False) == first
    cv2.imwrite(str(tmp_path / "labels" / "0021.png"), np.full((48, 64), 2, np.uint8))
    changed = calibration_frames(load_dataset(tmp_path).split("train"), 10, spec=SPEC)
    assert changed.coverage[2].share_seen > first.coverage[2].share_seen  # the cache knew better than to answer


def test_of_a_large_set_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "EXAMINED", 10)
    split = folder(tmp_path, [scene(k) for k in range(40)])
    picked = calibration_frames(split, 4, spec=SPEC)
    assert picked.examined == 10
    assert set(picked.indices) <= set(pick(40, 10))
    assert "looked at 10 of 40 frames of 'train', evenly spaced" in picked.notes
    assert calibration_frames(split, 20, spec=SPEC).examined == 40


def test_only_among_those_given(tmp_path: Path) -> None:
    split = folder(tmp_path, [scene(k) for k in range(12)], [blank(car=40)] * 12)
    picked = calibration_frames(split, 3, spec=SPEC, among=[9, 2, 4, 6])
    assert set(picked.indices) < {2, 4, 6, 9}
    assert calibration_frames(split, 50, spec=SPEC, among=[9, 2]).indices == (2, 9)
    with pytest.raises(DatasetError, match="Frame 12"):
        calibration_frames(split, 3, spec=SPEC, among=[12])


def test_frames_and_labels_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    split = folder(tmp_path, [scene(k) for k in range(12)], [blank(car=40)] * 12)
    (tmp_path / "images" / "0003.png").write_bytes(b"no image")
    (tmp_path / "labels" / "0005.png").unlink()
    picked = calibration_frames(split, 11, spec=SPEC)
    assert picked.indices == (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11)
    assert any("1 frames cannot be read, such as 0003" in note for note in picked.notes)
    assert any("labels of 1 frames cannot be read, such as 0005" in note for note in picked.notes)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="none of the 12 frames"):
        calibration_frames(load_dataset(tmp_path).split("train"), 3, spec=SPEC)
    with pytest.raises(BadInput, match="1 or more"):
        calibration_frames(split, 0, spec=SPEC)


def test_one_frame_and_one_class(tmp_path: Path) -> None:
    split = folder(tmp_path, [scene(0)], [np.zeros((48, 64), np.uint8)])
    picked = calibration_frames(split, 64, spec=SPEC)
    assert picked.indices == (0,)
    assert picked.missing == ("car", "sign")
    nameless = replace(SPEC, output=OutputSpec())
    assert calibration_frames(split, 1, spec=nameless).coverage[0] == Coverage("class 0", 1.0, 1, 1.0, 1)


def test_a_rendered_street() -> None:
    split = load_dataset(Path(__file__).parents[2] / "examples" / "street").split("train")
    among = list(range(0, 400, 10))
    spec = ModelSpec("street", InputSpec((180, 240)))
    picked = calibration_frames(split, 8, spec=spec, among=among)
    assert len(picked.indices) == 8
    assert all(row.frames for row in picked.coverage if row.frames_seen)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="needs frames of EDGESEG_SHARED")
def test_real_frames() -> None:
    """Of every rare class as many pixels as evenly spaced frames hold, and of all of them together more."""
    split = load_dataset(CAMVID).split("train")
    dataset = load_dataset(CAMVID)
    spec = ModelSpec("camvid", InputSpec((180, 240)), OutputSpec(classes=dataset.classes))
    rare = [2, 6, 7, 9, 10]  # pole, sign, fence, pedestrian, bicyclist: each below 2 % of the pixels

    def pixels(indices: Sequence[int]) -> NDArray[np.int64]:
        counted = [
            np.bincount(s.label.ravel(), minlength=256)[:11] for s in read(split, indices) if s.label is not None
        ]
        total: NDArray[np.int64] = np.sum(counted, axis=0)
        return total

    for count in (16, 32):
        picked = calibration_frames(split, count, spec=spec)
        assert picked.missing == ()
        assert len(picked.dropped) > 10  # its car stands at crossings
        ours, even = pixels(picked.indices)[rare], pixels(pick(len(split), count))[rare]
        assert (ours >= 0.95 * even).all()
        assert ours.sum() > 1.3 * even.sum()
