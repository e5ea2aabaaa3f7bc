"""The CUDA side of the TensorRT backend: both real packages on a stand-in for the driver, and what is said without."""

from __future__ import annotations

import ast
import ctypes
import functools
import gc
import inspect
import json
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeseg.backends.tensorrt import driver, with_cuda_python, with_pycuda
from edgeseg.backends.tensorrt.cuda import CudaError, Gpu, check_host, nbytes, open_device, page_locked
from edgeseg.errors import MissingOnMachine
from tests.tensorrt import contract, cuda

PACKAGES = ("pycuda", "cuda-python")
ORIN = Gpu("Orin", (8, 7), 12060, True, 1 << 33)
H200 = Gpu("H200", (9, 0), 12040, False, 1 << 37)


def installed(package: str) -> None:
    if not cuda.packages()[package]:
        pytest.skip(f"needs {package}: pip install {'pycuda' if package == 'pycuda' else 'cuda-bindings'}")


@functools.cache
def results(library: Path, package: str, lazy: int) -> tuple[dict[str, str], str]:
    """What failed in each check of the contract, and what the process said."""
    done = cuda.child(library, ["-m", "tests.tensorrt.contract", package], lazy=lazy)
    return dict(json.loads(line) for line in done.stdout.splitlines()), f"exit {done.returncode}: {done.stderr[-3000:]}"


@pytest.mark.parametrize("check", contract.NAMES)
@pytest.mark.parametrize("lazy", [0, 1], ids=["at once", "lazy"])
@pytest.mark.parametrize("package", PACKAGES)
def test_contract(standin_cuda: Path, package: str, lazy: int, check: str) -> None:
    installed(package)
    found, said = results(standin_cuda, package, lazy)
    assert check in found, f"the process ended before: {said}"
    assert not found[check], found[check]
    assert said == "exit 0: ", "pycuda says on stderr what it could not give back"


def said_by(library: Path, code: str, **switches: object) -> str:
    """What a child process prints that has the stand-in for its driver."""
    done = cuda.child(library, ["-c", code], **switches)
    assert done.returncode == 0, done.stderr
    return done.stdout


GPU = "from edgeseg.backends.tensorrt import driver\nprint(driver.gpu())"
LACK = """
import os, sys
sys.setdlopenflags(os.RTLD_LAZY)
for name in {hidden!r}:
    sys.modules[name] = None
from edgeseg.backends.tensorrt.cuda import open_device
from edgeseg.errors import MissingOnMachine
try:
    with open_device({index}) as device:
        print("opened", device.package)
except MissingOnMachine as error:
    print(error)
"""


def test_the_gpu_is_told_by_the_driver(standin_cuda: Path) -> None:
    gpu = Gpu("Stand-in 0", (8, 6), 12060, False, 1 << 30)
    assert said_by(standin_cuda, GPU).strip() == str(gpu)
    gpu = Gpu("Stand-in 0", (8, 7), 11040, True, 4096)
    assert said_by(standin_cuda, GPU, integrated=1, driver=11040, memory=4096).strip() == str(gpu)


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"devices": 0}, ("CUDA_ERROR_NO_DEVICE", "no GPU", "--gpus all", "nvidia-smi")),
        ({"init": 35}, ("error 35", "insufficient", "older", "restart")),
        ({"init": 34}, ("CUDA_ERROR_STUB_LIBRARY", "stubs", "LD_LIBRARY_PATH")),
        ({"init": 803}, ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "older", "restart")),
        ({"init": 802}, ("CUDA_ERROR_SYSTEM_NOT_READY", "nvidia-fabricmanager")),
        ({"init": 999}, ("CUDA_ERROR_UNKNOWN", "Restart", "edgeseg doctor")),
    ],
)
def test_a_driver_that_cannot_start(standin_cuda: Path, switches: dict[str, int], words: tuple[str, ...]) -> None:
    said = said_by(standin_cuda, LACK.format(hidden=(), index=0), **switches)
    assert [word for word in words if word not in said] == []


def test_a_gpu_that_is_not_there(standin_cuda: Path) -> None:
    code = "import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '1,0'\n" + LACK.format(hidden=(), index=2)
    said = said_by(standin_cuda, code, devices=2)
    assert "there is no GPU 2: the driver shows 2" in said
    assert "CUDA_VISIBLE_DEVICES is '1,0'" in said


