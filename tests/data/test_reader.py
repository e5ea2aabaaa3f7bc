from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.data import Split, load_dataset, read
from edgeseg.data.reader import read_frame, read_label
from edgeseg.data.splits import label_rule
from edgeseg.errors import DatasetError
from tests.data import files

TWENTY = 20
RULE = label_rule(3, 255)


def split(root: Path, count: int = TWENTY, *, suffix: str = ".jpg") -> Split:
    return load_dataset(files.dataset(root, count, suffix=suffix)).split("train")


def test_samples_come_in_order_with_labels(tmp_path: Path) -> None:
    reading = read(split(tmp_path, 4, suffix=".png"), [2, 0])
    samples = list(reading)
    assert len(reading) == 2
    assert [s.name for s in samples] == ["f02", "f00"]
    for sample, k in zip(samples, (2, 0), strict=True):
        assert (sample.pixels == files.frame(k)).all()  # BGR, as OpenCV wrote it
        assert sample.label is not None
        assert (sample.label == files.label(k)).all()
    assert reading.skipped == []


def test_rgb_is_bgr_reversed(tmp_path: Path) -> None:
    (sample,) = read(split(tmp_path, 1, suffix=".png"), color="rgb", labels=False)
    assert (sample.pixels == files.frame(0)[..., ::-1]).all()
    assert sample.pixels.flags.c_contiguous
    assert sample.label is None


def test_reading_is_lazy(tmp_path: Path) -> None:
    reading = iter(read(split(tmp_path, 3)))
    next(reading)
    files.write(tmp_path / "images" / "f01.jpg", np.zeros((24, 32, 3), np.uint8))
    assert next(reading).pixels.max() == 0


def test_an_index_outside_the_split_is_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Frame 20 .* 0 to 19"):
        read(split(tmp_path), [0, 20])
    with pytest.raises(DatasetError, match="Frame -1"):
        read(split(tmp_path), [-1])


