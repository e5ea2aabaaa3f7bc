"""A TensorRT engine that runs: frames to masks through page-locked memory, on one stream, as one CUDA graph.

On a GPU with memory of its own: host → device → host copies of one byte a pixel and channel. On an integrated one (a
Jetson) the engine reads and writes the host's memory itself, and nothing is copied.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeseg import cache
from edgeseg.backends.base import Session
from edgeseg.backends.tensorrt.cuda import CudaError, Device, nbytes, not_given_back, open_device
from edgeseg.backends.tensorrt.library import logger
from edgeseg.backends.tensorrt.options import Options
from edgeseg.errors import BadInput, ModelError
from edgeseg.types import FRAME, MASK, Frames, Masks


class EngineRefused(ModelError):
    """The library does not open these bytes, though their hash is right: of another build of it, or another GPU."""


class TensorRTSession(Session):
    """Raises ModelError for an engine that the library refuses (EngineRefused), that the GPU has no room for, or that
    is not one of ours. `on_checked` is called when somebody has compared the masks and found them right.
    """

    def __init__(
        self,
        trt: Any,
        serialized: bytes,
        options: Options,
        runtime_cache: str = "",
        on_checked: Callable[[], object] = lambda: None,
    ) -> None:
        self._trt = trt
        self._said: list[str] = []
        self._on_checked = on_checked
        self._device: Device = open_device()
        self._runtime_cache: Any = None
        self._cache_entry = runtime_cache
        try:
            self._open(serialized, options)
        except CudaError as error:
            self.close()
            raise ModelError(
                f"the GPU has no room for the engine's frames and masks, or refuses them: {error}. Close what else "
                "uses its memory."
            ) from error
        except BaseException:
            self.close()
            raise

    def _open(self, serialized: bytes, options: Options) -> None:
        trt, device = self._trt, self._device
        device.activate()
        said = self._said  # and not self: a ring of references would leave the engine to the garbage collector
        self._log = logger(trt, lambda severity, text: said.append(text) if "error" in severity else None)
        self._runtime = trt.Runtime(self._log)
        if options.version_compatible and hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = True  # such engines bring their runtime as code; this one is ours
        if options.dla >= 0:
            self._runtime.DLA_core = options.dla
        self._engine = self._runtime.deserialize_cuda_engine(serialized)
        if self._engine is None:
            raise EngineRefused(f"TensorRT {trt.__version__} cannot open the engine: {self._reason()}")
        self._check()
        self._context = self._execution_context(options)
        if self._context is None:
            raise ModelError(f"TensorRT {trt.__version__} cannot run the engine: {self._reason()}")
        self._stream = device.stream()
        self._shape: tuple[int, ...] = ()
        self._ran = False  # with this shape
        self._launch: Callable[[], None] | None = None
        self._capture = options.cuda_graph and options.dla < 0 and self._runtime_cache is None
        shape = tuple(self._engine.get_tensor_shape(FRAME))
        static = -1 not in shape
        most = shape if static else tuple(self._engine.get_tensor_profile_shape(FRAME, 0)[2])
        self._static = static
        profile = None if static else self._engine.get_tensor_profile_shape(FRAME, 0)
        self.best_shape = shape if profile is None else tuple(profile[1])  # that the engine was optimised for
        self.batch = int(shape[0]) if shape[0] != -1 else 0
        sizes = nbytes(most, np.uint8), nbytes(most[:3], np.uint8)
        if device.gpu.integrated:
            (self._in, self._in_at), (self._out, self._out_at) = (device.mapped((size,), np.uint8) for size in sizes)
        else:
            self._in, self._out = (device.pinned((size,), np.uint8) for size in sizes)
            self._in_at, self._out_at = (device.allocate(size) for size in sizes)

    def run(self, frames: Frames, out: Masks | None = None) -> Masks:
        try:
            self._device.activate()
            if frames.shape != self._shape:
                self._prepare(frames.shape)
            np.copyto(self._in[: frames.size].reshape(frames.shape), frames)
            if self._launch is None and self._capture and self._ran:
                self._launch = self._captured()
            (self._launch or self._enqueue)()
            self._device.synchronize(self._stream)
        except CudaError as error:
            raise ModelError(
                f"TensorRT {self._trt.__version__} failed while it ran: {error}. {self._reason()}"
            ) from error
        self._ran = True
        masks = np.empty(frames.shape[:3], np.uint8) if out is None else out
        np.copyto(masks, self._out[: masks.size].reshape(masks.shape))
        return masks

    def checked(self) -> None:
        super().checked()
        self._on_checked()

    def timed_layers(self, frames: Frames, runs: int) -> dict[str, list[float]]:
        """Milliseconds of every layer in each of `runs` runs, by the library's profiler; slower than without it."""
        trt = self._trt
        times: dict[str, list[float]] = {}

        class _Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]  # the base exists in the library only
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        capture, self._capture, self._launch = self._capture, False, None  # a captured graph reports no layers
        try:
            self.run(frames)
            self._context.profiler = _Profiler()  # which keeps it, and cannot be made to let go of it
            for _ in range(runs):
                self.run(frames)
        finally:
            self._capture = capture
        return times

    def information(self) -> str:
        """The inspector's JSON on all layers."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _check(self) -> None:
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        wanted = {FRAME: trt.TensorIOMode.INPUT, MASK: trt.TensorIOMode.OUTPUT}
        types = {name: engine.get_tensor_dtype(name) for name in names}
        if modes != wanted or any(kind != trt.uint8 for kind in types.values()):
            raise ModelError(
                f"the engine has the tensors {', '.join(f'{name} ({types[name]})' for name in names)}; wanted {FRAME} "
                f"and {MASK} of uint8. Build the bundle again."
            )

    def _execution_context(self, options: Options) -> Any:
        """TensorRT-RTX compiles kernels when it first runs them, keeps them in a cache and captures graphs itself."""
        engine, trt = self._engine, self._trt
        if not hasattr(trt, "CudaGraphStrategy"):
            return engine.create_execution_context()
        self._runtime_config = config = engine.create_runtime_config()
        self._runtime_cache = config.create_runtime_cache()
        if stored := cache.load("rtx", self._cache_entry) if self._cache_entry else None:
            self._runtime_cache.deserialize(stored)
        config.set_runtime_cache(self._runtime_cache)
        if options.cuda_graph:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config)

    def _prepare(self, shape: tuple[int, ...]) -> None:
        self._shape, self._launch, self._ran = (), None, False  # a graph is of one shape, and goes with it
        self._said.clear()
        if len(shape) != 4 or shape[3] != 3 or not self._context.set_input_shape(FRAME, shape):
            own = tuple(self._engine.get_tensor_shape(FRAME))
            span = "" if self._static else f", within {list(self._engine.get_tensor_profile_shape(FRAME, 0))}"
            raise BadInput(f"frames of shape {shape} do not fit this engine, which takes {own}{span}")
        self._context.set_tensor_address(FRAME, self._in_at)
        self._context.set_tensor_address(MASK, self._out_at)
        self._count = nbytes(shape, np.uint8), nbytes(shape[:3], np.uint8)
        self._shape = shape

    def _captured(self) -> Callable[[], None] | None:
        """The engine as one graph, once it ran with this shape: the first run allocates, which a capture must not.

        So shapes that alternate are never captured: that would cost more than it saves.
        """
        try:
            return self._device.capture(self._stream, self._enqueue)
        except (CudaError, ModelError):  # a layer that synchronises, as some plugins and loops do
            self._capture = False
            return None

    def _enqueue(self) -> None:
        taken, given = self._count
        if not self._device.gpu.integrated:
            self._device.upload(self._in_at, self._in[:taken], self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise ModelError(f"TensorRT {self._trt.__version__} could not run the engine: {self._reason()}")
        if not self._device.gpu.integrated:
            self._device.download(self._out[:given], self._out_at, self._stream)

    def _reason(self) -> str:
        return "; ".join(dict.fromkeys(self._said[-3:])) or "it does not say why"

    def close(self) -> None:
        device = self.__dict__.pop("_device", None)
        if device is None:
            return
        try:
            device.activate()
            self._keep_runtime_cache()
        except CudaError as error:  # of a context that is broken: what broke it was told
            not_given_back("the engine", error)
        finally:
            # What holds device memory goes before the context does, in the reverse of how it came.
            for name in ("_launch", "_context", "_runtime_config", "_runtime_cache", "_engine", "_runtime"):
                self.__dict__.pop(name, None)
            self._in = self._out = None  # type: ignore[assignment]  # a closed session is not run
            device.close()

    def __del__(self) -> None:
        if "_device" in self.__dict__ and not sys.is_finalizing():  # at the end of a process the driver takes all back
            warnings.warn("an engine was not closed: use it in a `with`, or close it", ResourceWarning, stacklevel=2)
            self.close()

    def _keep_runtime_cache(self) -> None:
        if self._runtime_cache is not None and self._cache_entry and self.__dict__.get("_ran"):
            cache.store("rtx", self._cache_entry, bytes(self._runtime_cache.serialize()))