def test_no_package(standin_cuda: Path) -> None:
    said = said_by(standin_cuda, LACK.format(hidden=("pycuda", "cuda"), index=0))
    assert "a package for CUDA is missing: pip install 'edgeseg[tensorrt]'" in said
    assert "pycuda.driver: " in said
    assert "cuda.bindings.driver: " in said


@pytest.mark.parametrize("package", PACKAGES)
def test_one_package_is_enough(standin_cuda: Path, package: str) -> None:
    installed(package)
    hidden = ("cuda",) if package == "pycuda" else ("pycuda",)
    assert said_by(standin_cuda, LACK.format(hidden=hidden, index=0)).startswith(f"opened {package} ")


def test_pycuda_alone_captures_nothing(standin_cuda: Path) -> None:
    installed("pycuda")
    code = LACK.replace('print("opened", device.package)', "print(device.capture(device.stream(), int))")
    assert said_by(standin_cuda, code.format(hidden=("cuda",), index=0)).strip() == "None"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_for_a_context(standin_cuda: Path, package: str) -> None:
    installed(package)
    refuse = "import ctypes\nctypes.CDLL('libcuda.so.1').standin_cuda_fail(b'cuDevicePrimaryCtxRetain', 2)\n"
    hidden = ("cuda",) if package == "pycuda" else ("pycuda",)
    said = said_by(standin_cuda, refuse + LACK.format(hidden=hidden, index=0))
    assert "CUDA_ERROR_OUT_OF_MEMORY" in said
    assert "the GPU Stand-in 0 cannot be opened" in said
    assert "nvidia-smi" in said


def test_a_context_of_the_user_stays_current(standin_cuda: Path) -> None:
    """pycuda's users push contexts of their own: opening and closing a device leaves that stack as it was."""
    installed("pycuda")
    code = """
import os, sys
sys.setdlopenflags(os.RTLD_LAZY)
import pycuda.driver as cuda
from edgeseg.backends.tensorrt.cuda import open_device
cuda.init()
theirs = cuda.Device(1).retain_primary_context()
theirs.push()
block = cuda.mem_alloc(5)
device = open_device(0, "pycuda")
device.pinned((3,), "u1"), device.allocate(3), device.stream()
device.close()
cuda.Context.pop()
theirs.push()
block.free()
again = cuda.mem_alloc(5)
again.free()
cuda.Context.pop()
theirs.push()
theirs.detach()
from tests.tensorrt.cuda import Books
print({key: count for key, count in Books().alive().items() if key != "depth"})
"""
    assert said_by(standin_cuda, code, devices=2).strip() == "{}"


def test_no_driver(monkeypatch: pytest.MonkeyPatch, fresh_driver: None) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-of-nobody.so.1")
    with pytest.raises(MissingOnMachine, match=r"libcuda-of-nobody\.so\.1 was not found.*--gpus all") as caught:
        open_device()
    assert caught.value.exit_code == 3
    monkeypatch.setattr(driver, "on_jetson", lambda: True)
    with pytest.raises(MissingOnMachine, match=r"JetPack.*nvidia-l4t-cuda.*--runtime nvidia"):
        open_device()


@pytest.fixture
def fresh_driver() -> Iterator[None]:
    driver.library.cache_clear()
    yield
    driver.library.cache_clear()


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "on_jetson", lambda: False)
    assert driver.no_package() == "a package for CUDA is missing: pip install 'edgeseg[tensorrt]'"
    monkeypatch.setattr(driver, "on_jetson", lambda: True)
    assert "PATH=/usr/local/cuda/bin:$PATH pip install pycuda" in driver.no_package()
    assert "tegrastats" in driver.no_context(ORIN, "CUDA_ERROR_OUT_OF_MEMORY in x")
    old = driver.no_context(H200, "CUDA_ERROR_NOT_FOUND in cuNew: Function not found")
    assert "speaks CUDA 12.4" in old
    assert "pip install 'cuda-bindings<13'" in old


def test_what_the_binding_answers() -> None:
    class Result(int):
        name = "CUDA_ERROR_INVALID_VALUE"

    def three(*arguments: int) -> tuple[int, int]:
        return Result(0), sum(arguments)

    def refuses() -> tuple[int]:
        return (Result(1),)

    def unknown() -> tuple[int]:
        raise ValueError("35 is not a valid CUresult")

    def absent() -> tuple[int]:
        raise RuntimeError('Function "cuNew" not found')

    assert with_cuda_python.call(three, 1, 2) == 3
    for function, words in (
        (refuses, "CUDA_ERROR_INVALID_VALUE in refuses"),
        (unknown, "35 is not a valid CUresult in unknown"),
        (absent, "CUDA_ERROR_NOT_FOUND in absent"),
    ):
        with pytest.raises(CudaError, match=words):
            with_cuda_python.call(function)


