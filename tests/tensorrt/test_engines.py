"""Engines in the cache and sessions that come and go (engines_contract.py), on doubles of library and driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tensorrt.cuda import ROOT, environment, packages

SITE = Path(__file__).parent / "double" / "site"


@pytest.mark.parametrize("release", ["8.5.3.1", "11.4.0.106", "rtx-1.7.1.116"])
def test_engines_and_sessions(release: str, standin_cuda: Path, tmp_path: Path) -> None:
    if not packages()["cuda-python"]:
        pytest.skip("graphs are captured by cuda-python: pip install 'edgeseg[tensorrt]'")
    told = environment(standin_cuda)
    told |= {
        "PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT), told.get("PYTHONPATH", "")]).strip(os.pathsep),
        "EDGESEG_TRT_DOUBLE": release,
        "EDGESEG_TRT_BACKEND": "tensorrt-rtx" if release.startswith("rtx") else "tensorrt",
        "EDGESEG_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/tensorrt/engines_contract.py"]
    done = subprocess.run(command, env=told, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
