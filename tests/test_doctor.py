"""The doctor, on machines that are made up of a few files and answers, and once on this one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeseg import doctor_host
from edgeseg.doctor import Finding, diagnose, ready, report
from edgeseg.doctor_host import Host, imported, own_requirements, parse_requirement, release

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


def host(
    root: Path,
    files: Mapping[str, str] | None = None,
    *,
    packages: Mapping[str, str] = EVERYTHING,
    facts: Mapping[str, Mapping[str, Any]] = FACTS,
    smi: str | None = None,
    **changes: Any,
) -> Host:
    for name, content in {"proc/cpuinfo": X86, "proc/meminfo": MEMORY, **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)

    def answered(modules: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        return {module: facts[module] for module in modules}

    def output_of(command: Sequence[str]) -> str | None:
        return smi if command[0] == "nvidia-smi" else None

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


def test_a_complete_machine_without_a_gpu(tmp_path: Path) -> None:
    by = found(host(tmp_path))
    assert {what for what, finding in by.items() if finding.state != "ok"} == {
        "nvidia driver",
        "tensorrt",
        "tensorrt_rtx",
    }
    assert (
        by["extra torch"].detail == "onnxruntime 1.32.0, opencv-python-headless 5.0.0.93, onnx 1.23.2, torch 2.13.0+cpu"
    )
    assert by["INT8 instructions"].detail == "AVX512-VNNI, AMX-INT8"
    assert by["memory"].detail == "8.0 GiB available of 16.0"
    assert ready(diagnose(host(tmp_path))) == (
        "eval, bench, stream: yes",
        "stream --serve: yes",
        "build from .onnx: yes",
        "build from .pt, .pt2: yes",
        "OpenVINO: yes",
        "INT8 on this CPU: worth it, AVX512-VNNI, AMX-INT8",
        "TensorRT: no, because no NVIDIA GPU was found on this machine",
    )


def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(tmp_path: Path) -> None:
    packages = {name: EVERYTHING[name] for name in ("click", "onnxruntime", "opencv-python-headless")}
    facts = {name: FACTS[name] for name in ("onnxruntime", "cv2")}
    device = host(tmp_path, packages=packages, facts=facts)
    by = found(device)
    assert by["extra run"].state == "ok"
    assert by["extra build"] == Finding("extra build", "missing", "onnx not installed", "pip install 'edgeseg[build]'")
    assert by["extra torch"].detail == "onnx, torch not installed"
    assert by["extra openvino"].fix == "pip install 'edgeseg[openvino]'"
    lines = ready(diagnose(device))
    assert "eval, bench, stream: yes" in lines
    assert "build from .pt, .pt2: no, because onnx, torch not installed" in lines
    assert "OpenVINO: no, because openvino not installed" in lines


@pytest.mark.parametrize("version", ["1.16.9", "2.0.0"])
def test_a_version_out_of_bounds_is_a_warning(tmp_path: Path, version: str) -> None:
    by = found(host(tmp_path, packages={**EVERYTHING, "onnx": version}))
    assert by["extra build"].state == "warning"
    assert by["extra build"].detail == f"onnx {version} is outside <2,>=1.17"
    assert by["extra build"].fix == "pip install --upgrade 'edgeseg[build]'"
    assert by["extra run"].state == "ok"


def test_a_package_that_crashes_on_import_is_missing(tmp_path: Path) -> None:
    facts = {**FACTS, "openvino": {"error": "importing it crashed (SIGSEGV)"}}
    by = found(host(tmp_path, facts=facts))
    assert by["extra openvino"] == Finding(
        "extra openvino",
        "missing",
        "openvino 2026.4.1 is installed and cannot be used: importing it crashed (SIGSEGV)",
        "pip install --force-reinstall openvino",
    )
    assert "openvino devices" not in by


def test_other_names_of_a_package_count(tmp_path: Path) -> None:
    packages = {k: v for k, v in EVERYTHING.items() if k not in ("onnxruntime", "opencv-python-headless")}
    packages["onnxruntime-gpu"] = "1.22"
    facts = {**FACTS, "cv2": {"version": "4.8.0", "build": "GStreamer:   YES (1.20.3)"}}
    by = found(host(tmp_path, packages=packages, facts=facts))
    assert by["extra run"].detail == "onnxruntime-gpu 1.22, opencv-python-headless 4.8.0"
    assert "--source gst" in by["gstreamer"].detail
    assert "works" in by["gstreamer"].detail


@pytest.mark.parametrize(
    ("python", "state"), [((3, 9), "missing"), ((3, 10), "ok"), ((3, 13), "ok"), ((3, 14), "missing")]
)
def test_pythons(tmp_path: Path, python: tuple[int, int], state: str) -> None:
    packages = {**EVERYTHING, "tomli": "2.0"}
    by = found(host(tmp_path, python=python, packages=packages))
    assert by["python"].state == state
    assert ("tomli" in by["edgeseg"].detail) == (python < (3, 11))
    line = ready(diagnose(host(tmp_path, python=python, packages=packages)))[0]
    assert line.startswith("eval, bench, stream: yes") == (state == "ok")


def test_gstreamer_through_gi_or_opencv_or_not_at_all(tmp_path: Path) -> None:
    assert "no --source gst" in found(host(tmp_path))["gstreamer"].detail
    bound = host(tmp_path, importable=lambda module: module in {*FACTS, "gi"})
    assert "through gi" in found(bound)["gstreamer"].detail


def test_cpus_and_their_instructions(tmp_path: Path) -> None:
    def int8(info: str) -> Finding:
        return found(host(tmp_path, {"proc/cpuinfo": info}))["INT8 instructions"]

    assert int8("Features\t: fp asimd asimddp i8mm\n").detail == "dot product, I8MM"
    old = int8("flags\t\t: fpu avx2\n")
    assert old.state == "warning"
    assert "will likely not be faster than FP32" in old.detail
    assert old.fix == "edgeseg build MODEL --fp32"
    # Work may run on any core, so what only some have does not count.
    assert int8("Features\t: asimd asimddp\n\nFeatures\t: asimd\n").state == "warning"
    assert "does not tell" in int8("").detail
    assert "likely no gain" in ready(diagnose(host(tmp_path, {"proc/cpuinfo": "flags : avx2\n"})))[5]


@pytest.mark.parametrize(
    "files",
    [
        {"sys/fs/cgroup/cpu.max": "150000 100000\n"},
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000",
            "sys/fs/cgroup/a/b/cpu.max": "max 1",
        },
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n0::/\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    ],
    ids=["v2", "v2 nested", "v1"],
)
def test_a_containers_quota_is_seen(tmp_path: Path, files: dict[str, str]) -> None:
    cores = found(host(tmp_path, files, allowed_cores=4))["cores"]
    assert cores.state == "warning"
    assert cores.detail.startswith("4 of 8 may be used, but the container is given the time of 1.5:")
    assert cores.fix == "taskset -c 0-0 edgeseg bench BUNDLE"
    assert found(host(tmp_path, files, allowed_cores=1))["cores"].state == "ok"


def test_memory(tmp_path: Path) -> None:
    low = found(host(tmp_path, {"proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 1000000 kB\n"}))["memory"]
    assert low.state == "warning"
    assert low.fix.startswith("sudo systemctl")
    limited = found(host(tmp_path, {"sys/fs/cgroup/memory.max": str(1 << 30)}))["memory"]
    assert limited.state == "warning"
    assert "1.0 GiB available of 16.0, limited to 1.0 by the container" in limited.detail
    assert found(host(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"}))["memory"].state == "ok"


PCI = "sys/bus/pci/devices/0000:01:00.0"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build  (dvs-builder)\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"


def test_drivers_of_a_gpu(tmp_path: Path) -> None:
    card = {f"{PCI}/vendor": "0x10de\n", f"{PCI}/class": "0x030200\n"}
    bare = found(host(tmp_path / "a", card))
    assert bare["nvidia driver"].fix == "sudo ubuntu-drivers install"
    assert bare["tensorrt"].fix == "sudo ubuntu-drivers install"
    audio = {f"{PCI}/vendor": "0x10de\n", f"{PCI}/class": "0x040300\n"}
    assert "no NVIDIA GPU" in found(host(tmp_path / "b", audio))["nvidia driver"].detail
    for text, version in ((OPEN, "575.57.08"), (CLOSED, "550.54.15")):
        by = found(host(tmp_path / version, {**card, "proc/driver/nvidia/version": text}))
        assert by["nvidia driver"].detail == f"{version} is loaded"
        assert by["tensorrt"] == Finding("tensorrt", "missing", "tensorrt is not installed", "pip install tensorrt")
        assert by["tensorrt_rtx"].fix == "pip install tensorrt-rtx"


def test_a_gpu_with_tensorrt(tmp_path: Path) -> None:
    facts = {**FACTS, "tensorrt": {"version": "10.13.3.9"}}
    gpu = host(tmp_path, facts=facts, smi="NVIDIA L4, 575.57.08, 8.9\nNVIDIA L4, 575.57.08, 8.9\n")
    by = found(gpu)
    assert by["nvidia driver"].detail == "NVIDIA L4, 575.57.08, 8.9; NVIDIA L4, 575.57.08, 8.9"
    assert by["tensorrt"] == Finding("tensorrt", "ok", "tensorrt 10.13.3.9")
    assert ready(diagnose(gpu))[-1] == "TensorRT: yes, tensorrt 10.13.3.9"
    # The same package without a GPU, and with a library missing.
    assert found(host(tmp_path, facts=facts))["tensorrt"].state == "missing"
    facts["tensorrt"] = {"error": "ImportError: libnvinfer.so.10: cannot open shared object file"}
    broken = found(host(tmp_path, facts=facts, smi="NVIDIA L4, 575.57.08, 8.9\n"))["tensorrt"]
    assert broken.fix == "pip install --force-reinstall tensorrt"
    assert "libnvinfer.so.10" in broken.detail


def l4t(release: int, revision: str) -> dict[str, str]:
    return {"etc/nv_tegra_release": f"# R{release} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic\n"}


@pytest.mark.parametrize(
    ("release", "revision", "says", "state"),
    [
        (32, "7.4", "JetPack 4.6.1 or later, TensorRT 8.2.1 for Python 3.6", "warning"),
        (32, "5.1", "older than JetPack 4.6.1", "warning"),
        (35, "4.1", "JetPack 5.1, TensorRT 8.5.2 for Python 3.8", "warning"),
        (36, "3.0", "JetPack 6.0, TensorRT 8.6.2 for Python 3.10", "ok"),
        (36, "4.3", "JetPack 6.1 or 6.2, TensorRT 10.3 for Python 3.10", "ok"),
        (38, "2.0", "JetPack 7.0 or 7.1, TensorRT 10.13 for Python 3.12", "ok"),
        (40, "1.0", "newer than JetPack 7.1", "warning"),
    ],
)
def test_jetsons(tmp_path: Path, release: int, revision: str, says: str, state: str) -> None:
    by = found(host(tmp_path, l4t(release, revision), machine="aarch64"))
    assert by["jetson"].state == state
    assert says in by["jetson"].detail
    assert f"R{release}.{revision[0]}" in by["jetson"].detail
    assert by["nvidia driver"].detail == "part of JetPack"
    assert by["tensorrt"].fix == "sudo apt-get install python3-libnvinfer"
    assert by["tensorrt_rtx"].fix == ""


def test_an_unreadable_release_is_a_warning(tmp_path: Path) -> None:
    assert found(host(tmp_path, {"etc/nv_tegra_release": "???"}))["jetson"].state == "warning"


def test_jetpacks_tensorrt_is_found_from_a_virtual_environment(tmp_path: Path) -> None:
    packages = "usr/lib/python3.10/dist-packages"
    files = {
        **l4t(36, "4.3"),
        f"{packages}/tensorrt/tensorrt.so": "",
        f"{packages}/tensorrt-10.3.0.dist-info/METADATA": "",
    }
    orin = host(tmp_path, files, python=(3, 10), site=Path("/venv/lib/python3.10/site-packages"))
    by = found(orin)
    assert by["tensorrt"] == Finding(
        "tensorrt",
        "missing",
        "tensorrt 10.3.0 is in /usr/lib/python3.10/dist-packages, where this environment does not look",
        "echo /usr/lib/python3.10/dist-packages > /venv/lib/python3.10/site-packages/system-tensorrt.pth",
    )
    assert ready(diagnose(orin))[-1].startswith("TensorRT: no, because tensorrt 10.3.0 is in /usr/lib")
    other = found(host(tmp_path, files, python=(3, 12)))["tensorrt"]
    assert "made for Python 3.10, and this is 3.12" in other.detail
    assert other.fix == "python3.10 -m venv --system-site-packages .venv"


def test_a_tensorrt_for_a_python_that_is_too_old_cannot_be_mended_here(tmp_path: Path) -> None:
    files = {**l4t(35, "4.1"), "usr/lib/python3.8/dist-packages/tensorrt/tensorrt.so": ""}
    by = found(host(tmp_path, files, python=(3, 10)))
    assert "made for Python 3.8, and this is 3.10" in by["tensorrt"].detail
    assert by["tensorrt"].fix == "edgeseg export BUNDLE --dialect tensorrt -o DIR"
    debian = "usr/lib/python3/dist-packages/tensorrt/tensorrt.cpython-312-x86_64-linux-gnu.so"
    by = found(host(tmp_path / "debian", {debian: ""}, smi="NVIDIA L4, 575.57.08, 8.9"))
    assert by["tensorrt"].fix.startswith("echo /usr/lib/python3/dist-packages > /venv")


def test_the_pth_file_that_is_proposed_works(tmp_path: Path) -> None:
    """With a real environment's mechanism: site.addsitedir reads the file that the fix writes."""
    packages = tmp_path / "usr" / "lib" / "python3.12" / "dist-packages"
    gpu = host(
        tmp_path, {f"{packages.relative_to(tmp_path)}/tensorrt/__init__.py": ""}, smi="L4", site=tmp_path / "site"
    )
    words = found(gpu)["tensorrt"].fix.split()
    assert (words[0], words[2]) == ("echo", ">")
    (tmp_path / "site").mkdir()
    Path(words[3]).write_text(str(tmp_path) + words[1] + "\n")
    code = f"import site, sys; site.addsitedir({str(tmp_path / 'site')!r}); import tensorrt; print(tensorrt.__file__)"
    printed = doctor_host.output_of([sys.executable, "-c", code])
    assert printed is not None
    assert printed.strip() == str(packages / "tensorrt" / "__init__.py")


