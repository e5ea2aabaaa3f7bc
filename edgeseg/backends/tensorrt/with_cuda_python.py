"""A device by cuda-python, `cuda.bindings.driver` (`cuda.cuda` up to 12.6), and the capture of graphs for pycuda too.

Every function of the binding answers a tuple, its first member the driver's result; handles may be given as integers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from importlib import metadata
from types import ModuleType, TracebackType
from typing import Any

from numpy.typing import NDArray

from edgeseg.backends.tensorrt.cuda import (
    CudaError,
    Device,
    Gpu,
    check_host,
    nbytes,
    not_given_back,
    page_locked,
)

NON_BLOCKING, MAPPED = 1, 2  # CU_STREAM_NON_BLOCKING, CU_MEMHOSTALLOC_DEVICEMAP


class CudaPythonDevice(Device):
    """All by cuda-python. See Device; its errors carry the driver's name and the function."""

    def __init__(self, index: int, gpu: Gpu, cuda: ModuleType) -> None:
        self.gpu = gpu
        self.package = f"cuda-python {version()}"
        self._cuda = cuda
        call(cuda.cuInit, 0)
        self._context: _Context | None = _Context(cuda, int(call(cuda.cuDeviceGet, index)))
        self._streams: list[int] = []
        self._events: list[int] = []
        self._graphs: list[int] = []
        self._blocks: list[int] = []
        self._arrays: list[NDArray[Any]] = []

    def activate(self) -> None:
        call(self._cuda.cuCtxSetCurrent, self._opened().handle)

    def stream(self) -> int:
        return _kept(self._streams, self._do(self._cuda.cuStreamCreate, NON_BLOCKING))

    def allocate(self, size: int) -> int:
        return _kept(self._blocks, self._do(self._cuda.cuMemAlloc, size))

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        return self._host(shape, dtype, 0)[0]

    def mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[NDArray[Any], int]:
        array, address = self._host(shape, dtype, MAPPED)
        return array, int(self._do(self._cuda.cuMemHostGetDevicePointer, address, 0))

    def upload(self, address: int, source: NDArray[Any], stream: int) -> None:
        check_host(source, written=False)
        self._do(self._cuda.cuMemcpyHtoDAsync, address, source.ctypes.data, source.nbytes, stream)

    def download(self, target: NDArray[Any], address: int, stream: int) -> None:
        check_host(target, written=True)
        self._do(self._cuda.cuMemcpyDtoHAsync, target.ctypes.data, address, target.nbytes, stream)

    def synchronize(self, stream: int) -> None:
        self._do(self._cuda.cuStreamSynchronize, stream)

    def capture(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        self._opened()
        graph = _kept(self._graphs, captured(self._cuda, stream, work))

        def launch() -> None:
            self._do(self._cuda.cuGraphLaunch, graph, stream)

        weakref.finalize(launch, self._forget, graph).atexit = False
        return launch

    def event(self) -> int:
        return _kept(self._events, self._do(self._cuda.cuEventCreate, 0))

    def record(self, event: int, stream: int) -> None:
        self._do(self._cuda.cuEventRecord, event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._do(self._cuda.cuEventElapsedTime, start, end))

    def close(self) -> None:
        context, self._context = self._context, None
        if context is None:
            return
        try:
            with context:
                self._give_back()
            context.leave()
        except CudaError as error:
            not_given_back(f"what was on {self.gpu.name}", error)

    def _forget(self, graph: int) -> None:
        """Nobody can launch it any more."""
        if self._context is None or graph not in self._graphs:
            return
        self._graphs.remove(graph)
        try:
            with self._context:
                call(self._cuda.cuGraphExecDestroy, graph)
        except CudaError as error:
            not_given_back("a graph", error)

    def _give_back(self) -> None:
        cuda = self._cuda
        for function, handles in (
            (cuda.cuStreamSynchronize, self._streams),  # nothing that is taken away is in use
            (cuda.cuGraphExecDestroy, self._graphs),
            (cuda.cuEventDestroy, self._events),
            (cuda.cuStreamDestroy, self._streams),
            (cuda.cuMemFree, self._blocks),
        ):
            for handle in handles:
                try:
                    call(function, handle)
                except CudaError as error:
                    not_given_back(f"{handle:#x}", error)
        for kept in (self._streams, self._graphs, self._events, self._blocks):
            kept.clear()
        self._arrays.clear()

    def _opened(self) -> _Context:
        if self._context is None:
            raise CudaError(f"the device {self.gpu.name} is closed")
        return self._context

    def _do(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        self._opened()
        return call(function, *arguments)

    def _host(self, shape: tuple[int, ...], dtype: Any, flags: int) -> tuple[NDArray[Any], int]:
        context, cuda = self._opened(), self._cuda
        address = int(call(cuda.cuMemHostAlloc, nbytes(shape, dtype), flags))

        def free() -> None:
            try:
                with context:
                    call(cuda.cuMemFreeHost, address)
            except CudaError as error:
                not_given_back("page-locked memory", error)

        array = page_locked(address, shape, dtype, free)
        self._arrays.append(array)
        return array, address


class _Context:
    """A reference to a device's primary context, given back when the device and its arrays have let go of it.

    In a `with` it is current on this thread, and what was before is again afterwards.
    """

    def __init__(self, cuda: ModuleType, device: int) -> None:
        self._cuda = cuda
        self.handle = int(call(cuda.cuDevicePrimaryCtxRetain, device))
        weakref.finalize(self, _release, cuda, device).atexit = False

    def __enter__(self) -> None:
        call(self._cuda.cuCtxPushCurrent, self.handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        call(self._cuda.cuCtxPopCurrent)

    def leave(self) -> None:
        """Let this thread have no current context, if it is this one: it may be gone before the thread's next call."""
        if int(call(self._cuda.cuCtxGetCurrent)) == self.handle:
            call(self._cuda.cuCtxSetCurrent, 0)


def captured(cuda: ModuleType, stream: int, work: Callable[[], None]) -> int:
    """The handle of an executable graph of what `work` puts on the stream; cuGraphExecDestroy gives it back.

    Other threads may go on calling the driver meanwhile (thread-local capture). However it ends, the stream does not
    capture afterwards. Raises CudaError, and what `work` raises.
    """
    # 12 gave the plain name the signature that WithFlags had since 11.4, and took WithFlags out of the binding
    instantiate = getattr(cuda, "cuGraphInstantiateWithFlags", None) or cuda.cuGraphInstantiate
    call(cuda.cuStreamBeginCapture, stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    try:
        work()
    except BaseException:
        result, graph = cuda.cuStreamEndCapture(stream)  # an error of its own would only hide the first one
        if not int(result) and int(graph):
            call(cuda.cuGraphDestroy, graph)
        raise
    graph = call(cuda.cuStreamEndCapture, stream)
    try:
        return int(call(instantiate, graph, 0))
    finally:
        call(cuda.cuGraphDestroy, graph)


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """What a function of the binding answers besides its result. Raises CudaError unless that is CUDA_SUCCESS."""
    try:
        result, *rest = function(*arguments)
    except ValueError as error:  # a code that the binding has no name for: "35 is not a valid CUresult"
        raise CudaError(f"{error} in {function.__name__}") from error
    except RuntimeError as error:  # the binding found no such function in this driver
        raise CudaError(f"CUDA_ERROR_NOT_FOUND in {function.__name__}: {error}") from error
    if int(result):
        raise CudaError(f"{result.name} in {function.__name__}")
    return rest[0] if rest else None


def version() -> str:
    """Of the installed binding: the package was one up to 12.6, then it was split."""
    for name in ("cuda-bindings", "cuda-python"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def _kept(handles: list[int], handle: Any) -> int:
    handles.append(int(handle))
    return handles[-1]


def _release(cuda: ModuleType, device: int) -> None:
    try:
        call(cuda.cuDevicePrimaryCtxRelease, device)
    except CudaError as error:
        not_given_back("its context", error)