def test_page_locked_memory_is_freed_once_and_last() -> None:
    buffer, freed = ctypes.create_string_buffer(bytes(range(24)), 24), list[int]()
    array = page_locked(ctypes.addressof(buffer), (2, 3), np.uint32, lambda: freed.append(1))
    assert array.shape == (2, 3)
    assert array.view(np.uint8).ravel().tolist() == list(range(24))
    array[0, 0] = 0xFFFFFFFF
    assert buffer.raw[:4] == b"\xff" * 4
    view = array.T[1:].view(np.ndarray)
    del array
    gc.collect()
    assert freed == []
    assert view.shape == (2, 2)
    del view
    gc.collect()
    assert freed == [1]


def test_bytes_of_an_array() -> None:
    assert nbytes((2, 3), np.float32) == 24
    assert nbytes((0, 3), np.float32) == nbytes((), np.uint8) == 1
    assert nbytes((1 << 20, 1 << 20), np.uint8) == 1 << 40


def test_host_arrays_are_checked() -> None:
    array = np.zeros((4, 4), np.uint8)
    check_host(array, written=True)
    check_host(array[1:3], written=True)
    for wrong in (array.T[1:], array[:, 1:], array[::-1]):
        with pytest.raises(ValueError, match="not contiguous"):
            check_host(wrong, written=False)
    array.flags.writeable = False
    check_host(array, written=False)
    with pytest.raises(ValueError, match="read-only"):
        check_host(array, written=True)


@pytest.mark.parametrize("module", [with_pycuda, with_cuda_python, driver])
def test_packages_are_handed_in(module: types.ModuleType) -> None:
    """So that nothing of CUDA is imported with edgeseg, and pycuda.autoinit and pycuda.compiler never."""
    imported = {
        name
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert "ctypes" in imported or "weakref" in imported
    assert not {name for name in imported if name.split(".")[0] in ("pycuda", "cuda")}


STRICT = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
def ref(kind=ctypes.c_void_p):
    value = kind()
    return value, ctypes.byref(value)
p = ctypes.c_void_p
told = []
context, at = ref()
block, block_at = ref()
told.append(cuda.cuDevicePrimaryCtxRetain(at, 0))                     # before cuInit
cuda.cuInit(0)
cuda.cuDevicePrimaryCtxRetain(at, 0)
told.append(cuda.cuMemAlloc_v2(block_at, ctypes.c_size_t(8)))         # no context
cuda.cuCtxSetCurrent(context)
told.append(cuda.cuMemAlloc_v2(block_at, ctypes.c_size_t(5000)))      # more than there is
told.append(cuda.cuMemAlloc_v2(block_at, ctypes.c_size_t(8)))
stream, stream_at = ref()
cuda.cuStreamCreate(stream_at, 1)
data = ctypes.create_string_buffer(16)
told.append(cuda.cuMemcpyHtoDAsync_v2(block, data, ctypes.c_size_t(9), stream))   # past its end
told.append(cuda.cuMemcpyHtoDAsync_v2(block, data, ctypes.c_size_t(8), p(1)))     # no such stream
cuda.cuStreamBeginCapture_v2(stream, 1)
cuda.cuMemcpyHtoDAsync_v2(block, data, ctypes.c_size_t(8), stream)
graph, graph_at = ref()
run, run_at = ref()
cuda.cuStreamEndCapture(stream, graph_at)
cuda.cuGraphInstantiateWithFlags(run_at, graph, ctypes.c_ulonglong(0))
told.append(cuda.cuMemFree_v2(block))
told.append(cuda.cuMemFree_v2(block))                                 # twice
told.append(cuda.cuGraphLaunch(run, stream))                          # writes what was freed
told.append(cuda.cuGraphDestroy(run))                                 # not a graph
cuda.cuDevicePrimaryCtxRelease_v2(0)
told.append(cuda.cuStreamSynchronize(stream))                         # with its context gone
told.append(cuda.cuDevicePrimaryCtxRelease_v2(0))                     # never retained
print(told, cuda.standin_cuda_count(b"orphans"))
"""


def test_the_stand_in_is_as_strict_as_the_driver(standin_cuda: Path) -> None:
    told = [3, 201, 2, 0, 1, 400, 0, 1, 700, 1, 709, 201]
    assert said_by(standin_cuda, STRICT, memory=4096).strip() == f"{told} 3"