def test_without_metadata_no_bounds_are_known(tmp_path: Path) -> None:
    by = found(host(tmp_path, requirements=()))
    assert by["edgeseg"].state == "warning"
    assert "extra run" not in by


def test_the_report_is_aligned_and_shows_each_fix(tmp_path: Path) -> None:
    findings = diagnose(host(tmp_path, packages={"click": "8.2"}, facts={}))
    lines = report(findings).splitlines()
    table = lines[: lines.index("")]
    starts = {line.index(finding.detail) for finding in findings for line in table if finding.detail in line}
    assert len(starts) == 1
    assert {line.strip() for line in table if "fix:" in line} == {f"fix: {f.fix}" for f in findings if f.fix}
    assert lines[-len(ready(findings)) :] == list(ready(findings))


# --- the real probes -------------------------------------------------------------------------------------------------


def test_imports_that_fail_in_every_way_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {
        "fine_package": "__version__ = '1.2'; print('noise')",
        "crashing_package": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "broken_package": "raise ImportError('libfoo.so.3: cannot open')",
        "leaving_package": "import sys; sys.exit(0)",
        "hanging_package": "import time; time.sleep(60)",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor_host, "TIMEOUT", 2.0)
    answers = imported(sources)
    assert answers["fine_package"] == {"version": "1.2"}
    assert answers["crashing_package"] == {"error": "importing it crashed (SIGSEGV)"}
    assert answers["broken_package"] == {"error": "ImportError: libfoo.so.3: cannot open"}
    assert answers["leaving_package"] == {"error": "no reason was given"}
    assert "longer than 2 s" in answers["hanging_package"]["error"]


