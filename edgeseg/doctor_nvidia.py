"""What edgeseg.doctor knows about TensorRT and TensorRT-RTX: whether they run here, and the first thing in their way.

    finding = missing("tensorrt")  # what stands in the way of running it here, or None

Which GPUs a TensorRT runs on after its release notes (Volta left with 10.5, Blackwell came with 10.8) and support
matrices (10.0: compute capability 7.0 and higher), https://docs.nvidia.com/deeplearning/tensorrt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edgeseg.doctor_gpu import DRIVERS, Gpu, Nvidia, cuda_python, dotted, look
from edgeseg.doctor_host import PYTHONS, Facts, Finding, Host, State, release
from edgeseg.doctor_jetson import EXPORT, too_new

Library = Literal["tensorrt", "tensorrt_rtx"]
LIBRARIES: tuple[Library, ...] = ("tensorrt", "tensorrt_rtx")
MODULES = (*LIBRARIES, "pycuda", "cuda.bindings")  # what `diagnose` imports in children, where it is there
TITLES: Mapping[Library, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}

RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
X86 = ("x86_64", "AMD64")
RTX_INSTALL = "pip install 'edgeseg[tensorrt-rtx]'"


def missing(library: Library, host: Host | None = None) -> Finding | None:
    """What stands in the way of running TensorRT or TensorRT-RTX here, or None. Takes a second or two; raises nothing.

    A finding of the state "warning" is a doubt: the GPU is not among those that the library is made for.
    """
    host = host or Host()
    nvidia = look(host)
    facts = host.imported([library] if host.importable(library) else [])
    found = library_finding(host, library, facts, nvidia)
    if library == "tensorrt_rtx" and not nvidia.usable and (builder := builder_finding(host, facts)).state != "ok":
        found = builder  # without a GPU it is wanted for building, so that is what to mend first
    if found.state == "ok":
        found = cuda_python(host, facts, nvidia)
        if found.state != "missing":
            return None
    state: State = "warning" if found.state == "warning" else "missing"
    return Finding(found.what, state, found.detail, found.fix)


def library_finding(host: Host, name: Library, facts: Mapping[str, Facts], nvidia: Nvidia) -> Finding:
    """Whether this library runs here, with what, and the first thing in its way where it does not."""
    title, found = TITLES[name], facts.get(name)
    if found is None or found.get("builder") is False:  # a folder of stubs is no library
        return _not_installed(host, name, nvidia, stubs=found is not None)
    if found.get("error"):
        return Finding(
            name, "missing", f"{name} is installed and cannot be used: {found['error']}", _again(host, name, nvidia)
        )
    version = str(found.get("version", ""))
    what = f"{title} {version}".strip()
    if not nvidia.usable:
        return Finding(name, nvidia.driver.state, f"{what} is installed, but {nvidia.driver.detail}", nvidia.driver.fix)
    gpu = nvidia.gpus[0] if nvidia.gpus else Gpu("a GPU that cannot be asked", (0, 0))
    for trouble in (_wrong_gpu(host, name, version, gpu, nvidia), _driver_too_old(host, name, what, nvidia)):
        if trouble is not None:
            return trouble
    return Finding(name, "ok", f"{what} on {gpu}{_abilities(name, gpu, nvidia)}")


def builder_finding(host: Host, facts: Mapping[str, Facts]) -> Finding:
    """Whether TensorRT-RTX builds engines for other machines here: it needs no GPU for that."""
    what, found = "tensorrt_rtx builder", facts.get("tensorrt_rtx")
    if found is not None and found.get("builder") is not False and not found.get("error"):
        capabilities = ", ".join(map(dotted, RTX_CAPABILITIES))
        detail = f"TensorRT-RTX {found.get('version', '')} builds for compute capability {capabilities}"
        return Finding(what, "ok", detail)
    if host.machine not in X86:
        return Finding(what, "absent", f"TensorRT-RTX is made for x86-64, and this is {host.machine}")
    why = f"cannot be used: {found['error']}" if found and found.get("error") else "is not installed"
    return Finding(what, "absent", f"tensorrt_rtx {why}", RTX_INSTALL)


def unneeded(host: Host, nvidia: Nvidia) -> dict[str, str]:
    """The extras that this machine can do without, and why."""
    if nvidia.driver.state == "absent":
        return dict.fromkeys(("nvidia", "tensorrt", "tensorrt-rtx"), "no NVIDIA GPU")
    reasons = {}
    if nvidia.jetson:
        reasons["nvidia"] = "a Jetson tells its clocks and temperatures by itself"
    if host.importable("pycuda"):
        reasons["tensorrt"] = "pycuda is here, though it captures no CUDA graphs"
    if nvidia.jetson or host.machine not in X86:
        reasons["tensorrt-rtx"] = "TensorRT-RTX is made for x86-64 with a graphics card"
    elif nvidia.gpus and nvidia.gpus[0].capability not in (*RTX_CAPABILITIES, (0, 0)):
        reasons["tensorrt-rtx"] = f"TensorRT-RTX is not made for {nvidia.gpus[0]}"
    else:
        reasons["tensorrt-rtx"] = "TensorRT does, where it works"
    return reasons


def _not_installed(host: Host, name: Library, nvidia: Nvidia, *, stubs: bool) -> Finding:
    if not nvidia.usable:
        return Finding(name, nvidia.driver.state, nvidia.driver.detail, nvidia.driver.fix)
    for folder in _system_packages(host):
        if (folder / name).is_dir():
            return _elsewhere(host, name, folder)
    detail = f"{name} is not installed"
    if host.importable(f"{name}_bindings"):
        detail += f", only {name}_bindings is, without its libraries"
    elif stubs:
        detail += ", only its type stubs are"
    if name == "tensorrt_rtx":
        gpu = nvidia.gpus[0] if nvidia.gpus else None
        if nvidia.jetson or host.machine not in X86:
            return Finding(name, "absent", f"{detail}: it is made for x86-64 with a graphics card")
        if gpu and gpu.capability not in (*RTX_CAPABILITIES, (0, 0)):
            return Finding(name, "absent", f"{detail}, and not made for {gpu}", _install(host, "tensorrt", nvidia))
        return Finding(name, "absent", detail, _install(host, name, nvidia))
    if nvidia.jetson:
        detail += f" on this Jetson: {nvidia.jetson.carries}"
    elif nvidia.gpus and (0, 0) < nvidia.gpus[0].capability < (7, 0):
        detail += f", and of its versions only those before 10 run on {nvidia.gpus[0]}"
    elif nvidia.cuda_major is not None and nvidia.cuda_major < min(DRIVERS):
        detail += f", and needs driver {DRIVERS[12]} or newer: this is {nvidia.version or 'an older one'}"
    return Finding(name, "missing", detail, _install(host, name, nvidia))


def _install(host: Host, name: Library, nvidia: Nvidia) -> str:
    """The command that brings this library, made for this driver and this GPU; "" where there is none."""
    if nvidia.jetson:
        # Wheels of PyPI are made for servers, not for a Jetson's driver: it must be JetPack's own.
        jetpack = nvidia.jetson.jetpack
        if name == "tensorrt_rtx":
            return ""
        return EXPORT if jetpack and jetpack.python < PYTHONS[0] else "sudo apt-get install python3-libnvinfer"
    major = nvidia.cuda_major
    if name == "tensorrt_rtx":
        return "pip install tensorrt-rtx-cu12" if major == 12 else RTX_INSTALL
    capability = nvidia.gpus[0].capability if nvidia.gpus else (0, 0)
    if (0, 0) < capability < (7, 0):
        return ""
    if capability[0] == 7 and capability < (7, 5):
        return (
            "pip install 'tensorrt-cu12<10.5'" if major is None or major >= 12 else "pip install 'tensorrt-cu11<10.5'"
        )
    if major is None:
        return "pip install tensorrt"
    return (
        f"pip install tensorrt-cu{min(major, max(DRIVERS))}" if major >= min(DRIVERS) else "sudo ubuntu-drivers install"
    )


def _again(host: Host, name: Library, nvidia: Nvidia) -> str:
    """The command that mends an installation that is broken."""
    wheels = _wheels(host, name)
    if nvidia.jetson and wheels:
        return f"pip uninstall -y {' '.join(wheels)}"
    command = _install(host, name, nvidia)
    if command.startswith("sudo apt-get"):
        return command.replace("install", "install --reinstall")
    return command.replace("pip install", "pip install --force-reinstall")


def _wheels(host: Host, name: Library) -> list[str]:
    """The packages from PyPI that make up this library here: its metapackage, and those made for one CUDA."""
    base = name.replace("_", "-")
    parts = [f"{base}-cu{cuda}{part}" for cuda in DRIVERS for part in ("", "-bindings", "-libs")]
    return [package for package in (base, *parts) if host.version(package) is not None]


def _driver_too_old(host: Host, name: Library, what: str, nvidia: Nvidia) -> Finding | None:
    """CUDA's error 35, told before it happens: the wheel is made for a newer CUDA than the driver speaks."""
    wheels, major = _wheels(host, name), nvidia.cuda_major
    made_for = max((cuda for cuda in DRIVERS if any(f"-cu{cuda}" in wheel for wheel in wheels)), default=None)
    if made_for is None or major is None or made_for <= major:
        return None
    have = " with ".join(
        word for word in (nvidia.version, f"CUDA {dotted(nvidia.cuda)}" if nvidia.cuda else "") if word
    )
    detail = f"{what} is made for CUDA {made_for}, which needs driver {DRIVERS[made_for]} or newer: this is {have}"
    fix = _install(host, name, nvidia)
    if name == "tensorrt_rtx" and major < 12:
        fix = "sudo ubuntu-drivers install"
    elif fix.startswith("pip"):
        fix = f"pip uninstall -y {' '.join(wheels)} && {fix}"
    return Finding(name, "missing", detail, fix)


