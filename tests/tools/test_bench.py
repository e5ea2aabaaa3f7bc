"""tools/bench: that its children are measured and their failures named, and that its alternatives are what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import benchmarks.child as child
import benchmarks.memory as memory
import benchmarks.peers as peers
import benchmarks.sliding as sliding
import benchmarks.steps as steps
import benchmarks.stream as stream
from benchmarks.recipes import Job

from edgeseg.backends import open_engine
from edgeseg.backends.onnxruntime import inference_session
from tests.quantize.making import SIZE, frames, unet

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, Any]:
    """A tiny graph and its frames on disk, as the recipes get them."""
    (tmp_path / "fp32.onnx").write_bytes(unet().graph)
    np.save(tmp_path / "frames.npy", frames(6, SIZE))
    return {"graph": str(tmp_path / "fp32.onnx"), "frames": str(tmp_path / "frames.npy")}


def test_our_calibration_runs_in_a_child_and_its_memory_is_its_own(tmp_path: Path, shared: dict[str, Any]) -> None:
    ballast = np.ones(32 << 20, np.float64)  # 256 MiB in this process, which the child must not be charged with
    done = child.run(Job("edgeseg-calibrate", str(tmp_path / "out"), count=5, **shared))
    assert ballast[0] == 1
    assert done.failure == ""
    assert done.said["frames"] == 5
    assert (tmp_path / "out" / "scales.json").exists()
    assert done.peak_rss_mb is not None
    assert 20 < done.peak_rss_mb < 250
    assert done.seconds > 0


def test_a_peer_quantizes_the_whole_graph_and_its_engines_answer(tmp_path: Path, shared: dict[str, Any]) -> None:
    pytest.importorskip("sympy", reason="quant_pre_process of ONNX Runtime infers shapes with it")
    done = child.run(Job("ort-minmax", str(tmp_path / "out"), count=5, **shared))
    assert done.failure == ""
    model = unet()
    engines = peers._engines("onnxruntime", tmp_path / "out", model.spec)
    assert {engine.settings["decision"] for engine in engines} == {"graph", "host"}
    frame = frames(1, SIZE, seed=9)
    (expected,) = inference_session(model.graph).run(["mask"], {"frame": frame})
    for engine in engines:
        assert len(engine.files["graph.onnx"]) < 2 * len(model.graph)
        with open_engine(engine) as session:
            assert np.mean(session.run(frame) == expected) > 0.9


def test_a_recipe_that_raises_is_a_failure_with_its_last_words(tmp_path: Path, shared: dict[str, Any]) -> None:
    done = child.run(Job("edgeseg-calibrate", str(tmp_path / "out"), count=0, **shared))
    assert done.failure.startswith("failed: ")
    assert "frames to calibrate on were expected" in done.failure
    assert done.peak_rss_mb is None


def test_memory_beyond_the_limit_is_told_from_other_failures() -> None:
    said = "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB"
    assert child._why(1, said, 20.0) == "more than 20 GB"
    assert child._why(1, said, None).startswith("failed: numpy")  # without a limit it was not the limit
    assert child._why(1, "ValueError: no", 20.0) == "failed: ValueError: no"
    assert child._why(-11, "", 20.0) == "ended by SIGSEGV"
    assert child._why(3, "", None) == "failed: exit code 3, without a word"


def test_a_package_that_is_not_here_is_named() -> None:
    assert child.missing(("numpy",)) == ""
    assert child.missing(("numpy", "no_such_package")) == "not installed: no_such_package"


def test_warnings_are_found_once_and_without_colours() -> None:
    log = "\x1b[33mWARNING: old opset\x1b[0m\nfine\nWARNING: old opset\n"
    assert child.warnings_in(log) == ("WARNING: old opset",)


@pytest.mark.parametrize(("last", "said"), [(206.0, ": as predicted"), (530.0, "NOT as predicted")])
def test_the_verdict_on_memory_tells_flat_from_growing(last: float, said: str) -> None:
    peaks: list[dict[str, Any]] = [{"frames": 16, "peak_rss_mb": 200.0}, {"frames": 64, "peak_rss_mb": None}]
    peaks += [{"frames": 128, "peak_rss_mb": last}]
    assert memory.growth(peaks) == pytest.approx((last - 200) / 112)
    assert said in memory.verdict({"peaks": peaks})
    assert memory.growth(peaks[:1]) is None


def test_steps_compare_what_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = steps.measure(48, 60, rounds=2)
    assert [row["step"] for row in rows] == ["confusion", "decide", "calibration.update", "agreement"]
    assert all(row["us"] > 0 and row["alternative_us"] > 0 for row in rows)
    monkeypatch.setattr(steps, "decide_by_argmax", lambda scores: scores.argmin(axis=1).astype(np.uint8))
    with pytest.raises(AssertionError):
        steps.measure(48, 60, rounds=2)


def test_the_ways_of_streaming_run_the_same_frames() -> None:
    rows = stream.measure(rounds=2, engines_ms=(3.0,), frames=20)
    ways = ["engine alone", "edgeseg stream", "OpenCV loop, best parts", "OpenCV loop, naive"]
    assert [row["way"] for row in rows] == 2 * ways
    assert rows[0]["engine"] == "waits 20 ms"
    assert rows[0]["fps"] <= 50
    assert all(0 < row["share_low"] <= row["share"] <= row["share_high"] for row in rows)
    assert all(len(row["rounds"]["share"]) == 2 for row in rows if row["way"] != "engine alone")


def test_a_soak_leaves_nothing_behind() -> None:
    found = stream.soak(3000)
    assert found["frames"] == {"captured": 3000, "processed": 3000, "dropped": 0, "failed": 0}
    assert found["after"] == found["before"]
    assert [mark["frame"] for mark in found["marks"]] == [1000, 1500, 2999]
    assert found["marks"][-1]["rss_mb"] - found["marks"][0]["rss_mb"] < 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["overlay", "--size", "48", "64", "--rounds", "2"], "| overlay |"),
        (["soak", "--frames", "2000"], "2000 captured"),
    ],
)
def test_the_commands_about_video_print_what_they_measured(words: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH), "steps", "--size", "48", "60", "--rounds", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| step | µs |")
    assert "Command: `tools/bench steps --size 48 60 --rounds 2`" in done.stdout


def test_windows_one_by_one_cost_more_than_all_at_once() -> None:
    found = sliding.measure((24, 32), 3)
    assert found["window"] == 95
    # Each window's work is counted in full: 24 * 32 of them.
    each = found["windows_gmac"] / (24 * 32)
    assert 0 < each < found["image_gmac"] < found["windows_gmac"]
    assert found["batch"] in sliding.BATCHES
    assert found["windows_ms"] > found["image_ms"] > 0