def cut(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


FAILURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated jpeg": (lambda root: cut(root / "images/f03.jpg"), "cut short or damaged: the JPEG has no end marker"),
    "jpeg header only": (lambda root: cut(root / "images/f03.jpg", 0.05), "cut short or damaged: the JPEG ends before"),
    "empty frame": (lambda root: (root / "images/f03.jpg").write_bytes(b""), "is empty"),
    "text as frame": (lambda root: (root / "images/f03.jpg").write_text("hello"), "not an image"),
    "missing frame": (lambda root: (root / "images/f03.jpg").unlink(), "No such file"),
    "truncated label": (lambda root: cut(root / "labels/f03.png"), "cut short or damaged: the PNG ends"),
    "damaged label": (lambda root: flip(root / "labels/f03.png"), "the checksum of its IDAT chunk is wrong"),
    "empty label": (lambda root: (root / "labels/f03.png").write_bytes(b""), "is empty"),
    "text as label": (lambda root: (root / "labels/f03.png").write_text("hello"), "is not a PNG"),
    "missing label": (lambda root: (root / "labels/f03.png").unlink(), "No such file"),
    "16-bit label": (lambda root: files.write(root / "labels/f03.png", np.ones((24, 32), np.uint16)), "16-bit"),
    "colour label": (lambda root: files.write(root / "labels/f03.png", files.frame()), "RGB colours.*palette"),
    "turned label": (
        lambda root: files.write(root / "labels/f03.png", files.label(size=(32, 24))),
        "not the same shape",
    ),
    "odd label": (lambda root: files.write(root / "labels/f03.png", files.label(size=(24, 33))), "not the same shape"),
    "label of no class": (
        lambda root: files.write(root / "labels/f03.png", np.full((24, 32), 3, np.uint8)),
        r"value 3 \(768 pixels\) is neither one of 3 classes nor ignore_index \(255\)",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_frame_that_cannot_be_used_is_named_and_the_rest_comes(tmp_path: Path, case: str) -> None:
    damage, reason = FAILURES[case]
    whole = split(tmp_path)
    damage(tmp_path)
    reading = read(whole)
    assert [sample.name for sample in reading] == [name for name in whole.names if name != "f03"]
    (skipped,) = reading.skipped
    assert skipped.name == "f03"
    assert re.search(reason, skipped.reason)
    assert str(tmp_path) in skipped.reason or "shape" in reason


def test_labels_that_were_not_asked_for_may_be_broken(tmp_path: Path) -> None:
    whole = split(tmp_path)
    cut(tmp_path / "labels/f03.png")
    reading = read(whole, labels=False)
    assert len(list(reading)) == TWENTY
    assert reading.skipped == []


def test_frames_of_another_size_than_expected_are_skipped(tmp_path: Path) -> None:
    whole = split(tmp_path)
    files.write(tmp_path / "images/f05.jpg", files.frame(size=(48, 64)))
    assert len(list(read(whole))) == TWENTY  # the label is smaller, of the same shape
    reading = read(whole, expect=(24, 32))
    assert len(list(reading)) == TWENTY - 1
    assert reading.skipped[0].name == "f05"
    assert "48x64 (height x width), 24x32 was wanted" in reading.skipped[0].reason


def test_a_smaller_label_of_the_same_shape_is_kept_as_it_is(tmp_path: Path) -> None:
    whole = split(tmp_path, 1)
    files.write(tmp_path / "labels/f00.png", files.label(size=(12, 16)))
    (sample,) = read(whole)
    assert sample.label is not None
    assert sample.label.shape == (12, 16)


def test_exactly_a_tenth_may_fail(tmp_path: Path) -> None:
    whole = split(tmp_path)
    for k in (4, 9):
        (tmp_path / f"images/f{k:02d}.jpg").write_bytes(b"")
    reading = read(whole)
    assert len(list(reading)) == 18
    assert [s.name for s in reading.skipped] == ["f04", "f09"]
    assert len(list(reading)) == 18  # a second pass starts anew
    assert len(reading.skipped) == 2


def test_more_than_a_tenth_stops_as_soon_as_it_is_certain(tmp_path: Path) -> None:
    whole = split(tmp_path)
    for k in (4, 9, 11):
        (tmp_path / f"images/f{k:02d}.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"(?s)3 of the 20 frames.*f04: .*f04\.jpg is empty.*f11: ") as caught:
        list(read(whole))
    assert "f12" not in str(caught.value)
    with pytest.raises(DatasetError):
        list(read(whole, [4]))


def test_the_first_few_of_many_are_shown(tmp_path: Path) -> None:
    whole = split(tmp_path)
    names = sorted((tmp_path / "images").iterdir())
    for path in names:
        path.unlink()
    with pytest.raises(DatasetError, match="3 of the 20"):
        list(read(whole))


# ---- what one file holds -----------------------------------------------------------------------------------------


def test_opencv_itself_does_not_notice_a_cut_jpeg(tmp_path: Path) -> None:
    """Why the reader looks for itself: if this ever fails, that check can go."""
    path = files.write(tmp_path / "a.jpg", files.frame(size=(240, 320)))
    cut(path)
    assert cv2.imread(str(path)) is not None
    with pytest.raises(DatasetError, match="no end marker"):
        read_frame(path)


def test_the_end_marker_of_a_thumbnail_does_not_count(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.jpg", files.frame(size=(240, 320)))
    data = path.read_bytes()
    thumbnail = b"\xff\xe1" + (14).to_bytes(2, "big") + b"Exif\0\0ab\xff\xd9cd"
    path.write_bytes(data[:2] + thumbnail + data[2:])
    assert read_frame(path).shape == (240, 320, 3)
    cut(path)
    with pytest.raises(DatasetError, match="no end marker"):
        read_frame(path)


def test_progressive_jpegs_and_bytes_behind_the_end_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    cv2.imwrite(
        str(path), files.frame(size=(240, 320)), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 4]
    )
    path.write_bytes(path.read_bytes() + b"\0\0padding")
    assert read_frame(path).shape == (240, 320, 3)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif", ".jpg"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_no_format_passes_cut_short(tmp_path: Path, suffix: str, share: float) -> None:
    path = files.write(tmp_path / f"a{suffix}", files.frame(size=(240, 320)))
    whole = read_frame(path)
    assert whole.shape == (240, 320, 3)
    cut(path, share)
    with pytest.raises(DatasetError, match=r"a\.\w+ "):
        read_frame(path)


def test_frames_are_three_channels_whatever_they_were(tmp_path: Path) -> None:
    grey = files.label(classes=200)
    assert (read_frame(files.write(tmp_path / "grey.png", grey)) == grey[..., None]).all()
    clear = np.dstack([files.frame(), grey])
    assert (read_frame(files.write(tmp_path / "alpha.png", clear)) == files.frame()).all()


def test_the_orientation_of_exif_is_not_applied(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.jpg", files.frame())
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: a quarter turn
    exif = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + exif + data[2:])
    turned: Any = cv2.imread(str(path))
    assert turned.shape == (32, 24, 3)  # so the tag is a valid one
    assert read_frame(path).shape == (24, 32, 3)


def test_palette_labels_are_read_as_indices(tmp_path: Path) -> None:
    """Two entries of one colour: mapping colours back could not tell them apart."""
    palette = bytes([10, 20, 30, 200, 0, 0, 10, 20, 30])
    path = files.write_png(
        tmp_path / "a.png", files.label(), kind=3, palette=palette, extra=files.chunk(b"tRNS", b"\0")
    )
    assert (read_label(path, RULE) == files.label()).all()
    expanded: Any = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert expanded.ndim == 3  # what OpenCV makes of it


@pytest.mark.parametrize("kind", [0, 3])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_labels_of_few_bits_hold_their_raw_values(tmp_path: Path, kind: int, depth: int) -> None:
    values = files.label(size=(9, 13), classes=2**depth)
    path = files.write_png(
        tmp_path / "a.png", values, kind=kind, depth=depth, palette=bytes(3 << depth) if kind else b""
    )
    assert (read_label(path, label_rule(16, 255)) == values).all()


def test_colour_labels_are_mapped_back_by_the_palette(tmp_path: Path) -> None:
    palette = ((200, 10, 0), (0, 0, 0), (10, 200, 0))
    rule = label_rule(3, 255, palette=palette)
    colours = np.array(palette, np.uint8)[files.label()]
    path = files.write_png(tmp_path / "a.png", colours, kind=2)
    assert (read_label(path, rule) == files.label()).all()
    colours[3, 4] = (1, 2, 3)
    with pytest.raises(DatasetError, match=r"a\.png: the colour \(1, 2, 3\) is not in the palette \(1 pixels"):
        read_label(files.write_png(tmp_path / "a.png", colours, kind=2), rule)


def test_grey_with_alpha_is_refused(tmp_path: Path) -> None:
    path = files.write_png(tmp_path / "a.png", np.zeros((4, 4, 2), np.uint8), kind=4)
    with pytest.raises(DatasetError, match="grey with alpha"):
        read_label(path, RULE)


def test_a_jpeg_as_label_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    files.write(tmp_path / "a.jpg", files.label()).rename(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="lossy"):
        read_label(tmp_path / "a.png", RULE)


def test_the_label_map_of_the_toml_is_applied(tmp_path: Path) -> None:
    more = '[label_map]\n0 = "ignore"\n7 = "c"\n8 = 0\n255 = "b"\n'
    whole = load_dataset(files.dataset(tmp_path, 1, more=more)).split("train")
    raw = np.random.default_rng(0).choice(np.array([0, 7, 8, 255], np.uint8), (24, 32))
    files.write(tmp_path / "labels/f00.png", raw)
    (sample,) = read(whole)
    assert sample.label is not None
    meaning = {0: 255, 7: 2, 8: 0, 255: 1}
    assert sample.label.tolist() == [[meaning[value] for value in row] for row in raw.tolist()]
    raw[0, 0] = 1  # a class index, but no raw value of the map
    files.write(tmp_path / "labels/f00.png", raw)
    with pytest.raises(DatasetError, match="the label value 1 "):
        list(read(whole))


@given(st.integers(1, 256), st.none() | st.integers(0, 255), st.lists(st.integers(0, 255), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_exactly_classes_and_ignore_index_pass(
    tmp_path_factory: pytest.TempPathFactory, classes: int, ignore: int | None, values: list[int]
) -> None:
    path = files.write(tmp_path_factory.getbasetemp() / "label.png", np.array([values], np.uint8))
    rule = label_rule(classes, ignore)
    if all(value < classes or value == ignore for value in values):
        assert read_label(path, rule).tolist() == [values]
    else:
        with pytest.raises(DatasetError, match="is neither one of"):
            read_label(path, rule)
