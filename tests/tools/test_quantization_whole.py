"""tools/bench quantization as its user runs it, from a model to the tables, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.quantize.making import PLAIN_SPEC, STREET, plain_network

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


def test_the_whole_from_models_to_tables(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(plain_network())
    (tmp_path / "tiny.toml").write_text(PLAIN_SPEC, encoding="utf-8")
    (tmp_path / "street.toml").write_text(STREET, encoding="utf-8")
    more = ["--macs", "0", "--quick", "--samples", "4", "--memory", "2", "--rounds", "11", "--repeats", "1"]
    ways = "edgeseg-onnxruntime,edgeseg-tensorrt,edgeseg-int8-onnxruntime"
    files = ["--markdown", str(tmp_path / "out.md"), "-o", str(tmp_path / "out.json")]
    command = [sys.executable, str(BENCH), "quantization", str(tmp_path / "tiny.onnx")]
    command += ["--data", str(tmp_path / "street.toml")]
    done = subprocess.run([*command, *more, *files, "--only", ways], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    (model,) = document["models"]
    assert model["failure"] == ""
    assert {(r["recipe"], r["runtime"]) for r in model["rows"]} >= {
        ("edgeseg", "onnxruntime"),
        ("edgeseg", "tensorrt"),
        ("FP32, exported by edgeseg", "onnxruntime"),
    }
    assert all(r["agreement"] > 0.5 for r in model["rows"])
    assert [r["frames"] for r in model["costs"][0]["runs"]] == [4, 2]
    assert len(set(model["calibration"]["indices"])) == 4
    shown = (tmp_path / "out.md").read_text()
    assert shown.startswith("| aim | runtime |")
    assert "| edgeseg | tensorrt |" in shown
    assert "Command: `tools/bench quantization" in shown
    assert done.stdout.startswith(shown[:200])
