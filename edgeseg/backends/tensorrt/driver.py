"""The driver's own library, by ctypes: what must be known before any package is asked, and what pycuda has no call for.

Whether there is a driver, and a GPU, is found out here, so that the message does not depend on which package failed,
and in which words. See "CUDA Driver API", docs.nvidia.com/cuda/cuda-driver-api, for the calls and the codes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from edgeseg.backends.tensorrt.cuda import Gpu, Package
from edgeseg.errors import MissingOnMachine

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
NOT_INITIALIZED, NO_DEVICE, INVALID_DEVICE = 3, 100, 101
STUB_LIBRARY, INSUFFICIENT_DRIVER, DEVICE_UNAVAILABLE = 34, 35, 46
SYSTEM_NOT_READY, DRIVER_MISMATCH, COMPAT_NOT_SUPPORTED = 802, 803, 804
INTEGRATED, MAJOR, MINOR = 18, 75, 76  # of CUdevice_attribute
CONTAINER = "In a container: start it with --gpus all, on a Jetson with --runtime nvidia."
ON_JETSON = "It comes with JetPack: sudo apt-get install --reinstall nvidia-l4t-cuda"
ON_PC = "Install it with: sudo ubuntu-drivers install (or from nvidia.com/drivers), then restart the machine."


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The driver, initialised. Raises MissingOnMachine, saying what to do, where there is none or it cannot start."""
    try:
        found = ctypes.CDLL(LIBRARY)
    except OSError as error:
        mend = ON_JETSON if on_jetson() else ON_PC
        raise MissingOnMachine(
            f"an NVIDIA driver is missing: {LIBRARY} was not found ({error}). {mend} {CONTAINER}"
        ) from error
    found.cuCtxSetCurrent.argtypes = [ctypes.c_void_p]
    code = found.cuInit(0)
    if code:
        raise MissingOnMachine(f"the NVIDIA driver cannot be used: {said(found, code)}. {_mend(code)}")
    return found


def gpu(index: int = 0) -> Gpu:
    """What the driver says about a GPU, without a context on it. Raises MissingOnMachine where there is no such GPU."""
    cuda = library()
    device, count, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _check(cuda, cuda.cuDeviceGetCount(ctypes.byref(count)))
    if not 0 <= index < count.value:
        raise MissingOnMachine(
            f"there is no GPU {index}: the driver shows {count.value}, numbered from 0{_visible(os.environ)}. "
            "List them with: nvidia-smi -L"
        )
    _check(cuda, cuda.cuDeviceGet(ctypes.byref(device), index))
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _check(cuda, cuda.cuDeviceGetName(name, len(name), device))
    _check(cuda, cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    _check(cuda, cuda.cuDriverGetVersion(ctypes.byref(version)))
    integrated, major, minor = (_attribute(cuda, attribute, device) for attribute in (INTEGRATED, MAJOR, MINOR))
    text = name.value.decode("utf-8", "replace").strip()
    return Gpu(text, (major, minor), version.value, bool(integrated), memory.value)


def said(cuda: ctypes.CDLL, code: int) -> str:
    """The driver's name and words for a result, as "CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected"."""
    if code == INSUFFICIENT_DRIVER:  # a code of the runtime, which the driver answers without a name for it
        return "error 35: CUDA driver version is insufficient for CUDA runtime version"
    name, text = ctypes.c_char_p(), ctypes.c_char_p()
    if cuda.cuGetErrorName(code, ctypes.byref(name)) or cuda.cuGetErrorString(code, ctypes.byref(text)):
        return f"error {code}"
    return f"{(name.value or b'').decode()}: {(text.value or b'').decode()}"


def said_of(cuda: ctypes.CDLL, text: str) -> str:
    """As `said`, for the driver's words alone, which is all that pycuda hands on."""
    return next((each for code in range(1, 1000) if (each := said(cuda, code)).partition(": ")[2] == text), text)


def no_package(package: Package | None = None) -> str:
    """Why and how to install what speaks to the driver."""
    if package == "pycuda" or on_jetson():
        return (
            f"{package or 'a package for CUDA'} is missing. On a Jetson, build pycuda with the toolkit that is there: "
            "PATH=/usr/local/cuda/bin:$PATH pip install pycuda. Graphs need: pip install 'edgeseg[tensorrt]'"
        )
    return f"{package or 'a package for CUDA'} is missing: pip install 'edgeseg[tensorrt]'"


def no_context(found: Gpu, why: str) -> str:
    """Why a GPU that is there cannot be opened."""
    if "NOT_FOUND" in why:
        wanted = f"'cuda-bindings<{found.driver // 1000 + 1}'"
        return (
            f"the driver speaks CUDA {found.driver // 1000}.{found.driver % 1000 // 10} and lacks what the package for "
            f"CUDA calls: {why}. Update the driver, or install an older package: pip install {wanted}"
        )
    held = "tegrastats" if found.integrated else "nvidia-smi"
    return (
        f"the GPU {found.name} cannot be opened: {why}. It may be out of memory, or kept for another process: "
        f"see who holds it with: {held}"
    )


def on_jetson() -> bool:
    """Whether this is one of NVIDIA's Jetson modules, by the file that its Linux carries."""
    return Path("/etc/nv_tegra_release").is_file()


def _mend(code: int) -> str:
    if code == NOT_INITIALIZED:
        return "After a fork the child has no CUDA: start it by multiprocessing's 'spawn', or open engines in it only."
    if code in (NO_DEVICE, INVALID_DEVICE, DEVICE_UNAVAILABLE):
        return f"There is no GPU that it may use{_visible(os.environ)}. See: nvidia-smi -L. {CONTAINER}"
    if code == STUB_LIBRARY:
        return (
            f"The toolkit's stub stands before the driver: take the folder 'stubs' out of LD_LIBRARY_PATH. {CONTAINER}"
        )
    if code in (INSUFFICIENT_DRIVER, DRIVER_MISMATCH, COMPAT_NOT_SUPPORTED):
        mend = ON_JETSON if on_jetson() else ON_PC
        return f"The driver is older than what was loaded with it (or was just updated: restart). {mend}"
    if code == SYSTEM_NOT_READY:
        return "Its service is not running: sudo systemctl start nvidia-fabricmanager"
    return "Restart the machine; if that does not help, install the driver anew. See: edgeseg doctor"


def _visible(environment: Mapping[str, str]) -> str:
    told = environment.get("CUDA_VISIBLE_DEVICES")
    return "" if told is None else f" (CUDA_VISIBLE_DEVICES is {told!r})"


def _attribute(cuda: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _check(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
    return value.value


def _check(cuda: ctypes.CDLL, code: int) -> None:
    if code:
        raise MissingOnMachine(f"the NVIDIA driver does not tell about its GPUs: {said(cuda, code)}. {_mend(code)}")
