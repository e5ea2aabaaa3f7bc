"""tools/bench families: a family by chance from weights to table, and what is said where something fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import benchmarks.families as families
from benchmarks.families_report import HEADER, text

from edgeseg.report.text import DASH
from tests.quantize.making import STREET


def measured(tmp_path: Path, **changed: Any) -> dict[str, Any]:
    data, work = tmp_path / "street.toml", tmp_path / "work"
    data.write_text(STREET, encoding="utf-8")
    work.mkdir()
    told: dict[str, Any] = {
        "trained": (), "split": "train", "eval_split": "val", "size": (32, 48), "speedup": None, "share": 0.6,
        "samples": 4, "only": ("patch_network",), "paper": False,
    }  # fmt: skip
    seen: list[int] = []
    found = families.measure(
        data=data, work=work, say=print, written=lambda document: seen.append(len(document["rows"])), **told | changed
    )
    assert seen == list(range(1, len(found["rows"]) + 1))  # what is measured is written at once
    return found


def table(header: Any, rows: Any) -> str:
    assert all(len(row) == len(header) for row in rows)
    return "\n".join("|".join(row) for row in (header, *rows))


def test_a_family_by_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.SMALL, "patch_network", {"width": 4, "kernels": [4, 3], "last": 2, "hidden": 8})
    document = measured(tmp_path)
    (row,) = document["rows"]
    assert row["failure"] is None
    assert row["macs"] > 0
    assert set(row["latency_ms"]) == set(row["agreement"]) == set(row["engines"])
    assert row["agreement"]["fp32"] == 1.0
    assert 0 < row["agreement"]["int8"] <= 1
    if row["rewritten_macs"] is not None:
        assert row["rewritten_macs"] <= 0.61 * row["macs"]
    shown = text(document, table)
    assert "Weights by chance, 32 x 48" in shown
    assert shown.splitlines()[-1].split("|")[0] == "patch_network"
    assert shown.splitlines()[-1].split("|")[4] == DASH  # no mIoU of weights by chance
    (work,) = tmp_path.glob("work/*.toml")
    assert 'factory = "edgeseg.zoo:patch_network"' in work.read_text(encoding="utf-8")


def test_one_that_fails_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "gone.pt").write_bytes(b"no weights")
    document = measured(tmp_path, trained=(tmp_path / "gone.pt",), only=())
    (row,) = document["rows"]
    assert row["failure"]
    line = text(document, table).splitlines()[-1]
    assert line.startswith("gone|")
    assert not line.startswith("gone||")
    assert line.count("|") == len(HEADER) - 1
