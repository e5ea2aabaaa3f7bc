"""The doctor, on machines that are made up of a few files and answers, and once on this one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeseg import doctor_host
from edgeseg.doctor import EXTRAS, diagnose, ready, report
from edgeseg.doctor_host import Finding, cuda_facts, imported, own_requirements, parse_requirement, release
from tests.machines import EVERYTHING, FACTS, found, host


def test_a_complete_machine_without_a_gpu(tmp_path: Path) -> None:
    by = found(host(tmp_path))
    assert {what for what, finding in by.items() if finding.state != "ok"} == {
        *("nvidia driver", "tensorrt", "tensorrt_rtx", "tensorrt_rtx builder"),
        *("extra nvidia", "extra tensorrt", "extra tensorrt-rtx"),
    }
    assert not [finding for finding in by.values() if finding.state in ("missing", "warning")]  # nothing is broken
    assert by["extra tensorrt"] == Finding(
        "extra tensorrt", "absent", "cuda-bindings not installed, not needed: no NVIDIA GPU"
    )
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
        "TensorRT-RTX: no, because no NVIDIA GPU was found on this machine",
        "TensorRT-RTX engines for other machines: no, because tensorrt_rtx is not installed",
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


def test_the_extras_that_are_looked_at_exist() -> None:
    lines = doctor_host._checkout_requirements(Path(doctor_host.__file__).parents[1] / "pyproject.toml")
    if not lines:
        pytest.skip("not a checkout")
    assert set(EXTRAS) <= {requirement.extra for line in lines if (requirement := parse_requirement(line, (3, 12)))}


def test_a_checkouts_requirements_keep_their_markers(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[project]\ndependencies = ['a>=1; python_version < \"3.11\"']\n"
        "[project.optional-dependencies]\nx = ['b>=2', 'c<3; platform_machine == \"x86_64\"']\n"
    )
    lines = doctor_host._checkout_requirements(tmp_path / "pyproject.toml")
    assert lines == (
        'a>=1; python_version < "3.11"',
        'b>=2; extra == "x"',
        'c<3; (platform_machine == "x86_64") and extra == "x"',
    )
    parsed = [parse_requirement(line, (3, 12)) for line in lines]
    assert [(r.name, r.extra) for r in parsed if r] == [("b", "x"), ("c", "x")]
    assert doctor_host._checkout_requirements(tmp_path / "none.toml") == ()


def test_bounds_agree_with_packaging() -> None:
    requirements = pytest.importorskip("packaging.requirements", reason="needs packaging to compare with")
    versions = ["0.1.50", "1", "1.16.9", "1.17", "2", "2.6.1", "4.8", "6.0.0", "2025.0", "2026.4.1", "2027"]
    for line in own_requirements():
        ours = parse_requirement(line, (3, 12))
        if ours is not None:
            theirs = requirements.Requirement(line)
            assert theirs.name == ours.name
            assert [theirs.specifier.contains(v) for v in versions] == [ours.admits(v) for v in versions]


def test_an_old_edgeseg_without_an_extra_is_not_asked_for_it(tmp_path: Path) -> None:
    by = found(host(tmp_path, requirements=("click<9,>=8.1", 'onnx<2,>=1.17; extra == "build"')))
    assert {what for what in by if what.startswith("extra")} == {"extra build"}


def test_what_the_cuda_driver_says_here() -> None:
    facts = cuda_facts()
    assert "hidden" in facts
    if "error" in facts:
        assert "libcuda" in facts["error"]
        return
    assert facts["version"] >= 11000
    for name, major, minor in facts["gpus"]:
        assert name
        assert (major, minor) >= (3, 0)


DRIVER = """
#include <string.h>
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
int cuInit(unsigned flags) { return CODE; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *name, int size, int d) { strcpy(name, d ? "NVIDIA L4" : "Orin"); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? (d ? 9 : 7) : -1; return 0; }
"""


@pytest.mark.parametrize("code", [0, 100])
def test_a_cuda_driver_is_asked_through_its_own_interface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    built = ["-shared", "-fPIC", f"-DCODE={code}", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.c")]
    subprocess.run([compiler, *built], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    gpus = [["Orin", 8, 7], ["NVIDIA L4", 8, 9]]
    assert cuda_facts() == {"hidden": "0,1", "version": 12060, "code": code, "gpus": [] if code else gpus}


def test_a_cuda_driver_that_says_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_host, "CUDA", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "crashed" in cuda_facts()["error"]


def test_this_machine() -> None:
    pytest.importorskip("onnxruntime", reason="needs edgeseg[run]")
    before = set(sys.modules)
    findings = diagnose()
    assert {"torch", "onnx", "onnxruntime", "openvino", "cv2", "tensorrt", "tensorrt_rtx"}.isdisjoint(
        set(sys.modules) - before
    )
    by = {finding.what: finding for finding in findings}
    assert by["python"].state == "ok"
    assert by["extra run"].state in ("ok", "warning")
    assert "CPUExecutionProvider" in by["onnxruntime providers"].detail
    assert re.match(r"\d+ of \d+ may be used", by["cores"].detail)
