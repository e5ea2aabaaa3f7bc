"""The contract of a CUDA device, by each package that is installed, on the real driver."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import pytest

from edgeseg.backends.tensorrt import driver
from edgeseg.backends.tensorrt.cuda import Device, Package, open_device
from edgeseg.errors import MissingOnMachine
from tests.tensorrt import contract, cuda


@pytest.fixture(params=["pycuda", "cuda-python"])
def package(request: pytest.FixtureRequest) -> Package:
    if not cuda.packages()[request.param]:
        pytest.skip(f"needs {request.param}: pip install {'pycuda' if request.param == 'pycuda' else 'cuda-bindings'}")
    try:
        open_device(package=request.param).close()
    except MissingOnMachine as error:
        pytest.skip(str(error))
    name: Package = request.param
    return name


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(package: Package, check: Callable[[Device], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_device(package=package) as device:
            check(device)
        del device
        gc.collect()


def test_memory_comes_back(package: Package) -> None:
    """What 20 devices in a row were given: more than the GPU has, if none gave it back."""
    size = driver.gpu().memory // 8
    for _ in range(20):
        with open_device(package=package) as device:
            stream = device.stream()
            address = device.allocate(size)
            target = device.pinned((16,), "uint8")
            device.download(target, address, stream)
            device.synchronize(stream)


def test_the_gpu_is_told_as_nvml_tells_it(package: Package) -> None:
    nvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        pytest.skip(f"NVML does not answer: {error}")
    names = [nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]
    nvml.nvmlShutdown()
    told = driver.gpu()
    assert told.name in [name.decode() if isinstance(name, bytes) else name for name in names]
    assert told.memory > 1 << 28
    assert told.compute_capability >= (5, 0)
