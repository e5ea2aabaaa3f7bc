"""`edgeseg build` of a bundle and with `--trt`: what is refused and said, through the command line, on the double."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

import edgeseg
from tests.quantize import making
from tests.tensorrt.cuda import ROOT, environment, packages

SITE = Path(__file__).parent / "double" / "site"
SPEC = """name = "net"
[input]
size = [48, 64]
"""
INT8 = ("--int8", "--backend", "tensorrt", "--quick", "--max-miou-drop", "5")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built for the CPU, with scales."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "net.onnx").write_bytes(making.plain_network())
    (folder / "net.toml").write_text(SPEC, encoding="utf-8")
    (folder / "frames").mkdir()
    for index, frame in enumerate(making.frames(12, (48, 64))):
        cv2.imwrite(str(folder / "frames" / f"{index:02}.png"), frame)
    built = edgeseg.build(
        folder / "net.onnx",
        data=folder / "frames",
        precision="int8",
        backend="onnxruntime",
        quick=True,
        out=folder / "net.edgeseg",
    )
    assert built.path is not None
    return built.path


@pytest.fixture
def told(standin_cuda: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a program that has the double of TensorRT 10.3 and the stand-in for the driver."""
    if not any(packages().values()):
        pytest.skip("neither cuda-python nor pycuda is installed: pip install 'edgeseg[tensorrt]'")
    found = environment(standin_cuda)
    path = os.pathsep.join([str(SITE), str(ROOT), found.get("PYTHONPATH", "")]).strip(os.pathsep)
    return found | {"PYTHONPATH": path, "EDGESEG_TRT_DOUBLE": "10.3.0", "EDGESEG_CACHE": str(tmp_path / "cache")}


def run(told: dict[str, str], *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeseg", *map(str, words)]
    return subprocess.run(command, env=told | more, capture_output=True, text=True, timeout=120, check=False)


def test_a_bundle_is_not_written_over_by_what_is_built_from_it(bundle: Path, told: dict[str, str]) -> None:
    before = bundle.read_bytes()
    done = run(told, "build", bundle, *INT8, "-o", bundle.parent / "." / bundle.name)
    assert done.returncode == 2
    assert "another name with -o" in done.stderr
    assert bundle.read_bytes() == before


@pytest.mark.parametrize("words", [("--samples", "4"), ("--recipe", "minmax")])
def test_what_the_scales_of_a_bundle_make_void_is_refused(
    bundle: Path, told: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(told, "build", bundle, *INT8, *words, "-o", tmp_path / "x.edgeseg")
    assert done.returncode == 2
    assert "brings the scales" in done.stderr


def test_options_of_tensorrt_are_refused_where_no_engine_would_have_them(
    bundle: Path, told: dict[str, str], tmp_path: Path
) -> None:
    words = ("--backend", "onnxruntime", "--trt", "level=5", "--quick", "-o", tmp_path / "x.edgeseg")
    done = run(told, "build", bundle, *words)
    assert done.returncode == 2
    assert "--trt level is for engines of TensorRT" in done.stderr


def test_an_engine_without_the_precision_asked_for_ends_the_build(
    bundle: Path, told: dict[str, str], tmp_path: Path
) -> None:
    out, document, page = tmp_path / "x.edgeseg", tmp_path / "x.json", tmp_path / "x.html"
    wrong = {"EDGESEG_TRT_DOUBLE_PRECISION": "fp32"}
    done = run(told, "build", bundle, *INT8, "-o", out, **wrong)
    assert done.returncode == 1
    assert "does not run in INT8" in done.stderr
    assert "--trt fallback" in done.stderr
    assert not out.exists()
    done = run(told, "build", bundle, *INT8, "--trt", "fallback", "-o", out, "--json", document, **wrong)
    assert done.returncode == 0, done.stderr
    assert "building" not in done.stderr, "accepting an engine does not make another"
    rows = {engine["name"]: engine for engine in json.loads(document.read_text())["engines"]}
    said = rows["tensorrt-int8"]["built"]["summary"]
    assert "FP32 100 %" in said
    assert "INT8" not in said
    assert said in done.stdout
    assert run(told, "report", document, "-o", page).returncode == 0
    assert said in page.read_text()


def test_why_an_engine_is_built_names_what_changed_and_not_the_other_library(
    bundle: Path, told: dict[str, str], tmp_path: Path
) -> None:
    words = ("--quick", "-o", tmp_path / "x.edgeseg")
    first = run(told, "build", bundle, "--backend", "tensorrt", *words)
    assert "there is none for it yet" in first.stderr
    newer = run(told, "build", bundle, "--backend", "tensorrt", *words, EDGESEG_TRT_DOUBLE="11.4.0.106")
    assert "tensorrt was 10.3.0 and is 11.4.0.106" in newer.stderr
    rtx = run(told, "build", bundle, "--backend", "tensorrt-rtx", *words, EDGESEG_TRT_DOUBLE="rtx-1.7.1.116")
    assert "there is none for it yet" in rtx.stderr
    driver = run(told, "bench", tmp_path / "x.edgeseg", "--seconds", "0.1", STANDIN_CUDA_DRIVER="13000")
    assert driver.returncode == 3, "the bundle's engine is of TensorRT-RTX, and the double is of the other library"
    assert "tensorrt-rtx" in driver.stderr


def test_ctrl_c_ends_a_build_at_once_and_leaves_nothing(bundle: Path, told: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "folders").mkdir()
    slow = told | {"EDGESEG_TRT_DOUBLE_SLOW": "0.5", "TMPDIR": str(tmp_path / "folders")}
    command = [sys.executable, "-m", "edgeseg", "build", str(bundle), *INT8, "-o", str(tmp_path / "x.edgeseg")]
    with subprocess.Popen(command, env=slow, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        for line in program.stderr:
            if "building" in line:
                break
        time.sleep(1)
        program.send_signal(signal.SIGINT)
        rest = program.stderr.read()
        assert program.wait(timeout=20) == 128 + signal.SIGINT
    assert rest.strip() == "edgeseg: stopped"
    assert list((tmp_path / "folders").iterdir()) == []
    assert not (tmp_path / "x.edgeseg").exists()
