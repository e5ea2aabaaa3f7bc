"""Two builds as a user compares them: paired by the counts of single frames, or by equality where there are none."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.bundle import read_bundle
from edgeseg.compare import accuracy, compare
from edgeseg.documents import checked
from edgeseg.errors import BadInput
from edgeseg.measure.bootstrap import iou
from edgeseg.pipeline import build
from tests.compare.making import gate_of, made, metrics, write


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "RESAMPLES", 500)


def building(judged: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A document edgeseg.build/1 whose chosen engine scored as this eval document says, keys sorted as in bundles."""
    times = {"count": 11, "p50": 10.0, "p90": None, "p99": None, "mean": 10.0, "reasons": {"p90": "few", "p99": "few"}}
    times |= {"min": 9.0, "max": 11.0, "stdev": 0.5}
    row = {"name": "int8", "backend": "none", "precision": "int8", "settings": {}, "bytes": 1000, "latency_ms": times}
    row |= {"agreement": 1.0, "boundary_agreement": 1.0, "built": None}
    row |= {key: judged[key] for key in ("miou", "pixel_accuracy", "dice", "iou", "dice_per_class", "frequency")}
    frames = judged["per_frame"]
    document = {
        "schema": "edgeseg.build/1",
        "name": "net",
        "classes": list(judged["iou"]),
        "asked": "int8",
        "metric": "mIoU",
        "max_drop": 1.0,
        "intake": {},
        "calibration": None,
        "evaluation": {
            "frames": len(frames["names"]),
            "labelled": len(frames["names"]),
            "split": "val",
            "skipped": [],
            "digest": judged["data"]["digest"],
        },
        "per_frame": {
            "names": frames["names"],
            "sequences": frames["sequences"],
            "engines": {"int8": {key: frames[key] for key in ("tp", "fp", "fn")}},
        },
        "engines": [row],
        "chosen": "int8",
        "reasons": [],
        "rejected": [],
        "machine": {"cpu": "a", "architecture": "b", "cores_usable": 2, "isa": [], "memory_mb": 1},
        "versions": {"a": "1"},
        **changed,
    }
    found: dict[str, Any] = json.loads(json.dumps(document, sort_keys=True))
    return found


def compared(tmp_path: Path, before: Any, after: Any) -> dict[str, Any]:
    return compare(write(tmp_path / "base.json", before), write(tmp_path / "new.json", after))


def test_a_lost_class_is_found_and_as_in_evaluations(tmp_path: Path) -> None:
    judged = made.video(7, 2.0, frames=120)
    found = compared(tmp_path, *map(building, judged))
    assert gate_of(found) == ("failed", 1)
    assert found["groups"][0]["method"].startswith("accuracy paired, 120 frames; times separate")
    of_builds, of_evals = metrics(found), metrics(compared(tmp_path, *judged))
    for name in ("miou", "pixel_accuracy", "dice", "iou.road"):
        for key in ("before", "after", "change", "interval"):
            assert of_builds[name][key] == pytest.approx(of_evals[name][key]), (name, key)
    assert of_builds["miou"]["verdict"] == "worse"


def test_builds_without_counts_tell_equality_only(tmp_path: Path) -> None:
    before, after = map(building, made.video(7, 2.0, frames=120))
    old = [copy.deepcopy(one) for one in (before, after)]
    for one in old:
        del one["per_frame"], one["evaluation"]["digest"]
        checked(one, tmp_path / "old.json")
    found = metrics(compared(tmp_path, *old))
    assert (found["miou"]["verdict"], found["miou"]["interval"]) == ("cannot tell", None)
    assert found["miou"]["reason"] == "no counts per frame: build again with this edgeseg"
    assert found["size"]["verdict"] == "same"
    # An old one and a new one of the same weights.
    found = metrics(compared(tmp_path, old[0], before | {"reasons": ["another run"]}))
    assert {found[name]["verdict"] for name in ("miou", "dice", "iou.road", "size")} == {"same"}


def test_other_frames_tell_nothing(tmp_path: Path) -> None:
    before, after = map(building, made.video(7, 0.0, frames=120))
    other = copy.deepcopy(after)
    other["evaluation"]["digest"] = "another"
    assert metrics(compared(tmp_path, before, other))["miou"]["reason"] == "other data: the data digests differ"
    other = copy.deepcopy(after)
    other["per_frame"]["names"][3] = "another"
    assert metrics(compared(tmp_path, before, other))["miou"]["reason"] == "other frames: the frames' names differ"
    other = copy.deepcopy(after)
    other["evaluation"]["split"] = "test"
    assert metrics(compared(tmp_path, before, other))["miou"]["reason"] == "other frames: evaluation differs"


def test_several_builds_that_differ_are_not_one(tmp_path: Path) -> None:
    before, after = map(building, made.video(7, 1.0, frames=120))
    reason = metrics(compared(tmp_path, [before, after], after))["miou"]["reason"]
    assert reason == "2 builds of one name that differ: compare one with one"


def test_counts_that_are_not_of_the_scores_are_refused(tmp_path: Path) -> None:
    before, after = map(building, made.video(7, 0.0, frames=120))
    after["per_frame"]["engines"]["int8"]["tp"][0][0] += 500_000
    with pytest.raises(BadInput, match="per_frame: its frames give"):
        compared(tmp_path, before, after)


def test_real_bundles_hold_counts_of_the_chosen_engine_and_fp32(street: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a.edgeseg", tmp_path / "b.edgeseg"]
    for path, precision in zip(paths, ("fp32", "int8"), strict=True):
        build(
            street / "net.onnx",
            spec=street / "net.toml",
            data=street / "dataset.toml",
            precision=precision,  # type: ignore[arg-type]
            backend="onnxruntime",
            max_miou_drop=100.0,
            quick=True,
            out=path,
        )
    reports = [read_bundle(path).verdict for path in paths]
    for report in reports:
        frames, classes = report["per_frame"], report["classes"]
        assert set(frames["engines"]) == {"onnxruntime-fp32", report["chosen"]}
        assert len(frames["names"]) == len(set(frames["names"])) == report["evaluation"]["labelled"]
        for engine in report["engines"]:
            if engine["name"] in frames["engines"]:
                sums = [np.sum(frames["engines"][engine["name"]][key], axis=0) for key in ("tp", "fp", "fn")]
                told = [np.nan if engine["iou"][name] is None else engine["iou"][name] for name in classes]
                assert iou(*sums) == pytest.approx(told, nan_ok=True)
    found = compare(*paths)
    assert "accuracy paired" in found["groups"][0]["method"]
    assert metrics(found)["miou"]["interval"] is not None
    # On so small a network either precision may be the faster one.
    assert metrics(found)["size"]["verdict"] == ("same" if reports[1]["chosen"] == "onnxruntime-fp32" else "better")
    assert {one["verdict"] for name, one in metrics(compare(paths[0], paths[0])).items() if "p9" not in name} == {
        "same"
    }
