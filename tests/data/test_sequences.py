"""Which video a frame belongs to, from the names that data sets use."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeseg.data import load_dataset
from edgeseg.data.sequences import in_order, sequences
from edgeseg.errors import DatasetError
from tests.data import files


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("0001TP_006690", "0001TP"),
        ("Seq05VD_f00000", "Seq05VD"),
        ("aachen/aachen_000000_000019_leftImg8bit", "aachen/aachen_000000"),
        ("frankfurt/frankfurt_000001_082466_leftImg8bit", "frankfurt/frankfurt_000001"),
        ("2007_000033", "2007"),
        ("ADE_val_00000001", "ADE_val"),
        ("00017", ""),
        ("clip3/00017", "clip3"),
        ("frame12", ""),
        ("clip/img_7", "clip"),
        ("leaf12", "leaf"),
        ("noname", ""),
        ("folder/noname", "folder"),
    ],
)
def test_usual_names(name: str, sequence: str) -> None:
    assert sequences([name]) == (sequence,)


def test_a_pattern_of_ones_own() -> None:
    names = ["day1-cam2-0007", "day2-cam2-0001"]
    assert sequences(names, r"^(day\d)") == ("day1", "day2")
    assert sequences(names, r"cam\d") == ("cam2", "cam2")
    with pytest.raises(DatasetError, match=r"does not match the frame 'x'"):
        sequences(["day1-x", "x"], r"^(day\d)")


def test_frames_of_a_sequence_stand_together_by_number() -> None:
    names = ["b_2", "a_10", "b_1", "a_9", "a_100"]
    assert [names[k] for k in in_order(names, sequences(names))] == ["b_1", "b_2", "a_9", "a_10", "a_100"]


def test_the_file_says_so_too(tmp_path: Path) -> None:
    file = files.dataset(tmp_path, 4, more="sequence = '^(f0)[0-3]'\n")
    assert load_dataset(file).split("train").sequences == ("f0",) * 4
    street = "[splits.s]\nstreet = { seed = 3, drives = 2, frames = 3, size = [48, 64] }"
    (tmp_path / "s.toml").write_text(street)
    assert load_dataset(tmp_path / "s.toml").split("s").sequences == ("drive0003",) * 3 + ("drive0004",) * 3


@pytest.mark.parametrize(
    ("pattern", "message"), [("'('", "no regular expression"), ("'(a)(b)'", "several groups"), ("3", "a string")]
)
def test_bad_patterns(pattern: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(files.dataset(tmp_path, 1, more=f"sequence = {pattern}\n"))
