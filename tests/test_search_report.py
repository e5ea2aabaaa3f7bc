"""The table, the page and the picture of a search: every candidate a dot, predicted ones told apart."""

from __future__ import annotations

from typing import Any

import pytest

from edgeseg.report import svg
from edgeseg.report.search import search_plot, search_section, search_table
from tests.report.figures import extent, pictures, place, said, texts
from tests.test_report import NASTY, Page

needs_plots = pytest.mark.skipif(not svg.available(), reason="plots need matplotlib")


def candidate(kept: list[str], ms: float | None, how: str | None, drop: float, **more: Any) -> dict[str, Any]:
    row = {
        "kept": kept,
        "ms": ms,
        "ms_from": how,
        "accuracy": 70 - drop,
        "drop": drop,
        "error": 0.02,
        "worst_class": {"name": "pole", "drop": 3 * drop},
        "meets": drop <= 0.28,
        "chosen": False,
    }
    return row | more


def document() -> dict[str, Any]:
    return {
        "schema": "edgeseg.search/1",
        "name": "net",
        "backend": "openvino",
        "metric": "mIoU",
        "classes": ["sky", "pole"],
        "floor": {"max_drop": 0.3, "max_class_drop": None, "margin": 1.0},
        "reached": True,
        "ended": "done",
        "seconds": 61.5,
        "selection": {"frames": 100, "labelled": 100, "split": "train", "skipped": []},
        "judged": "on the runtime",
        "everything_int8": {"snr_db": 20.0, "agreement": 0.97, "frames": 4},
        "convolutions": [
            {
                "node": "conv3",
                "snr_db": {"alone": 21.0, "without": 30.0},
                "agreement": {"alone": 0.971, "without": 0.99},
                "ms": 0.25,
                "ms_from": "measured",
            },
            {
                "node": "conv1",
                "snr_db": {"alone": None, "without": 20.0},
                "agreement": {"alone": 1.0, "without": 0.97},
                "ms": None,
                "ms_from": None,
            },
        ],
        "fp32": {"ms": 12.0, "ms_from": "measured", "accuracy": 70.0},
        "candidates": [
            candidate([], 4.0, "measured", 1.5),
            candidate(["conv3"], 4.25, "measured", 0.2, chosen=True),
            candidate(["conv1", "conv3"], 5.0, "predicted", 0.1),
        ],
    }


def test_the_table() -> None:
    text = search_table(document())
    assert "net in INT8 on openvino: at most 0.3 points of mIoU lost, by 1 standard error" in text
    rows = text.splitlines()
    (chosen,) = [row for row in rows if row.startswith("* 1: conv3")]
    assert chosen.split()[3:] == ["4.25", "measured", "69.80", "0.200", "0.020", "pole", "0.60", "meets"]
    (whole,) = [row for row in rows if row.startswith("  nothing: INT8")]
    assert whole.split()[-1] == "misses"
    assert "* meets the floor; in float: conv3" in text
    assert "chosen on 100 frames of 'train', labelled" in text
    assert "3 candidates in 62 s: nothing near it is better" in text
    assert [row.split() for row in rows if row.startswith("conv3")] == [
        ["conv3", "21.0", "97.10", "30.0", "99.00", "0.250", "measured"]
    ]
    assert "no noise" in text
    made = document()
    made["convolutions"][0] |= {
        "snr_db": {"alone": 21.0, "without": None},
        "agreement": {"alone": 0.971, "without": None},
    }
    (row,) = [row for row in search_table(made).splitlines() if row.startswith("conv3")]
    assert row.split()[3:5] == ["–", "–"]  # there was no time to judge


def test_a_search_that_failed_says_so() -> None:
    made = document() | {"reached": False, "ended": "time"}
    made["floor"] = {"max_drop": 0.05, "max_class_drop": 1.0, "margin": 0}
    text = search_table(made)
    assert "comes closest to the floor, and nothing meets it" in text
    assert "and 1 of any class" in text
    assert "standard error" not in text
    assert "the same command goes on" in text


def test_only_the_best_of_many_are_in_a_text_and_all_on_a_page() -> None:
    made = document()
    made["candidates"] += [candidate([f"n{at}"], 6.0 + at, "predicted", 0.5 + at) for at in range(40)]
    text = search_table(made)
    assert "and 23 more candidates" in text
    assert "* 1: conv3" in text
    assert "n39" not in text
    assert "n39" in search_section(made)


@needs_plots
def test_one_dot_a_candidate_and_predicted_ones_are_hollow() -> None:
    picture = pictures(search_plot(document()))[0]
    dots = {text: dot for text, dot in said(picture).items() if not text.startswith("FP32")}
    assert len(dots) == 3
    fills = {text: "".join(p.get("style", "") for p in dot.iter("path")) for text, dot in dots.items()}
    hollow = {text for text, style in fills.items() if "fill: var(--ground)" in style}
    assert hollow == {text for text in fills if "predicted" in text}
    assert len(hollow) == 1
    assert "1: conv3: 4.25 ms measured, 69.80 %" in dots
    sizes = {text: extent(dot)[2] - extent(dot)[0] for text, dot in dots.items()}
    assert max(sizes, key=lambda text: sizes[text]).startswith("1: conv3")  # the chosen one is large
    places = sorted(map(place, dots.values()))
    heights = [y for _, y in places]
    assert heights == sorted(heights, reverse=True)  # slower is better here, and better is higher up
    assert place(said(picture)["FP32: 12.00 ms, 70.00 %"])[0] > places[-1][0]
    floor = next(y for text, _, y, _ in texts(picture) if text == "0.3 points less")
    assert heights[0] > floor - 14 > heights[1]  # the text hangs under its line


@pytest.mark.parametrize("missing", ["ms", "accuracy"])
def test_without_times_or_accuracies_there_is_no_picture_but_a_table(missing: str) -> None:
    made = document()
    for row in made["candidates"]:
        row |= {missing: None, "ms_from": None}
        if missing == "accuracy":
            row |= {"drop": None, "error": None, "worst_class": None, "meets": False}
    made["fp32"] |= {"ms": None, "ms_from": None}
    assert search_plot(made) == ""
    assert "–" in search_table(made)
    assert "refused" in search_table(made) or missing == "ms"
    assert "<svg" not in search_section(made)


@needs_plots
def test_a_single_dot_that_is_as_good_as_fp32() -> None:
    made = document()
    made["candidates"] = [candidate([], 4.0, "measured", 0.0, chosen=True)]
    made["floor"]["max_drop"] = 0.0
    assert len(said(pictures(search_plot(made))[0])) == 2  # and FP32


def test_names_cannot_inject() -> None:
    made = document() | {"name": NASTY, "backend": NASTY, "metric": NASTY}
    made["candidates"][1]["kept"] = [NASTY]
    made["candidates"][1]["worst_class"]["name"] = NASTY
    made["convolutions"][0]["node"] = NASTY
    page = Page(search_section(made))
    assert not page.wrong
    assert not page.stack
    assert NASTY not in search_section(made)
    assert len(pictures(search_plot(made))) == (2 if svg.available() else 0)
