"""The ways to run one network on a GPU: each opened, ready to be raced. See gpu.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeseg import quantize
from edgeseg.backends import Engine, Session, get, open_engine
from edgeseg.backends.onnxruntime import inference_session, probe
from edgeseg.backends.tensorrt import TensorRT
from edgeseg.backends.tensorrt.cuda import CudaError, Device, open_device
from edgeseg.backends.tensorrt.library import logger
from edgeseg.console import Console
from edgeseg.errors import EdgesegError, MissingOnMachine, ModelError
from edgeseg.pipeline.again import Known
from edgeseg.pipeline.frames import Effort
from edgeseg.pipeline.prepare import fitted_to
from edgeseg.pipeline.read_back import read_back
from edgeseg.quantize.half import half
from edgeseg.quantize.half_ranges import largest_seen
from edgeseg.types import FRAME, MASK, Frames, Masks, ModelSpec, OnnxModel, Precision, Torch

CORRECTED_ON = 8  # frames, as many as a build takes
LIBRARIES = ("tensorrt", "tensorrt-rtx")


@dataclass
class Way:
    """`run`: frame uint8 (1, H, W, 3) to mask uint8 (1, H, W), both in host memory. `device_ms`: one run without the
    transfers, by CUDA events. `facts`: what else is known of it, for the document.
    """

    name: str
    precision: Precision
    run: Callable[[Frames], Masks]
    device_ms: Callable[[], float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Bare:
    """The loop that everybody writes around an engine, on buffers of its own; `graph`: as one captured CUDA graph.

    The frame lies in page-locked memory already, and the mask stays there: what a session adds is all the rest.
    """

    def __init__(self, stack: ExitStack, trt: Any, serialized: bytes, shape: tuple[int, ...], graph: bool) -> None:
        self.device: Device = stack.enter_context(open_device())
        self.device.activate()
        said: list[str] = []
        self._log = logger(trt, lambda severity, text: said.append(text) if "error" in severity else None)
        runtime = trt.Runtime(self._log)
        engine = runtime.deserialize_cuda_engine(serialized)
        context = None if engine is None else engine.create_execution_context()
        if engine is None or context is None:
            raise ModelError(f"TensorRT {trt.__version__} cannot open the engine again: {'; '.join(said[-3:])}")
        self._runtime, self._context, self.engine = runtime, context, engine
        stack.callback(self._let_go)
        self._stream = self.device.stream()
        self.frame = self.device.pinned(shape, np.uint8)
        self._mask = self.device.pinned(shape[:3], np.uint8)
        self._at = self.device.allocate(self.frame.nbytes), self.device.allocate(self._mask.nbytes)
        self._events = self.device.event(), self.device.event()
        context.set_input_shape(FRAME, shape)
        context.set_tensor_address(FRAME, self._at[0])
        context.set_tensor_address(MASK, self._at[1])
        self._whole()
        self.device.synchronize(self._stream)
        self._launch: Callable[[], None] = self._captured(self._whole) if graph else self._whole
        self._inner: Callable[[], None] = self._captured(self._execute) if graph else self._execute

    def run(self) -> None:
        self._launch()
        self.device.synchronize(self._stream)

    def device_ms(self) -> float:
        self.device.activate()
        start, end = self._events
        self.device.record(start, self._stream)
        self._inner()
        self.device.record(end, self._stream)
        self.device.synchronize(self._stream)
        return self.device.elapsed_ms(start, end)

    def memory(self) -> int | None:
        """Bytes that the engine works in, besides its weights."""
        for name in ("device_memory_size_v2", "device_memory_size"):  # from 10.1; gone in 11.0
            if hasattr(self.engine, name):
                return int(getattr(self.engine, name))
        return None

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        found = self.device.capture(self._stream, work)
        if found is None:
            raise ModelError("no package here can capture a CUDA graph: pip install cuda-bindings")
        return found

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise ModelError("execute_async_v3 failed")

    def _whole(self) -> None:
        self.device.upload(self._at[0], self.frame, self._stream)
        self._execute()
        self.device.download(self._mask, self._at[1], self._stream)

    def _let_go(self) -> None:
        self.device.activate()
        for name in ("_launch", "_inner", "_context", "engine", "_runtime"):  # in the reverse of how they came
            self.__dict__.pop(name, None)


@dataclass
class Pair:
    """The same engine under a session of ours and under the bare loop."""

    name: str
    ours: Callable[[Frames], Masks]
    bare: Bare


def written(known: Known, backend: TensorRT, precision: Precision) -> OnnxModel:
    """The graph as a build writes it for that backend. Raises ModelError where the bundle has no scales for INT8."""
    fp32, frames = known.network.fp32, [frame[None] for frame in known.frames[:CORRECTED_ON]]
    largest = largest_seen(fp32, probe, frames) if frames and precision != "fp32" else None
    if precision == "fp32":
        return fp32
    if precision == "fp16":
        return half(fp32, largest=largest).model
    if known.network.table is None:
        raise ModelError("the bundle has no scales: build it with --int8")
    network, _ = fitted_to(
        known.network, frames, [quantize.TENSORRT], Effort(fit=0), use_cache=False, console=Console()
    )
    int8 = network.int8(quantize.TENSORRT)
    return half(int8, largest=largest).model if backend.half_graphs("int8") else int8


def tensorrt_ways(
    stack: ExitStack, known: Known, asked: dict[str, Any], say: Callable[[str], None]
) -> Iterator[tuple[Way | dict[str, Any], Pair | None]]:
    """FP32, FP16 and INT8, each with and without a CUDA graph, of each library that runs here; or a row that failed."""
    for library in LIBRARIES:
        backend = get(library)
        assert isinstance(backend, TensorRT)
        try:
            backend.version()
        except MissingOnMachine:
            continue  # named once, by `missing`
        precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
        for precision in precisions:
            name = f"{library} {precision}"
            say(f"building {name}")
            try:
                yield from _engine_ways(stack, backend, name, precision, known, asked)
            except (EdgesegError, CudaError) as error:
                yield {"way": name, "precision": precision, "failure": str(error)}, None


def _engine_ways(
    stack: ExitStack, backend: TensorRT, name: str, precision: Precision, known: Known, asked: dict[str, Any]
) -> Iterator[tuple[Way, Pair]]:
    files = backend.convert(written(known, backend, precision).graph)
    settings = {"decision": "graph", "arithmetic": "f32" if precision == "fp32" else "f16", **asked, "fallback": True}
    engine = Engine(name, backend.name, precision, next(iter(files)), files, settings)
    start = time.perf_counter()
    stored = backend.stored(engine)
    seconds = time.perf_counter() - start
    facts = {
        "build_s": seconds if stored.built else None,
        "engine_bytes": len(stored.engine),
        "made_of": read_back([engine], "fp32").rows[name],
    }
    shape = (1, *known.network.fp32.spec.input.size, 3)
    for graph in (False, True):
        engine = Engine(name, backend.name, precision, engine.graph, files, {**settings, "cuda_graph": graph})
        session = stack.enter_context(open_engine(engine))
        out = np.empty(shape[:3], np.uint8)
        bare = Bare(stack, backend.library.load(), stored.engine, shape, graph)
        label = f"{name}, CUDA graph" if graph else name

        def run(frames: Frames, session: Session = session, out: Masks = out) -> Masks:
            return session.run(frames, out)

        way = Way(label, precision, run, bare.device_ms, {**facts, "device_bytes": bare.memory(), "cuda_graph": graph})
        yield way, Pair(label, run, bare)


def onnxruntime_ways(known: Known, missing: dict[str, str]) -> Iterator[Way]:
    """The reference, on the CPU; and on the GPU where that build of ONNX Runtime is installed."""
    import onnxruntime

    graph = known.network.fp32.graph

    def on(session: Any) -> Callable[[Frames], Masks]:
        return lambda frames: session.run([MASK], {FRAME: frames})[0]

    yield Way("ONNX Runtime, CPU", "fp32", on(inference_session(graph)))
    provider = "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        missing["ONNX Runtime, CUDA"] = "this onnxruntime has no CUDA provider: pip install onnxruntime-gpu"
        return
    try:
        session = onnxruntime.InferenceSession(graph, providers=[provider, "CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base of their own
        missing["ONNX Runtime, CUDA"] = str(error)
        return
    if session.get_providers()[0] != provider:  # it says so on stderr only, and runs on the CPU
        missing["ONNX Runtime, CUDA"] = "its CUDA provider cannot be loaded: cuDNN or cuBLAS is missing"
        return
    yield Way("ONNX Runtime, CUDA", "fp32", on(session))


def torch_ways(model: Torch, spec: ModelSpec, device: str, compiled: bool) -> Iterator[Way | dict[str, Any]]:
    """Eager and torch.compile, in FP32 and under autocast to FP16; decision and normalisation on the device too."""
    import torch

    from edgeseg.export.outputs import pick
    from edgeseg.export.reference import torch_logits, torch_mask

    module = model.module.to(device).eval()
    ready = torch.device(device).type == "cuda"
    mean, std = (torch.tensor(value, device=device).view(1, 3, 1, 1) for value in (spec.input.mean, spec.input.std))

    def network(frames: torch.Tensor) -> torch.Tensor:
        image = frames.permute(0, 3, 1, 2).float()
        if spec.input.frame != spec.input.color:
            image = image.flip(1)
        scores, _ = pick(module((image / spec.input.scale - mean) / std), spec.output.index)
        return torch_mask(torch_logits(scores, spec), spec)

    for compile_it in (False, True) if compiled else (False,):
        made = torch.compile(network) if compile_it else network
        precisions: tuple[Precision, ...] = ("fp32", "fp16") if ready else ("fp32",)
        for precision in precisions:
            name = f"torch {'compiled' if compile_it else 'eager'} {precision}"
            try:
                start = time.perf_counter()
                way = _torch_way(name, precision, made, spec, device)
                way.run(np.zeros((1, *spec.input.size, 3), np.uint8))
                way.facts["build_s"] = time.perf_counter() - start if compile_it else None
                if ready:
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                    way.run(np.zeros((1, *spec.input.size, 3), np.uint8))
                    way.facts["device_bytes"] = torch.cuda.max_memory_allocated() - before
                yield way
            except Exception as error:  # compilers raise anything
                lines = str(error).strip().splitlines() or [type(error).__name__]
                yield {"way": name, "precision": precision, "failure": lines[0]}


def _torch_way(name: str, precision: Precision, network: Any, spec: ModelSpec, device: str) -> Way:
    import torch

    cuda = torch.device(device).type == "cuda"
    shape = (1, *spec.input.size, 3)
    frame = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
    mask = torch.empty(shape[:3], dtype=torch.uint8, pin_memory=cuda)
    on_device = torch.zeros(shape, dtype=torch.uint8, device=device)

    def compute() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=precision == "fp16"):
            return network(on_device)  # type: ignore[no-any-return]

    def run(frames: Frames) -> Masks:
        frame.numpy()[...] = frames
        on_device.copy_(frame, non_blocking=True)
        mask.copy_(compute(), non_blocking=True)
        if cuda:
            torch.cuda.synchronize()
        return mask.numpy().copy()

    def device_ms() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        compute()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return Way(name, precision, run, device_ms if cuda else None)
