"""What this machine can run, and the command that mends what it cannot. Behind `edgeseg doctor`.

    findings = diagnose()
    print(report(findings))

Looks at files, package metadata and what child processes answer; changes nothing and imports nothing heavy here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from edgeseg.doctor_gpu import bindings_for, cuda_python, look, settings, toolkit
from edgeseg.doctor_host import PYTHONS, Facts, Finding, Host, Requirement, parse_requirement
from edgeseg.doctor_jetson import clocks, dla_finding, jetpack_finding, power_mode
from edgeseg.doctor_nvidia import LIBRARIES, MODULES, builder_finding, library_finding, unneeded

EXTRAS = ("run", "build", "torch", "openvino", "serve", "nvidia", "tensorrt", "tensorrt-rtx")
LOW_MEMORY = 2 << 30  # bytes; a build of a small network takes about one

# The same package under other names, by what the metadata asks for.
ALIASES = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "tensorrt-rtx-cu13": ("tensorrt-rtx-cu12",),
}
MODULE_NAMES = {
    "opencv-python-headless": "cv2",
    "cuda-bindings": "cuda.bindings",
    "cuda-python": "cuda.bindings",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
}
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


def diagnose(host: Host | None = None) -> tuple[Finding, ...]:
    """Look at the machine. Takes as long as importing torch does, in a child process; raises nothing."""
    host = host or Host()
    facts = host.imported([module for module in (*IMPORTED, *MODULES) if host.importable(module)])
    nvidia = look(host)
    jetson = nvidia.jetson
    return (
        _python(host),
        *_extras(host, facts, unneeded(host, nvidia), {"tensorrt": bindings_for(nvidia)} if nvidia.cuda_major else {}),
        *_engines(facts, host.importable),
        _int8(host),
        _cores(host),
        _memory(host),
        nvidia.driver,
        *((toolkit(host), cuda_python(host, facts, nvidia)) if nvidia.driver.state != "absent" else ()),
        *((jetpack_finding(host, jetson), power_mode(host), clocks(host), dla_finding(jetson)) if jetson else ()),
        *(settings(host) if not jetson else ()),
        *(library_finding(host, name, facts, nvidia) for name in LIBRARIES),
        builder_finding(host, facts),
    )


def ready(findings: Sequence[Finding]) -> tuple[str, ...]:
    """What can run here, a line each: "build from .pt: yes", "TensorRT: no, because …"."""
    by = {finding.what: finding for finding in findings}

    def line(what: str, *needs: str) -> str:
        lacking = [by[need] for need in needs if need in by and by[need].state == "missing"]
        return f"{what}: yes" if not lacking else f"{what}: no, because {lacking[0].detail}"

    def told(what: str, row: str) -> str:
        finding = by[row]
        answer = {"ok": "yes,", "warning": "in doubt,"}.get(finding.state, "no, because")
        return f"{what}: {answer} {finding.detail}"

    int8 = by["INT8 instructions"]
    return (
        line("eval, bench, stream", "python", "extra run"),
        line("stream --serve", "python", "extra run", "extra serve"),
        line("build from .onnx", "python", "extra build"),
        line("build from .pt, .pt2", "python", "extra torch"),
        line("OpenVINO", "python", "extra openvino", "openvino devices"),
        f"INT8 on this CPU: {'worth it' if int8.state == 'ok' else 'likely no gain'}, {int8.detail}",
        told("TensorRT", "tensorrt"),
        told("TensorRT-RTX", "tensorrt_rtx"),
        told("TensorRT-RTX engines for other machines", "tensorrt_rtx builder"),
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


def _extras(
    host: Host, facts: Mapping[str, Facts], unneeded: Mapping[str, str], pins: Mapping[str, str]
) -> Iterator[Finding]:
    """`unneeded` are extras that may be absent, and why; `pins` what to give pip beside an extra."""
    requirements = [r for line in host.requirements if (r := parse_requirement(line, host.python))]
    if not requirements:
        yield Finding(
            "edgeseg", "warning", "its own metadata is not here, so no bounds are known", "pip install edgeseg"
        )
        return
    for extra in ("", *EXTRAS):
        what = f"extra {extra}" if extra else "edgeseg"
        again = f"pip install 'edgeseg[{extra}]' {pins.get(extra, '')}".strip() if extra else "pip install edgeseg"
        present, absent, outside, broken = [], [], [], []
        wanted = list(_of_extra(requirements, extra))
        if extra and not wanted:
            continue  # this edgeseg has no such extra
        for requirement in wanted:
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
        if absent and extra in unneeded:
            yield Finding(what, "absent", f"{', '.join(absent)} not installed, not needed: {unneeded[extra]}")
        elif absent:
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
    found = facts.get(MODULE_NAMES.get(wanted, wanted.replace("-", "_")), {})
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
