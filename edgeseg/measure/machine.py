"""On what a measurement was made: processor, cores, memory, system, package versions. Goes into every JSON file.

Reads /proc and /sys on Linux (x86 and Arm) and asks sysctl on macOS. What cannot be found out is None, never a guess.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("edgeseg", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "onnxslim", "openvino", "nncf"),
    *("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    *("tensorrt", "torch", "torchvision"),
)
# What decides how fast INT8 runs: dot products (VNNI, DotProd), matrix units (AMX, i8mm), vector width.
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """Facts about this machine, plain values ready for JSON; None where this system does not tell.

    `cores_usable` is what this process may use: its affinity mask, cut by a container's CPU quota. `isa` lists the
    instruction sets that INT8 speed depends on. `time` is now, in UTC. `root` is where /proc and /sys lie.
    """
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    mac = _sysctl() if sys.platform == "darwin" else {}
    memory = re.search(r"MemTotal:\s+(\d+) kB", read_text(root / "proc/meminfo") or "")
    return {
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu": _cpu_model(cpuinfo, root) or mac.get("machdep.cpu.brand_string") or platform.processor() or None,
        "architecture": platform.machine(),
        "cores_physical": _physical_cores(cpuinfo) or _number(mac.get("hw.physicalcpu")),
        "cores_logical": os.cpu_count(),
        "cores_usable": usable_cores(root),
        "isa": _isa(cpuinfo),
        "memory_mb": int(memory[1]) // 1024 if memory else _megabytes(_number(mac.get("hw.memsize"))),
        "os": platform.platform(),
        "python": platform.python_version(),
        "load_average": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "governor": read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "mhz": _mhz(cpuinfo, root),
        "virtual": _virtual(cpuinfo, root),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on, from their metadata: nothing is imported."""
    import importlib.metadata  # here and not above: it costs more to import than the rest of this module

    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an absent package is what this list tells by leaving it out
    return found


def peak_rss_mb() -> float | None:
    """The most physical memory this process ever held, in MiB; None where the system does not tell (Windows)."""
    # Linux passes the parent's peak on through fork and exec in ru_maxrss; VmHWM is this process's own.
    peak = re.search(r"VmHWM:\s+(\d+) kB", read_text(Path("/proc/self/status")) or "")
    if peak:
        return int(peak[1]) / 1024
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _cpu_model(cpuinfo: str, root: Path) -> str | None:
    for key in ("model name", "Model", "Hardware"):
        found = _field(cpuinfo, key)
        if found:
            return found
    board = read_text(root / "proc/device-tree/model")  # Jetson and other Arm boards
    part = _field(cpuinfo, "CPU part")
    arm = f"Arm implementer {_field(cpuinfo, 'CPU implementer')} part {part}" if part else None
    return ", ".join(x for x in (board, arm) if x) or None


def _physical_cores(cpuinfo: str) -> int | None:
    blocks = [b for b in cpuinfo.split("\n\n") if _field(b, "processor") is not None]
    cores = {(_field(b, "physical id"), _field(b, "core id")) for b in blocks}
    if not blocks:
        return None
    return len(blocks) if (None, None) in cores else len(cores)  # Arm lists no ids and has no sibling threads


def usable_cores(root: Path = Path("/")) -> float:
    """How many processors this process may use, by its affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = re.match(r"(\d+) (\d+)", read_text(root / "sys/fs/cgroup/cpu.max") or "")  # "max 100000" if there is none
    return min(float(allowed), int(quota[1]) / int(quota[2])) if quota else float(allowed)


def _isa(cpuinfo: str) -> list[str]:
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return [name for name in _ISA if name in flags]


def _mhz(cpuinfo: str, root: Path) -> float | None:
    khz = _number(read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"))
    if khz is not None:
        return khz / 1000
    shown = _field(cpuinfo, "cpu MHz")
    return float(shown) if shown else None


def _virtual(cpuinfo: str, root: Path) -> str | None:
    hints = []
    marked = (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()
    if marked or re.search(r"docker|kubepods|containerd|lxc", read_text(root / "proc/1/cgroup") or ""):
        hints.append("container")
    if "hypervisor" in (_field(cpuinfo, "flags") or "").split():
        maker = read_text(root / "sys/class/dmi/id/sys_vendor")
        hints.append(f"virtual machine ({maker})" if maker else "virtual machine")
    return ", ".join(hints) or None


def _field(text: str, key: str) -> str | None:
    found = re.search(rf"^{re.escape(key)}[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def read_text(path: Path) -> str | None:
    """What a file of /proc or /sys says, stripped; None if that is nothing, or if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None  # not on this system, or not ours to read


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _megabytes(count: int | None) -> int | None:
    return None if count is None else count // 2**20


def _sysctl() -> dict[str, str]:
    import subprocess

    keys = ("machdep.cpu.brand_string", "hw.physicalcpu", "hw.memsize")
    try:
        answer = subprocess.run(["sysctl", *keys], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in answer.splitlines())}
