"""Tables and the page: aligned, balanced, escaped, standing alone; pictures of the right shapes and colours."""

from __future__ import annotations

import base64
import json
import re
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeseg.bundle import read_bundle, write_bundle
from edgeseg.errors import BadInput
from edgeseg.report.bench import bench_table
from edgeseg.report.evaluation import eval_table
from edgeseg.report.html import write_report
from edgeseg.report.picture import coloured, overlay, png, side_by_side
from edgeseg.report.text import DASH, build_table, number, size, table

VOID = {"meta", "img", "br", "hr", "link", "input"}
NASTY = '<b onmouseover="x()">&amp;'
PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


class Page(HTMLParser):
    """Counts what is open, and gathers tags, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def balanced(self) -> bool:
        return not self.stack and not self.wrong


def test_the_checker_of_pages_can_fail() -> None:
    assert Page("<p><b>x</b></p>").balanced
    assert not Page("<p><b>x</p></b>").balanced
    assert not Page("<p>").balanced
    assert not Page("</p>").balanced


LATENCY = {
    "count": 20,
    "mean": 2.0,
    "min": 1.0,
    "max": 9.0,
    "stdev": 1.0,
    "p50": 1.9,
    "p90": None,
    "p99": None,
    "reasons": {"p90": "p90 needs 64 samples, there are 20", "p99": "p99 needs 662 samples, there are 20"},
}


def eval_document(names: tuple[str, ...] = ("road", NASTY, "absent")) -> dict[str, Any]:
    iou = dict(zip(names, (0.5, 0.25, None), strict=True))
    return {
        "schema": "edgeseg.eval/1",
        "bundle": NASTY,
        "variant": "v",
        "precision": "int8",
        "data": {"name": NASTY, "split": NASTY, "digest": "0"},
        "miou": 0.375,
        "dice": 0.5,
        "pixel_accuracy": 0.9,
        "iou": iou,
        "dice_per_class": iou,
        "frequency": dict.fromkeys(names, 1 / 3),
        "frames": 3,
        "skipped": [],
        "machine": {"cpu": NASTY, "architecture": "x", "isa": ["avx2"], "cores_usable": 2.0, "memory_mb": None},
        "versions": {"numpy": "2"},
    }


def bench_document() -> dict[str, Any]:
    return {
        "schema": "edgeseg.bench/1",
        "bundle": NASTY,
        "path": NASTY,
        "graph": "0",
        "variant": "v",
        "backend": NASTY,
        "precision": "int8",
        "settings": {NASTY: NASTY},
        "frame_size": [48, 64],
        "samples": 20,
        "latency_ms": LATENCY,
        "end_to_end_ms": LATENCY,
        "cold_ms": {"open": 12.3, "first_frame": 4.56},
        "fps": 500.0,
        "machine": {"cpu": None, "architecture": "x", "isa": [], "cores_usable": None, "memory_mb": None},
        "versions": {"numpy": "2"},
    }


def page_of(documents: list[Any], folder: Path) -> str:
    paths = []
    for index, document in enumerate(documents):
        paths.append(folder / f"{index}.json")
        paths[-1].write_text(json.dumps(document), encoding="utf-8")
    return write_report(paths, folder / "out" / "report.html").read_text(encoding="utf-8")


def stands_alone(text: str) -> bool:
    text = re.sub(r'src="data:image/(?:png|jpeg);base64,[A-Za-z0-9+/=]+"', "", text)
    outside = re.findall(r"(?:https?:)?//[a-z]|@import|url\(|<script|<link", text)
    return not outside


def test_a_page_of_a_bundle(built: Path, tmp_path: Path) -> None:
    text = write_report([built], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.balanced, (page.stack, page.wrong)
    assert stands_alone(text)
    assert not stands_alone('<img src="https://example.org/x.png">')
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4 * 4  # of each reference frame itself, two masks, and what differs
    for source in pictures:
        assert source.startswith("data:image/jpeg;base64,")
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        assert decoded.shape[:2] == read_bundle(built).references[0].mask.shape
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    words = " ".join(page.words)
    for engine in read_bundle(built).verdict["engines"]:
        assert engine["name"] in words


def test_names_are_escaped(tmp_path: Path) -> None:
    text = page_of([eval_document(), bench_document(), [bench_document(), eval_document()]], tmp_path)
    page = Page(text)
    assert page.balanced
    assert NASTY not in text
    assert not any("onmouseover" in attributes for _, attributes in page.tags)
    assert any(NASTY in words for words in page.words)  # but still read as it was written


def test_a_bundle_with_nasty_names(built: Path, tmp_path: Path) -> None:
    bundle = read_bundle(built)
    report = deepcopy(dict(bundle.verdict))
    names = [f"{NASTY}{index}" for index in range(10)]
    report |= {"name": NASTY, "classes": names, "reasons": [NASTY], "rejected": [{"name": NASTY, "why": NASTY}]}
    for row in report["engines"]:
        for key in ("iou", "dice_per_class", "frequency"):
            row[key] = dict(zip(names, row[key].values(), strict=True))
        row["settings"] = {NASTY: NASTY}
    report["intake"]["form"] = report["calibration"]["recipe"]["name"] = report["evaluation"]["split"] = NASTY
    output = replace(bundle.spec.output, classes=tuple(names))
    changed = replace(
        bundle,
        verdict=report,
        spec=replace(bundle.spec, output=output),
        references=tuple(replace(r, name=NASTY) for r in bundle.references),
    )
    path = write_bundle(changed, tmp_path / "nasty.edgeseg")
    text = write_report([path], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.balanced
    assert not any("onmouseover" in attributes for _, attributes in page.tags)
    assert NASTY not in text


@pytest.mark.parametrize("classes", [("road", "car", "sky")])
def test_a_hostile_document_puts_no_tags_into_the_page(classes: tuple[str, ...], tmp_path: Path) -> None:
    """A number where a tag is hidden: refused or escaped, never written as it is."""
    document = eval_document(classes) | {"frames": "<script>alert(1)</script>"}
    try:
        text = page_of([document], tmp_path)
    except BadInput:
        return
    assert "<script>" not in text


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        "text",
        {"schema": "edgeseg.eval/3"},
        {"schema": "edgeseg.eval/1"},
        {"schema": "edgeseg.build/1", "engines": []},
        {"schema": "edgeseg.bench/1", "bundle": 1, "latency_ms": {}},
        {"schema": ["edgeseg.eval/1"]},
    ],
    ids=str,
)
def test_other_documents_are_refused(document: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"0\.json"):
        page_of([document], tmp_path)


def test_a_table_is_aligned() -> None:
    text = table(("name", "a", "long header"), [("x", "1.00", "2"), ("a longer name", "10.00", "3.14")])
    lines = text.splitlines()
    assert lines[0] == "name               a  long header"
    assert lines[1] == "-------------  -----  -----------"
    assert lines[2] == "x               1.00            2"
    assert lines[3] == "a longer name  10.00         3.14"
    assert table(("only", "header"), []).splitlines() == ["only  header", "----  ------"]


def test_numbers_and_sizes() -> None:
    assert number(None) == DASH
    assert number(0.12345, 2, 100) == "12.35" or number(0.12345, 2, 100) == "12.34"
    assert number(0.0) == "0.00"
    assert size(0) == "0.0 kB"
    assert size(99_999) == "100.0 kB"
    assert size(100_000) == "0.10 MB"
    assert size(2_500_000) == "2.50 MB"


def test_tables_of_documents(built: Path) -> None:
    report = dict(read_bundle(built).verdict)
    text = build_table(report)
    lines = text.splitlines()
    rows = [line for line in lines if line[2:].startswith("onnxruntime-") and line.endswith("B")]
    assert len(rows) == 2
    assert len({len(line) for line in rows}) == 1  # the last column ends where all end
    assert sum(line.startswith("* ") for line in rows) == 1
    assert f"* handed over: {report['chosen']}" in text
    for reason in report["reasons"]:
        assert reason in text
    unknown = report | {
        "evaluation": None,
        "engines": [row | {"miou": None, "agreement": None, "boundary_agreement": None} for row in report["engines"]],
    }
    assert "no frames to judge by" in build_table(unknown)
    assert DASH in build_table(unknown)

    text = eval_table(eval_document(("road", "car", "absent")))
    assert re.search(r"absent +– +– +33\.33", text)
    assert re.search(r"mean +37\.50 +50\.00", text)
    assert "pixel accuracy 90.00 %" in text
    text = bench_table([bench_document()])
    assert "p99 needs 662 samples" in text
    assert "12 ms to open, 4.6 ms for the first frame" in text


def test_a_mask_gets_its_colours() -> None:
    mask = np.array([[0, 1, 2, 3, 255]], np.uint8)
    painted = coloured(mask, PALETTE)
    assert painted.shape == (1, 5, 3)
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(painted[0], [(0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 0, 0), (0, 0, 0)])  # BGR
    assert coloured(mask, [(1, 2, 3)] * 300).shape == (1, 5, 3)


def test_an_overlay_lies_between_frame_and_mask() -> None:
    frame = np.full((4, 6, 3), 100, np.uint8)
    mask = np.zeros((4, 6), np.uint8)
    mixed = overlay(frame, mask, PALETTE, strength=0.25)
    assert mixed.shape == frame.shape
    np.testing.assert_array_equal(mixed[0, 0], np.rint([75, 75, 0.25 * 255 + 75]))
    np.testing.assert_array_equal(overlay(frame, mask, PALETTE, strength=0.0), frame)


def test_pictures_side_by_side() -> None:
    one, two = np.zeros((48, 64, 3), np.uint8), np.full((24, 24, 3), 200, np.uint8)
    row = side_by_side([("one", one), ("two", two)], height=48)
    assert row.shape == (48 + 24, 64 + 4 + 48, 3)
    np.testing.assert_array_equal(row[24:, :64], one)
    assert (row[24:, 68:] == 200).all()
    assert (row[:24, :64] < 255).any()  # a caption


def test_png_is_lossless() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    data = png(picture)
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), picture)
