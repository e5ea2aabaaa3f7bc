from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseg.data import load_dataset, pick, read
from edgeseg.data.splits import default_palette
from edgeseg.errors import DatasetError
from tests.data import files

STREET = "street = { seed = 3, drives = 2, frames = 3, size = [48, 64], stride = 7 }"


def toml(root: Path, text: str) -> Path:
    (root / "d.toml").write_text(text)
    return root / "d.toml"


def test_a_written_data_set(tmp_path: Path) -> None:
    data = load_dataset(files.dataset(tmp_path, 3))
    assert (data.name, data.classes, data.ignore_index) == ("toy", ("a", "b", "c"), 255)
    assert data.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    split = data.split("train")
    assert len(split) == 3
    assert split.names == ("f00", "f01", "f02")
    assert split.has_labels


def test_a_folder_with_a_dataset_toml_is_that_data_set(tmp_path: Path) -> None:
    file = files.dataset(tmp_path)
    assert load_dataset(tmp_path) == load_dataset(file)


def test_a_split_without_labels(tmp_path: Path) -> None:
    files.dataset(tmp_path)
    split = load_dataset(toml(tmp_path, '[splits.x]\nimages = "images"')).split("x")
    assert not split.has_labels
    assert all(sample.label is None for sample in read(split))


def test_frames_are_sorted_and_hidden_and_foreign_files_left_out(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.webp", "c.bmp"):
        files.write(tmp_path / "i" / name, files.frame())
    for name in ("._a.jpg", "notes.txt"):
        (tmp_path / "i" / name).write_text("x")
    assert load_dataset(toml(tmp_path, '[splits.x]\nimages = "i"')).split("x").names == ("a", "b", "c")


def test_an_unknown_split_names_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'toy' has no split 'val'; it has: train"):
        load_dataset(files.dataset(tmp_path)).split("val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases = []", r"unknown key 'clases'; did you mean 'classes'\?"),
        ('[splits.x]\nimage = "i"', r"unknown key 'image'; did you mean 'images'\?"),
        ("[splits.x]\nstreet = { seeds = 1 }", r"unknown key 'seeds'; did you mean 'seed'\?"),
        ('name = "x"', "has no splits"),
        ("[splits.x]", "neither `images`"),
        ("[splits]\nx = 3", r"\[splits.x\]: a table"),
        ("[splits.x]\nimages = 3", "`images` must be a string, got 3"),
        ('classes = "a"\n[splits.x]\nimages = "i"', "`classes` must be a list"),
        ('classes = ["a", "a"]\n[splits.x]\nimages = "i"', "different, non-empty"),
        ('classes = ["a"]\npalette = [[1, 2]]\n[splits.x]\nimages = "i"', "red, green, blue"),
        ('classes = ["a"]\npalette = [[1, 2, 3], [4, 5, 6]]\n[splits.x]\nimages = "i"', "2 colours for 1 classes"),
        ('ignore_index = 256\n[splits.x]\nimages = "i"', "0 to 255"),
        ('ignore_index = true\n[splits.x]\nimages = "i"', "whole number"),
        ("[splits.x]\n" + STREET.replace("48", "0"), "height, width"),
        ("[splits.x]\n" + STREET.replace("drives = 2", "drives = 0"), "at least 1"),
        ("[splits.x]\n" + STREET.replace("seed = 3, ", ""), "`seed` is missing"),
        (f'[splits.x]\n{STREET}\nimages = "i"', "remove `images`"),
        (f'classes = ["a"]\n[splits.x]\n{STREET}', "a street split renders the classes"),
        ('classes = ["road"]\n[label_map]\n7 = "raod"\n[splits.x]\nimages = "i"', "no such class; did you mean 'road'"),
        ('classes = ["a"]\n[label_map]\n7 = 1\n[splits.x]\nimages = "i"', "an index below 1"),
        ('classes = ["a"]\n[label_map]\n7 = "ignore"\n[splits.x]\nimages = "i"', "add ignore_index"),
        ('classes = ["a"]\n[label_map]\nx = "a"\n[splits.x]\nimages = "i"', "0 to 255"),
        ("classes = [", "cannot be read as TOML"),
    ],
)
def test_what_is_wrong_in_a_toml_is_said(tmp_path: Path, text: str, message: str) -> None:
    files.write(tmp_path / "i" / "a.png", files.frame())
    with pytest.raises(DatasetError, match=message):
        load_dataset(toml(tmp_path, text))


