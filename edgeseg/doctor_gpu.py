"""What edgeseg.doctor knows about NVIDIA GPUs: the driver and why it does not start, CUDA and its Python packages.

Which driver a CUDA needs after table 2 of the CUDA Toolkit release notes, https://docs.nvidia.com/cuda; numbers of
CUresult after cuda.h. In WSL the driver is that of Windows, and what it lends to Linux lies in /usr/lib/wsl/lib.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from edgeseg.doctor_host import Facts, Finding, Host, release
from edgeseg.doctor_jetson import Jetson, find_jetson

DRIVERS = {13: 580, 12: 525, 11: 450}  # CUDA: the first driver, on Linux, on which programs made for it run
NO_GPU = "no NVIDIA GPU was found on this machine"
CUDA_ERRORS = {
    2: "out of memory",
    34: "the toolkit's stub stands before the driver in LD_LIBRARY_PATH",
    100: "no device",
    304: "the operating system refuses",
    802: "its service is not running",
    803: "the loaded driver and its libraries are of different versions",
    804: "a forward compatibility package that this GPU does not take",
    999: "unknown error",
}

_MEND = {802: "sudo systemctl start nvidia-fabricmanager", 803: "sudo reboot"}


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    capability: tuple[int, int]  # CUDA compute capability; (0, 0) where nothing tells it

    def __str__(self) -> str:
        known = f" (compute capability {dotted(self.capability)})" if any(self.capability) else ""
        return f"{self.name}{known}"


@dataclass(frozen=True, slots=True)
class Nvidia:
    """What there is of NVIDIA's on a machine. `cuda` is the newest version that the driver speaks."""

    driver: Finding
    version: str  # of the driver, "" where unknown
    cuda: tuple[int, int] | None
    gpus: tuple[Gpu, ...]
    jetson: Jetson | None

    @property
    def usable(self) -> bool:
        return self.driver.state == "ok"

    @property
    def cuda_major(self) -> int | None:
        """The major version of CUDA that programs may be made for."""
        if self.cuda is not None:
            return self.cuda[0]
        branch = release(self.version)[:1]
        return next((cuda for cuda, first in DRIVERS.items() if branch >= (first,)), None) if branch else None


def look(host: Host) -> Nvidia:
    """Ask the driver, and where it does not answer find out why. Takes about a second; raises nothing."""
    facts, jetson = host.cuda(), find_jetson(host)
    loaded = re.search(r"Module\s+(?:for \S+\s+)?(\d[\d.]*)", host.text("proc/driver/nvidia/version") or "")
    listed = [] if loaded and facts.get("gpus") else _listed(host)
    version = loaded[1] if loaded else listed[0][1] if listed else ""
    gpus = tuple(Gpu(name, (major, minor)) for name, major, minor in facts.get("gpus", ())) or tuple(
        Gpu(name, _pair(capability)) for name, _, capability in listed
    )
    told = int(facts.get("version") or 0)
    cuda = (told // 1000, told % 1000 // 10) if told else None
    if cuda is None and listed:
        header = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+)\.(\d+)", smi(host) or "")
        cuda = (int(header[1]), int(header[2])) if header else None
    return Nvidia(_driver(host, facts, gpus, version, cuda, jetson), version, cuda, gpus, jetson)


