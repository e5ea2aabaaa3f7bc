"""Plots: everything stands where the axes say, follows the page's colours, keeps its tail, and cannot be injected."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from edgeseg.report import plots, svg
from edgeseg.report.plots import Dot
from tests.report.figures import along, axis, extent, pictures, place, said, texts

pytest.importorskip("matplotlib", reason="plots need matplotlib")

NASTY = '<b onmouseover="x()">&amp;$x$'
DOTS = [
    Dot(26.0, 54.2, "original", "original: slow", colour="s2", square=True),
    Dot(12.0, 53.0, "INT8", "INT8: fast", bold=True),
    Dot(19.0, 54.1, "FP16", "FP16: between", area=4.0),
    Dot(12.5, 52.0, "", "beaten", hollow=True),
]


def scatter() -> str:
    return plots.scatter(DOTS, x="ms", y="mIoU, %", title="trade-off", line=[(12.0, 53.0), (26.0, 54.2)])


ALL: dict[str, Callable[[], str]] = {
    "scatter": scatter,
    "ecdf": lambda: plots.ecdf({"a": [1.0, 2.0, 9.0], "b": [2.0, 3.0]}),
    "histogram": lambda: plots.histogram({"a": [1.0, 2.0, 9.0], "b": [2.0, 3.0]}),
    "box": lambda: plots.box({"a": [1.0, 2.0, 9.0], "b": [2.0, 3.0]}),
    "bars": lambda: plots.bars({"a": {"sky": 0.5, "sea": None}}, factor=100.0, intervals={"a": {"sky": (0.4, 0.7)}}),
    "heat": lambda: plots.heat([[3, 1], [0, 0]], ["sky", "sea"]),
    "lines": lambda: plots.lines({"a": [(0, 1.0), (1, None), (2, 3.0)]}, x="s", y="ms", title="t", marks=[(1, "now")]),
}


@pytest.mark.parametrize("name", ALL)
def test_a_figure_belongs_to_the_page(name: str) -> None:
    figure = ALL[name]()
    wide, narrow = pictures(figure)
    assert wide.get("viewBox", "").startswith(f"0 0 {svg.WIDE} ")
    assert narrow.get("viewBox", "").startswith(f"0 0 {svg.NARROW} ")
    for picture in (wide, narrow):
        assert picture.get("role") == "img"
        assert picture.get("aria-label")
        for element in picture.iter():
            assert not {"id", "clip-path", "href"} & set(element.attrib), element.attrib
            assert element.tag not in ("defs", "use", "metadata", "script", "style", "image")
    assert not re.search(r"#[0-9a-f]{3,6}\b|url\(|//|DejaVu", figure)  # its colours and its font are the page's
    assert "var(--" in figure
    assert ALL[name]() == figure  # the same data is the same page


def test_a_colour_that_is_not_the_pages_is_found() -> None:
    assert "var(--ink)" in svg._styled(f"fill: {svg.COLOUR['ink']}")
    assert svg._styled("fill: #123456") == "fill: #123456"


@pytest.mark.parametrize("width", [0, 1], ids=["wide", "narrow"])
def test_dots_stand_where_the_axes_say(width: int) -> None:
    picture = pictures(scatter())[width]
    drawn, across, up = said(picture), axis(picture, "x"), axis(picture, "y")
    assert len(across) >= 3
    assert len(up) >= 3
    assert min(across) == 0.0
    some = [(dot, place(drawn[dot.said])) for dot in DOTS]
    for dot, (x, y) in some:
        assert x == pytest.approx(along(across, dot.x), abs=0.6)
        assert 0 < x < float(picture.attrib["viewBox"].split()[2])
        first, at = some[0]
        slope = along(up, 54.0) - along(up, 53.0)  # the text of a tick stands a little below it, and all alike
        assert y - at[1] == pytest.approx(slope * (dot.y - first.y), abs=0.6)


def test_labels_lie_on_no_other() -> None:
    crowded = [Dot(10 + 0.05 * at, 50 + 0.002 * at, f"label {at}", f"said {at}") for at in range(7)]
    picture = pictures(plots.scatter(crowded, x="ms", y="%", title="crowded"))[0]
    boxes = []
    for text, x, y, anchor in texts(picture):
        if text.startswith("label"):
            width = 5.0 * len(text)
            left = {"middle": x - width / 2, "start": x, "end": x - width}[anchor]
            boxes.append((left, y - 8, left + width, y))
    assert len(boxes) == len(crowded)
    for at, one in enumerate(boxes):
        for other in boxes[:at]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_noise_does_not_look_like_a_difference() -> None:
    close = [Dot(10.0, 60.01, "a", "a"), Dot(20.0, 60.02, "b", "b")]
    ticks = axis(pictures(plots.scatter(close, x="ms", y="%", title="t", span=1.0))[0], "y")
    assert max(ticks) - min(ticks) >= 0.6
    near = axis(pictures(plots.scatter(close, x="ms", y="%", title="t"))[0], "y")
    assert max(near) - min(near) < 0.6
    top = axis(pictures(plots.scatter([Dot(1.0, 99.99, "", "x")], x="", y="", title="", most=100.0, span=2.0))[0], "y")
    assert max(top) <= 100.0


def test_the_tail_is_drawn_to_its_last_sample() -> None:
    samples = [*np.random.default_rng(0).normal(10, 0.5, 999).tolist(), 50.0]
    picture = pictures(plots.ecdf({"engine": samples}))[0]
    end = next(group for text, group in said(picture).items() if "the largest of 1000, 50.00 ms" in text)
    up = axis(picture, "y")
    assert place(end)[1] == pytest.approx(along(up, 50.0), abs=6)  # text stands a little below its tick
    shown = [text for text, *_ in texts(picture)]
    assert {"p0", "p50", "p90", "p99", "p99.9"} <= set(shown)
    few = [text for text, *_ in texts(pictures(plots.ecdf({"engine": samples[:20]}))[0])]
    assert "p90" in few
    assert "p99" not in few  # twenty samples say nothing about it


def test_percentiles_stand_at_their_nines() -> None:
    ticks = {t: x for t, x, _, _ in texts(pictures(plots.ecdf({"a": np.arange(2000.0).tolist()}))[0])}
    step = ticks["p90"] - ticks["p0"]
    assert ticks["p99"] - ticks["p90"] == pytest.approx(step, abs=0.5)
    assert ticks["p99.9"] - ticks["p99"] == pytest.approx(step, abs=0.5)
    assert (ticks["p50"] - ticks["p0"]) / step == pytest.approx(math.log10(2), abs=0.01)


@pytest.mark.parametrize("count", [1, 2, 599, 601, 5000])
def test_thinning_keeps_the_tail(count: int) -> None:
    kept = plots._fewer(count)
    assert kept[0] == 0
    assert kept[-1] == count - 1
    assert len(kept) <= 600
    assert np.all(np.diff(kept) > 0)
    assert set(range(max(0, count - 100), count)) <= set(kept.tolist())


@pytest.mark.parametrize("values", [[5.0], [5.0] * 10, [0.0, 1.0], [*np.arange(50.0), 1e6]])
def test_bins_hold_every_sample(values: list[float]) -> None:
    edges = plots._bins(np.array(values))
    assert np.histogram(values, edges)[0].sum() == len(values)
    assert 2 <= len(edges) <= 121


def test_bars_are_as_long_as_their_values() -> None:
    figure = plots.bars(
        {"before": {"sky": 0.8, "sea": 0.2}, "after": {"sky": 0.4, "sea": None}},
        "IoU, %",
        factor=100.0,
        most=100.0,
        intervals={"before": {"sky": (0.7, 0.9)}},
    )
    picture = pictures(figure)[0]
    drawn, across = said(picture), axis(picture, "x")
    assert set(drawn) == {
        "sky, before: 80.00 IoU, %, interval 70.00 to 90.00",
        "sea, before: 20.00 IoU, %",
        "sky, after: 40.00 IoU, %",
    }
    for text, group in drawn.items():
        value = float(text.split(": ")[1].split()[0])
        left, _, right, _ = extent(group)
        assert left == pytest.approx(along(across, 0.0), abs=0.6)
        assert right == pytest.approx(along(across, value), abs=0.6)
    assert "does not occur" in figure
    assert plots.bars({"a": {"sky": None}}) == ""


def test_a_matrix_is_shares_of_its_rows() -> None:
    picture = pictures(plots.heat([[90, 10, 0], [0, 0, 0], [1, 0, 1]], ["sky", "sea", "sun"]))[0]
    assert set(said(picture)) == {
        "90.00 % of sky found",
        "10.00 % of sky taken for sea",
        "50.00 % of sun taken for sky",
        "50.00 % of sun found",
    }
    wider = pictures(plots.heat([[1, 0, 3], [0, 1, 0]], ["sky", "sea"]))[0]
    assert "75.00 % of sky taken for none of these" in said(wider)
    for matrix in ([[1, 2]], [[1]], [[1, 2], [3, 4], [5, 6]]):
        with pytest.raises(ValueError, match="2 by 2"):
            plots.heat(matrix, ["sky", "sea"])


def test_lines_leave_gaps_and_mark_changes() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 3.0), (4.0, 4.0)]
    figure = plots.lines({"p50": points}, x="s", y="ms", title="t", marks=[(1.5, "+8 %")], dots=True)
    picture = pictures(figure)[0]
    drawn = said(picture)
    path = next(drawn["p50"].iter("path")).get("d", "")
    assert path.count("M") == 2  # two runs of the pen
    assert "+8 %" in drawn
    assert sum(text.startswith("p50: ") for text in drawn) == 4
    assert plots.lines({"a": [(0, None)]}, x="", y="", title="") == ""


def test_names_cannot_inject() -> None:
    some = {NASTY: [1.0, 2.0]}
    for figure in (
        plots.ecdf(some, NASTY, NASTY),
        plots.histogram(some, NASTY, NASTY),
        plots.box(some, NASTY, NASTY),
        plots.bars({NASTY: {NASTY: 1.0}, "b": {NASTY: 2.0}}, NASTY, NASTY),
        plots.heat([[1]], [NASTY], NASTY),
        plots.scatter([Dot(1, 1, NASTY, NASTY)], x=NASTY, y=NASTY, title=NASTY, note=NASTY, level=(1.0, NASTY)),
        plots.lines({NASTY: [(0, 1.0)]}, x=NASTY, y=NASTY, title=NASTY, marks=[(0, NASTY)]),
    ):
        assert "<b" not in figure
        assert all(picture.tag == "svg" for picture in pictures(figure))
        read = [text for picture in pictures(figure) for text, *_ in texts(picture)]
        assert any("$x$" in text or "…" in text for text in read)  # as it is written, not as a formula


def test_without_matplotlib_there_is_no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [draw() for draw in ALL.values()] == [""] * len(ALL)


@pytest.mark.parametrize("draw", [plots.ecdf, plots.histogram, plots.box, plots.bars])
def test_nothing_to_draw(draw: Callable[..., str]) -> None:
    assert draw({}) == ""


def test_no_dots_and_no_classes() -> None:
    assert plots.scatter([], x="", y="", title="") == ""
    assert plots.heat([], []) == ""


def test_series_are_told_apart_without_their_colours() -> None:
    looks = plots.styles([str(at) for at in range(14)])
    assert len(set(looks.values())) == 14
    assert len(plots.styles([str(at) for at in range(40)])) == 40
