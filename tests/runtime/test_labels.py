"""Which label belongs to which frame of a stream."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeseg.data import load_dataset
from edgeseg.errors import DatasetError
from edgeseg.runtime.labels import labels_from
from edgeseg.types import Mask


def write(folder: Path, name: str, value: int = 1) -> Mask:
    folder.mkdir(parents=True, exist_ok=True)
    mask = np.full((4, 6), value, np.uint8)
    mask[0] = 0
    cv2.imwrite(str(folder / name), mask)
    return mask


def test_by_the_name_of_the_frame(tmp_path: Path) -> None:
    expected = write(tmp_path, "street_7.png", 2)
    write(tmp_path, "street_0.png", 1)
    labels = labels_from(tmp_path, classes=3)
    found = labels.find("street_7", 0)
    assert found is not None
    np.testing.assert_array_equal(found, expected)
    assert labels.find("street_8", 0) is None
    assert labels.find("other", 7) is None  # a frame with a name of its own is not found by its number
    assert labels.warning is None


@pytest.mark.parametrize("name", ["12.png", "000012.png", "frame_000012.png", "drive2-12.png"])
def test_by_the_number_in_a_video(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    write(tmp_path, "note.png")
    labels = labels_from(tmp_path, classes=2)
    assert labels.path("000012", 12) == tmp_path / name
    assert labels.find("000012", 12) is not None
    assert labels.find("000001", 1) is None
    assert labels.path("000012", 3) == (tmp_path / name if name == "000012.png" else None)


def test_numbers_that_two_files_end_in_are_refused_where_numbers_count(tmp_path: Path) -> None:
    for name in ("a_0003.png", "b_3.png", "a_0004.png"):
        write(tmp_path, name)
    labels = labels_from(tmp_path, classes=2)
    assert labels.find("a_0003", 0) is not None
    with pytest.raises(DatasetError, match=r"a_0003\.png and b_3\.png .* number 3"):
        labels.find("000000", 0)


def test_a_loader_decodes_when_it_is_called(tmp_path: Path) -> None:
    write(tmp_path, "a.png", 9)
    labels = labels_from(tmp_path, classes=3)
    load = labels.loader("a", 0)
    assert load is not None
    with pytest.raises(DatasetError, match="label value 9"):
        load()
    assert labels.loader("b", 1) is None


def test_before_anybody_asked_nothing_is_odd(tmp_path: Path) -> None:
    write(tmp_path, "x.png")
    labels = labels_from(tmp_path, classes=2)
    assert labels.warning is None  # nobody asked


def test_nothing_that_fits_is_said_once_frames_have_come(tmp_path: Path) -> None:
    write(tmp_path, "x.png")
    labels = labels_from(tmp_path, classes=2)
    for k in range(3):
        labels.find(f"{k:06d}", k)
    assert "none of the 3 frames" in str(labels.warning)
    assert "x.png" in str(labels.warning)


def test_numbers_from_one_are_said(tmp_path: Path) -> None:
    for k in range(1, 4):
        write(tmp_path, f"{k:04d}.png")
    labels = labels_from(tmp_path, classes=2)
    for k in range(4):
        labels.find(f"{k:06d}", k)
    assert "numbered from 1" in str(labels.warning)
    write(tmp_path, "0000.png")
    labels = labels_from(tmp_path, classes=2)
    labels.find("000000", 0)
    assert labels.warning is None


def test_folders_without_labels(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        labels_from(tmp_path / "nothing", classes=2)
    with pytest.raises(DatasetError, match="holds no label"):
        labels_from(tmp_path, classes=2)


def test_ignore_without_a_data_set(tmp_path: Path) -> None:
    write(tmp_path, "a.png", 255)
    labels = labels_from(tmp_path, classes=2)
    assert labels.rule.ignore_index == 255
    found = labels.find("a", 0)
    assert found is not None
    assert found.max() == 255


def test_the_rule_of_a_data_set(tmp_path: Path) -> None:
    write(tmp_path / "labels", "a.png", 7)
    write(tmp_path / "labels", "b.png", 30)
    write(tmp_path / "frames", "a.png")
    (tmp_path / "dataset.toml").write_text(
        'classes = ["road", "sky"]\nignore_index = 30\n[label_map]\n0 = "road"\n7 = "sky"\n'
        '[splits.val]\nimages = "frames"\nlabels = "labels"\n',
        encoding="utf-8",
    )
    labels = labels_from(tmp_path / "labels", classes=2, dataset=load_dataset(tmp_path))
    found = labels.find("a", 0)
    assert found is not None
    assert sorted(np.unique(found)) == [0, 1]
    ignored = labels.find("b", 0)
    assert ignored is not None
    assert sorted(np.unique(ignored)) == [0, 30]
    assert labels.rule.ignore_index == 30
    with pytest.raises(DatasetError, match="2 classes and the model 3"):
        labels_from(tmp_path / "labels", classes=3, dataset=load_dataset(tmp_path))


def test_names_that_only_a_data_set_knows(tmp_path: Path) -> None:
    """Cityscapes gives frame and label different endings."""
    truth = tmp_path / "gtFine" / "val" / "bonn"
    write(tmp_path / "leftImg8bit" / "val" / "bonn", "bonn_000000_000019_leftImg8bit.png")
    write(truth, "bonn_000000_000019_gtFine_labelTrainIds.png")
    labels = labels_from(truth, classes=19, dataset=load_dataset(tmp_path))
    assert labels.find("bonn_000000_000019_leftImg8bit", 0) is not None
