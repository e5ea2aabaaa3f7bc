"""`edgeseg bench` as a user runs it, on a real engine: what is in its documents, not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgeseg.benchmark import bench, frames_from
from edgeseg.benchmark.opened import frames_digest
from edgeseg.bundle import read_bundle
from edgeseg.cli import main
from edgeseg.errors import BadInput
from edgeseg.measure.profile import profile
from edgeseg.report.html import write_report


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.mark.parametrize(
    ("scenario", "more", "said"),
    [
        ("single-stream", ["--samples", 12], "p90 needs 64 samples"),
        ("multi-stream", ["--streams", 3], "3 frames back to back"),
        ("multi-stream", ["--streams", 2, "--fps", 50], "2 frames 50 times a second"),
        ("camera", ["--fps", 50, "--deadline", "15ms"], "later than 15.0 ms"),
        ("offline", [], "the fastest way of those tried"),
    ],
)
def test_scenarios(built: Path, tmp_path: Path, scenario: str, more: list[object], said: str) -> None:
    path = tmp_path / "b.json"
    done = run(built, "--scenario", scenario, "--seconds", 0.05, "--limit", 0.4, *more, "--json", path)
    assert done.exit_code == 0, done.output
    assert said in done.stdout
    document = json.loads(path.read_text(encoding="utf-8"))
    assert (document["schema"], document["scenario"]) == ("edgeseg.bench/2", scenario)
    assert document["samples"] == len(document["samples_ms"]["engine"]) > 0
    assert min(document["samples_ms"]["engine"] + document["samples_ms"]["whole"]) > 0
    page = write_report([path], tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"Scenario: {scenario}" in page


@pytest.mark.parametrize(
    "wrong",
    [
        ["--fps", 30],
        ["--scenario", "offline", "--deadline", 5],
        ["--scenario", "server"],
        ["--samples", 0],
        ["--streams", 0],
        ["--limit", 0],
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(built: Path, wrong: list[object]) -> None:
    done = run(built, *wrong)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_frames_of_a_data_set_and_of_the_bundle(built: Path, street: Path) -> None:
    frames = frames_from(street / "dataset.toml", "val", 3)
    one, two = bench([built, built], frames=frames, seconds=0.01, samples=3)
    assert one["frames_digest"] == two["frames_digest"] == frames_digest(frames)
    assert one["frame_size"] == list(frames[0].shape[:2])
    (own,) = bench(built, seconds=0.01, samples=3)
    bundle = read_bundle(built)
    given = [r.frame if bundle.spec.input.frame == "bgr" else r.frame[..., ::-1] for r in bundle.references]
    assert own["frames_digest"] == frames_digest(given)
    assert any(np.ptp(frame) > 0 for frame in given)  # real ones, no zeros


def test_no_bundle_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one bundle"):
        bench([])


def test_a_roofline_of_a_bundle(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeseg.benchmark.probe.SECONDS", 0.0)
    monkeypatch.setattr("edgeseg.benchmark.probe._MOST", 1 << 20)
    first, second = bench([built, built], seconds=0.01, samples=3, threads=1, roofline=True)
    found = first["roofline"]
    assert found["peaks"]["gb_s"] > 0
    assert found["peaks"] == second["roofline"]["peaks"]  # measured once
    bundle = read_bundle(built)
    counted = profile(bundle.files["fp32.onnx"])
    assert found["bundle"]["macs"] == counted.macs
    assert sum(layer["macs"] for layer in found["layers"]) == counted.macs  # not those of padded channels
    assert found["bundle"]["bytes"] == sum(layer["bytes"] for layer in found["layers"])
    assert {layer["bound"] for layer in found["layers"]} <= {"compute", "memory"}
    assert set(found["peaks"]["gmac_s"]) >= {layer["precision"] for layer in found["layers"] if layer["macs"]}
