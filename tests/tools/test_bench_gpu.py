"""tools/bench gpu: that it runs through on the doubles, joins its halves, and says what is missing without a GPU.

What it measures here is the doubles' speed, which says nothing; that rows and fields are there, and right, does.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import benchmarks.gpu as gpu
import benchmarks.gpu_report as gpu_report
import benchmarks.gpu_ways as gpu_ways

from edgeseg.errors import BadInput
from tests.tensorrt import cuda

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tools" / "bench"
SITE = ROOT / "tests" / "tensorrt" / "double" / "site"
SHORT = ("--rounds", "12", "--eval-frames", "3", "--power-seconds", "0")


def bench(arguments: Sequence[object], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH), "gpu", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not cuda.packages()["cuda-python"]:
        pytest.skip("needs cuda-python: pip install 'edgeseg[tensorrt]'")
    return cuda.standin(tmp_path_factory.getbasetemp())


def on_double(driver: Path, release: str, **faults: str) -> dict[str, str]:
    told = cuda.environment(driver)
    told |= {f"EDGESEG_TRT_DOUBLE_{key.upper()}": value for key, value in faults.items()}
    return told | {"PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT)]), "EDGESEG_TRT_DOUBLE": release}


@pytest.fixture(scope="module")
def half(
    driver: Path, built: Path, street: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    """The document and the text of one run."""
    out = tmp_path_factory.mktemp("half") / "b.json"
    arguments = [built, "--data", street / "dataset.toml", "--only", "tensorrt", "-o", out, *SHORT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESEG_CACHE", str(out.parent / "cache"))
        done = bench([*arguments, "--trt", "no-external-tactics"], on_double(driver, "8.6.1"))
    assert done.returncode == 0, done.stderr
    assert not (out.parent / "cache" / "engines").exists(), "engines are built into a cache of the run's own"
    document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return document, done.stdout


def test_every_way_of_the_double_is_measured(half: tuple[dict[str, Any], str]) -> None:
    document, text = half
    assert document["schema"] == "edgeseg.bench.gpu/1"
    assert document["gpu"]["name"] == "Stand-in 0"
    assert document["libraries"]["tensorrt"] == "8.6.1"
    assert document["options"] == {"no_external_tactics": True}
    assert {"machine", "versions", "command"} <= set(document)
    (model,) = document["models"]
    assert model["size"] == [48, 64]
    assert model["evaluation"]["frames"] == 3
    rows = {row["way"]: row for row in model["rows"]}
    engines = [f"tensorrt {kind}{graph}" for kind in ("fp32", "fp16", "int8") for graph in ("", ", CUDA graph")]
    assert list(rows) == ["ONNX Runtime, CPU", *engines]
    for name in engines:
        row = rows[name]
        assert row["build_s"] > 0
        assert row["engine_bytes"] > 1000
        assert row["latency_ms"]["p25"] <= row["latency_ms"]["p50"] <= row["latency_ms"]["p75"]
        assert row["latency_ms"]["count"] == row["device_ms"]["count"] == 12
        assert row["latency_ms"]["p99"] is None, "12 rounds state no p99"
        assert 0 <= row["miou"] <= 1
        assert row["agreement"] > (0.999 if "fp32" in name else 0.9)
        assert row["agrees_with"] == "ONNX Runtime, CPU"
        assert row["made_of"]["precisions"]
        assert row["power_w"] is None, "the stand-in has no NVML"
        assert f"| {name} |" in text
    assert {row["engine"] for row in model["overhead"]} == set(engines)
    for row in model["overhead"]:
        assert row["edgeseg_ms"]["count"] == row["bare_ms"]["count"] == 12
        assert row["more_us"]["p25"] <= row["more_us"]["p50"] <= row["more_us"]["p75"]
    assert "tensorrt-rtx" in document["missing"]
    assert "Command: `tools/bench gpu" in text


def test_rtx_and_a_network_that_one_precision_cannot_build(
    driver: Path, built: Path, street: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rtx.json"
    arguments = [built, "--data", street / "dataset.toml", "--only", "tensorrt", "-o", out, *SHORT]
    done = bench(arguments, on_double(driver, "rtx-1.7.1.116", error="", crash="") | {"EDGESEG_TRT_DOUBLE_ERROR": ""})
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["models"][0]["rows"]
    assert {"tensorrt-rtx fp32", "tensorrt-rtx int8, CUDA graph"} <= {row["way"] for row in rows}
    done = bench(arguments, on_double(driver, "10.3.0", error="no kernel in this world"))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["models"][0]["rows"]
    failed = [row for row in rows if row.get("failure")]
    assert [row["way"] for row in failed] == ["tensorrt fp32", "tensorrt fp16", "tensorrt int8"]
    assert all("no kernel in this world" in row["failure"] for row in failed)
    assert "| tensorrt int8 | failed |" in done.stdout
    assert "* tensorrt int8: failed: " in done.stdout


def without_gpu() -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("only", [(), ("--only", "torch"), ("--only", "tensorrt")])
def test_without_a_gpu_it_says_what_is_missing(only: Sequence[str], built: Path, street: Path) -> None:
    done = bench([built, "--data", street / "dataset.toml", *only], without_gpu())
    assert done.returncode == 3
    assert done.stdout == ""
    assert "NVIDIA driver" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_a_driver_and_nothing_else(driver: Path, built: Path, street: Path) -> None:
    environment = cuda.environment(driver) | {"PYTHONPATH": str(ROOT)}
    done = bench([built, "--data", street / "dataset.toml", "--only", "torch"], environment)
    assert done.returncode == 3
    assert "torch" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--data", "x"], [str(BENCH)], [str(BENCH), "--only", "cuda"]])
def test_what_is_mistyped_is_a_usage_error(arguments: list[str]) -> None:
    done = bench(arguments, without_gpu())
    assert done.returncode == 2
    assert "Error" in done.stderr


def other(document: dict[str, Any]) -> dict[str, Any]:
    """The half that torch would have written."""
    made = copy.deepcopy(document)
    made["libraries"] = {"torch": "2.9.0, CUDA 12.8, cuDNN 91000"}
    made["missing"], made["options"] = {}, {}
    row = {**made["models"][0]["rows"][1], "way": "torch eager fp32"}
    del row["made_of"]
    made["models"][0] |= {"rows": [row], "overhead": [], "notes": []}
    return made


def test_two_halves_become_one_table(half: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    document, _ = half
    (tmp_path / "a.json").write_text(json.dumps(other(document)))
    (tmp_path / "b.json").write_text(json.dumps(document))
    out = tmp_path / "table.json"
    done = bench(["--join", tmp_path / "a.json", tmp_path / "b.json", "-o", out], without_gpu())
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    (model,) = found["models"]
    assert [row["way"] for row in model["rows"]][:2] == ["torch eager fp32", "ONNX Runtime, CPU"]
    assert len(model["rows"]) == 8
    assert model["overhead"] == document["models"][0]["overhead"]
    assert set(found["libraries"]) == {"torch", "tensorrt", "cuda"}
    assert len(found["parts"]) == 2
    assert done.stdout.count("Command: `tools/bench gpu") == 2
    assert "| torch eager fp32 |" in done.stdout
    assert found["schema"] == gpu.SCHEMA


def test_what_does_not_belong_together_is_refused(half: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    document, _ = half
    good = other(document)
    for path, value, says in (
        (("schema",), "edgeseg.eval/1", "wanted 'edgeseg.bench.gpu/1'"),
        (("gpu", "name"), "Another", "different GPUs: Another, Stand-in 0"),
        (("models", 0, "size"), [1, 2], r"frames of \[1, 2\]"),
        (("models", 0, "evaluation", "digest"), "0", "other frames"),
        (("models", 0, "rows", 0, "way"), "tensorrt int8", "measured twice as tensorrt int8"),
    ):
        bad: Any = copy.deepcopy(good)
        place = bad
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(BadInput, match=says):
            gpu.joined([bad, document])
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("[]")
    for name in ("a.json", "b.json"):
        with pytest.raises(BadInput, match=name):
            gpu.read_part(tmp_path / name)


def test_models_of_one_half_only_stay(half: tuple[dict[str, Any], str]) -> None:
    document, _ = half
    elsewhere = other(document)
    elsewhere["models"][0]["model"] = "another"
    found = gpu.joined([elsewhere, document])
    assert [model["model"] for model in found["models"]] == ["another", "tiny"]
    assert "**another**" in gpu_report.text(found, lambda header, rows: "")


def test_torchs_ways_give_the_masks_of_the_reference() -> None:
    """On the CPU, which they run on as they do on a GPU but for the clock."""
    pytest.importorskip("torch")
    from edgeseg.export import torch_reference
    from edgeseg.types import Torch
    from tests import models
    from tests.export.making import SPEC

    network = Torch(models.seeded(models.DictNet), "state_dict")
    spec = SPEC.__class__(SPEC.name, SPEC.input, SPEC.output.__class__("out", SPEC.output.classes))
    (way,) = gpu_ways.torch_ways(network, spec, "cpu", compiled=False)
    assert isinstance(way, gpu_ways.Way)
    assert way.device_ms is None
    reference, masks = torch_reference(network, spec), []
    for frame in models.frames(3):
        masks.append(way.run(frame[None]))
        np.testing.assert_array_equal(masks[-1][0], reference(frame))
    assert not np.array_equal(masks[0], masks[1]), "a later run wrote into an array that was given away"


def test_a_network_that_torch_cannot_run_is_a_row() -> None:
    torch = pytest.importorskip("torch")
    from edgeseg.types import Torch
    from tests.export.making import SPEC

    broken = Torch(torch.nn.Conv2d(4, 2, 1), "state_dict")
    (row,) = gpu_ways.torch_ways(broken, SPEC, "cpu", compiled=False)
    assert isinstance(row, dict)
    assert "channels" in row["failure"]
