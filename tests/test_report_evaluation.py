"""The table and the section of accuracy documents, old and new, with classes and names that want to be markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.data.splits import LabelRule, Split
from edgeseg.errors import BadInput
from edgeseg.evaluation.document import notes, parts
from edgeseg.measure.counts import Counts, frame_counts, gathered
from edgeseg.report.evaluation import eval_section, eval_table
from edgeseg.report.html import write_report

NASTY = '<b onmouseover="x()">&amp;'


def counts(frames: int, classes: int, *, none: bool = False) -> Counts:
    random = np.random.default_rng(0)
    seen = []
    for _ in range(frames):
        label = np.repeat(random.integers(0, classes - 1, (20, 10)), 2, axis=1).astype(np.uint8)
        wrong = random.random(label.shape) < 0.2
        mask = np.where(wrong, random.integers(0, classes - 1 + none, label.shape), label).astype(np.uint8)
        mask[mask == classes - 1] = classes
        seen.append(frame_counts(mask, label, classes, 255, none=none))
    return gathered(range(frames), seen, classes)


def document(
    names: tuple[str, ...] = ("road", NASTY, "absent"), *, none: bool = False, videos: int = 2
) -> dict[str, Any]:
    """Of 24 frames; the last class does not occur."""
    frame_names = tuple(f"{NASTY}v{k % videos}_{k:03d}" for k in range(24))
    split = Split("val", frame_names, LabelRule(len(names), 255, ()))
    found = {
        "schema": "edgeseg.eval/2",
        "bundle": NASTY,
        "variant": "v",
        "precision": "int8",
        "data": {"name": NASTY, "split": NASTY, "digest": "0"},
        **parts(counts(24, len(names), none=none), split, names),
        "skipped": [],
        "machine": {"cpu": NASTY, "architecture": "x", "isa": ["avx2"], "cores_usable": 2.0, "memory_mb": None},
        "versions": {"numpy": "2"},
    }
    found["notes"] = notes(found, ["absent"], [])
    return json.loads(json.dumps(found, allow_nan=False))  # type: ignore[no-any-return]


def test_the_table_says_what_the_document_says() -> None:
    found = document(("road", "car", "absent"))
    text = eval_table(found)
    low, high = found["intervals"]["miou"]
    assert re.search(rf"mean +{100 * found['miou']:.2f} +{100 * low:.2f} to {100 * high:.2f}", text)
    assert re.search(r"absent +– +– +– +0\.00", text)
    assert f"pixel accuracy {100 * found['pixel_accuracy']:.2f} % (" in text
    assert "95 %, 2000 resamples" in text
    for width in ("1", "3", "5"):
        assert re.search(rf"up to {width} +{100 * found['boundary'][width]['miou']:.2f}", text)
    for row in found["sequences"]:
        assert f"{100 * row['miou']:.2f}" in text
    worst = found["worst_frames"][0]
    assert re.search(rf"{re.escape(worst['name'])} +{100 * worst['miou']:.2f}", text)
    matrix = np.array(found["confusion"])
    assert re.search(rf"road +car +{100 * matrix[0, 1] / matrix[0].sum():.2f}", text)
    assert "note: no class of the model is absent" in text
    tables = text.split("\n\n")
    for one in tables:
        assert all(line == line.rstrip() for line in one.splitlines())


def test_one_sequence_needs_no_table_of_its_own() -> None:
    assert "sequence" not in eval_table(document(("road", "car", "absent"), videos=1))
    assert eval_table(document(("road", "car", "absent"), videos=24)).count("the worst of 24 sequences") == 1


def test_predictions_of_no_class_are_told() -> None:
    found = document(("road", "car", "absent"), none=True)
    text, page = eval_table(found), eval_section(found)
    share = 100 * sum(found["unassigned"]) / (np.sum(found["confusion"]) + sum(found["unassigned"]))
    assert f"{share:.2f} % of the pixels are predicted as a class that the data set does not have" in text
    assert "none of these" in text
    assert "<th>none of these</th>" in page


def test_a_page_holds_everything_and_no_foreign_markup(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(json.dumps(document()))
    page = write_report([tmp_path / "e.json"], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<b onmouseover" not in page
    for heading in ("By sequence", "Near boundaries", "What is taken for what", "Worst frames"):
        assert f"<h3>{heading}" in page


def test_many_classes_have_no_picture_and_the_pairs_all_the_same() -> None:
    names = tuple(f"c{k}" for k in range(60))
    page = eval_section(document(names))
    assert "too many for a picture" in page
    assert "of the class %" in page


def test_older_documents_are_shown_as_before(tmp_path: Path) -> None:
    new = document(("road", "car", "absent"))
    kept = (
        "bundle",
        "variant",
        "precision",
        "data",
        "miou",
        "dice",
        "pixel_accuracy",
        "iou",
        "dice_per_class",
        "frequency",
    )
    old = {"schema": "edgeseg.eval/1", **{key: new[key] for key in (*kept, "frames", "skipped", "machine", "versions")}}
    text = eval_table(old)
    assert re.search(rf"mean +{100 * new['miou']:.2f} +{100 * new['dice']:.2f}", text)
    assert "interval" not in text
    (tmp_path / "e.json").write_text(json.dumps(old))
    assert "Accuracy of" in write_report([tmp_path / "e.json"], tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["iou", "miou", "frequency", "frames", "skipped"])
def test_a_damaged_document_is_an_error(key: str, tmp_path: Path) -> None:
    broken = document()
    del broken[key]
    (tmp_path / "e.json").write_text(json.dumps(broken))
    with pytest.raises(BadInput, match=r"e\.json"):
        write_report([tmp_path / "e.json"], tmp_path / "r.html")
