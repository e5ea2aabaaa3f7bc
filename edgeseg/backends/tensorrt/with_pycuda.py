"""A device by pycuda; graphs are captured by cuda-python where that can be imported, since pycuda has no call for it.

pycuda keeps a stack of contexts of its own for each thread: its objects can be made only while that has one, and a
thread that ends before its stack is empty ends the process. Contexts are therefore pushed for as long as one call here
lasts, and `activate` sets the current context in the driver, past that stack. pycuda.autoinit is not imported: it makes
a context of its own, which TensorRT would not use.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from importlib import metadata
from types import ModuleType, TracebackType
from typing import Any

from numpy.typing import NDArray

from edgeseg.backends.tensorrt import driver
from edgeseg.backends.tensorrt.cuda import (
    CudaError,
    Device,
    Gpu,
    check_host,
    nbytes,
    not_given_back,
    page_locked,
)
from edgeseg.backends.tensorrt.with_cuda_python import call, captured

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class PycudaDevice(Device):
    """Context, streams, events and memory by pycuda. See Device; errors carry the driver's name and the function."""

    def __init__(self, index: int, gpu: Gpu, cuda: ModuleType, graphs: ModuleType | None) -> None:
        self.gpu = gpu
        self.package = f"pycuda {metadata.version('pycuda')}"
        self._cuda = cuda
        self._capture = graphs
        self._library = driver.library()
        with _Told(cuda):
            cuda.init()
            self._context: _Context | None = _Context(cuda, index)
        self._streams: dict[int, Any] = {}
        self._events: dict[int, Any] = {}
        self._graphs: list[int] = []
        self._blocks: list[Any] = []
        self._arrays: list[NDArray[Any]] = []

    def activate(self) -> None:
        if code := self._library.cuCtxSetCurrent(self._opened().handle):
            raise CudaError(f"{driver.said(self._library, code)} in cuCtxSetCurrent")

    def stream(self) -> int:
        made = self._made(self._cuda.Stream, NON_BLOCKING)
        self._streams[int(made.handle)] = made
        return int(made.handle)

    def allocate(self, size: int) -> int:
        self._blocks.append(self._made(self._cuda.mem_alloc, size))
        return int(self._blocks[-1])

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        return self._host(shape, dtype, 0)[0]

    def mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[NDArray[Any], int]:
        array, allocation = self._host(shape, dtype, self._cuda.host_alloc_flags.DEVICEMAP)
        return array, int(self._made(allocation.get_device_pointer))

    def upload(self, address: int, source: NDArray[Any], stream: int) -> None:
        check_host(source, written=False)
        with self._told():
            self._cuda.memcpy_htod_async(address, source, _known(self._streams, stream))

    def download(self, target: NDArray[Any], address: int, stream: int) -> None:
        check_host(target, written=True)
        with self._told():
            self._cuda.memcpy_dtoh_async(target, address, _known(self._streams, stream))

    def synchronize(self, stream: int) -> None:
        with self._told():
            _known(self._streams, stream).synchronize()

    def capture(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        self._opened()
        graphs = self._capture
        if graphs is None:
            return None
        graph = captured(graphs, stream, work)
        self._graphs.append(graph)

        def launch() -> None:
            self._opened()
            call(graphs.cuGraphLaunch, graph, stream)

        weakref.finalize(launch, self._forget, graph).atexit = False
        return launch

    def event(self) -> int:
        made = self._made(self._cuda.Event)
        self._events[id(made)] = made  # pycuda does not tell the driver's handle of an event
        return id(made)

    def record(self, event: int, stream: int) -> None:
        with self._told():
            _known(self._events, event).record(_known(self._streams, stream))

    def elapsed_ms(self, start: int, end: int) -> float:
        with self._told():
            return float(_known(self._events, start).time_till(_known(self._events, end)))

    def close(self) -> None:
        context, self._context = self._context, None
        if context is None:
            return
        try:
            with _Told(self._cuda), context:
                self._finish()
                for graph in self._graphs:
                    try:
                        call(self._capture.cuGraphExecDestroy, graph)  # type: ignore[union-attr]  # it made the graph
                    except CudaError as error:
                        not_given_back("a graph", error)
                # pycuda's objects are given back when they are let go, and say on stderr where the driver refuses
                for kept in (self._events, self._streams):
                    kept.clear()
                for held in (self._graphs, self._blocks, self._arrays):
                    held.clear()
            context.leave()
        except CudaError as error:
            not_given_back(f"what was on {self.gpu.name}", error)

    def _forget(self, graph: int) -> None:
        """Nobody can launch it any more."""
        if self._context is None or self._capture is None or graph not in self._graphs:
            return
        self._graphs.remove(graph)
        try:
            with _Told(self._cuda), self._context:
                call(self._capture.cuGraphExecDestroy, graph)
        except CudaError as error:
            not_given_back("a graph", error)

    def _finish(self) -> None:
        """Wait for all streams: nothing that is taken away may be in use."""
        for stream in self._streams.values():
            try:
                with _Told(self._cuda):
                    stream.synchronize()
            except CudaError as error:
                not_given_back("a stream that was at work", error)

    def _opened(self) -> _Context:
        if self._context is None:
            raise CudaError(f"the device {self.gpu.name} is closed")
        return self._context

    def _told(self) -> _Told:
        self._opened()
        return _Told(self._cuda)

    def _made(self, make: Callable[..., Any], *arguments: Any) -> Any:
        with _Told(self._cuda), self._opened():
            return make(*arguments)

    def _host(self, shape: tuple[int, ...], dtype: Any, flags: int) -> tuple[NDArray[Any], Any]:
        """An array over page-locked memory, and pycuda's object that holds the memory."""
        context, size = self._opened(), nbytes(shape, dtype)
        raw = self._made(self._cuda.pagelocked_empty, (size,), "u1", "C", flags)
        allocation = raw.base

        def free() -> None:  # under a pushed context: from another thread pycuda would leak it
            try:
                with _Told(context.cuda), context:
                    allocation.free()
            except CudaError as error:
                not_given_back("page-locked memory", error)

        array = page_locked(raw.ctypes.data, shape, dtype, free)
        self._arrays.append(array)
        return array, allocation


class _Context:
    """A reference to a device's primary context, given back when the device and its arrays have let go of it.

    In a `with` it is current on this thread, for pycuda too, and what was before is again afterwards.
    """

    def __init__(self, cuda: ModuleType, index: int) -> None:
        self.cuda = cuda
        self._context = cuda.Device(index).retain_primary_context()
        self.handle = int(self._context.handle)
        weakref.finalize(self, _release, cuda, self._context, self.handle).atexit = False

    def __enter__(self) -> None:
        self._context.push()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cuda.Context.pop()

    def leave(self) -> None:
        """Let this thread have no current context, if it is this one: it may be gone before the thread's next call."""
        _drop(self.handle)


class _Told:
    """In a `with`, errors of pycuda become CudaError with the driver's name, which pycuda leaves out."""

    def __init__(self, cuda: ModuleType) -> None:
        self._error = cuda.Error

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, self._error):
            function, _, text = str(error).partition(" failed: ")
            raise CudaError(f"{driver.said_of(driver.library(), text)} in {function}") from error


def _release(cuda: ModuleType, context: Any, handle: int) -> None:
    """Give back pycuda's reference from whichever thread this is: unless it is pushed there, pycuda only forgets it."""
    try:
        with _Told(cuda):
            context.push()
            context.detach()
    except CudaError as error:
        not_given_back("its context", error)
    _drop(handle)  # which detach leaves behind in the driver


def _drop(handle: int) -> None:
    current = ctypes.c_void_p()
    library = driver.library()
    library.cuCtxGetCurrent(ctypes.byref(current))
    if current.value == handle:
        library.cuCtxSetCurrent(None)


def _known(objects: dict[int, Any], handle: int) -> Any:
    try:
        return objects[handle]
    except KeyError:
        raise CudaError(f"CUDA_ERROR_INVALID_HANDLE: {handle:#x} is none of this device's") from None
