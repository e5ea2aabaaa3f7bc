"""The stand-in for the CUDA driver: compiled, put before child processes, and its books read.

A test process itself never loads it: its name is the driver's, and whatever asks for the driver later would get it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).parent / "standin_cuda.c"
ALIVE = ("contexts", "streams", "events", "graphs", "executables", "device_blocks", "host_blocks", "orphans", "depth")


@functools.lru_cache(maxsize=1)
def standin(folder: Path) -> Path:
    """The compiled libcuda.so.1, in that folder. Skips the test without a compiler for it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the stand-in for the CUDA driver needs Linux and a C compiler")
    out = folder / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *flags, "-o", out, SOURCE, "-ldl", "-lpthread"], check=True, timeout=120)
    return out


def environment(library: Path, **switches: object) -> dict[str, str]:
    """For a child process that takes the stand-in for the driver: memory=1 << 20, integrated=1, devices=0, lazy=1, …"""
    told = {f"STANDIN_CUDA_{key.upper()}": str(value) for key, value in switches.items()}
    path = os.pathsep.join(filter(None, (str(library.parent), os.environ.get("LD_LIBRARY_PATH", ""))))
    ours = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    return {**ours, "LD_LIBRARY_PATH": path, **told}


def child(library: Path, arguments: Sequence[str], **switches: object) -> subprocess.CompletedProcess[str]:
    """Python with those arguments, in the repository, with the stand-in for the driver."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", *arguments],
        env=environment(library, **switches),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def packages() -> dict[str, bool]:
    """Which packages for CUDA are installed here, by the names that `open_device` knows."""

    def there(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            return False

    return {
        "pycuda": there("pycuda.driver"),
        "cuda-python": there("cuda.bindings.driver") or there("cuda.cuda"),
    }


class Books:
    """What the stand-in counts, in a process that has it for its driver. Its functions: standin_cuda.c."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.library.standin_cuda_count.restype = ctypes.c_longlong
        self._orphans = 0

    def count(self, what: str) -> int:
        return int(self.library.standin_cuda_count(what.encode()))

    def alive(self) -> dict[str, int]:
        """All that was not given back, and how many things a context still held when it was destroyed."""
        counts = {what: self.count(what) for what in ALIVE}
        counts["orphans"] -= self._orphans
        return {what: count for what, count in counts.items() if count}

    def forget(self) -> None:
        """Count orphans from here."""
        self._orphans = self.count("orphans")

    def fail(self, function: str, code: int) -> None:
        """Let the next call of a function of the driver answer that code."""
        self.library.standin_cuda_fail(function.encode(), code)
