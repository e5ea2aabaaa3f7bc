"""What this machine can run, and the command that mends what it cannot. Behind `edgeseg doctor`.

    findings = diagnose()
    print(report(findings))

Looks at files, package metadata and what child processes answer; changes nothing and imports nothing heavy here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeseg.doctor_host import Facts, Host, Requirement, parse_requirement, release

State = Literal["ok", "missing", "warning"]

PYTHONS = ((3, 10), (3, 13))  # first and last that edgeseg supports
EXTRAS = ("run", "build", "torch", "openvino", "serve")
LOW_MEMORY = 2 << 30  # bytes; a build of a small network takes about one

# The same package under other names, by what the metadata asks for.
ALIASES = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
}
MODULES = {"opencv-python-headless": "cv2"}
# Imported to see that they work, and not only there. The others are pure Python and follow these.
IMPORTED = ("onnxruntime", "cv2", "onnx", "torch", "openvino")

# /proc/cpuinfo's words for what multiplies 8-bit numbers four at a time.
INT8_FLAGS = {
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX-INT8",
    "asimddp": "dot product",
    "i8mm": "I8MM",
}

# L4T (release, revision), from which on: JetPack, its TensorRT, the Python of its bindings. Newest first.
JETPACKS: tuple[tuple[tuple[int, int], str, str, tuple[int, int]], ...] = (
    ((38, 0), "7.0 or 7.1", "10.13", (3, 12)),
    ((36, 4), "6.1 or 6.2", "10.3", (3, 10)),
    ((36, 0), "6.0", "8.6.2", (3, 10)),
    ((35, 2), "5.1", "8.5.2", (3, 8)),
    ((35, 0), "5.0", "8.4", (3, 8)),
    ((32, 7), "4.6.1 or later", "8.2.1", (3, 6)),
)
NEWEST_L4T = 38

EXPORT = "edgeseg export BUNDLE --dialect tensorrt -o DIR"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fix` is one command, or empty where nothing is wrong or no command can mend it."""

    what: str
    state: State
    detail: str
    fix: str = ""


def diagnose(host: Host | None = None) -> tuple[Finding, ...]:
    """Look at the machine. Takes as long as importing torch does, in a child process; raises nothing."""
    host = host or Host()
    tensorrts = ("tensorrt", "tensorrt_rtx")
    facts = host.imported([module for module in (*IMPORTED, *tensorrts) if host.importable(module)])
    driver = _driver(host)
    jetson = _jetson(host)
    return (
        _python(host),
        *_extras(host, facts),
        *_engines(facts, host.importable),
        _int8(host),
        _cores(host),
        _memory(host),
        driver,
        *([jetson] if jetson else []),
        *(_tensorrt(host, name, facts, driver, jetson) for name in tensorrts),
    )


def ready(findings: Sequence[Finding]) -> tuple[str, ...]:
    """What can run here, a line each: "build from .pt: yes", "TensorRT: no, because …"."""
    by = {finding.what: finding for finding in findings}

    def line(what: str, *needs: str) -> str:
        lacking = [by[need] for need in needs if need in by and by[need].state == "missing"]
        return f"{what}: yes" if not lacking else f"{what}: no, because {lacking[0].detail}"

    def either(what: str, *ways: str) -> str:
        found = [by[way] for way in ways if way in by]
        good = [way for way in found if way.state != "missing"]
        return f"{what}: yes, {good[0].detail}" if good else f"{what}: no, because {found[0].detail}"

    int8 = by["INT8 instructions"]
    return (
        line("eval, bench, stream", "python", "extra run"),
        line("stream --serve", "python", "extra run", "extra serve"),
        line("build from .onnx", "python", "extra build"),
        line("build from .pt, .pt2", "python", "extra torch"),
        line("OpenVINO", "python", "extra openvino", "openvino devices"),
        f"INT8 on this CPU: {'worth it' if int8.state == 'ok' else 'likely no gain'}, {int8.detail}",
        either("TensorRT", "tensorrt", "tensorrt_rtx"),
    )


