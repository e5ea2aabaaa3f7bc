"""The CUDA driver as this backend uses it: one device, its context, a stream, memory, events, captured graphs.

Two packages can do it, and both speak the driver API, so that pointers and handles are plain integers that TensorRT
takes: pycuda (builds from source on every Jetson) and cuda-python (wheels for x86 and Arm; also captures graphs, which
pycuda has no call for). `open_device` takes pycuda where it can be imported, and cuda-python for what that lacks.

The context is the device's primary one, which the CUDA runtime, and with it TensorRT, PyTorch and OpenCV, use too.
Page-locked arrays may outlive the device that made them: their memory, and the context with it, is given back when the
last view of them is gone. Addresses, streams and events may not.
"""

from __future__ import annotations

import ctypes
import importlib
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeseg.backends.base import Closing
from edgeseg.errors import MissingOnMachine

Package = Literal["pycuda", "cuda-python"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """What an engine's file, and its speed, depend on."""

    name: str
    compute_capability: tuple[int, int]
    driver: int  # the CUDA version that the driver speaks, as it says it: 12040 is 12.4
    integrated: bool  # shares its memory with the processor, as on a Jetson
    memory: int  # bytes


class Device(Closing):
    """One GPU with its primary context. Calls may come from any thread, one at a time: `activate` on each first.

    Every method raises CudaError with the driver's own name of what went wrong.
    """

    gpu: Gpu
    package: str  # "pycuda 2024.1", "cuda-python 12.9.0"

    @abstractmethod
    def activate(self) -> None:
        """Make the context current on the calling thread."""

    @abstractmethod
    def stream(self) -> int:
        """A new non-blocking stream; it lives as long as the device."""

    @abstractmethod
    def allocate(self, size: int) -> int:
        """The address of `size` bytes (at least 1) on the device; they live as long as the device."""

    @abstractmethod
    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """A page-locked host array: copies from and to it run without the processor. It holds anything at first.

        Lives as long as the device, or as long as somebody holds it or a view of it, whichever is longer.
        """

    @abstractmethod
    def mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[NDArray[Any], int]:
        """A page-locked host array, and the address under which the device reads and writes the very same bytes.

        The array lives as `pinned` says; the address only as long as the device.
        """

    @abstractmethod
    def upload(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Copy a contiguous host array to the device, asynchronously where it is page-locked.

        ValueError for an array that is not contiguous: what would be copied is not what it holds.
        """

    @abstractmethod
    def download(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Copy from the device into a contiguous host array, asynchronously where it is page-locked.

        ValueError for an array that is not contiguous, or that cannot be written.
        """

    @abstractmethod
    def synchronize(self, stream: int) -> None:
        """Wait until all that was put on the stream is done."""

    @abstractmethod
    def capture(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        """What `work` puts on the stream, as one CUDA graph: a function that launches it on that stream.

        `work` is called once, and nothing runs while it is captured. None where no package here can capture.
        Raises CudaError where the driver refuses, and what `work` raises; the stream can be used afterwards as before.
        The graph copies from and to the memory that was captured, with what is in it at each launch. It is given back
        when nobody holds the function any more, or with the device.
        """

    @abstractmethod
    def event(self) -> int:
        """A new event that keeps time."""

    @abstractmethod
    def record(self, event: int, stream: int) -> None:
        """Note the time when the stream comes to this point."""

    @abstractmethod
    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events that have passed."""

    @abstractmethod
    def close(self) -> None:
        """Give back graphs, streams, events, memory and the context, in an order that is safe. May be called twice.

        Waits for what is still on the streams. From any thread; that thread has no current context afterwards, if it
        was this one. What a broken context does not give back becomes a ResourceWarning: the error itself was told
        by the call that broke it. Any later call raises CudaError.
        """


class CudaError(Exception):
    """The driver refused: its name for it, as CUDA_ERROR_OUT_OF_MEMORY."""


def nbytes(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array, at least one: the driver gives no memory of none."""
    return max(1, int(np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize))


def open_device(index: int = 0, package: Package | None = None) -> Device:
    """The GPU of that number, in the driver's order (CUDA_VISIBLE_DEVICES applies), with its context on this thread.

    `package` names the one to use; otherwise pycuda, and cuda-python where pycuda cannot be imported. Raises
    MissingOnMachine where the driver, a GPU or both packages are missing, or the GPU has no room for a context: it says
    which, and what to do.
    """
    from edgeseg.backends.tensorrt import driver

    gpu = driver.gpu(index)
    refused: list[str] = []
    pycuda = _imported(("pycuda.driver",), refused) if package != "cuda-python" else None
    graphs = _imported(("cuda.bindings.driver", "cuda.cuda"), [] if pycuda else refused)
    device: Device
    try:
        if pycuda is not None:
            from edgeseg.backends.tensorrt.with_pycuda import PycudaDevice

            device = PycudaDevice(index, gpu, pycuda, graphs)
        elif graphs is not None and package != "pycuda":
            from edgeseg.backends.tensorrt.with_cuda_python import CudaPythonDevice

            device = CudaPythonDevice(index, gpu, graphs)
        else:
            raise MissingOnMachine(f"{driver.no_package(package)} ({'; '.join(refused)})")
        device.activate()
    except CudaError as error:
        raise MissingOnMachine(driver.no_context(gpu, str(error))) from error
    return device


def page_locked(address: int, shape: tuple[int, ...], dtype: Any, free: Callable[[], None]) -> NDArray[Any]:
    """An array over the host memory there. `free` is called once, when the array and every view of it are gone."""
    memory = (ctypes.c_uint8 * nbytes(shape, dtype)).from_address(address)
    # At the end of the process the driver gives all back itself, and other threads may still read the array.
    weakref.finalize(memory, free).atexit = False
    return np.ndarray(shape, dtype, buffer=memoryview(memory))


def check_host(array: NDArray[Any], *, written: bool) -> None:
    """Raise ValueError for an array whose bytes are not in one piece, or may not be written."""
    if not array.flags.c_contiguous:
        raise ValueError(f"an array of shape {array.shape} with strides {array.strides} is not contiguous: copy it")
    if written and not array.flags.writeable:
        raise ValueError(f"an array of shape {array.shape} is read-only: what comes from the device cannot go there")


def not_given_back(what: str, error: CudaError) -> None:
    """Warn: called where raising would hide the error that came first."""
    warnings.warn(f"the CUDA driver did not give back {what}: {error}", ResourceWarning, stacklevel=2)


def _imported(names: tuple[str, ...], refused: list[str]) -> ModuleType | None:
    """The first of the modules that can be imported; otherwise None, with the reason in `refused`."""
    for name in names:
        try:
            return importlib.import_module(name)
        except Exception as error:  # missing libraries and mixed versions raise more than ImportError
            refused.append(f"{name}: {error}")
    return None
