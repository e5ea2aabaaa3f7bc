"""What edgeseg.doctor asks of a machine: its files, its packages, its programs. Tests put another machine in its place.

Heavy packages are imported in child processes: one that crashes on import must not take the doctor with it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

TIMEOUT = 120.0  # seconds for one import; a cold torch on a Jetson takes twenty
PYTHONS = ((3, 10), (3, 13))  # first and last that edgeseg supports

State = Literal["ok", "missing", "warning", "absent"]

# What each child runs; `facts` comes back. A package without an entry is only imported.
PROBES = {
    "onnxruntime": "facts['providers'] = m.get_available_providers()",
    "openvino": "facts['devices'] = m.Core().available_devices",
    "cv2": "facts['build'] = m.getBuildInformation()",
    # A folder of type stubs, or any other folder of that name, can be imported too, and has nothing in it.
    "tensorrt": "facts['builder'] = hasattr(m, 'Builder')",
    "tensorrt_rtx": "facts['builder'] = hasattr(m, 'Builder')",
    "pycuda": "import pycuda.driver; facts['version'] = pycuda.VERSION_TEXT",
    "cuda.bindings": "import cuda.bindings.driver",
}

# What a child asks of the CUDA driver; integers are those of CUdevice_attribute in its cuda.h.
CUDA = """
import ctypes, json, os
facts = {"hidden": os.environ.get("CUDA_VISIBLE_DEVICES")}
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    facts["error"] = str(error)
else:
    def integer(function, *arguments):
        value = ctypes.c_int()
        return value.value if function(ctypes.byref(value), *arguments) == 0 else 0
    facts["version"] = integer(cuda.cuDriverGetVersion)
    facts["code"] = cuda.cuInit(0)
    facts["gpus"] = []
    for number in range(integer(cuda.cuDeviceGetCount) if facts["code"] == 0 else 0):
        gpu, name = integer(cuda.cuDeviceGet, number), ctypes.create_string_buffer(256)
        cuda.cuDeviceGetName(name, 256, gpu)
        major, minor = (integer(cuda.cuDeviceGetAttribute, attribute, gpu) for attribute in (75, 76))
        facts["gpus"].append([name.value.decode(errors="replace"), major, minor])
print(json.dumps(facts))
"""

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fix` is one command, or empty where nothing is wrong or no command can mend it.

    `absent` is not here either, as `missing`, but nothing on this machine asks for it.
    """

    what: str
    state: State
    detail: str
    fix: str = ""


def installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def importable(module: str) -> bool:
    """Whether a top-level module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def imported(modules: Iterable[str]) -> dict[str, Facts]:
    """Import each in a child of its own, all at once: {"version": …} and its facts, or {"error": why not}."""
    children = {module: _child(module) for module in modules}
    found: dict[str, Facts] = {}
    for module, child in children.items():
        try:
            out, err = child.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            found[module] = {"error": f"importing it took longer than {TIMEOUT:.0f} s"}
            continue
        answer = out.rpartition("\nFACTS ")[2] if child.returncode == 0 else ""
        if answer:
            found[module] = json.loads(answer)
        elif child.returncode < 0:
            found[module] = {"error": f"importing it crashed ({signal.Signals(-child.returncode).name})"}
        else:
            found[module] = {"error": (err.strip().splitlines() or ["no reason was given"])[-1][:300]}
    return found


def _child(module: str) -> subprocess.Popen[str]:
    code = (
        f"import sys, json; sys.path[:] = {sys.path!r}; import {module} as m\n"
        f"facts = {{'version': str(getattr(m, '__version__', ''))}}; {PROBES.get(module, '')}\n"
        f"print('\\nFACTS ' + json.dumps(facts), flush=True)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output_of(command: Sequence[str]) -> str | None:
    """What a program prints, or None if it is not here or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def cuda_facts() -> Facts:
    """What the CUDA driver says, asked in a child: {"version": 12040, "code": of cuInit, "gpus": [name, major, minor]}.

    With {"error": why} where its library cannot be loaded; "hidden" is CUDA_VISIBLE_DEVICES, None where not set.
    """
    printed = output_of([sys.executable, "-c", CUDA])
    return (
        json.loads(printed.splitlines()[-1])
        if printed
        else {"error": "asking libcuda.so.1 crashed, or took longer than 20 s"}
    )