def report(findings: Sequence[Finding]) -> str:
    """The findings as aligned text, each fix below what it mends, and what can run at the end."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<7}  {finding.what:<{width}}  {finding.detail}")
        if finding.fix:
            lines.append(f"{'':<7}  {'':<{width}}  fix: {finding.fix}")
    return "\n".join([*lines, "", *ready(findings)])


def _python(host: Host) -> Finding:
    have, (first, last) = ".".join(map(str, host.python)), PYTHONS
    if first <= host.python <= last:
        return Finding("python", "ok", f"{have} on {host.machine}")
    wanted = f"wanted Python {first[0]}.{first[1]} to {last[0]}.{last[1]}, this is {have}"
    return Finding("python", "missing", wanted, f"python{last[0]}.{last[1]} -m venv .venv")


def _extras(host: Host, facts: Mapping[str, Facts]) -> Iterator[Finding]:
    requirements = [r for line in host.requirements if (r := parse_requirement(line, host.python))]
    if not requirements:
        yield Finding(
            "edgeseg", "warning", "its own metadata is not here, so no bounds are known", "pip install edgeseg"
        )
        return
    for extra in ("", *EXTRAS):
        what = f"extra {extra}" if extra else "edgeseg"
        again = f"pip install 'edgeseg[{extra}]'" if extra else "pip install edgeseg"
        present, absent, outside, broken = [], [], [], []
        for requirement in _of_extra(requirements, extra):
            name, version, error = _package(host, requirement.name, facts)
            if version is None:
                absent.append(name)
            elif error:
                broken.append((name, f"{name} {version} is installed and cannot be used: {error}"))
            elif not requirement.admits(version):
                bounds = ",".join("".join(bound) for bound in requirement.bounds)
                outside.append(f"{name} {version} is outside {bounds}")
            else:
                present.append(f"{name} {version}")
        if absent:
            yield Finding(what, "missing", f"{', '.join(absent)} not installed", again)
        elif broken:
            yield Finding(what, "missing", broken[0][1], f"pip install --force-reinstall {broken[0][0]}")
        elif outside:
            yield Finding(what, "warning", ", ".join(outside), again.replace("install", "install --upgrade"))
        else:
            yield Finding(what, "ok", ", ".join(present))


def _of_extra(requirements: Sequence[Requirement], extra: str) -> Iterator[Requirement]:
    """What an extra asks for, with what the extras that it names ask for."""
    for requirement in requirements:
        if requirement.extra == extra:
            if requirement.name.lower() == "edgeseg":
                for named in requirement.extras:
                    yield from _of_extra(requirements, named)
            else:
                yield requirement


def _package(host: Host, wanted: str, facts: Mapping[str, Facts]) -> tuple[str, str | None, str]:
    """The name it is installed under, its version or None, and why it cannot be imported or ""."""
    found = facts.get(MODULES.get(wanted, wanted.replace("-", "_")), {})
    error = str(found.get("error", ""))
    for name in (wanted, *ALIASES.get(wanted, ())):
        version = host.version(name)
        if version is not None:
            return name, version, error
    # Built on the machine, such as JetPack's OpenCV: a module without metadata.
    version = str(found["version"]) if found.get("version") else None
    return wanted, version, error


def _engines(facts: Mapping[str, Facts], importable: Callable[[str], bool]) -> Iterator[Finding]:
    runtime, openvino, cv2 = (facts.get(name, {}) for name in ("onnxruntime", "openvino", "cv2"))
    if "providers" in runtime:
        yield Finding("onnxruntime providers", "ok", ", ".join(runtime["providers"]))
    if "devices" in openvino:
        devices = ", ".join(openvino["devices"])
        fix = "" if devices else "pip install --force-reinstall openvino"
        yield Finding("openvino devices", "ok" if devices else "missing", devices or "OpenVINO finds no device", fix)
    if "build" in cv2:
        line = re.search(r"GStreamer:\s*(\S+)", str(cv2["build"]))
        has = line is not None and line[1].upper().startswith("YES")
        if importable("gi"):
            detail = "through gi: --source gst:…, csi:… and --send"
        elif has:
            detail = "OpenCV has it: --source gst:… works"
        else:
            detail = "neither gi nor OpenCV has it: no --source gst:… and csi:…, no --send"
        yield Finding("gstreamer", "ok", detail)  # information: most machines need none


def _int8(host: Host) -> Finding:
    info = host.text("proc/cpuinfo") or ""
    lists = re.findall(r"^(?:flags|Features)\s*:(.*)$", info, re.MULTILINE)
    if not lists:
        detail = "this system does not tell its CPU's instructions; build measures whether INT8 gains"
        return Finding("INT8 instructions", "warning", detail)
    common = set.intersection(*(set(flags.split()) for flags in lists))  # big and little cores may differ
    have = [name for flag, name in INT8_FLAGS.items() if flag in common]
    if have:
        return Finding("INT8 instructions", "ok", ", ".join(have))
    detail = "the CPU has none (VNNI, AMX, dot product, I8MM), so INT8 will likely not be faster than FP32 on it"
    return Finding("INT8 instructions", "warning", detail, "edgeseg build MODEL --fp32")


def _cores(host: Host) -> Finding:
    quota = _quota(host)
    detail = f"{host.allowed_cores} of {host.cores} may be used"
    if quota is None or quota >= host.allowed_cores:
        return Finding("cores", "ok", detail)
    whole = max(1, int(quota))
    detail += (
        f", but the container is given the time of {quota:g}: engines will start too many threads and be throttled"
    )
    return Finding("cores", "warning", detail, f"taskset -c 0-{whole - 1} edgeseg bench BUNDLE")


def _quota(host: Host) -> float | None:
    """CPUs' worth of time that the control group allows: the least of this group's and its parents'."""
    quotas = []
    for folder in _groups(host, "cpu"):
        limit = (host.text(f"{folder}/cpu.max") or "").split()
        if len(limit) != 2:
            version1 = [host.text(f"{folder}/cpu.cfs_{key}_us") for key in ("quota", "period")]
            limit = [(text or "").strip() for text in version1]
        if all(part.isdigit() for part in limit) and int(limit[1]) > 0:
            quotas.append(int(limit[0]) / int(limit[1]))
    return min(quotas, default=None)


