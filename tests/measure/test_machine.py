from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgeseg.measure import machine, peak_rss_mb, versions

X86 = "\n\n".join(
    f"processor\t: {cpu}\nmodel name\t: Fast CPU @ 2 GHz\ncpu MHz\t\t: 1996.25\n"
    f"physical id\t: 0\ncore id\t\t: {cpu // 2}\n"
    "flags\t\t: fpu avx avx2 avx512f avx512_vnni hypervisor\npower management:"
    for cpu in range(8)
)
JETSON = "\n\n".join(
    f"processor\t: {cpu}\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd asimddp i8mmx\n"
    "CPU implementer\t: 0x41\nCPU part\t: 0xd42\n"
    for cpu in range(6)
)


def write(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_an_x86_guest_with_sibling_threads(tmp_path: Path) -> None:
    root = write(tmp_path, proc__cpuinfo=X86, proc__meminfo="MemTotal:       16384000 kB\n")
    write(root, sys__class__dmi__id__sys_vendor="QEMU\n", sys__fs__cgroup__cpu_dot_max="50000 100000\n")
    found = machine(root)
    assert found["cpu"] == "Fast CPU @ 2 GHz"
    assert found["cores_physical"] == 4
    assert found["cores_usable"] == 0.5  # the container's quota
    assert found["isa"] == ["avx2", "avx512f", "avx512_vnni"]
    assert found["memory_mb"] == 16000
    assert found["mhz"] == 1996.25
    assert found["governor"] is None
    assert found["virtual"] == "virtual machine (QEMU)"


def test_an_arm_board(tmp_path: Path) -> None:
    root = write(tmp_path, proc__cpuinfo=JETSON, **{"proc__device-tree__model": "NVIDIA Jetson Orin Nano\0"})
    cpufreq = {"scaling_governor": "schedutil\n", "scaling_cur_freq": "1510400\n"}
    for name, text in cpufreq.items():
        (root / "sys/devices/system/cpu/cpu0/cpufreq").mkdir(parents=True, exist_ok=True)
        (root / "sys/devices/system/cpu/cpu0/cpufreq" / name).write_text(text)
    (root / ".dockerenv").touch()
    found = machine(root)
    assert found["cpu"] == "NVIDIA Jetson Orin Nano, Arm implementer 0x41 part 0xd42"
    assert found["cores_physical"] == 6
    assert found["isa"] == ["asimd", "asimddp"]  # whole words: i8mmx is not i8mm
    assert (found["governor"], found["mhz"], found["virtual"]) == ("schedutil", 1510.4, "container")


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert found["isa"] == []
    assert found["python"] == platform.python_version()
    assert found["cores_usable"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_this_machine() -> None:
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert 0 < found["cores_usable"] <= found["cores_logical"]
    if sys.platform == "linux":
        assert found["memory_mb"] > 100


def test_versions_import_nothing_heavy() -> None:
    code = (
        "import sys; from edgeseg.measure import versions; found = versions(); "
        "import numpy; assert found['numpy'] == numpy.__version__, found; "
        "print([m for m in ('torch', 'cv2', 'onnx', 'onnxruntime', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "numpy" in versions()
    assert "no-such-package" not in versions()


def test_peak_memory_is_kept_after_it_was_freed() -> None:
    before = peak_rss_mb()
    if before is None:
        pytest.skip("this system does not tell")
    block = bytearray(int((before + 200) * 2**20))
    block[::4096] = b"x" * len(block[::4096])
    del block
    after = peak_rss_mb()
    assert after is not None
    assert after > before + 150


@pytest.mark.skipif(sys.platform != "linux", reason="how Linux counts")
def test_peak_memory_is_not_that_of_the_parent() -> None:
    block = b"x" * (300 * 2**20)
    code = "from edgeseg.measure.machine import peak_rss_mb; print(peak_rss_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200 < len(block)
