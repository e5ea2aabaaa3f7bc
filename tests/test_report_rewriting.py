"""The table and the page of a rewrite: numbers where they belong, totals that add up, a picture that can be read."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from edgeseg.errors import BadInput
from edgeseg.measure.latency import summarize
from edgeseg.report import svg
from edgeseg.report.curve import curve_plot
from edgeseg.report.html import write_report
from edgeseg.report.rewriting import count, rewrite_table
from tests.report.figures import along, axis, pictures, place, said, texts
from tests.test_report import NASTY, Page

needs_plots = pytest.mark.skipif(not svg.available(), reason="plots need matplotlib")


def layer(name: str, rule: str | None, macs: list[int], damage: float, ms: list[float] | None) -> dict[str, Any]:
    reason = None if rule else "left as it is by the budget"
    return {
        "name": name,
        "was": "3x3 16→32",
        "rule": rule,
        "macs": macs,
        "damage": damage,
        "ms": ms,
        "reason": reason,
    }


def point(label: str, macs: int, ms: float, miou: float) -> dict[str, Any]:
    return {"label": label, "budget": macs / 1e9, "macs": macs, "ms": ms, "miou": miou}


def latency(ms: float) -> dict[str, Any]:
    return summarize([round(ms * 1e6)] * 80).to_json()


def document() -> dict[str, Any]:
    return {
        "schema": "edgeseg.rewrite/1",
        "name": "net",
        "size": [180, 240],
        "rules": ["separable", "bottleneck"],
        "budget": {"kind": "speedup", "value": 2.5},
        "macs": {"before": 1_000_000_000, "after": 250_000_000},
        "parameters": {"before": 1_790_000, "after": 90_500},
        "layers": [
            layer("enc.1", "separable 1", [400_000_000, 60_000_000], 0.00012, [2.0, 0.5]),
            layer("enc.2", "bottleneck 8x8", [300_000_000, 100_000_000], 0.02, [1.5, 0.75]),
            *(layer(f"dec.{at}", None, [10_000_000, 10_000_000], 0.0, None) for at in range(6)),
            {"name": "up", "was": "", "rule": None, "reason": "a transposed convolution"},
        ],
        "exact": [{"rule": "fold", "layers": ["enc.1"], "says": "batch norm folded", "macs": [1000, 900]}],
        "fit": {"frames": 48, "held_out": 16, "variant": "affine"},
        "latency": {"backend": "openvino", "precision": "int8", "before": latency(12.0), "after": latency(4.0)},
        "accuracy": {"metric": "mIoU", "split": "val", "frames": 101, "before": 0.6, "after": 0.5875}
        | {"unrecovered": 0.57, "agreement": 0.97},
        "recovery": {
            "minutes": 1.5,
            "seconds": 90.2,
            "steps": 120,
            "stopped": "finished",
            "kept": "before",
            "before": 0.58,
            "after": 0.57,
        },
        "curve": [
            point("original", 1_000_000_000, 12.0, 0.6),
            point("rewritten", 250_000_000, 4.0, 0.5875),
            point("0.6", 600_000_000, 9.0, 0.599),
            point("0.45", 450_000_000, 9.5, 0.58),
            point("0.1", 100_000_000, 3.0, 0.41),
        ],
        "notes": ["captured by tracing"],
        "seconds": {"fit": 20.0, "times": 9.5},
        "peak_rss_mb": 200.5,
        "machine": {"cpu": "a processor", "architecture": "x", "isa": [], "cores_usable": None, "memory_mb": None},
        "versions": {"torch": "2"},
    }


def cells(text: str, first: str) -> list[str]:
    """The columns of the row that begins with `first`."""
    (row,) = [line for line in text.splitlines() if line.startswith(first)]
    return re.split(r" {2,}", row)


def test_every_change_is_a_row_and_the_sum_is_theirs() -> None:
    text = rewrite_table(document())
    assert "net: rewritten at 180x240 to be 2.5 times as fast; rules: separable, bottleneck" in text
    assert cells(text, "enc.1") == ["enc.1", "3x3 16→32", "separable 1", "400 M", "60 M", "0.00012", "2.00", "0.50"]
    assert cells(text, "enc.2")[2:] == ["bottleneck 8x8", "300 M", "100 M", "0.02", "1.50", "0.75"]
    assert cells(text, "together") == ["together", "2 of 9 layers", "700 M", "160 M", "0.02", "3.50", "1.25"]
    assert not [line for line in text.splitlines() if line.startswith("dec.")]


def test_totals() -> None:
    text = rewrite_table(document())
    assert cells(text, "MACs") == ["MACs", "1 G", "250 M", "0.250 of it"]
    assert cells(text, "parameters") == ["parameters", "1.79 M", "90.5 k", "0.051 of it"]
    assert cells(text, "p50 ms") == ["p50 ms, openvino int8", "12.00", "4.00", "3.00 times as fast"]
    assert cells(text, "mIoU") == ["mIoU %, 101 frames", "60.00", "58.75", "-1.25 points"]
    assert cells(text, "agreement") == ["agreement %", "100.00", "97.00", "with the original"]


def test_reasons_are_summed_up() -> None:
    text = rewrite_table(document())
    assert "untouched: left as it is by the budget: dec.0, dec.1, dec.2, dec.3 and 2 more" in text
    assert "untouched: a transposed convolution: up" in text
    assert "exact: fold: batch norm folded; 1 k to 900 MACs" in text
    assert "recovery: 120 steps in 1.5 min, 58.00 to 57.00 %, no better, and not kept" in text
    assert "note: captured by tracing" in text
    assert "took 29.5 s: fit 20.0, times 9.5" in text


def test_a_recovery_that_was_kept_or_interrupted() -> None:
    made = document()
    made["recovery"] |= {"kept": "after", "after": 0.6, "stopped": "interrupted", "seconds": 30.0}
    assert "recovery: 120 steps in 0.5 min, interrupted, 58.00 to 60.00 %, kept\n" in rewrite_table(made)


def test_what_was_not_measured_is_a_dash() -> None:
    bare = document() | {"latency": None, "accuracy": None, "recovery": None, "curve": [], "exact": [], "seconds": {}}
    for row in bare["layers"]:
        row["ms"] = None
    text = rewrite_table(bare)
    assert cells(text, "enc.1")[-2:] == ["–", "–"]
    assert cells(text, "together")[-2:] == ["–", "–"]
    assert "time was not measured" in text
    assert "accuracy was not measured" in text
    assert curve_plot(bare) == ""
    nothing = bare | {"layers": [row for row in bare["layers"] if row["rule"] is None]}
    assert "no layer was changed" in rewrite_table(nothing)


def test_agreement_as_the_metric_is_said_once() -> None:
    unlabelled = document()
    unlabelled["accuracy"] = {"metric": "agreement", "frames": 5, "before": 1.0, "after": 0.9, "agreement": 0.9}
    text = rewrite_table(unlabelled)
    assert cells(text, "agreement") == ["agreement %, 5 frames", "100.00", "90.00", "-10.00 points"]


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("macs", 0.3, "to at most 30 % of the MACs"),
        ("ms", 12.0, "to take at most 12 ms"),
        ("bytes", 1_500_000, "to at most 1.50 MB"),
        ("bytes", 800, "to at most 0.8 kB"),
    ],
)
def test_budgets_in_words(kind: str, value: float, said: str) -> None:
    assert said in rewrite_table(document() | {"budget": {"kind": kind, "value": value}})


def test_counts() -> None:
    values = (0, 7, 999, 1000, 1234, 99_500, 999_499, 999_900, 12_345_678, 999_949_999, 2_217_000_000)
    said = ["0", "7", "999", "1 k", "1.23 k", "99.5 k", "999 k", "1 M", "12.3 M", "1 G", "2.22 G"]
    assert [count(value) for value in values] == said
    assert count(None) == "–"


def drawn(made: dict[str, Any]) -> dict[str, ElementTree.Element]:
    """The dots of the wide picture, by the label in their tooltips."""
    return {text.split(":")[0]: dot for text, dot in said(pictures(curve_plot(made))[0]).items()}


@needs_plots
def test_points_stand_where_the_axes_say() -> None:
    picture = pictures(curve_plot(document()))[0]
    dots = drawn(document())
    assert set(dots) == {"original", "rewritten", "0.6", "0.45", "0.1"}
    across, up = axis(picture, "x"), axis(picture, "y")
    first, slope = place(dots["0.6"]), along(up, 1.0) - along(up, 0.0)
    start = next(row for row in document()["curve"] if row["label"] == "0.6")
    for row in document()["curve"]:
        x, y = place(dots[row["label"]])
        assert x == pytest.approx(along(across, row["ms"]), abs=0.6)
        assert y - first[1] == pytest.approx(100 * slope * (row["miou"] - start["miou"]), abs=0.6)


@needs_plots
def test_labels_say_the_share() -> None:
    crowded = document()
    crowded["curve"] += [point(f"b{at}", 10_000_000 * at, 9.0 + 0.05 * at, 0.58 + 0.002 * at) for at in range(1, 5)]
    words = {text for text, *_ in texts(pictures(curve_plot(crowded))[0])}
    assert {"original, 100 %", "rewritten, 25 %", "60 %", "45 %", "10 %", "1 %"} <= words


@needs_plots
def test_what_another_beats_is_hollow() -> None:
    fills = {label: "".join(p.get("style", "") for p in dot.iter("path")) for label, dot in drawn(document()).items()}
    assert {label for label, style in fills.items() if "fill: var(--ground)" in style} == {"0.45"}
    assert "fill: var(--s2)" in fills["original"]
    assert "hollow: another is faster and better" in curve_plot(document())


@needs_plots
def test_agreement_and_a_curve_without_the_original() -> None:
    unlabelled = document()
    unlabelled["curve"] = [
        {"label": f"{share}", "budget": share, "macs": share, "ms": 10 * share, "agreement": 1 - 0.1 * (1 - share)}
        for share in (0.3, 0.6)
    ]
    assert set(drawn(unlabelled)) == {"0.3", "0.6", "original"}  # from the latency before; it agrees with itself
    figure = curve_plot(unlabelled)
    assert "original, 100 %" in figure
    assert "agreement with the original, %" in figure


@needs_plots
@pytest.mark.parametrize(
    "values", [[(5.0, 0.5)], [(5.0, 0.5), (5.0, 0.5)], [(0.01, 1.0), (0.02, 0.9999)], [(900.0, 0)]]
)
def test_extreme_ranges(values: list[tuple[float, float]]) -> None:
    few = document() | {"latency": None, "curve": [point(f"p{at}", 10, *value) for at, value in enumerate(values)]}
    for picture in pictures(curve_plot(few)):
        _, _, width, height = map(float, picture.attrib["viewBox"].split())
        dots = said(picture)
        assert len(dots) == len(values)
        assert all(0 < x < width and 0 < y < height for x, y in map(place, dots.values()))
        assert max(axis(picture, "y")) <= 100


def test_without_times_there_is_no_curve() -> None:
    assert curve_plot(document() | {"curve": [], "latency": None}) == ""


def test_the_page(tmp_path: Path) -> None:
    written = document() | {"name": NASTY}
    written["layers"][0]["name"] = written["curve"][2]["label"] = NASTY
    (tmp_path / "r.json").write_text(json.dumps(written), encoding="utf-8")
    text = write_report([tmp_path / "r.json"], tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.balanced
    assert NASTY in "".join(page.words)
    assert not any("onmouseover" in attributes for _, attributes in page.tags)
    assert [tag for tag, _ in page.tags].count("svg") == (2 if svg.available() else 0)  # for a desk and for a phone
    words = " ".join(page.words)
    for expected in ("separable 1", "3.00 times as fast", "-1.25 points", "a processor", "2 of 9 layers"):
        assert expected in words
    damaged = deepcopy(written)
    del damaged["macs"]
    (tmp_path / "d.json").write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(BadInput, match=r"d\.json, macs"):
        write_report([tmp_path / "d.json"], tmp_path / "d.html")