def _groups(host: Host, controller: str) -> list[str]:
    """Folders of this process's control group and its parents, of version 2 and of version 1's controller."""
    folders = ["sys/fs/cgroup", f"sys/fs/cgroup/{controller}"]
    for line in (host.text("proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        base = "sys/fs/cgroup" if not controllers else f"sys/fs/cgroup/{controller}"
        if not controllers or controller in controllers.split(","):
            parts = [part for part in path.split("/") if part and part != ".."]
            folders += [f"{base}/{'/'.join(parts[:end])}" for end in range(1, len(parts) + 1)]
    return folders


def _memory(host: Host) -> Finding:
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", host.text("proc/meminfo") or "", re.MULTILINE))
    if "MemAvailable" not in info:
        return Finding("memory", "warning", "this system does not tell how much memory is free")
    free = int(info["MemAvailable"]) * 1024
    limits = [
        host.text(f"{group}/memory.{key}") for group in _groups(host, "memory") for key in ("max", "limit_in_bytes")
    ]
    limit = min((int(text) for text in limits if text and text.strip().isdigit()), default=free)
    total = int(info.get("MemTotal", 0)) * 1024
    detail = f"{min(free, limit) / 2**30:.1f} GiB available of {total / 2**30:.1f}"
    if limit < free:
        detail += f", limited to {limit / 2**30:.1f} by the container"
    if min(free, limit) >= LOW_MEMORY:
        return Finding("memory", "ok", detail)
    fix = "" if limit < free else "sudo systemctl isolate multi-user.target"  # the desktop is what fills a Jetson
    return Finding("memory", "warning", f"{detail}; a build needs about {LOW_MEMORY >> 30}", fix)


def _driver(host: Host) -> Finding:
    listed = host.output_of(["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"])
    if listed and listed.strip():
        return Finding("nvidia driver", "ok", "; ".join(line.strip() for line in listed.strip().splitlines()))
    loaded = re.search(r"Module\s+(?:for \S+\s+)?(\d[\d.]*)", host.text("proc/driver/nvidia/version") or "")
    if loaded:
        return Finding("nvidia driver", "ok", f"{loaded[1]} is loaded")
    if host.text("etc/nv_tegra_release") is not None:
        return Finding("nvidia driver", "ok", "part of JetPack")
    devices = host.root / "sys/bus/pci/devices"
    for device in sorted(devices.iterdir()) if devices.is_dir() else []:
        vendor, kind = (host.text(str(device.relative_to(host.root) / key)) for key in ("vendor", "class"))
        if (vendor or "").strip() == "0x10de" and (kind or "").startswith("0x03"):
            return Finding(
                "nvidia driver", "missing", "an NVIDIA GPU without its driver", "sudo ubuntu-drivers install"
            )
    return Finding("nvidia driver", "missing", "no NVIDIA GPU was found on this machine")


def _jetson(host: Host) -> Finding | None:
    text = host.text("etc/nv_tegra_release")
    if text is None:
        return None
    found = re.search(r"R(\d+)\b.*?REVISION:\s*(\d+)", text)
    if found is None:
        return Finding("jetson", "warning", f"an L4T release that cannot be read: {text.strip()[:80]!r}")
    l4t = (int(found[1]), int(found[2]))
    jetpack = next((row for row in JETPACKS if l4t >= row[0]), None)
    name = f"L4T R{l4t[0]}.{l4t[1]}"
    if jetpack is None or l4t[0] > NEWEST_L4T:
        age = "newer than JetPack 7.1" if jetpack else "older than JetPack 4.6.1"
        return Finding("jetson", "warning", f"{name}, {age}: its TensorRT is not known here")
    _, release_name, tensorrt, python = jetpack
    detail = f"{name}, JetPack {release_name}, TensorRT {tensorrt} for Python {python[0]}.{python[1]}"
    if python >= PYTHONS[0]:
        return Finding("jetson", "ok", detail)
    return Finding("jetson", "warning", f"{detail}, which edgeseg does not run on: TensorRT's own trtexec can", EXPORT)


def _tensorrt(host: Host, name: str, facts: Mapping[str, Facts], driver: Finding, jetson: Finding | None) -> Finding:
    if name in facts:
        error = facts[name].get("error")
        if error:
            package = f"{name} is installed and cannot be used: {error}"
            return Finding(name, "missing", package, f"pip install --force-reinstall {name.replace('_', '-')}")
        if driver.state == "missing":
            return Finding(name, "missing", f"{name} is installed, but {driver.detail}", driver.fix)
        return Finding(name, "ok", f"{name} {facts[name].get('version', '')}".strip())
    if driver.state == "missing":
        return Finding(name, "missing", driver.detail, driver.fix)
    for folder in _system_packages(host):
        if (folder / name).is_dir():
            return _elsewhere(host, name, folder)
    if jetson:
        # Wheels of PyPI are not made for Jetson's driver, so it must be JetPack's own; RTX does not exist for it.
        fix = "sudo apt-get install python3-libnvinfer" if name == "tensorrt" else ""
        return Finding(name, "missing", f"{name} is not installed on this Jetson", fix)
    return Finding(name, "missing", f"{name} is not installed", f"pip install {name.replace('_', '-')}")


def _system_packages(host: Host) -> list[Path]:
    return sorted(
        path for base in ("usr/lib", "usr/local/lib") for path in (host.root / base).glob("python3*/dist-packages")
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
