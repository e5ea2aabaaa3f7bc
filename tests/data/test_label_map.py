"""Labels by well-known sets, names, values and colours: each kind of file is written, read, and refused where wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeseg.data import Dataset, load_dataset, read
from edgeseg.data.label_sets import LABEL_SETS
from edgeseg.data.reader import read_label
from edgeseg.data.splits import default_palette
from edgeseg.errors import DatasetError
from tests.data import files

SPLIT = '\n[splits.val]\nimages = "images"\nlabels = "labels"\n'
SIZE = (8, 8)


def dataset(root: Path, text: str) -> Dataset:
    files.write(root / "images" / "a_01.png", files.frame(0, SIZE))
    (root / "labels").mkdir(exist_ok=True)
    (root / "dataset.toml").write_text(text + SPLIT)
    return load_dataset(root)


def stripes(*values: object) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An 8 x 8 label of vertical stripes of values or colours."""
    row = np.repeat(np.array(values, np.uint8), 8 // len(values), axis=0)
    return np.repeat(row[None], 8, axis=0)


def shown(data: Dataset, root: Path) -> list[str]:
    """What the stripes mean, by name."""
    (sample,) = read(data.split("val"))
    assert sample.label is not None
    index = list(dict.fromkeys(sample.label[0].tolist()))
    return ["ignore" if k == data.ignore_index else data.classes[k] for k in index]


@pytest.mark.parametrize("name", list(LABEL_SETS))
def test_every_set_reads_its_own_files(name: str, tmp_path: Path) -> None:
    known = LABEL_SETS[name]
    data = dataset(tmp_path, f'label_set = "{name}"')
    assert data.classes == known.classes
    assert len(known.palette) == len(known.classes)
    assert data.ignore_index == 255
    for raw, values in known.raw.items():
        target = tmp_path / "labels" / "a_01.png"
        if known.colours:
            files.write_png(target, stripes(*values), kind=2)
        else:
            files.write_png(target, stripes(*values), kind=0)
        assert shown(data, tmp_path) == [known.group[raw]]


def test_the_sizes_of_the_sets() -> None:
    assert {name: len(known.classes) for name, known in LABEL_SETS.items()} == {
        "cityscapes-ids": 19,
        "cityscapes-train-ids": 19,
        "cityscapes-colours": 19,
        "voc": 21,
        "voc-colours": 21,
        "ade20k": 150,
        "camvid": 11,
        "camvid-colours": 11,
    }
    assert len(LABEL_SETS["cityscapes-ids"].raw) == 34
    assert len(LABEL_SETS["camvid-colours"].raw) == 32
    assert sorted(raw for (raw,) in LABEL_SETS["cityscapes-ids"].raw.values()) == list(range(34))
    assert LABEL_SETS["voc-colours"].palette == default_palette(21)
    for known in LABEL_SETS.values():
        every = [raw for values in known.raw.values() for raw in values]
        assert len(set(every)) == len(every), known.name


def test_many_to_one_by_name(tmp_path: Path) -> None:
    data = dataset(
        tmp_path,
        'label_set = "cityscapes-ids"\nclasses = ["flat", "car", "rest"]\n'
        '[label_map]\nroad = "flat"\nsidewalk = "flat"\ntruck = "car"\nsky = "ignore"\n"*" = "rest"',
    )
    files.write_png(tmp_path / "labels/a_01.png", stripes(7, 8, 27, 26, 23, 24, 0, 4), kind=0)
    (sample,) = read(data.split("val"))
    assert sample.label is not None
    # "*" takes what neither a name nor a class says, the unscored names too.
    assert sample.label[0].tolist() == [0, 0, 1, 1, 255, 2, 2, 2]


def test_values_override_the_set(tmp_path: Path) -> None:
    data = dataset(tmp_path, 'label_set = "voc"\n[label_map]\n255 = "background"\n77 = "cow"')
    files.write_png(tmp_path / "labels/a_01.png", stripes(255, 77), kind=0)
    assert shown(data, tmp_path) == ["background", "cow"]


def test_colours_of_ones_own_in_rgb_rgba_and_indexed_files(tmp_path: Path) -> None:
    data = dataset(
        tmp_path,
        'classes = ["a", "b"]\npalette = [[9, 9, 9], [1, 2, 3]]\nignore_index = 255\n'
        '[label_map]\n"200, 0,0" = "a"\n"0,0,0" = "ignore"',
    )
    colours = stripes((9, 9, 9), (200, 0, 0), (1, 2, 3), (0, 0, 0))
    target = tmp_path / "labels/a_01.png"
    expected = [0, 0, 0, 0, 1, 1, 255, 255]
    files.write_png(target, colours, kind=2)
    rule = data.split("val").rule
    assert read_label(target, rule)[0].tolist() == expected
    opaque = np.concatenate([colours, np.full((8, 8, 1), 255, np.uint8)], axis=2)
    files.write_png(target, opaque, kind=6)
    assert read_label(target, rule)[0].tolist() == expected
    # The indices of an indexed file mean nothing here: some editor numbered them.
    files.write_png(target, stripes(3, 0, 1, 2), kind=3, palette=bytes([200, 0, 0, 1, 2, 3, 0, 0, 0, 9, 9, 9]))
    assert read_label(target, rule)[0].tolist() == expected
    opaque[0, 0, 3] = 0
    files.write_png(target, opaque, kind=6)
    with pytest.raises(DatasetError, match="partly transparent"):
        read_label(target, rule)


def test_an_unknown_colour_or_value_names_frame_and_remedy(tmp_path: Path) -> None:
    data = dataset(tmp_path, 'label_set = "camvid-colours"')
    files.write_png(tmp_path / "labels/a_01.png", stripes((128, 128, 128), (7, 8, 9)), kind=2)
    with pytest.raises(DatasetError, match=r'a_01: .*a_01\.png: the colour \(7, 8, 9\).*\n?.*"7,8,9" = "ignore"'):
        list(read(data.split("val")))
    data = dataset(tmp_path, 'label_set = "cityscapes-ids"')
    files.write_png(tmp_path / "labels/a_01.png", stripes(7, 77), kind=0)
    with pytest.raises(DatasetError, match=r"a_01: .*a_01\.png: the label value 77 \(32 pixels\)"):
        list(read(data.split("val")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('label_set = "cityscape"', r"label_set is 'cityscape'; there are: cityscapes-ids"),
        ("label_set = 3", "there are:"),
        ('label_set = "voc"\nclasses = ["cat"]', r"'background', 'aeroplane'.* and 15 more.*\"\*\" = \"ignore\""),
        ('label_set = "voc"\n[label_map]\nkat = "cat"', "did you mean 'cat'"),
        ('label_set = "voc"\n[label_map]\ncat = "kat"', "no such class; did you mean 'cat'"),
        ('label_set = "voc"\n[label_map]\n"1,2,3" = "cat"', "values or colours, not both"),
        ('classes = ["a"]\n[label_map]\n"1,2,300" = "a"', "0 to 255, or a colour"),
        ('classes = ["a"]\n[label_map]\nroad = "a"', "names are for a label_set"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        dataset(tmp_path, text)


def test_the_digest_knows_colours_and_stays_without_them(tmp_path: Path) -> None:
    files.write_png(tmp_path / "labels/a_01.png", stripes((1, 1, 1)), kind=2)
    plain = 'classes = ["a", "b"]\npalette = [[1, 1, 1], [2, 2, 2]]\nignore_index = 255\n'
    first = dataset(tmp_path, plain).split("val")
    assert "colours" not in repr(first.rule)  # so that digests in older documents still compare
    other = dataset(tmp_path, plain + '[label_map]\n"1,1,1" = "b"').split("val")
    assert first.digest(labels=True) != other.digest(labels=True)
    assert first.digest() == other.digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[class_map]\nroad = "raod"', "did you mean 'road'"),
        ('[class_map]\nroad = "ignore"', "Predictions cannot be ignored"),
        ("[class_map]\nroad = 3", "name of a class"),
        ("class_map = 3", "a table"),
    ],
)
def test_class_maps(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        dataset(tmp_path, f'label_set = "cityscapes-ids"\n{text}')
    data = dataset(tmp_path, 'label_set = "cityscapes-ids"\n[class_map]\nstreet = "road"\nboat = "none"')
    assert data.class_map == {"street": "road", "boat": "none"}
