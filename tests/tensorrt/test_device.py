"""The contract of device_contract.py, on the double of each release and the stand-in for the driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tensorrt.cuda import ROOT, environment, packages

SITE = Path(__file__).parent / "double" / "site"
RELEASES = ["8.5.3.1", "8.6.1", "10.3.0", "10.13.3.9", "11.4.0.106", "rtx-1.7.1.116"]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
def test_the_contract_holds(release: str, integrated: int, standin_cuda: Path, tmp_path: Path) -> None:
    if integrated and release != "8.6.1":
        pytest.skip("memory is mapped in one place, whatever the release")
    if not any(packages().values()):
        pytest.skip("neither cuda-python nor pycuda is installed: pip install 'edgeseg[tensorrt]'")
    told = environment(standin_cuda, integrated=integrated)
    told |= {
        "PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT), told.get("PYTHONPATH", "")]).strip(os.pathsep),
        "EDGESEG_TRT_DOUBLE": release,
        "EDGESEG_TRT_BACKEND": "tensorrt-rtx" if release.startswith("rtx") else "tensorrt",
        "EDGESEG_CACHE": str(tmp_path / "cache"),
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/tensorrt/device_contract.py",
    ]
    done = subprocess.run(command, env=told, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