def _wrong_gpu(host: Host, name: Library, version: str, gpu: Gpu, nvidia: Nvidia) -> Finding | None:
    what = f"{TITLES[name]} {version}".strip()
    if name == "tensorrt_rtx":
        if gpu.capability in (*RTX_CAPABILITIES, (0, 0)):
            return None
        made_for = ", ".join(map(dotted, RTX_CAPABILITIES))
        detail = f"{what} is made for compute capability {made_for}, and this is {gpu}"
        return Finding(name, "warning", detail, _install(host, "tensorrt", nvidia))
    if nvidia.jetson and (why := too_new(nvidia.jetson, version)):
        return Finding(name, "missing", why, _again(host, name, nvidia))
    if nvidia.jetson and nvidia.jetson.l4t < (38,) and (wheels := _wheels(host, name)):
        detail = f"{what} is from PyPI, made for Arm servers, and this Jetson has its own: {nvidia.jetson.carries}"
        return Finding(name, "warning", detail, f"pip uninstall -y {' '.join(wheels)}")
    have = release(version)[:2]
    if not have or not any(gpu.capability) or nvidia.jetson:
        return None
    least = (7, 5) if have >= (10, 5) else (7, 0) if have >= (10, 0) else (0, 0)
    if gpu.capability < least:
        detail = f"{what} needs compute capability {dotted(least)} or higher, and this is {gpu}"
        return Finding(name, "missing", detail, _install(host, name, nvidia))
    if gpu.capability >= (10, 0) and have < (10, 8):
        detail = f"{what} is older than {gpu}, which needs TensorRT 10.8 or newer"
        return Finding(name, "missing", detail, _install(host, name, nvidia).replace("install", "install --upgrade"))
    return None