def own_requirements() -> tuple[str, ...]:
    """The requirement lines of edgeseg's own metadata; of its pyproject.toml when it runs from a checkout."""
    try:
        return tuple(metadata.requires("edgeseg") or ())
    except metadata.PackageNotFoundError:
        return _checkout_requirements(Path(__file__).parents[1] / "pyproject.toml")


def _checkout_requirements(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {}).items()
    found = list(project["dependencies"])
    for extra, lines in extras:
        for line in lines:
            text, _, marker = line.partition(";")
            found.append(f'{text}; {f"({marker.strip()}) and " if marker else ""}extra == "{extra}"')
    return tuple(found)


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Host:
    """A machine, by default this one."""

    root: Path = Path("/")  # everything under /proc, /sys, /etc and /usr is read from here
    python: tuple[int, int] = sys.version_info[:2]
    machine: str = field(default_factory=platform.machine)  # "x86_64", "aarch64"
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    allowed_cores: int = field(default_factory=_allowed_cores)
    site: Path = field(default_factory=lambda: Path(sysconfig.get_paths()["purelib"]))  # where pip installs to
    requirements: tuple[str, ...] = field(default_factory=own_requirements)
    version: Callable[[str], str | None] = installed_version
    importable: Callable[[str], bool] = importable
    imported: Callable[[Iterable[str]], Mapping[str, Facts]] = imported
    output_of: Callable[[Sequence[str]], str | None] = output_of
    cuda: Callable[[], Facts] = cuda_facts

    def has(self, path: str) -> bool:
        """Whether there is a file or a folder of that name below the root, as far as this user can see."""
        try:
            return (self.root / path).exists()
        except OSError:
            return False

    def text(self, path: str) -> str | None:
        """The content of a file below the root, or None."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line such as `onnx<2,>=1.17; extra == "build"`."""

    name: str
    extras: tuple[str, ...]  # of edgeseg[run]
    bounds: tuple[tuple[str, str], ...]  # (operator, version)
    extra: str  # that asks for it; "" for edgeseg itself

    def admits(self, version: str) -> bool:
        """Whether the release numbers lie within the bounds (PEP 440, without pre-releases and wildcards)."""
        have = release(version)
        for operator, bound in self.bounds:
            limit = release(bound)
            width = max(len(have), len(limit))
            a, b = have + (0,) * (width - len(have)), limit + (0,) * (width - len(limit))
            good = {">=": a >= b, "<=": a <= b, ">": a > b, "<": a < b, "==": a == b, "!=": a != b}
            good["~="] = a >= b and have[: len(limit) - 1] == limit[:-1]
            if not good[operator]:
                return False
        return True


def release(version: str) -> tuple[int, ...]:
    """2.13.0+cpu as (2, 13, 0)."""
    found = re.match(r"v?(?:\d+!)?(\d+(?:\.\d+)*)", version.strip())
    return tuple(map(int, found[1].split("."))) if found else ()


def parse_requirement(line: str, python: tuple[int, int]) -> Requirement | None:
    """None for a line whose marker excludes this Python. Knows the markers that edgeseg's own metadata uses."""
    text, _, marker = line.partition(";")
    head = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?(.*)", text)
    if head is None:
        return None
    for operator, bound in re.findall(r"python_version\s*(<=|>=|<|>|==|!=)\s*['\"]([\d.]+)['\"]", marker):
        if not Requirement("python", (), ((operator, bound),), "").admits(".".join(map(str, python))):
            return None
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
    bounds = re.findall(r"(~=|==|!=|<=|>=|<|>)\s*([\w.+!]+)", head[3])
    extras = tuple(part.strip() for part in (head[2] or "").split(",") if part.strip())
    return Requirement(head[1], extras, tuple(bounds), extra[1] if extra else "")
