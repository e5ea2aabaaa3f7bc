"""ONNX Runtime on the CPU: the backend that is always there, and the instrument that looks inside a graph.

Its levels of graph optimisation differ by a factor of two either way (the channel-blocking pass of level "all" helps
plain networks and hurts those with few, odd or dilated channels), so both are candidates and time decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.backends.base import Decision, Engine, Session, Settings, Value, cpu_place, threads_allowed
from edgeseg.backends.decide import decide
from edgeseg.errors import ModelError, need
from edgeseg.types import FRAME, LOGITS, Frames, Masks, Precision

name = "onnxruntime"
# The optimiser, at "basic" already, rounds float weights once more between Q/DQ pairs (scores off by 0.3) and breaks
# Q/DQ with FP16 scales (two thirds of the labels left): such a graph is known by running its nodes as they are written.
AS_WRITTEN = "off"
isolate = False
built_here = False
decisions: tuple[Decision, ...] = ("host", "graph")


def _runtime() -> ModuleType:
    runtime = need("onnxruntime", extra="run", why="the backend 'onnxruntime'")
    runtime.set_default_logger_severity(3)
    return runtime


def version() -> str:
    return str(_runtime().__version__)


def place() -> dict[str, Value]:
    return cpu_place(name, version())


def half_graphs(precision: Precision) -> bool:
    """Never: it has no half precision of its own."""
    return False


def settings(precision: Precision) -> tuple[Settings, ...]:
    return ({"optimization": "all"}, {"optimization": "extended"})


def halves() -> tuple[Precision, ...]:
    """None: its CPU kernels convert half-precision graphs to FP32 and back."""
    return ()


def convert(graph: bytes) -> dict[str, bytes]:
    """The files that this backend opens for an ONNX graph."""
    return {"graph.onnx": graph}


# One of its optimisers (seen in 1.32; a name that a release does not know is ignored). It takes a convolution between
# DequantizeLinear and QuantizeLinear with float weights, rounds them to one scale, and runs it in INT8. Where a graph
# of ours has float weights there, they were kept in float on purpose.
_ROUNDS_WEIGHTS = "WeightBiasQuantization"


def inference_session(graph: bytes, optimization: str = "all", threads: int = 0) -> Any:
    """An onnxruntime.InferenceSession on the CPU. `optimization`: all, extended, basic or off."""
    runtime = _runtime()
    levels = {
        "all": runtime.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "extended": runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "basic": runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "off": runtime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }
    options = runtime.SessionOptions()
    options.graph_optimization_level = levels[optimization]
    options.intra_op_num_threads = threads or threads_allowed()
    options.inter_op_num_threads = 1
    # Its threads would go on spinning after a run and take the cores from whoever comes next: measured in turns, that
    # doubled the latency of other engines. Stopping them costs this one nothing that could be measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return runtime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=[_ROUNDS_WEIGHTS]
        )
    except Exception as error:  # its exceptions have no common base of their own
        raise ModelError(f"ONNX Runtime {runtime.__version__} refuses the graph: {error}") from error


class _Session(Session):
    def __init__(self, engine: Engine) -> None:
        self._threshold = float(engine.settings.get("threshold", 0.0))
        self._session = inference_session(
            engine.files[engine.graph],
            str(engine.settings.get("optimization", "all")),
            int(engine.settings.get("threads", 0)),
        )
        result = self._session.get_outputs()[0]
        first = self._session.get_inputs()[0].shape[0]
        self.batch = first if isinstance(first, int) else 0
        self._output = result.name
        self._binding = self._session.io_binding()
        # Scores that the host decides on are many times larger than a frame: their place is kept.
        fixed = all(isinstance(length, int) for length in result.shape)
        self._scores = np.empty(result.shape, np.float32) if self._output == LOGITS and fixed else None

    def run(self, frames: Frames, out: Masks | None = None) -> Masks:
        if self._output != LOGITS:
            if out is not None:
                return self._run_into(frames, out)
            (masks,) = self._session.run([self._output], {FRAME: frames})
            return np.asarray(masks)
        if self._scores is not None:
            return decide(self._run_into(frames, self._scores), self._threshold, out)
        (scores,) = self._session.run([self._output], {FRAME: frames})
        return decide(scores, self._threshold, out)

    def _run_into(self, frames: Frames, out: NDArray[Any]) -> NDArray[Any]:
        frames = np.ascontiguousarray(frames)
        self._binding.bind_input(FRAME, "cpu", 0, frames.dtype, frames.shape, frames.ctypes.data)
        self._binding.bind_output(self._output, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        return out

    def close(self) -> None:
        self._session = self._binding = self._scores = None


def open(engine: Engine) -> Session:  # noqa: A001 - the seam's word
    return _Session(engine)


def probe(graph: bytes, tensors: Sequence[str], frames: Iterable[Frames]) -> Iterator[dict[str, NDArray[Any]]]:
    """The named tensors of a graph, for one batch of frames after the other: {tensor: array}.

    Memory does not grow with the number of frames. Raises ModelError for a tensor that the graph does not have.
    """
    import onnx

    model = onnx.load_from_string(graph)
    made = {output for node in model.graph.node for output in node.output} | {FRAME}
    if unknown := sorted(set(tensors) - made):
        raise ModelError(f"the graph has no tensors {', '.join(unknown)}")
    del model.graph.output[:]
    inside = [tensor for tensor in tensors if tensor != FRAME]
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in inside)
    session = inference_session(model.SerializeToString())
    for batch in frames:
        seen = session.run(inside, {FRAME: np.ascontiguousarray(batch)}) if inside else ()
        values = dict(zip(inside, seen, strict=True))
        if FRAME in tensors:
            values[FRAME] = batch
        yield values