def _abilities(name: Library, gpu: Gpu, nvidia: Nvidia) -> str:
    """What this GPU computes in, and its helpers: ", FP16 and INT8, 2 DLA cores"."""
    if not any(gpu.capability):
        return ""
    fp16 = gpu.capability >= (7, 0) or gpu.capability in ((5, 3), (6, 0), (6, 2))
    int8 = gpu.capability >= (6, 1) and gpu.capability != (6, 2) and name == "tensorrt"
    fast = " and ".join(word for word, has in (("FP16", fp16), ("INT8", int8)) if has)
    cores = nvidia.jetson.dla if nvidia.jetson else None
    dla = f", {cores} DLA core{'s' if cores > 1 else ''}" if cores else ""
    return (f", {fast}" if fast else "") + dla


def _system_packages(host: Host) -> list[Path]:
    return sorted(
        path for base in ("usr/lib", "usr/local/lib") for path in host.root.glob(f"{base}/python3*/dist-packages")
    )


def _elsewhere(host: Host, name: str, folder: Path) -> Finding:
    """The system has the bindings and this interpreter does not see them, as in any virtual environment on a Jetson."""
    place = Path("/") / folder.relative_to(host.root)
    tags = {tag for path in (folder / name).glob("*.so") for tag in re.findall(r"\.cpython-3(\d+)", path.name)}
    # JetPack's file carries no tag, but lies in its Python's own folder; Debian's lies in one for all and has a tag.
    tags = tags or set(re.findall(r"python3\.(\d+)", str(place)))
    pythons = {(3, int(tag)) for tag in tags}
    version = next((release(d.name.partition("-")[2]) for d in folder.glob(f"{name}-*info")), ())
    what = f"{name} {'.'.join(map(str, version))}".strip() + f" is in {place}"
    if not pythons or host.python in pythons:
        detail = f"{what}, where this environment does not look"
        return Finding(name, "missing", detail, f"echo {place} > {host.site / 'system-tensorrt.pth'}")
    usable = max((python for python in pythons if PYTHONS[0] <= python <= PYTHONS[1]), default=None)
    made = ", ".join(f"{a}.{b}" for a, b in sorted(pythons))
    detail = f"{what}, made for Python {made}, and this is {host.python[0]}.{host.python[1]}"
    fix = f"python{usable[0]}.{usable[1]} -m venv --system-site-packages .venv" if usable else EXPORT
    return Finding(name, "missing", detail, fix)
