"""Accuracy near boundaries, compared frame by frame and budgeted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.compare import accuracy, compare
from edgeseg.errors import BadInput
from edgeseg.measure.bootstrap import iou
from tests.compare.making import gate_of, made, metrics, write


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "RESAMPLES", 500)


def with_band(document: dict[str, Any], near: Any) -> dict[str, Any]:
    """The same with these counts (3, N, C) within 3 pixels of a boundary."""
    found = copy.deepcopy(document)
    each = iou(*near.sum(axis=1))
    found["per_frame"]["boundary"] = {"3": dict(zip(("tp", "fp", "fn"), near.tolist(), strict=True))}
    shares = dict(zip(found["iou"], each.tolist(), strict=True))
    found["boundary"]["3"] = {"miou": float(each.mean()), "pixel_accuracy": 0.5, "iou": shares, "pixels": 9}
    return found


def pair(loss: float) -> list[dict[str, Any]]:
    """The same accuracy overall; near boundaries the second is worse by `loss` points."""
    whole = made.video(3, 0.0, frames=120)[0]
    near = made.counts(np.random.default_rng(5), 120, loss)
    return [with_band(whole, counts) for counts in near]


def compared(tmp_path: Path, pair: list[dict[str, Any]], budget: str) -> dict[str, Any]:
    file = tmp_path / "budget.toml"
    file.write_text(budget, encoding="utf-8")
    paths = [write(tmp_path / f"{name}.json", one) for name, one in zip("ab", pair, strict=True)]
    return compare(*paths, budget=file)


def test_a_loss_near_boundaries_fails_its_budget_alone(tmp_path: Path) -> None:
    budget = "[miou]\nmax_drop = 0.5\n['boundary.3.miou']\nmax_drop = 0.5\n"
    found = compared(tmp_path, pair(3.0), budget)
    assert gate_of(found) == ("failed", 1)
    rows = metrics(found)
    assert (rows["boundary.3.miou"]["verdict"], rows["boundary.3.miou"]["gate"]) == ("worse", "failed")
    assert rows["boundary.3.miou"]["interval"][1] < -1
    assert (rows["miou"]["verdict"], rows["miou"]["gate"]) == ("same", "passed")


def test_nothing_lost_passes(tmp_path: Path) -> None:
    one = pair(3.0)[0]
    assert gate_of(compared(tmp_path, [one, one], "[boundary.3.miou]\nmax_drop = 0.5\n")) == ("passed", 0)


def test_the_interval_is_that_of_the_same_counts_as_a_whole(tmp_path: Path) -> None:
    near = made.counts(np.random.default_rng(5), 120, 1.0)
    band = metrics(compared(tmp_path, pair(1.0), "[boundary.3.miou]\nmax_drop = 0.5\n"))["boundary.3.miou"]
    whole = [made.eval_document(one) for one in near]
    sequences = made.video(3, 0.0, frames=120)[0]["per_frame"]["sequences"]
    for one in whole:
        one["per_frame"]["sequences"] = sequences
    alone = metrics(compared(tmp_path, whole, "[miou]\nmax_drop = 0.5\n"))["miou"]
    assert band["interval"] == pytest.approx(alone["interval"])


def test_older_documents_have_the_sums_only(tmp_path: Path) -> None:
    both = pair(3.0)
    del both[0]["per_frame"]["boundary"]
    both[1]["per_frame"]["boundary"] = None
    row = metrics(compared(tmp_path, both, "[boundary.3.miou]\nmax_drop = 0.5\n"))["boundary.3.miou"]
    assert (row["verdict"], row["gate"]) == ("cannot tell", "cannot tell")
    assert row["reason"] == "no counts per frame for it"


def test_counts_of_another_band_are_refused(tmp_path: Path) -> None:
    both = pair(0.0)
    both[1]["per_frame"]["boundary"]["3"]["fn"][0][0] += 500_000
    with pytest.raises(BadInput, match=r"per_frame\.boundary\.3: its frames give .* points of boundary\.3\.miou"):
        compared(tmp_path, both, "[miou]\nmax_drop = 0.5\n")
    both[1]["per_frame"]["boundary"]["3"]["fn"].pop()
    with pytest.raises(BadInput, match=r"per_frame\.boundary\.3: wanted"):
        compared(tmp_path, both, "[miou]\nmax_drop = 0.5\n")
