"""What every Device must do, as checks that run in a process of their own: python -m tests.tensorrt.contract PACKAGE

On a machine with a GPU those in CHECKS hold as well; the others look into the stand-in's books. Each gets a device that
was opened for it, and after each nothing may be left. One line of JSON comes out for each: its name and what failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgeseg.backends.tensorrt.cuda import CudaError, Device, Package, open_device
from tests.tensorrt.cuda import Books


@contextlib.contextmanager
def refused(*words: str, kind: type[Exception] = CudaError) -> Iterator[None]:
    try:
        yield
    except kind as error:
        told = str(error)
        if missing := [word for word in words if word not in told]:
            raise AssertionError(f"{missing} not in {told!r}") from error
        return
    raise AssertionError(f"no {kind.__name__} with {words}")


def in_thread(work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def counting(size: int, start: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return (np.arange(start, start + size) % 251).astype(np.uint8)


def through(device: Device, data: np.ndarray[Any, Any], stream: int) -> np.ndarray[Any, Any]:
    """To the device and back."""
    source, target = device.pinned(data.shape, data.dtype), device.pinned(data.shape, data.dtype)
    source[...] = data
    address = device.allocate(max(1, data.nbytes))
    device.upload(address, source, stream)
    device.download(target, address, stream)
    device.synchronize(stream)
    return target


def copies_there_and_back(device: Device) -> None:
    data = counting(6000).reshape(3, 100, 20)
    assert np.array_equal(through(device, data, device.stream()), data)


def pageable_memory_too(device: Device) -> None:
    stream, address, target = device.stream(), device.allocate(1000), np.zeros(1000, np.uint8)
    data = counting(1000)
    device.upload(address, data, stream)
    data[:] = 0  # what was handed over is what counts
    device.download(target, address, stream)
    device.synchronize(stream)
    assert np.array_equal(target, counting(1000))


def every_shape_and_type(device: Device) -> None:
    for shape, dtype in (((), np.float32), ((0, 3), np.uint8), ((5,), np.int64), ((2, 3, 4), np.float16)):
        array, (mapped, address) = device.pinned(shape, dtype), device.mapped(shape, dtype)
        for each in (array, mapped):
            assert each.shape == shape
            assert each.dtype == dtype
            assert each.flags.writeable
            assert each.flags.aligned
        assert address
    floats = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(through(device, floats, device.stream()), floats)


def mapped_is_the_same_memory(device: Device) -> None:
    stream = device.stream()
    array, address = device.mapped((50, 3), np.uint8)
    array[...] = counting(150).reshape(50, 3)
    target = device.pinned((50, 3), np.uint8)
    device.download(target, address, stream)
    device.synchronize(stream)
    assert np.array_equal(target, array)
    target[...] = 9
    device.upload(address, target, stream)
    device.synchronize(stream)
    assert (array == 9).all()


def runs_in_another_thread(device: Device) -> None:
    stream, address = device.stream(), device.allocate(10)

    def without() -> None:
        with refused("CUDA_ERROR_INVALID_CONTEXT"):
            device.download(np.empty(10, np.uint8), address, stream)

    def within() -> None:
        for _ in range(3):
            device.activate()
        assert np.array_equal(through(device, counting(500), stream), counting(500))
        assert np.array_equal(through(device, counting(500), device.stream()), counting(500))
        device.elapsed_ms(*timed(device, stream))

    in_thread(without)
    in_thread(within)
    in_thread(within)
    assert np.array_equal(through(device, counting(7), stream), counting(7))


def closes_in_another_thread(device: Device) -> None:
    stream = device.stream()
    through(device, counting(5), stream)
    device.mapped((5,), np.uint8)
    timed(device, stream)
    if device.capture(stream, lambda: None) is None:
        raise AssertionError("cuda-python is here, and can capture")
    in_thread(device.close)


def captures(device: Device) -> None:
    stream, address = device.stream(), device.allocate(100)
    source, target = device.pinned((100,), np.uint8), device.pinned((100,), np.uint8)
    source[:], target[:] = 1, 0
    calls = []

    def work() -> None:
        calls.append(1)
        device.upload(address, source, stream)
        device.download(target, address, stream)

    launch = device.capture(stream, work)
    device.synchronize(stream)
    assert launch is not None
    assert not target.any(), "nothing runs while it is captured"
    for value in (5, 6):
        source[:] = value
        launch()
        device.synchronize(stream)
        assert (target == value).all()
    in_thread(lambda: (device.activate(), launch(), device.synchronize(stream), None)[-1])
    assert calls == [1]
    second = device.capture(stream, work)  # as for another shape
    assert second is not None
    source[:] = 7
    second()
    device.synchronize(stream)
    assert (target == 7).all()


def work_that_fails_ends_its_capture(device: Device) -> None:
    stream, address = device.stream(), device.allocate(100)
    source = device.pinned((100,), np.uint8)

    def fails() -> None:
        device.upload(address, source, stream)
        raise KeyError("of the work")

    with refused("of the work", kind=KeyError):
        device.capture(stream, fails)
    captures(device)
    assert np.array_equal(through(device, counting(9), stream), counting(9))


def a_broken_capture_leaves_the_stream_usable(device: Device) -> None:
    stream = device.stream()

    def waits() -> None:
        device.synchronize(stream)

    def waits_and_hides_it() -> None:
        with contextlib.suppress(CudaError):
            device.synchronize(stream)

    with refused("CUDA_ERROR_STREAM_CAPTURE_"):
        device.capture(stream, waits)
    assert np.array_equal(through(device, counting(9), stream), counting(9))
    with refused("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        device.capture(stream, waits_and_hides_it)
    assert np.array_equal(through(device, counting(9), stream), counting(9))
    launch = device.capture(stream, lambda: None)  # an empty graph is one too
    assert launch is not None
    launch()
    device.synchronize(stream)


def too_much_memory(device: Device) -> None:
    with refused("CUDA_ERROR_OUT_OF_MEMORY", "cuMemAlloc"):
        device.allocate(1 << 52)
    assert np.array_equal(through(device, counting(9), device.stream()), counting(9))


def timed(device: Device, stream: int) -> tuple[int, int]:
    start, end = device.event(), device.event()
    device.record(start, stream)
    through(device, counting(100), stream)
    device.record(end, stream)
    device.synchronize(stream)
    return start, end


def events_keep_time(device: Device) -> None:
    stream = device.stream()
    start, end = timed(device, stream)
    assert device.elapsed_ms(start, end) > 0
    assert device.elapsed_ms(end, start) < 0
    assert device.elapsed_ms(start, start) == 0
    with refused("CUDA_ERROR_"):
        device.elapsed_ms(start, device.event())  # which was never recorded


def wrong_arrays(device: Device) -> None:
    stream, address, data = device.stream(), device.allocate(100), np.zeros((10, 10), np.uint8)
    with refused("not contiguous", kind=ValueError):
        device.upload(address, data[:, ::2], stream)
    with refused("not contiguous", kind=ValueError):
        device.download(data.T[1:], address, stream)
    data.flags.writeable = False
    with refused("read-only", kind=ValueError):
        device.download(data, address, stream)
    device.upload(address, data, stream)
    device.synchronize(stream)


def closed_is_closed(device: Device) -> None:
    stream, address, event = device.stream(), device.allocate(4), device.event()
    array = device.pinned((4,), np.uint8)
    launch = device.capture(stream, lambda: device.upload(address, array, stream))
    assert launch is not None
    device.close()
    device.close()
    for call in (
        device.activate,
        device.stream,
        device.event,
        launch,
        lambda: device.allocate(4),
        lambda: device.pinned((4,), np.uint8),
        lambda: device.mapped((4,), np.uint8),
        lambda: device.upload(address, array, stream),
        lambda: device.download(array, address, stream),
        lambda: device.synchronize(stream),
        lambda: device.capture(stream, lambda: None),
        lambda: device.record(event, stream),
        lambda: device.elapsed_ms(event, event),
    ):
        with refused("closed"):
            call()


def arrays_outlive_their_device(device: Device) -> None:
    pinned, mapped = device.pinned((100,), np.uint8), device.mapped((100,), np.uint8)[0]
    pinned[:], mapped[:] = 3, 4
    views = pinned[50:].reshape(5, 10), mapped.view(np.int32)
    del pinned, mapped
    device.close()
    gc.collect()
    assert (views[0] == 3).all()
    assert (views[1] == 0x04040404).all()
    views[0][...] = 5


def two_share_a_context(device: Device) -> None:
    package = "pycuda" if device.package.startswith("pycuda") else "cuda-python"
    with open_device(package=package) as other:  # type: ignore[arg-type]  # one of the two
        stream = device.stream()
        assert np.array_equal(through(other, counting(9), other.stream()), counting(9))
    device.activate()
    assert np.array_equal(through(device, counting(9), stream), counting(9))


def it_tells_what_it_is(device: Device) -> None:
    gpu = device.gpu
    assert gpu.name == gpu.name.strip() != ""
    assert (5, 0) <= gpu.compute_capability < (20, 0)
    assert gpu.driver >= 11040
    assert gpu.memory > 1 << 20
    assert device.package.split()[0] in ("pycuda", "cuda-python")
    assert device.package.split()[1][0].isdigit()


CHECKS: tuple[Callable[[Device], None], ...] = (
    it_tells_what_it_is,
    copies_there_and_back,
    pageable_memory_too,
    every_shape_and_type,
    mapped_is_the_same_memory,
    runs_in_another_thread,
    closes_in_another_thread,
    captures,
    work_that_fails_ends_its_capture,
    a_broken_capture_leaves_the_stream_usable,
    too_much_memory,
    events_keep_time,
    wrong_arrays,
    closed_is_closed,
    arrays_outlive_their_device,
    two_share_a_context,
)


def activating_is_one_call(device: Device, books: Books) -> None:
    before = books.count("calls:cuCtxSetCurrent")
    device.activate()
    assert books.count("calls:cuCtxSetCurrent") == before + 1
    assert books.count("depth") == 1


def held_arrays_hold_the_context(device: Device, books: Books) -> None:
    array, other = device.pinned((9,), np.uint8), device.mapped((9,), np.uint8)[0]
    device.allocate(9)
    device.close()
    assert books.alive() == {"contexts": 1, "host_blocks": 2}
    del array
    assert books.alive() == {"contexts": 1, "host_blocks": 1}
    held = [other[3:]]
    del other
    in_thread(held.clear)  # the last view goes in a thread that never had a context
    assert books.alive() == {}


def a_graph_that_cannot_be_made_is_given_back(device: Device, books: Books) -> None:
    stream = device.stream()
    books.fail("cuGraphInstantiate", 2)
    with refused("CUDA_ERROR_OUT_OF_MEMORY", "cuGraphInstantiate"):
        device.capture(stream, lambda: None)
    assert books.count("graphs") == books.count("executables") == 0
    books.fail("cuStreamBeginCapture", 900)
    with refused("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        device.capture(stream, lambda: None)
    captures(device)
    assert books.count("graphs") == books.count("executables") == 0


def a_graph_goes_with_its_function(device: Device, books: Books) -> None:
    """One for each shape that a dynamic engine was given would fill the device."""
    stream = device.stream()
    launch = device.capture(stream, lambda: None)
    for _ in range(3):
        launch = device.capture(stream, lambda: None)
        assert books.count("executables") == 1
    held = [launch]
    del launch
    in_thread(held.clear)  # the last holder may be a thread that never had a context
    assert books.count("executables") == 0


def every_call_can_be_refused(device: Device, books: Books) -> None:
    stream, event, address = device.stream(), device.event(), device.allocate(9)
    array = device.pinned((9,), np.uint8)
    calls: dict[str, Callable[[], object]] = {
        "cuStreamCreate": device.stream,
        "cuEventCreate": device.event,
        "cuMemAlloc": lambda: device.allocate(9),
        "cuMemHostAlloc": lambda: device.pinned((9,), np.uint8),
        "cuMemHostGetDevicePointer": lambda: device.mapped((9,), np.uint8),
        "cuMemcpyHtoDAsync": lambda: device.upload(address, array, stream),
        "cuMemcpyDtoHAsync": lambda: device.download(array, address, stream),
        "cuStreamSynchronize": lambda: device.synchronize(stream),
        "cuEventRecord": lambda: device.record(event, stream),
        "cuCtxSetCurrent": device.activate,
    }
    for function, call in calls.items():
        books.fail(function, 719)
        with refused("CUDA_ERROR_LAUNCH_FAILED", function):
            call()
        call()


def what_runs_on_the_stream_is_captured(device: Device, books: Books) -> None:
    """As a stand-in of an engine does it: its work is a callback on the stream."""
    stream, address = device.stream(), device.allocate(4)
    source, target = device.pinned((4,), np.uint8), device.pinned((4,), np.uint8)
    library = books.library

    def double(_: int) -> None:
        values = (ctypes.c_uint8 * 4).from_address(address)
        values[:] = [2 * value for value in values]

    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(double)

    def work() -> None:
        device.upload(address, source, stream)
        assert library.standin_cuda_capturing(ctypes.c_void_p(stream)) == capturing
        assert library.standin_cuda_run(ctypes.c_void_p(stream), kernel, None) == 0
        device.download(target, address, stream)

    assert library.standin_cuda_reads(ctypes.c_void_p(address), 4) == 1
    assert library.standin_cuda_reads(ctypes.c_void_p(address), 5) == 0
    capturing, source[:] = 0, 1
    work()
    device.synchronize(stream)
    assert (target == 2).all()
    capturing = 1
    launch = device.capture(stream, work)
    assert launch is not None
    for value in (3, 4):
        source[:] = value
        launch()
        device.synchronize(stream)
        assert (target == 2 * value).all()


def closing_waits_and_tells_what_it_cannot_give_back(device: Device, books: Books) -> None:
    stream, address = device.stream(), device.allocate(9)
    source, target = device.pinned((9,), np.uint8), device.pinned((9,), np.uint8)
    source[:], target[:] = 8, 0
    device.upload(address, source, stream)
    device.download(target, address, stream)
    books.fail("cuEventDestroy" if device.package.startswith("cuda") else "cuGraphExecDestroy", 719)
    device.event()
    launch = device.capture(stream, lambda: None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        device.close()
    assert (target == 8).all(), "what is on the streams is waited for"
    assert [each.category for each in seen] == [ResourceWarning]
    assert "CUDA_ERROR_LAUNCH_FAILED" in str(seen[0].message)
    del source, target, launch
    gc.collect()
    assert books.alive() == {"orphans": 1}, "all else was given back, and that with the context"


def closing_a_broken_context_does_not_raise(device: Device, books: Books) -> None:
    books.fail("cuCtxPushCurrent", 719)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        device.close()
    assert ["CUDA_ERROR_LAUNCH_FAILED" in str(each.message) for each in seen] == [True]
    with refused("closed"):
        device.activate()


def mapped_has_two_addresses(device: Device, books: Books) -> None:
    array, address = device.mapped((9,), np.uint8)
    assert array.ctypes.data != address
    assert books.library.standin_cuda_reads(ctypes.c_void_p(address), 9) == 1


STANDIN_CHECKS: tuple[Callable[[Device, Books], None], ...] = (
    activating_is_one_call,
    held_arrays_hold_the_context,
    a_graph_that_cannot_be_made_is_given_back,
    a_graph_goes_with_its_function,
    every_call_can_be_refused,
    what_runs_on_the_stream_is_captured,
    mapped_has_two_addresses,
    closing_a_broken_context_does_not_raise,
    closing_waits_and_tells_what_it_cannot_give_back,
)
LEFT = {
    "closes_in_another_thread": {"depth": 1},  # only a thread itself can let go of its current context
    "closing_a_broken_context_does_not_raise": {"depth": 1},
    "closing_waits_and_tells_what_it_cannot_give_back": {"orphans": 1},
}
NAMES = tuple(check.__name__ for check in (*CHECKS, *STANDIN_CHECKS))


def tried(check: Callable[..., None], package: Package, books: Books) -> str:
    """What failed, or nothing."""
    try:
        device = open_device(package=package)
        try:
            check(device) if check in CHECKS else check(device, books)
        finally:
            device.close()
        del device
        gc.collect()
        left = books.alive()
        books.forget()
        assert left == LEFT.get(check.__name__, {}), f"left behind: {left}"
    except Exception:
        return traceback.format_exc()
    return ""


def main() -> None:
    # pycuda is linked with all of the driver, of which the stand-in has a part: names are looked up when called
    sys.setdlopenflags(os.RTLD_LAZY)
    package: Package = "pycuda" if sys.argv[1] == "pycuda" else "cuda-python"
    books = Books()
    warnings.simplefilter("error")
    checks: tuple[Callable[..., None], ...] = (*CHECKS, *STANDIN_CHECKS)
    for check in checks:
        print(json.dumps([check.__name__, tried(check, package, books)]), flush=True)


if __name__ == "__main__":
    main()
