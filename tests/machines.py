"""Machines for the doctor's tests: a few files, packages, and what drivers and programs would answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeseg.doctor import diagnose, report
from edgeseg.doctor_host import Finding, Host

REQUIREMENTS = (
    "click<9,>=8.1",
    'tomli<3,>=2.0; python_version < "3.11"',
    'onnxruntime<2,>=1.20; extra == "run"',
    'opencv-python-headless<6,>=4.8; extra == "run"',
    'edgeseg[run]; extra == "build"',
    'onnx<2,>=1.17; extra == "build"',
    'edgeseg[build]; extra == "torch"',
    'torch<3,>=2.6; extra == "torch"',
    'openvino<2027,>=2025.0; extra == "openvino"',
    'aiohttp<4,>=3.9; extra == "serve"',
    'nvidia-ml-py<14,>=12; extra == "nvidia"',
    'cuda-bindings<14,>=12.6; extra == "tensorrt"',
    'tensorrt-rtx-cu13<2,>=1.4; extra == "tensorrt-rtx"',
    'pytest; extra == "dev"',
)
EVERYTHING = {
    "click": "8.2",
    "onnxruntime": "1.32.0",
    "opencv-python-headless": "5.0.0.93",
    "onnx": "1.23.2",
    "torch": "2.13.0+cpu",
    "openvino": "2026.4.1",
    "aiohttp": "3.12",
}
FACTS: dict[str, dict[str, Any]] = {
    "onnxruntime": {"version": "1.32.0", "providers": ["CPUExecutionProvider"]},
    "cv2": {"version": "5.0.0", "build": "Video I/O:\n    GStreamer:                   NO\n"},
    "onnx": {"version": "1.23.2"},
    "torch": {"version": "2.13.0+cpu"},
    "openvino": {"version": "2026.4.1", "devices": ["CPU"]},
    "aiohttp": {"version": "3.12"},
}
X86 = "flags\t\t: fpu avx2 avx512_vnni amx_int8\n\nprocessor : 1\nflags\t\t: fpu avx2 avx512_vnni amx_int8\n"
MEMORY = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n"


def gpu(*devices: tuple[str, int, int], cuda: int = 12090) -> dict[str, Any]:
    """What the CUDA driver says of these GPUs."""
    return {"hidden": None, "version": cuda, "code": 0, "gpus": [list(device) for device in devices]}


L4 = gpu(("NVIDIA L4", 8, 9))
NO_CUDA = {"hidden": None, "error": "libcuda.so.1: cannot open shared object file: No such file or directory"}


def host(
    root: Path,
    files: Mapping[str, str] | None = None,
    *,
    packages: Mapping[str, str] = EVERYTHING,
    facts: Mapping[str, Mapping[str, Any]] = FACTS,
    cuda: Mapping[str, Any] | None = None,
    printed: Mapping[str, str] | None = None,
    **changes: Any,
) -> Host:
    """A machine of a few files below `root`; `printed` maps the start of a command line to what it prints."""
    for name, content in {"proc/cpuinfo": X86, "proc/meminfo": MEMORY, **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)

    def answered(modules: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        return {module: facts[module] for module in modules}

    def output_of(command: Sequence[str]) -> str | None:
        line = " ".join(command)
        return next((text for start, text in (printed or {}).items() if line.startswith(start)), None)

    plain: dict[str, Any] = {
        "root": root,
        "python": (3, 12),
        "machine": "x86_64",
        "cores": 8,
        "allowed_cores": 8,
        "site": Path("/venv/lib/python3.12/site-packages"),
        "requirements": REQUIREMENTS,
        "version": packages.get,
        "importable": facts.__contains__,
        "imported": answered,
        "output_of": output_of,
        "cuda": lambda: NO_CUDA if cuda is None else cuda,
    }
    return Host(**{**plain, **changes})


def found(host: Host) -> dict[str, Finding]:
    findings = diagnose(host)
    by = {finding.what: finding for finding in findings}
    assert len(by) == len(findings)
    for finding in findings:
        assert finding.state != "ok" or not finding.fix
        assert "\n" not in finding.fix + finding.detail
        assert finding.what in report(findings)
    return by
