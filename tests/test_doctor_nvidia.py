"""The doctor on machines with NVIDIA's GPUs: desktops, servers, containers, WSL and Jetsons, made up of a few files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeseg import doctor_host
from edgeseg.doctor import diagnose, ready
from edgeseg.doctor_gpu import look
from edgeseg.doctor_host import Finding, Host
from edgeseg.doctor_jetson import apt_version
from edgeseg.doctor_nvidia import LIBRARIES, Library, missing
from tests.machines import EVERYTHING, FACTS, L4, found, gpu, host

PCI = "sys/bus/pci/devices/0000:01:00.0"
CARD = {f"{PCI}/vendor": "0x10de\n", f"{PCI}/class": "0x030200\n"}
LOADED = "proc/driver/nvidia/version"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build  (dvs-builder)\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024\n"
EXPORT = "edgeseg export BUNDLE --dialect tensorrt -o DIR"
BINDINGS = {"version": "12.9.0"}


def trt(version: str = "10.13.3.9", **more: Any) -> dict[str, Mapping[str, Any]]:
    """A machine with TensorRT and cuda-python."""
    return {**FACTS, "tensorrt": {"version": version, "builder": True}, "cuda.bindings": BINDINGS, **more}


def wheels(*names: str, version: str = "10.13.3.9") -> dict[str, str]:
    return {**EVERYTHING, "cuda-bindings": "12.9.0", **dict.fromkeys(names, version)}


# --- the driver ------------------------------------------------------------------------------------------------------


def test_drivers_of_a_gpu(tmp_path: Path) -> None:
    bare = found(host(tmp_path / "a", CARD))
    assert bare["nvidia driver"] == Finding(
        "nvidia driver", "missing", "an NVIDIA GPU without its driver", "sudo ubuntu-drivers install"
    )
    assert bare["tensorrt"].fix == "sudo ubuntu-drivers install"
    assert bare["tensorrt"].state == "missing"
    audio = {f"{PCI}/vendor": "0x10de\n", f"{PCI}/class": "0x040300\n"}
    assert "no NVIDIA GPU" in found(host(tmp_path / "b", audio))["nvidia driver"].detail
    for text, version in ((OPEN, "575.57.08"), (CLOSED, "550.54.15")):
        by = found(host(tmp_path / version, {**CARD, LOADED: text}, cuda=L4))
        assert by["nvidia driver"].detail == f"{version}, CUDA 12.9: NVIDIA L4 (compute capability 8.9)"
        assert by["tensorrt"] == Finding(
            "tensorrt", "missing", "tensorrt is not installed", "pip install tensorrt-cu12"
        )
        assert by["tensorrt_rtx"].fix == "pip install tensorrt-rtx-cu12"


@pytest.mark.parametrize(
    ("cuda", "fix"),
    [
        (13020, "pip install tensorrt-cu13"),
        (14000, "pip install tensorrt-cu13"),
        (12000, "pip install tensorrt-cu12"),
        (11040, "pip install tensorrt-cu11"),
        (10020, "sudo ubuntu-drivers install"),
    ],
)
def test_the_wheel_that_is_proposed_is_one_for_this_driver(tmp_path: Path, cuda: int, fix: str) -> None:
    by = found(host(tmp_path, {LOADED: OPEN}, cuda=gpu(("NVIDIA L4", 8, 9), cuda=cuda)))
    assert by["tensorrt"].fix == fix
    if cuda >= 13000:
        assert by["tensorrt_rtx"].fix == "pip install 'edgeseg[tensorrt-rtx]'"


def test_a_gpu_with_tensorrt(tmp_path: Path) -> None:
    desktop = host(
        tmp_path,
        {LOADED: OPEN},
        cuda=gpu(("NVIDIA L4", 8, 9), ("NVIDIA L4", 8, 9)),
        facts=trt(),
        packages=wheels("tensorrt", "tensorrt-cu12"),
        printed={
            "nvidia-smi --query-gpu=persistence_mode": "Enabled, 72.00, 72.00\nDisabled, 60.00, 72.00\n",
            "nvcc --version": "Cuda compilation tools, release 12.6, V12.6.68\n",
        },
    )
    by = found(desktop)
    card = "NVIDIA L4 (compute capability 8.9)"
    assert by["nvidia driver"].detail == f"575.57.08, CUDA 12.9: {card}; {card}"
    assert by["tensorrt"] == Finding("tensorrt", "ok", f"TensorRT 10.13.3.9 on {card}, FP16 and INT8")
    assert by["cuda toolkit"].detail == "12.6, nvcc is on the PATH"
    assert by["pycuda, cuda-python"] == Finding("pycuda, cuda-python", "ok", "cuda-python 12.9.0")
    assert by["gpu 0 settings"] == Finding("gpu 0 settings", "ok", "persistence mode on, power limit 72 W")
    assert by["gpu 1 settings"].detail == "power limit 60 W, below its own 72 W"
    assert by["gpu 1 settings"].fix == "sudo nvidia-smi -i 1 -pl 72"
    assert by["extra tensorrt"].state == "ok"
    assert by["extra tensorrt-rtx"].state == "absent"
    assert f"TensorRT: yes, TensorRT 10.13.3.9 on {card}, FP16 and INT8" in ready(diagnose(desktop))
    assert missing("tensorrt", desktop) is None


def test_tensorrt_that_cannot_be_used(tmp_path: Path) -> None:
    without = found(host(tmp_path / "none", facts=trt()))["tensorrt"]
    assert (without.state, without.fix) == ("absent", "")
    assert without.detail == "TensorRT 10.13.3.9 is installed, but no NVIDIA GPU was found on this machine"
    facts = trt(tensorrt={"error": "ImportError: libnvinfer.so.10: cannot open shared object file"})
    broken = found(host(tmp_path, {LOADED: OPEN}, facts=facts, cuda=L4))["tensorrt"]
    assert broken.state == "missing"
    assert broken.fix == "pip install --force-reinstall tensorrt-cu12"
    assert "libnvinfer.so.10" in broken.detail


def test_persistence_mode(tmp_path: Path) -> None:
    def settings(line: str) -> Finding:
        return found(host(tmp_path, cuda=L4, printed={"nvidia-smi --query-gpu=pers": line}))["gpu 0 settings"]

    off = settings("Disabled, 300.00, 300.00\n")
    assert off.state == "warning"
    assert off.fix == "sudo nvidia-smi -i 0 -pm 1"
    assert settings("[N/A], [N/A], [N/A]\n").detail == "persistence mode: cannot tell, power limit: cannot tell"
    assert "gpu 0 settings" not in found(host(tmp_path, cuda=L4))


def test_type_stubs_and_bare_bindings_are_no_tensorrt(tmp_path: Path) -> None:
    stubs = {**FACTS, "tensorrt": {"version": "", "builder": False}}
    machine = host(tmp_path, {LOADED: OPEN}, cuda=L4, facts=stubs)
    assert found(machine)["tensorrt"].detail == "tensorrt is not installed, only its type stubs are"
    stand = missing("tensorrt", machine)
    assert stand is not None
    assert stand.fix == "pip install tensorrt-cu12"
    bindings = {**FACTS, "tensorrt_bindings": {"version": "10.13"}}
    detail = found(host(tmp_path, {LOADED: OPEN}, cuda=L4, facts=bindings))["tensorrt"].detail
    assert detail == "tensorrt is not installed, only tensorrt_bindings is, without its libraries"


def test_a_folder_of_stubs_is_seen_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real probe: an empty namespace imports without an error."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").write_text("class Builder: ...\n")
    (tmp_path / "tensorrt_rtx.py").write_text("__version__ = '1.7'\nclass Builder: ...\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if "site-packages" not in p)])
    assert doctor_host.importable("tensorrt")
    facts = doctor_host.imported(LIBRARIES)
    assert facts["tensorrt"] == {"version": "", "builder": False}
    assert facts["tensorrt_rtx"] == {"version": "1.7", "builder": True}


@pytest.mark.parametrize("cuda", [12040, 11040])
def test_a_wheel_for_a_newer_cuda_than_the_drivers(tmp_path: Path, cuda: int) -> None:
    packages = wheels("tensorrt", "tensorrt-cu13", "tensorrt-cu13-bindings", "tensorrt-cu13-libs")
    old = host(
        tmp_path, {LOADED: CLOSED}, cuda=gpu(("NVIDIA A10", 8, 6), cuda=cuda), facts=trt("11.4.0"), packages=packages
    )
    finding = missing("tensorrt", old)
    assert finding is not None
    assert finding == found(old)["tensorrt"]
    assert finding.detail == (
        "TensorRT 11.4.0 is made for CUDA 13, which needs driver 580 or newer: this is 550.54.15 with CUDA "
        f"{cuda // 1000}.{cuda % 1000 // 10}"
    )
    assert finding.fix == (
        "pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs && "
        f"pip install tensorrt-cu{cuda // 1000}"
    )


def test_tensorrt_rtx_for_a_newer_cuda_than_the_drivers(tmp_path: Path) -> None:
    facts = {**FACTS, "tensorrt_rtx": {"version": "1.7.1", "builder": True}}
    packages = {**EVERYTHING, "tensorrt-rtx-cu13": "1.7.1"}

    def fix(cuda: int) -> str:
        machine = host(tmp_path, cuda=gpu(("RTX 3090", 8, 6), cuda=cuda), facts=facts, packages=packages)
        return found(machine)["tensorrt_rtx"].fix

    assert fix(12040) == "pip uninstall -y tensorrt-rtx-cu13 && pip install tensorrt-rtx-cu12"
    assert fix(11040) == "sudo ubuntu-drivers install"
    assert fix(13000) == ""


@pytest.mark.parametrize(
    ("version", "name", "capability", "says", "fix"),
    [
        ("10.13.3", "Tesla V100", (7, 0), "needs compute capability 7.5 or higher", "pip install 'tensorrt-cu12<10.5'"),
        ("10.5.0", "Tesla V100", (7, 0), "needs compute capability 7.5 or higher", "pip install 'tensorrt-cu12<10.5'"),
        ("10.4.0", "Tesla V100", (7, 0), "", ""),
        ("10.5.0", "Tesla T4", (7, 5), "", ""),
        ("10.3.0", "GTX 1080 Ti", (6, 1), "needs compute capability 7.0 or higher", ""),
        ("8.6.1", "GTX 1080 Ti", (6, 1), "", ""),
        ("10.7.0", "RTX 5070 Ti", (12, 0), "needs TensorRT 10.8 or newer", "pip install --upgrade tensorrt-cu12"),
        ("10.8.0", "RTX 5070 Ti", (12, 0), "", ""),
    ],
)
def test_gpus_that_a_tensorrt_does_not_run_on(
    tmp_path: Path, version: str, name: str, capability: tuple[int, int], says: str, fix: str
) -> None:
    machine = host(tmp_path, {LOADED: OPEN}, cuda=gpu((name, *capability)), facts=trt(version))
    finding = found(machine)["tensorrt"]
    assert (finding.state == "missing") == bool(says)
    assert says in finding.detail
    assert finding.fix == fix
    assert (missing("tensorrt", machine) is None) == (not says)


def test_an_old_gpu_is_not_sent_to_a_wheel_that_does_not_know_it(tmp_path: Path) -> None:
    pascal = found(host(tmp_path, cuda=gpu(("GTX 1080 Ti", 6, 1))))["tensorrt"]
    assert pascal.fix == ""
    assert "only those before 10 run on GTX 1080 Ti (compute capability 6.1)" in pascal.detail
    volta = found(host(tmp_path, cuda=gpu(("Tesla V100", 7, 0))))["tensorrt"]
    assert volta.fix == "pip install 'tensorrt-cu12<10.5'"
    old = found(host(tmp_path, {LOADED: OLD}, cuda=gpu(("Tesla T4", 7, 5), cuda=10020)))["tensorrt"]
    assert "needs driver 525 or newer: this is 470.256.02" in old.detail


# --- TensorRT-RTX ----------------------------------------------------------------------------------------------------


def test_hopper_with_only_rtx(tmp_path: Path) -> None:
    facts = {**FACTS, "tensorrt_rtx": {"version": "1.7.1", "builder": True}, "cuda.bindings": {"version": "13.1"}}
    packages = {**EVERYTHING, "tensorrt-rtx-cu13": "1.7.1", "cuda-bindings": "13.1"}
    machine = host(
        tmp_path, {LOADED: OPEN}, cuda=gpu(("NVIDIA H200", 9, 0), cuda=13000), facts=facts, packages=packages
    )
    by = found(machine)
    assert by["tensorrt_rtx"].state == "warning"
    assert by["tensorrt_rtx"].detail.startswith("TensorRT-RTX 1.7.1 is made for compute capability 7.5, 8.0, 8.6, 8.9")
    assert by["tensorrt_rtx"].detail.endswith("this is NVIDIA H200 (compute capability 9.0)")
    assert by["tensorrt_rtx"].fix == "pip install tensorrt-cu13"
    assert missing("tensorrt_rtx", machine) == by["tensorrt_rtx"]
    lines = ready(diagnose(machine))
    assert any(line.startswith("TensorRT-RTX: in doubt, TensorRT-RTX 1.7.1 is made for") for line in lines)
    assert any(line.startswith("TensorRT-RTX engines for other machines: yes") for line in lines)
    assert "TensorRT: no, because tensorrt is not installed" in lines


def test_rtx_on_a_card_that_it_is_made_for(tmp_path: Path) -> None:
    facts = {**FACTS, "tensorrt_rtx": {"version": "1.7.1", "builder": True}, "pycuda": {"version": "2024.1"}}
    machine = host(tmp_path, {LOADED: OPEN}, cuda=gpu(("RTX 4090", 8, 9), cuda=13000), facts=facts)
    assert found(machine)["tensorrt_rtx"] == Finding(
        "tensorrt_rtx", "ok", "TensorRT-RTX 1.7.1 on RTX 4090 (compute capability 8.9), FP16"
    )
    assert missing("tensorrt_rtx", machine) is None


def test_rtx_builds_without_a_gpu(tmp_path: Path) -> None:
    facts = {**FACTS, "tensorrt_rtx": {"version": "1.7.1", "builder": True}}
    by = found(host(tmp_path, facts=facts))
    assert by["tensorrt_rtx builder"].state == "ok"
    assert by["tensorrt_rtx"].state == "absent"
    to_run = missing("tensorrt_rtx", host(tmp_path, facts=facts))
    assert to_run is not None
    assert to_run.detail == "TensorRT-RTX 1.7.1 is installed, but no NVIDIA GPU was found on this machine"
    assert to_run.state == "missing"
    # Where it is not installed, that is what to mend: it would build here.
    to_build = missing("tensorrt_rtx", host(tmp_path))
    assert to_build is not None
    assert to_build.detail == "tensorrt_rtx is not installed"
    assert to_build.fix == "pip install 'edgeseg[tensorrt-rtx]'"
    broken = found(host(tmp_path, facts={**FACTS, "tensorrt_rtx": {"error": "ImportError: libcudart"}}))
    assert broken["tensorrt_rtx builder"].detail == "tensorrt_rtx cannot be used: ImportError: libcudart"
    arm = found(host(tmp_path, machine="aarch64"))["tensorrt_rtx builder"]
    assert arm == Finding("tensorrt_rtx builder", "absent", "TensorRT-RTX is made for x86-64, and this is aarch64")


def test_a_gpu_that_does_not_tell_its_capability_is_given_the_benefit_of_the_doubt(tmp_path: Path) -> None:
    printed = {"nvidia-smi --query-gpu=name": "NVIDIA L4, 575.57.08, [N/A]\n"}
    by = found(host(tmp_path, facts=trt(), cuda=gpu(("NVIDIA L4", 0, 0)), printed=printed))
    assert by["tensorrt"].detail == "TensorRT 10.13.3.9 on NVIDIA L4"
    assert by["tensorrt_rtx"].fix == "pip install tensorrt-rtx-cu12"
    assert "not made for" not in by["extra tensorrt-rtx"].detail


# --- why CUDA does not start -----------------------------------------------------------------------------------------


def refused(code: int, **more: Any) -> dict[str, Any]:
    return {"hidden": None, "version": 12040, "code": code, "gpus": [], **more}


@pytest.mark.parametrize(
    ("files", "cuda", "says", "fix"),
    [
        ({LOADED: OPEN}, refused(100, hidden="-1"), "CUDA_VISIBLE_DEVICES='-1' hides", "unset CUDA_VISIBLE_DEVICES"),
        ({LOADED: OPEN}, refused(0, hidden=""), "CUDA_VISIBLE_DEVICES='' hides", "unset CUDA_VISIBLE_DEVICES"),
        ({LOADED: OPEN}, refused(803), "of different versions", "sudo reboot"),
        ({LOADED: OPEN}, refused(802), "service is not running", "sudo systemctl start nvidia-fabricmanager"),
        ({LOADED: OPEN}, refused(999), "error 999, unknown error", "sudo modprobe nvidia_uvm"),
        ({LOADED: OPEN}, refused(7777), "error 7777, see CUresult in cuda.h", ""),
        ({LOADED: OPEN}, None, "575.57.08 is loaded, but libcuda.so.1 cannot be", "sudo ubuntu-drivers install"),
        ({LOADED: OPEN, ".dockerenv": ""}, None, "started without the GPU", "docker run --gpus all"),
        ({**CARD, "run/.containerenv": ""}, None, "started without the GPU", "docker run --gpus all"),
        ({LOADED: OPEN, ".dockerenv": ""}, refused(100), "in a container", "docker run --gpus all"),
    ],
)
def test_why_cuda_does_not_start(
    tmp_path: Path, files: dict[str, str], cuda: dict[str, Any] | None, says: str, fix: str
) -> None:
    machine = host(tmp_path, files, cuda=cuda, facts=trt())
    driver = found(machine)["nvidia driver"]
    assert driver.state == "missing"
    assert says in driver.detail
    assert driver.fix.startswith(fix)
    assert bool(driver.fix) == bool(fix)
    finding = missing("tensorrt", machine)
    assert finding is not None
    assert driver.detail in finding.detail
    assert finding.fix == driver.fix


def test_a_container_image_with_cuda_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    driver = found(host(tmp_path, {".dockerenv": ""}, cuda=refused(100)))["nvidia driver"]
    assert (driver.state, driver.detail) == ("absent", "no NVIDIA GPU was found on this machine")


def test_a_container_with_nvidia_smi_and_without_cuda(tmp_path: Path) -> None:
    printed = {"nvidia-smi --query-gpu=name": "NVIDIA L4, 575.57.08, 8.9\n", "nvidia-smi": "CUDA Version: 12.9 \n"}
    driver = found(host(tmp_path, {".dockerenv": ""}, printed=printed))["nvidia driver"]
    assert driver.detail == "this container was given nvidia-smi and not CUDA: libcuda.so.1 is not here"
    assert driver.fix == "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility IMAGE"


@pytest.mark.parametrize("header", ["Driver Version: 580.65 CUDA Version: 13.0 |", "CUDA UMD Version: 13.3     |"])
def test_wsl(tmp_path: Path, header: str) -> None:
    files = {"proc/version": "Linux version 5.15.153.1-microsoft-standard-WSL2\n", "dev/dxg": ""}
    library = {"usr/lib/wsl/lib/libcuda.so.1": ""}
    printed = {
        "/usr/lib/wsl/lib/nvidia-smi --query-gpu=name": "NVIDIA GeForce RTX 4070, 580.65, 8.9\n",
        "/usr/lib/wsl/lib/nvidia-smi --query-gpu=pers": "[N/A], [N/A], [N/A]\n",
        "/usr/lib/wsl/lib/nvidia-smi": header,
    }
    lost = host(tmp_path / "a", {**files, **library}, printed=printed)
    driver = found(lost)["nvidia driver"]
    assert driver.state == "missing"
    assert driver.fix == "export LD_LIBRARY_PATH=/usr/lib/wsl/lib:$LD_LIBRARY_PATH"
    # Where the library does not answer, nvidia-smi's header tells the CUDA version, under its old name or its new one.
    assert look(lost).cuda == ((13, 3) if "UMD" in header else (13, 0))
    card = gpu(("NVIDIA GeForce RTX 4070", 8, 9), cuda=13000)
    by = found(host(tmp_path / "a", {**files, **library}, printed=printed, cuda=card))
    assert by["nvidia driver"].detail == "580.65, CUDA 13.0: NVIDIA GeForce RTX 4070 (compute capability 8.9)"
    assert by["tensorrt"].fix == "pip install tensorrt-cu13"
    assert by["gpu 0 settings"].state == "ok"
    none = found(host(tmp_path / "b", files))["nvidia driver"]
    assert (none.state, none.fix) == ("absent", "")
    assert "driver of Windows" in none.detail


# --- pycuda and cuda-python ------------------------------------------------------------------------------------------


def python_row(machine: Host) -> Finding:
    return found(machine)["pycuda, cuda-python"]


def test_pycuda_or_cuda_python(tmp_path: Path) -> None:
    def row(facts: Mapping[str, Mapping[str, Any]], packages: Mapping[str, str], cuda: int = 12040) -> Finding:
        machine = host(
            tmp_path,
            {LOADED: OPEN},
            cuda=gpu(("NVIDIA L4", 8, 9), cuda=cuda),
            facts={**FACTS, **facts},
            packages=packages,
        )
        return python_row(machine)

    pycuda, bindings = {"pycuda": {"version": "2024.1"}}, {"cuda.bindings": {"version": "12.9.0"}}
    both = row({**pycuda, **bindings}, {**EVERYTHING, "cuda-bindings": "12.9.0"})
    assert (both.state, both.detail) == ("ok", "pycuda 2024.1, cuda-python 12.9.0")
    alone = row(pycuda, EVERYTHING)
    assert alone.state == "warning"
    assert alone.detail == "pycuda 2024.1; only cuda-python can capture CUDA graphs"
    assert alone.fix == "pip install 'cuda-bindings==12.*'"
    none = row({}, EVERYTHING, 13000)
    assert none.state == "missing"
    assert none.fix == "pip install 'cuda-bindings==13.*'"
    new = row({"cuda.bindings": {"version": "13.5.0"}}, {**EVERYTHING, "cuda-bindings": "13.5.0"})
    assert new.state == "missing"
    assert new.detail == "cuda-bindings 13.5.0 is for a newer CUDA than the driver's 12"
    assert new.fix == "pip install 'cuda-bindings==12.*'"
    broken = row({"pycuda": {"error": "ImportError: libcurand.so.10"}}, EVERYTHING)
    assert broken.detail == "pycuda is installed and cannot be used: ImportError: libcurand.so.10"


def test_tensorrt_without_a_package_that_speaks_cuda_does_not_run(tmp_path: Path) -> None:
    facts = {**FACTS, "tensorrt": {"version": "10.13.3.9", "builder": True}}
    finding = missing("tensorrt", host(tmp_path, {LOADED: OPEN}, cuda=L4, facts=facts))
    assert finding is not None
    assert finding.detail == "neither pycuda nor cuda-python is installed"
    assert finding.fix == "pip install 'cuda-bindings==12.*'"


# --- Jetson ----------------------------------------------------------------------------------------------------------

ORIN = gpu(("Orin", 8, 7), cuda=12060)
NVCC = {"usr/local/cuda/bin/nvcc": "", "usr/local/cuda/version.json": json.dumps({"cuda": {"version": "12.6.68"}})}


def l4t(release: int, revision: str) -> dict[str, str]:
    return {"etc/nv_tegra_release": f"# R{release} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic\n"}


def jetson(root: Path, files: Mapping[str, str] | None = None, **changes: Any) -> Host:
    """An Orin with JetPack 6.2.1, unless told otherwise."""
    plain: dict[str, Any] = {"machine": "aarch64", "python": (3, 10), "cuda": ORIN}
    return host(root, {**l4t(36, "4.4"), **(files or {})}, **{**plain, **changes})


@pytest.mark.parametrize(
    ("release", "revision", "says", "state"),
    [
        (32, "7.4", "JetPack 4.6.1 or later, TensorRT 8.2.1 for Python 3.6", "warning"),
        (32, "5.1", "older than JetPack 4.6.1", "warning"),
        (35, "1.0", "JetPack 5.0 or later, TensorRT 8.4 for Python 3.8", "warning"),
        (35, "4.1", "JetPack 5.1 or later, TensorRT 8.5.2 for Python 3.8", "warning"),
        (36, "3.0", "JetPack 6.0, TensorRT 8.6.2 for Python 3.10", "ok"),
        (36, "4.3", "JetPack 6.2, TensorRT 10.3 for Python 3.10", "ok"),
        (36, "4.4", "JetPack 6.2.1, TensorRT 10.3 for Python 3.10", "ok"),
        (36, "4.7", "JetPack 6.2.1 or later, TensorRT 10.3 for Python 3.10", "ok"),
        (36, "5.0", "JetPack 6.2.2, TensorRT 10.3 for Python 3.10", "ok"),
        (38, "2.0", "JetPack 7.0, TensorRT 10.13 for Python 3.12", "ok"),
        (38, "2.1", "JetPack 7.0, TensorRT 10.13 for Python 3.12", "ok"),
        (38, "4", "JetPack 7.1, TensorRT 10.13 for Python 3.12", "ok"),
        (39, "2.1", "JetPack 7.2.1, TensorRT 10.16 for Python 3.12", "ok"),
        (39, "2.2", "newer than JetPack 7.2.1", "warning"),
        (37, "1.0", "a JetPack that edgeseg does not know", "warning"),
        (40, "1.0", "newer than JetPack 7.2.1", "warning"),
    ],
)
def test_jetpacks(tmp_path: Path, release: int, revision: str, says: str, state: str) -> None:
    by = found(jetson(tmp_path, l4t(release, revision)))
    assert by["jetson"].state == state
    assert says in by["jetson"].detail
    assert f"R{release}.{revision[0]}" in by["jetson"].detail
    assert by["nvidia driver"].detail == "part of JetPack, CUDA 12.6: Orin (compute capability 8.7)"
    assert by["tensorrt"].detail.startswith("tensorrt is not installed on this Jetson: L4T R")
    # Its own Python 3.8 and older cannot run edgeseg, so that installing the bindings for it would mend nothing.
    old = release < 36 and "older than" not in says
    assert by["tensorrt"].fix == (EXPORT if old else "sudo apt-get install python3-libnvinfer")
    assert (by["tensorrt_rtx"].state, by["tensorrt_rtx"].fix) == ("absent", "")


def test_the_newest_jetpacks_may_take_tensorrt_11(tmp_path: Path) -> None:
    packages = wheels("tensorrt-cu13", version="11.4.1")
    kept = missing("tensorrt", jetson(tmp_path / "6", facts=trt("11.4.1"), packages=packages))
    assert kept is not None
    assert kept.detail == (
        "TensorRT 11.4.1 is made for JetPack 7.2.2 and later, and this is L4T R36.4.4, JetPack 6.2.1, "
        "TensorRT 10.3 for Python 3.10, which must stay on TensorRT 10.x"
    )
    assert kept.fix == "pip uninstall -y tensorrt-cu13"
    newer = jetson(tmp_path / "7", l4t(39, "2.2"), facts=trt("11.4.1"), cuda=gpu(("Thor", 11, 0), cuda=13020))
    assert missing("tensorrt", newer) is None
    assert "JetPack 7.2.2 and later also take TensorRT 11.4.1" in found(newer)["jetson"].detail


def test_a_wheel_for_servers_on_a_jetson_is_doubtful(tmp_path: Path) -> None:
    board = jetson(tmp_path, facts=trt("10.3.0"), packages=wheels("tensorrt", "tensorrt-cu12", version="10.3.0"))
    doubt = found(board)["tensorrt"]
    assert (doubt.state, doubt.fix) == ("warning", "pip uninstall -y tensorrt tensorrt-cu12")
    assert "made for Arm servers" in doubt.detail
    assert missing("tensorrt", board) == doubt
    thor = jetson(tmp_path, l4t(38, "4.0"), facts=trt(), packages=wheels("tensorrt-cu12"), cuda=gpu(("Thor", 11, 0)))
    assert found(thor)["tensorrt"].state == "ok"


def test_an_unreadable_release_is_a_warning(tmp_path: Path) -> None:
    by = found(jetson(tmp_path, {"etc/nv_tegra_release": "???"}))
    assert by["jetson"].state == "warning"
    assert "'???'" in by["jetson"].detail
    assert by["tensorrt"].fix == "sudo apt-get install python3-libnvinfer"


def test_what_apt_has_installed(tmp_path: Path) -> None:
    status = (
        "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n\n"
        "Package: python3-libnvinfer\nStatus: deinstall ok config-files\nVersion: 9.0-1\n"
    )
    board = jetson(tmp_path, {"var/lib/dpkg/status": status})
    assert apt_version(board, "libnvinfer10") == "10.3.0.30"
    assert apt_version(board, "python3-libnvinfer") is None
    assert apt_version(board, "libnvinfer") is None
    there = {"var/lib/dpkg/status": status.replace("deinstall ok config-files", "install ok installed")}
    assert found(jetson(tmp_path, there))["jetson"].detail.endswith("; apt has installed 9.0")


def test_a_complete_orin(tmp_path: Path) -> None:
    files = {
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0",
        "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=10W >\n",
        "sys/class/devfreq/17000000.gpu/min_freq": "918000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "918000000\n",
        "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
    }
    printed = {"nvpmodel -q": "NV Power Mode: MAXN\n0\n", "nvcc --version": "release 12.6, V12.6.68"}
    facts = trt("10.3.0", pycuda={"version": "2024.1"}, **{"cuda.bindings": {"version": "12.9.0"}})
    board = jetson(tmp_path, files, printed=printed, facts=facts)
    by = found(board)
    assert by["power mode"] == Finding("power mode", "ok", "MAXN, mode 0")
    assert by["gpu clocks"] == Finding("gpu clocks", "ok", "locked at 918 MHz")
    assert by["dla cores"].detail.startswith("2")
    assert by["tensorrt"].detail == "TensorRT 10.3.0 on Orin (compute capability 8.7), FP16 and INT8, 2 DLA cores"
    assert by["extra nvidia"].state == "absent"
    expected = "TensorRT: yes, TensorRT 10.3.0 on Orin (compute capability 8.7), FP16 and INT8, 2 DLA cores"
    assert expected in ready(diagnose(board))
    assert missing("tensorrt", board) is None
    assert not [name for name in by if name.endswith("settings")]


@pytest.mark.parametrize(
    ("compatible", "model", "cores"),
    [
        ("nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0", "", "2"),
        ("nvidia,p3767-0001\0nvidia,tegra234\0", "NVIDIA Jetson Orin NX", "1"),
        ("nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0", "NVIDIA Jetson Orin Nano", "none"),
        ("nvidia,p2972-0000\0nvidia,tegra194\0", "", "2"),
        ("nvidia,tegra264\0", "NVIDIA Jetson AGX Thor Developer Kit", "none"),
        ("", "NVIDIA Jetson AGX Orin Developer Kit\0", "2"),
        ("", "NVIDIA Jetson AGX Thor Developer Kit\0", "none"),
        ("nvidia,p3767-0002\0nvidia,tegra234\0", "NVIDIA Jetson Orin NX", "cannot tell"),
        ("", "", "cannot tell"),
    ],
)
def test_dla_cores(tmp_path: Path, compatible: str, model: str, cores: str) -> None:
    files = {"proc/device-tree/compatible": compatible, "proc/device-tree/model": model}
    assert found(jetson(tmp_path, files))["dla cores"].detail.startswith(cores)


def test_power_modes(tmp_path: Path) -> None:
    nano = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"

    def mode(files: Mapping[str, str], said: str | None) -> Finding:
        printed = {"nvpmodel -q": said} if said else {}
        return found(jetson(tmp_path, files, printed=printed))["power mode"]

    unknown = mode({}, None)
    assert (unknown.state, unknown.fix) == ("warning", "sudo nvpmodel -q")
    assert "cannot tell" in unknown.detail
    first = mode({}, "NV Power Mode: 15W\n0\n")
    assert first.fix == "sudo nvpmodel -m 0"  # as on most boards, where its modes cannot be read
    slow = mode({"etc/nvpmodel.conf": nano}, "NV Power Mode: 15W\n0\n")
    assert slow.detail == "15W, mode 0: not the fastest of this board (MAXN_SUPER, mode 2)"
    assert slow.fix == "sudo nvpmodel -m 2"
    quiet = mode({"etc/nvpmodel.conf": nano, "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet\n"}, None)
    assert quiet.detail.startswith("25W, mode 1: ")
    assert mode({"etc/nvpmodel.conf": nano}, "NV Power Mode: MAXN_SUPER\n2\n").state == "ok"


def test_clocks(tmp_path: Path) -> None:
    def clocks(folder: str, least: str, most: str) -> Finding:
        files = {f"sys/class/devfreq/{folder}/{k}_freq": v for k, v in (("min", least), ("max", most))}
        return found(jetson(tmp_path / folder, files))["gpu clocks"]

    free = clocks("17000000.ga10b", "306000000\n", "918000000\n")
    assert free.detail == "306 to 918 MHz: they follow the load, and times vary with them"
    assert (free.state, free.fix) == ("warning", "sudo jetson_clocks")
    assert clocks("gpu-gpc-0", "1575000000", "1575000000").detail == "locked at 1575 MHz"
    assert "cannot tell" in clocks("15340000.vic", "1000000", "2000000").detail
    assert "cannot tell" in clocks("17000000.gpu", "N/A", "2000000").detail


def test_pycuda_that_does_not_find_nvcc(tmp_path: Path) -> None:
    facts = {**FACTS, "tensorrt": {"version": "10.3.0", "builder": True}}
    board = jetson(tmp_path / "a", NVCC, facts=facts)
    by = found(board)
    assert by["cuda toolkit"].detail == "12.6.68 in /usr/local/cuda, its nvcc is not on the PATH"
    row = by["pycuda, cuda-python"]
    assert row.fix == "export PATH=/usr/local/cuda/bin:$PATH && pip install pycuda"
    assert "/usr/local/cuda/bin is not on the PATH" in row.detail
    assert missing("tensorrt", board) == row
    on_path = jetson(tmp_path / "b", NVCC, facts=facts, printed={"nvcc --version": "release 12.6, V12.6.68\n"})
    assert python_row(on_path).fix == "pip install pycuda"
    without = python_row(jetson(tmp_path / "c", facts=facts))
    assert without.fix == "pip install 'cuda-bindings==12.*'"
    assert without.detail == "neither pycuda nor cuda-python is installed"
    # The extra alone would bring the newest, which is for a newer CUDA than this JetPack's.
    assert by["extra tensorrt"].fix == "pip install 'edgeseg[tensorrt]' 'cuda-bindings==12.*'"


def test_jetpacks_own_tensorrt_that_is_broken(tmp_path: Path) -> None:
    facts = trt(tensorrt={"error": "ImportError: libnvinfer.so.10: cannot open shared object file"})
    broken = found(jetson(tmp_path, facts=facts))["tensorrt"]
    assert broken.fix == "sudo apt-get install --reinstall python3-libnvinfer"
    shadowed = found(jetson(tmp_path, facts=facts, packages=wheels("tensorrt-cu13", "tensorrt-cu13-libs")))["tensorrt"]
    assert shadowed.fix == "pip uninstall -y tensorrt-cu13 tensorrt-cu13-libs"


def test_a_jetson_whose_cuda_does_not_start(tmp_path: Path) -> None:
    no_device = found(jetson(tmp_path / "a", cuda=refused(999)))["nvidia driver"]
    assert no_device.fix == "sudo usermod -aG video,render $USER"
    lost = found(jetson(tmp_path / "b", cuda=None))["nvidia driver"]
    assert lost.fix == "sudo apt-get install --reinstall nvidia-l4t-cuda"
    contained = found(jetson(tmp_path / "c", {".dockerenv": ""}, cuda=None))["nvidia driver"]
    assert contained.fix == "docker run --runtime nvidia IMAGE"


def test_jetpacks_tensorrt_is_found_from_a_virtual_environment(tmp_path: Path) -> None:
    packages = "usr/lib/python3.10/dist-packages"
    files = {f"{packages}/tensorrt/tensorrt.so": "", f"{packages}/tensorrt-10.3.0.dist-info/METADATA": ""}
    orin = jetson(tmp_path, files, site=Path("/venv/lib/python3.10/site-packages"))
    by = found(orin)
    assert by["tensorrt"] == Finding(
        "tensorrt",
        "missing",
        "tensorrt 10.3.0 is in /usr/lib/python3.10/dist-packages, where this environment does not look",
        "echo /usr/lib/python3.10/dist-packages > /venv/lib/python3.10/site-packages/system-tensorrt.pth",
    )
    assert missing("tensorrt", orin) == by["tensorrt"]
    line = next(line for line in ready(diagnose(orin)) if line.startswith("TensorRT:"))
    assert line.startswith("TensorRT: no, because tensorrt 10.3.0 is in /usr/lib")
    other = found(jetson(tmp_path, files, python=(3, 12)))["tensorrt"]
    assert "made for Python 3.10, and this is 3.12" in other.detail
    assert other.fix == "python3.10 -m venv --system-site-packages .venv"


def test_a_tensorrt_for_a_python_that_is_too_old_cannot_be_mended_here(tmp_path: Path) -> None:
    files = {**l4t(35, "4.1"), "usr/lib/python3.8/dist-packages/tensorrt/tensorrt.so": ""}
    by = found(jetson(tmp_path, files))
    assert "made for Python 3.8, and this is 3.10" in by["tensorrt"].detail
    assert by["tensorrt"].fix == EXPORT
    debian = "usr/lib/python3/dist-packages/tensorrt/tensorrt.cpython-312-x86_64-linux-gnu.so"
    by = found(host(tmp_path / "debian", {debian: ""}, cuda=L4))
    assert by["tensorrt"].fix.startswith("echo /usr/lib/python3/dist-packages > /venv")


def test_the_pth_file_that_is_proposed_works(tmp_path: Path) -> None:
    """With a real environment's mechanism: site.addsitedir reads the file that the fix writes."""
    packages = tmp_path / "usr" / "lib" / "python3.12" / "dist-packages"
    files = {f"{packages.relative_to(tmp_path)}/tensorrt/__init__.py": ""}
    words = found(host(tmp_path, files, cuda=L4, site=tmp_path / "site"))["tensorrt"].fix.split()
    assert (words[0], words[2]) == ("echo", ">")
    (tmp_path / "site").mkdir()
    Path(words[3]).write_text(str(tmp_path) + words[1] + "\n")
    code = f"import site, sys; site.addsitedir({str(tmp_path / 'site')!r}); import tensorrt; print(tensorrt.__file__)"
    printed = doctor_host.output_of([sys.executable, "-c", code])
    assert printed is not None
    assert printed.strip() == str(packages / "tensorrt" / "__init__.py")


# --- `missing` -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_missing_imports_only_what_it_was_asked_for(tmp_path: Path, library: Library) -> None:
    asked: list[str] = []
    facts = trt(tensorrt_rtx={"version": "1.7", "builder": True})
    machine = host(tmp_path, cuda=L4, facts=facts)

    def imported(modules: Any) -> dict[str, Mapping[str, Any]]:
        asked.extend(modules)
        return {module: facts[module] for module in modules}

    object.__setattr__(machine, "imported", imported)
    assert missing(library, machine) is None
    assert asked == [library]


@pytest.mark.parametrize("library", LIBRARIES)
def test_missing_on_this_machine(library: Library) -> None:
    """The real probes, in a process of their own that must not load the library itself."""
    code = (
        "import sys; from edgeseg.doctor_nvidia import missing\n"
        f"finding = missing({library!r})\n"
        "assert not {'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)\n"
        "print('runs' if finding is None else finding.state + ' ' + finding.detail)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("runs", "missing ", "warning "))
