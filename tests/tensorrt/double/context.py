"""IExecutionContext: an engine runs in ONNX Runtime, on memory at the addresses that are given.

The addresses are of host memory here. A stream is the stand-in driver's, which may do the work later or record it for
a CUDA graph; without that driver it is any number, and what is put on it is done at once.
"""

from __future__ import annotations

import ctypes
import functools
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.tensorrt.double import faults
from tests.tensorrt.double.inspector import layers_of
from tests.tensorrt.double.plan import Plan

if TYPE_CHECKING:
    from tests.tensorrt.double.engine import CudaEngine

NUMPY = {"FLOAT": "f4", "HALF": "f2", "UINT8": "u1", "INT8": "i1", "INT32": "i4", "INT64": "i8", "BOOL": "?"}


_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _driver() -> ctypes.CDLL | None:
    """The stand-in for the CUDA driver (standin_cuda.c), where this process has it."""
    try:
        found = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return found if hasattr(found, "standin_cuda_run") else None


class RuntimeConfig:
    """Behind IRuntimeConfig."""

    def __init__(self) -> None:
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache | None = None) -> bool:
        self.cache = cache
        return True

    def get_runtime_cache(self) -> RuntimeCache | None:
        return self.cache


class RuntimeCache:
    """Behind IRuntimeCache: which engines were compiled here."""

    _head = b"rtxCACHE"

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def serialize(self) -> bytes:
        return self._head + b"".join(crc.to_bytes(4, "little") for crc in sorted(self.seen))

    def deserialize(self, blob: bytes) -> bool:
        rest = blob[len(self._head) :]
        if not blob.startswith(self._head) or len(rest) % 4:
            return False
        self.seen = {int.from_bytes(rest[i : i + 4], "little") for i in range(0, len(rest), 4)}
        return True

    def reset(self) -> bool:
        self.seen.clear()
        return True


class Context:
    """Behind IExecutionContext."""

    def __init__(self, engine: CudaEngine, config: RuntimeConfig | None) -> None:
        self.engine, self.config = engine, config
        self.profiler: Any = None
        self.enqueue_emits_profile = True
        self.addresses: dict[str, int] = {}
        self.shapes = {n: engine.get_tensor_shape(n) for n in engine.inputs if -1 not in engine.get_tensor_shape(n)}
        self.active_optimization_profile = 0
        self._times: list[tuple[str, float]] = []
        self._kernels: list[Any] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        engine = self.engine
        if name not in engine.inputs:
            engine.complain("IExecutionContext::setInputShape", f"Given invalid tensor name: {name}.")
            return False
        own = engine.get_tensor_shape(name)
        fits = len(own) == len(shape) and all(a in (-1, b) for a, b in zip(own, shape, strict=True))
        if fits and -1 in own:
            least, _, most = engine.get_tensor_profile_shape(name, self.active_optimization_profile)
            fits = all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        if not fits:
            engine.complain(
                "IExecutionContext::setInputShape",
                f"condition: engineDims.d[i] == dims.d[i]. Dimension mismatch while setting input shape for {name}. "
                f"Set dimensions are {list(shape)}. Expected dimensions are {list(own)}.",
            )
            return False
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        if name in self.engine.outputs and not self.infer_shapes():
            return self.engine.output_shapes(self.shapes)[name]
        return self.engine.get_tensor_shape(name)

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    @property
    def all_binding_shapes_specified(self) -> bool:
        return not self.infer_shapes()

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self.engine.get_tensor_mode(name) == "NONE":
            self.engine.complain("IExecutionContext::setTensorAddress", f"Given invalid tensor name: {name}.")
            return False
        self.addresses[name] = address
        return True

    def get_tensor_address(self, name: str) -> int:
        return self.addresses.get(name, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if not 0 <= index < self.engine.num_optimization_profiles:
            return False
        self.active_optimization_profile = index
        return True

    def execute_v2(self, addresses: list[int]) -> bool:
        for name, address in zip((*self.engine.inputs, *self.engine.outputs), addresses, strict=True):
            self.addresses[name] = address
        return self.execute_async_v3(0)

    def execute_async_v2(self, bindings: list[int], stream_handle: int, input_consumed: Any = None) -> bool:
        return self.execute_v2(bindings)

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self.engine
        if missing := self.infer_shapes():
            engine.complain(
                "IExecutionContext::enqueueV3", f"condition: allInputDimensionsSpecified. {missing} are not."
            )
            return False
        for name in (*engine.inputs, *engine.outputs):
            if not self.addresses.get(name):
                engine.complain(
                    "IExecutionContext::enqueueV3",
                    f"Address is not set for tensor {name}. Call setTensorAddress before enqueue/execute.",
                )
                return False
        shapes, addresses = dict(self.shapes), dict(self.addresses)  # those of now, also when it runs later
        self._put(stream_handle, lambda: self._compute(shapes, addresses))
        return True

    def _put(self, stream: int, work: Callable[[], None]) -> None:
        """On the stream of the stand-in for the driver, which may record it; without one, it is done at once."""
        driver = _driver()
        if driver is None or not stream:
            work()
            return
        kernel = _KERNEL(lambda _: work())
        self._kernels.append(kernel)  # a captured graph calls it as long as the graph lives
        code = driver.standin_cuda_run(ctypes.c_void_p(stream), kernel, None)
        if code:
            raise RuntimeError(f"the stand-in for the driver answers {code}")

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        engine = self.engine
        feeds = {name: self._memory(name, shapes[name], addresses).copy() for name in engine.inputs}
        begin = time.perf_counter()
        results = engine.session.run(engine.outputs, feeds)
        took = (time.perf_counter() - begin) * 1000
        for name, result in zip(engine.outputs, results, strict=True):
            self._memory(name, result.shape, addresses)[...] = self._spoilt(result)
        if self.config is not None and self.config.cache is not None:
            self.config.cache.seen.add(zlib.crc32(engine.plan.graph))
        self._times = _shares(engine.plan, took)
        if self.profiler is not None and self.enqueue_emits_profile:
            self.report_to_profiler()

    def report_to_profiler(self) -> bool:
        if self.profiler is None or not self._times:
            return False
        for name, ms in self._times:
            self.profiler.report_layer_time(name, ms)
        return True

    def _memory(self, name: str, shape: tuple[int, ...], addresses: dict[str, int]) -> NDArray[Any]:
        dtype = np.dtype(NUMPY[self.engine.get_tensor_dtype(name)])
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw = (ctypes.c_uint8 * count).from_address(addresses[name])
        found: NDArray[Any] = np.frombuffer(raw, dtype).reshape(shape)  # type: ignore[call-overload]
        return found

    @staticmethod
    def _spoilt(result: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(result + result.dtype.type(1)) if faults.asked("WRONG") else result


def _shares(plan: Plan, took: float) -> list[tuple[str, float]]:
    """The time of a run by layers: what has more weights takes more of it."""
    layers = layers_of(plan)
    weights = [1 + layer.weights for layer in layers]
    whole = sum(weights)
    return [(layer.name, took * weight / whole) for layer, weight in zip(layers, weights, strict=True)]