def _listed(host: Host) -> list[list[str]]:
    """[name, driver, compute capability] of each GPU, as nvidia-smi tells them."""
    printed = smi(host, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader") or ""
    return [[cell.strip() for cell in line.split(",")] for line in printed.splitlines() if line.count(",") == 2]


def smi(host: Host, *arguments: str) -> str | None:
    """What nvidia-smi prints; in WSL it lies beside the driver, often off the PATH."""
    return host.output_of(["nvidia-smi", *arguments]) or host.output_of(["/usr/lib/wsl/lib/nvidia-smi", *arguments])


def cuda_python(host: Host, facts: Mapping[str, Facts], nvidia: Nvidia) -> Finding:
    """pycuda and cuda-python: either moves memory and runs engines; only the second captures CUDA graphs."""
    what = "pycuda, cuda-python"
    have: list[tuple[str, object]] = []  # name and version, and why it cannot be imported
    broken: list[tuple[str, object]] = []
    for name, module in (("pycuda", "pycuda"), ("cuda-python", "cuda.bindings")):
        if module in facts or host.importable(module):
            error = facts.get(module, {}).get("error")
            version = facts.get(module, {}).get("version") or host.version(
                "cuda-bindings" if name == "cuda-python" else name
            )
            (broken if error else have).append((f"{name} {version or ''}".strip(), error))
    names = ", ".join(name for name, _ in have)
    if not nvidia.usable:
        return Finding(what, "ok", names) if have else Finding(what, "absent", "not needed: no driver that works")
    bindings = release(host.version("cuda-bindings") or "")[:1]
    wheel = f"pip install {bindings_for(nvidia)}"
    if bindings and nvidia.cuda_major and bindings > (nvidia.cuda_major,):
        detail = (
            f"cuda-bindings {host.version('cuda-bindings')} is for a newer CUDA than the driver's {nvidia.cuda_major}"
        )
        return Finding(what, "warning" if len(have) > 1 else "missing", detail, wheel)
    if have:
        if any(name.startswith("cuda") for name, _ in have):
            return Finding(what, "ok", names)
        return Finding(what, "warning", f"{names}; only cuda-python can capture CUDA graphs", wheel)
    fix = pycuda_build(host) if nvidia.jetson and _nvcc(host) else wheel
    if broken:
        return Finding(what, "missing", f"{broken[0][0]} is installed and cannot be used: {broken[0][1]}", fix)
    off_path = _nvcc(host) == "off"
    hint = "; pycuda is built with nvcc, and /usr/local/cuda/bin is not on the PATH" if off_path else ""
    return Finding(what, "missing", f"neither pycuda nor cuda-python is installed{hint}", fix)


def bindings_for(nvidia: Nvidia) -> str:
    """cuda-bindings for pip, of the major version that this driver speaks: a newer one does not start."""
    return f"'cuda-bindings=={nvidia.cuda_major}.*'" if nvidia.cuda_major else "cuda-bindings"


def pycuda_build(host: Host) -> str:
    """The command that builds pycuda, which needs nvcc on the PATH."""
    path = "export PATH=/usr/local/cuda/bin:$PATH && " if _nvcc(host) == "off" else ""
    return f"{path}pip install pycuda"


def toolkit(host: Host) -> Finding:
    """CUDA's compiler and its version: information, as only pycuda's build needs it."""
    said = re.search(r"release (\d+\.\d+)", host.output_of(["nvcc", "--version"]) or "")
    if said:
        return Finding("cuda toolkit", "ok", f"{said[1]}, nvcc is on the PATH")
    if _nvcc(host) == "off":
        told = re.search(
            r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', host.text("usr/local/cuda/version.json") or ""
        )
        version = f"{told[1]} " if told else ""
        return Finding("cuda toolkit", "ok", f"{version}in /usr/local/cuda, its nvcc is not on the PATH")
    return Finding("cuda toolkit", "ok", "none: only building pycuda needs one")


def settings(host: Host) -> Iterator[Finding]:
    """Persistence mode and power limit of a desktop's or server's GPUs; nothing where nvidia-smi does not tell."""
    query = "--query-gpu=persistence_mode,power.limit,power.default_limit"
    for index, line in enumerate((smi(host, query, "--format=csv,noheader,nounits") or "").strip().splitlines()):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 3:
            continue
        what = f"gpu {index} settings"
        limits = [float(cell) if re.fullmatch(r"\d+(\.\d+)?", cell) else None for cell in cells[1:]]
        limit, default = limits
        watts = f"power limit {limit:g} W" if limit is not None else "power limit: cannot tell"
        if limit is not None and default is not None and limit < default:
            detail = f"{watts}, below its own {default:g} W"
            yield Finding(what, "warning", detail, f"sudo nvidia-smi -i {index} -pl {default:g}")
        elif cells[0] == "Disabled":
            detail = f"persistence mode off: the driver unloads between runs, and the first of each is slow; {watts}"
            yield Finding(what, "warning", detail, f"sudo nvidia-smi -i {index} -pm 1")
        else:
            mode = "persistence mode on" if cells[0] == "Enabled" else "persistence mode: cannot tell"
            yield Finding(what, "ok", f"{mode}, {watts}")


def _driver(
    host: Host,
    facts: Facts,
    gpus: tuple[Gpu, ...],
    version: str,
    cuda: tuple[int, int] | None,
    jetson: Jetson | None,
) -> Finding:
    what, wsl = "nvidia driver", "microsoft" in (host.text("proc/version") or "").lower()
    container = host.has(".dockerenv") or host.has("run/.containerenv")
    hidden, code = facts.get("hidden"), int(facts.get("code") or 100)  # a driver without devices says 100
    if facts.get("gpus"):
        name = f"part of JetPack{f' ({version})' if version else ''}" if jetson else version
        speaks = f"CUDA {dotted(cuda)}" if cuda else ""
        return Finding(what, "ok", f"{', '.join(word for word in (name, speaks) if word)}: {'; '.join(map(str, gpus))}")
    if not (version or jetson or wsl or _card(host)):
        return Finding(what, "absent", NO_GPU)
    if "error" not in facts:  # the library is here, and does not start
        if hidden is not None and code == 100:
            detail = f"CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU"
            return Finding(what, "missing", detail, "unset CUDA_VISIBLE_DEVICES")
        says = f"CUDA does not start: error {code}, {CUDA_ERRORS.get(code, 'see CUresult in cuda.h')}"
        if code in _MEND:
            return Finding(what, "missing", says, _MEND[code])
        if container:
            return Finding(what, "missing", f"{says}; in a container", _docker(jetson))
        if jetson:
            says += ". NVIDIA's device files belong to the groups video and render"
            return Finding(what, "missing", says, "sudo usermod -aG video,render $USER")
        return Finding(what, "missing", says, "sudo modprobe nvidia_uvm" if code == 999 and not wsl else "")
    if container and not wsl:
        detail = "this container was started without the GPU: the machine has one, and libcuda.so.1 is not here"
        if gpus:
            detail = "this container was given nvidia-smi and not CUDA: libcuda.so.1 is not here"
        return Finding(what, "missing", detail, _docker(jetson))
    if wsl and host.has("usr/lib/wsl/lib/libcuda.so.1"):
        detail = "the driver is in /usr/lib/wsl/lib, where the loader does not look"
        return Finding(what, "missing", detail, "export LD_LIBRARY_PATH=/usr/lib/wsl/lib:$LD_LIBRARY_PATH")
    if wsl:
        return Finding(what, "absent", f"{NO_GPU}: in WSL it is the driver of Windows that brings one")
    if jetson:
        detail = f"libcuda.so.1, which JetPack brings, cannot be loaded: {facts['error']}"
        return Finding(what, "missing", detail, "sudo apt-get install --reinstall nvidia-l4t-cuda")
    if version:
        detail = f"{version} is loaded, but libcuda.so.1 cannot be: {facts['error']}"
        return Finding(what, "missing", detail, "sudo ubuntu-drivers install")
    return Finding(what, "missing", "an NVIDIA GPU without its driver", "sudo ubuntu-drivers install")


def _docker(jetson: Jetson | None) -> str:
    if jetson:
        return "docker run --runtime nvidia IMAGE"
    return "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility IMAGE"


def _card(host: Host) -> bool:
    """Whether a graphics card of NVIDIA's is on the PCI bus."""
    for path in sorted(host.root.glob("sys/bus/pci/devices/*")):
        vendor, kind = (host.text(str(path.relative_to(host.root) / key)) or "" for key in ("vendor", "class"))
        if vendor.strip() == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def _nvcc(host: Host) -> Literal["on", "off", ""]:
    """Whether CUDA's compiler is on the PATH, only in its own folder, or not here."""
    if host.output_of(["nvcc", "--version"]):
        return "on"
    return "off" if host.has("usr/local/cuda/bin/nvcc") else ""


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _pair(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
