"""`edgeseg rewrite` in several processes: all learn, the first alone measures, writes and speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeseg.errors import BadInput
from edgeseg.pipeline.rewriting.run import rewrite
from tests import rewriting


def test_two_processes(tmp_path: Path) -> None:
    network, data, out = rewriting.network(tmp_path), rewriting.street(tmp_path), tmp_path / "out" / "small.pt2"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["--macs", "0.5", "--untimed", "--samples", "8", "--distill", "0.03", "--backend", "onnxruntime"]
    command = [*torchrun, "-m", "edgeseg", "rewrite", str(network), "--data", str(data), *words]
    done = subprocess.run(
        [*command, "-o", str(out), "--json", str(tmp_path / "r.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "EDGESEG_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.is_file(), done.stderr
    assert done.stdout.count(f"wrote {out}") == 1
    for step in ("capture ", "race "):
        assert done.stderr.count(f"\n{step}") == 1, done.stderr
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["macs"]["after"] <= 0.5 * report["macs"]["before"]
    assert report["recovery"]["stopped"] in ("finished", "no time")
    assert sorted(path.name for path in out.parent.iterdir()) == ["small.pt", "small.pt2", "small.py", "small.toml"]


def test_several_processes_are_for_learning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="2 processes were started, and they learn together: say --distill MINUTES"):
        rewrite(rewriting.network(tmp_path), data=rewriting.street(tmp_path), wish=rewriting.UNTIMED)