def test_requirement_lines() -> None:
    line = parse_requirement('onnxslim<0.2,>=0.1.50; extra == "build"', (3, 12))
    assert line is not None
    assert (line.name, line.extra) == ("onnxslim", "build")
    versions = {"0.1.50": True, "0.1.49": False, "0.2": False, "0.2.0": False, "0.1.98.1": True, "0.1": False}
    assert {version: line.admits(version) for version in versions} == versions
    named = parse_requirement("edgeseg[run, build]; extra == 'all'", (3, 12))
    assert named is not None
    assert named.extras == ("run", "build")
    assert parse_requirement('tomli; python_version < "3.11"', (3, 12)) is None
    assert parse_requirement('tomli; python_version < "3.11"', (3, 10)) is not None
    assert parse_requirement("???", (3, 12)) is None
    compatible = parse_requirement("a~=1.4.2", (3, 12))
    assert compatible is not None
    assert [compatible.admits(v) for v in ("1.4.2", "1.4.9", "1.5", "1.4.1")] == [True, True, False, False]
    assert release("2.13.0+cpu") == (2, 13, 0)
    assert release("unknown") == ()


def test_own_requirements_name_every_extra() -> None:
    parsed = [parse_requirement(line, (3, 12)) for line in own_requirements()]
    extras = {requirement.extra for requirement in parsed if requirement}
    assert {"", "run", "build", "torch", "openvino"} <= extras


def test_bounds_agree_with_packaging() -> None:
    requirements = pytest.importorskip("packaging.requirements", reason="needs packaging to compare with")
    versions = ["0.1.50", "1", "1.16.9", "1.17", "2", "2.6.1", "4.8", "6.0.0", "2025.0", "2026.4.1", "2027"]
    for line in own_requirements():
        ours = parse_requirement(line, (3, 12))
        if ours is not None:
            theirs = requirements.Requirement(line)
            assert theirs.name == ours.name
            assert [theirs.specifier.contains(v) for v in versions] == [ours.admits(v) for v in versions]


def test_this_machine() -> None:
    pytest.importorskip("onnxruntime", reason="needs edgeseg[run]")
    before = set(sys.modules)
    findings = diagnose()
    assert {"torch", "onnx", "onnxruntime", "openvino", "cv2"}.isdisjoint(set(sys.modules) - before)
    by = {finding.what: finding for finding in findings}
    assert by["python"].state == "ok"
    assert by["extra run"].state in ("ok", "warning")
    assert "CPUExecutionProvider" in by["onnxruntime providers"].detail
    assert re.match(r"\d+ of \d+ may be used", by["cores"].detail)
