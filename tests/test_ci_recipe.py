"""The CI recipes of the README, run step by step: programs of the outside world are scripts that note what they get."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OUTSIDE = ("pip", "gh", "curl")


def recipes() -> dict[str, Any]:
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]
    github, gitlab = found
    steps = github["jobs"]["gate"]["steps"]
    job = gitlab["accuracy-and-latency"]
    return {
        "github": [step["run"] for step in steps if "run" in step],
        "gitlab": [*job["script"], *job["after_script"]],
    }


def budget() -> str:
    (found,) = (block for block in re.findall(r"```toml\n(.*?)```", README, re.DOTALL) if "max_drop" in block)
    return str(found)


@pytest.fixture
def project(street: Path, built: Path, tmp_path: Path) -> Path:
    """A checkout: a network, a data set, the bundle in use, a budget; and a bin/ that comes first in PATH."""
    folder = tmp_path / "project"
    (folder / "bin").mkdir(parents=True)
    for name in ("net.onnx", "net.toml", "dataset.toml"):
        (folder / name.replace("net", "model")).write_bytes((street / name).read_bytes())
    (folder / "base.edgeseg").write_bytes(built.read_bytes())
    (folder / "budget.toml").write_text(budget(), encoding="utf-8")
    for name in OUTSIDE:
        script(folder / "bin" / name, f'printf "%s\\n" {name} "$@" >> outside.txt')
    # A small network takes the place of model.pt, and a quick build that of a full one.
    script(
        folder / "bin/edgeseg",
        'if [ "$1" = build ]; then shift 2; set -- build model.onnx "$@" --quick --backend onnxruntime; fi\n'
        'if [ "$1" = bench ]; then set -- "$@" --seconds 0.2; fi\n'
        f'exec "{sys.executable}" -m edgeseg "$@"',
    )
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def step(project: Path, text: str) -> subprocess.CompletedProcess[str]:
    outside = {"PR": "7", "CI_API_V4_URL": "https://x", "CI_PROJECT_ID": "1", "CI_MERGE_REQUEST_IID": "7"}
    environment = os.environ | outside | {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-e", "-c", text], cwd=project, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("which", ["github", "gitlab"])
def test_its_steps_run(project: Path, which: str) -> None:
    for text in recipes()[which]:
        done = step(project, text)
        # Both engines are timed for real, for 0.2 s: latency may pass, fail, or not be told. Accuracy must pass.
        allowed = (0, 1, 4) if text.startswith("edgeseg compare") else (0,)
        assert done.returncode in allowed, f"{text}\n{done.stdout}\n{done.stderr}"
    cases = list(ElementTree.parse(project / "change.xml").getroot().iter("testcase"))
    verdicts = {case.get("name", ""): [child.tag for child in case] for case in cases}
    assert set(verdicts) >= {"miou", "latency.p50"}
    assert [name for name, found in verdicts.items() if "failure" in found and not name.startswith("latency")] == []
    assert (project / "change.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    said = (project / "outside.txt").read_text(encoding="utf-8").splitlines()
    assert "pip" in said
    assert "change.md" in " ".join(said)
    assert (project / "change.md").read_text(encoding="utf-8").strip()


def test_a_network_that_lost_accuracy_is_stopped(project: Path) -> None:
    data = project / "dataset.toml"  # more frames: of four it cannot be told
    data.write_text(data.read_text(encoding="utf-8").replace("drives = 2,", "drives = 40,"), encoding="utf-8")
    for name in ("base", "new"):
        (project / name).mkdir()
        done = step(project, f"edgeseg eval base.edgeseg --data dataset.toml --json {name}/eval.json")
        assert done.returncode == 0, done.stderr
    same = step(project, "edgeseg compare base new --budget budget.toml")
    document = json.loads((project / "new/eval.json").read_text(encoding="utf-8"))
    counts = document["per_frame"]
    for hit, lost in zip(counts["tp"], counts["fn"], strict=True):  # most of what was right is now missed
        for index, value in enumerate(hit):
            hit[index], lost[index] = value // 10, lost[index] + value - value // 10
    iou = {}
    for index, name in enumerate(document["iou"]):
        tp, fp, fn = (sum(row[index] for row in counts[kind]) for kind in ("tp", "fp", "fn"))
        iou[name] = tp / (tp + fp + fn) if tp + fp + fn else None
    present = [value for value in iou.values() if value is not None]
    document |= {"iou": iou, "miou": sum(present) / len(present)}
    (project / "new/eval.json").write_text(json.dumps(document), encoding="utf-8")
    worse = step(project, "edgeseg compare base new --budget budget.toml --markdown change.md")
    assert worse.returncode == 1, worse.stdout + worse.stderr
    assert "miou" in (project / "change.md").read_text(encoding="utf-8")
    assert same.returncode != 1
