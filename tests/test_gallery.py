"""Galleries: the frames asked for, the masks engines answer, scores of single frames, what differs in colours."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgeseg import open as open_bundle
from edgeseg.bundle import read_bundle
from edgeseg.cli import main
from edgeseg.data import load_dataset, read
from edgeseg.errors import BadInput, DatasetError
from edgeseg.gallery import Gallery, Shown, gallery, references_of
from edgeseg.report.picture import LOST, OTHER, WON, difference, gallery_section
from tests.report.documents import evaluation, put
from tests.test_report import NASTY, Page, stands_alone


def slow_miou(mask: np.ndarray, truth: np.ndarray, classes: int, ignore: int | None) -> float:
    """One class after the other, over all pixels."""
    scores = []
    for k in range(classes):
        both = either = 0
        for m, t in zip(mask.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t != ignore:
                both += m == k and t == k
                either += m == k or t == k
        if either:
            scores.append(both / either)
    return sum(scores) / len(scores)


def test_frames_of_a_split(built: Path, street: Path) -> None:
    dataset = load_dataset(street / "dataset.toml")
    shown = gallery(built, street / "dataset.toml", count=2)
    samples = {sample.name: sample for sample in read(dataset.split("val"))}
    assert len(shown.frames) == 2
    assert shown.classes == dataset.classes
    for one in shown.frames:
        sample = samples[one.name]
        assert sample.label is not None
        assert one.truth is not None
        np.testing.assert_array_equal(one.truth, sample.label)
        assert one.frame.shape == (*sample.label.shape, 3)
        names = list(one.masks)
        assert names[0].endswith("fp32")
        assert names[-1] == read_bundle(built).chosen
        with open_bundle(built) as segmenter:
            np.testing.assert_array_equal(one.masks[names[-1]], segmenter(sample.pixels))
        for name in names:
            wanted = slow_miou(one.masks[name], sample.label, len(dataset.classes), dataset.ignore_index)
            assert one.miou[name] == pytest.approx(wanted)


def test_frames_by_name(built: Path, street: Path) -> None:
    names = load_dataset(street / "dataset.toml").split("val").names
    shown = gallery(built, street / "dataset.toml", names=[names[-1], names[0]])
    assert [one.name for one in shown.frames] == [names[-1], names[0]]
    with pytest.raises(BadInput, match="no frame called nowhere"):
        gallery(built, street / "dataset.toml", names=["nowhere"])
    with pytest.raises(DatasetError, match="no split"):
        gallery(built, street / "dataset.toml", split="nothing")


def test_references_of_a_bundle(built: Path) -> None:
    bundle = read_bundle(built)
    shown = references_of(bundle)
    assert [one.name for one in shown.frames] == [one.name for one in bundle.references]
    assert all(list(one.masks) == ["FP32", bundle.chosen] for one in shown.frames)
    swapped = replace(bundle, spec=replace(bundle.spec, input=replace(bundle.spec.input, frame="rgb")))
    np.testing.assert_array_equal(references_of(swapped).frames[0].frame, shown.frames[0].frame[..., ::-1])


FRAME = np.full((1, 5, 3), 90, np.uint8)
TRUTH = np.array([[0, 0, 0, 0, 255]], np.uint8)


def shown_of(truth: bool, **masks: list[int]) -> Shown:
    made = {name: np.array([mask], np.uint8) for name, mask in masks.items()}
    return Shown("f", FRAME, made, TRUTH if truth else None, 255 if truth else None)


def test_differences_have_their_colours() -> None:
    caption, picture = difference(shown_of(True, before=[0, 0, 1, 1, 0], after=[0, 1, 0, 2, 1]))
    grey = picture[0, 0].tolist()
    assert [pixel.tolist() for pixel in picture[0]] == [grey, list(LOST), list(WON), list(OTHER), grey]
    assert caption == "25.00 % lost (red), 25.00 % won (green), 25.00 % wrong otherwise (blue)"
    caption, picture = difference(shown_of(True, only=[0, 1, 1, 0, 1]))
    assert caption == "wrong: 50.00 % (red)"
    assert [pixel.tolist() == list(LOST) for pixel in picture[0]] == [False, True, True, False, False]
    caption, picture = difference(shown_of(False, before=[0, 0, 1, 1, 0], after=[0, 1, 0, 2, 1]))
    assert caption == "differs: 80.00 % (red)"
    assert [pixel.tolist() == list(LOST) for pixel in picture[0]] == [False, True, True, True, True]


def test_a_section_has_truth_before_after_and_difference() -> None:
    one = replace(shown_of(True, before=[0, 0, 0, 0, 0], after=[0, 0, 0, 0, 0]), name=NASTY, miou={"before": 0.5})
    text = gallery_section(Gallery(NASTY, [one, one], [NASTY], [(1, 2, 3)]))
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert len(captions) == 10
    assert captions[1:4] == ["truth", "before: mIoU 50.0 %", "after"]
    page = Page(text)
    assert page.balanced
    assert not any("onmouseover" in attributes for _, attributes in page.tags)
    assert gallery_section(Gallery("none", [], [], [])) == ""


def test_the_command_shows_the_worst_frames(built: Path, street: Path, tmp_path: Path) -> None:
    names = load_dataset(street / "dataset.toml").split("val").names
    worst = [{"name": names[2], "miou": 0.1}, {"name": names[0], "miou": 0.2}]
    documents = [str(built), str(put(tmp_path, "e.json", evaluation(worst_frames=worst)))]
    out = tmp_path / "page.html"
    asked = ["--data", str(street / "dataset.toml"), "--frames", "1", "-o", str(out)]
    done = CliRunner().invoke(main, ["report", *documents, *asked])
    assert done.exit_code == 0, done.output
    text = out.read_text(encoding="utf-8")
    assert f"<figcaption>frame {names[2]}</figcaption>" in text
    assert f"frame {names[0]}<" not in text
    assert "Reference frames" not in text
    assert stands_alone(text)