def test_missing_files_and_folders_are_named_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=str(tmp_path / "nothing.toml")):
        load_dataset("nothing.toml")
    toml(tmp_path, '[splits.x]\nimages = "pictures"')
    with pytest.raises(DatasetError, match=str(tmp_path / "pictures")):
        load_dataset("d.toml")
    files.write(tmp_path / "pictures" / "a.png", files.frame())
    toml(tmp_path, 'classes = ["a"]\n[splits.x]\nimages = "pictures"\nlabels = "truth"')
    with pytest.raises(DatasetError, match=str(tmp_path / "truth")):
        load_dataset("d.toml")


def test_labels_need_classes_and_a_split_needs_frames(tmp_path: Path) -> None:
    files.dataset(tmp_path)
    with pytest.raises(DatasetError, match="no `classes`"):
        load_dataset(toml(tmp_path, '[splits.x]\nimages = "images"\nlabels = "labels"'))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="has no frames in"):
        load_dataset(toml(tmp_path, '[splits.x]\nimages = "empty"'))


def test_two_frames_of_one_stem_are_refused(tmp_path: Path) -> None:
    files.write(tmp_path / "i" / "a.jpg", files.frame())
    files.write(tmp_path / "i" / "a.png", files.frame())
    with pytest.raises(DatasetError, match=r"a\.jpg and a\.png"):
        load_dataset(toml(tmp_path, '[splits.x]\nimages = "i"'))


def test_a_street_split_renders_what_the_renderer_renders(tmp_path: Path) -> None:
    from edgeseg.data import street

    data = load_dataset(toml(tmp_path, f"[splits.x]\n{STREET}"))
    assert data.classes == tuple(street.CLASSES)
    assert data.palette == tuple(street.PALETTE)
    split = data.split("x")
    assert len(split) == 6
    assert len(set(split.names)) == 6
    samples = list(read(split))
    for k, (seed, index) in enumerate([(3, 0), (3, 7), (3, 14), (4, 0), (4, 7), (4, 14)]):
        pixels, mask = street.render((48, 64), seed, index)
        assert (samples[k].pixels == pixels).all()
        label = samples[k].label
        assert label is not None
        assert np.array_equal(label, mask)
    (red_first,) = read(split, [4], color="rgb", labels=False)
    assert (red_first.pixels == samples[4].pixels[..., ::-1]).all()
    assert red_first.label is None


def test_the_digest_of_a_street_split_is_of_its_parameters(tmp_path: Path) -> None:
    first, again, other = (
        load_dataset(toml(tmp_path, f"[splits.x]\n{STREET.replace('stride = 7', f'stride = {s}')}")).split("x")
        for s in (7, 7, 8)
    )
    assert first.digest() == again.digest()
    assert first.digest([1]) != other.digest([1])
    assert first.digest([1]) != first.digest([2])


def test_the_digest_follows_names_bytes_and_order(tmp_path: Path) -> None:
    split = load_dataset(files.dataset(tmp_path)).split("train")
    before, labelled = split.digest([0, 1]), split.digest([0, 1], labels=True)
    assert len(before) == 64
    assert split.digest([0, 1]) == before
    assert len({before, labelled, split.digest([1, 0]), split.digest([0]), split.digest()}) == 5
    files.write(tmp_path / "labels" / "f00.png", files.label(9))
    assert split.digest([0, 1]) == before
    assert split.digest([0, 1], labels=True) != labelled
    files.write(tmp_path / "images" / "f01.jpg", files.frame(9))
    assert split.digest([0, 1]) != before
    with pytest.raises(DatasetError, match="Frame 4 of split 'train'"):
        split.digest([4])


def test_a_missing_file_changes_the_digest(tmp_path: Path) -> None:
    split = load_dataset(files.dataset(tmp_path)).split("train")
    before = split.digest()
    (tmp_path / "images" / "f01.jpg").unlink()
    assert split.digest() != before


@given(st.integers(0, 400), st.integers(0, 400))
def test_pick_is_even_and_covers_both_ends(total: int, wanted: int) -> None:
    chosen = pick(total, wanted)
    assert len(chosen) == min(total, wanted)
    assert all(0 <= k < total for k in chosen)
    gaps = {b - a for a, b in pairwise(chosen)}
    assert all(gap > 0 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (0, total - 1)


def test_pick_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="wanted=-1"):
        pick(4, -1)


def test_the_default_palette_is_the_voc_colour_map() -> None:
    published = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    palette = default_palette(256)
    assert {index: palette[index] for index in published} == published
    assert len(set(palette)) == 256
