"""OpenVINO on Intel, AMD and Arm CPUs, in its own IR.

Three things were measured and are built in. ArgMax inside the graph can cost more than the host's loop, so both are
candidates. The plugin runs FP32 graphs in bfloat16 by itself on processors that have it: here the precision of the
arithmetic is always said. Compiling a graph can end the process, so `build` opens unknown ones in a child first.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeseg.backends.base import Decision, Engine, Session, Settings, Value, cpu_place, threads_allowed
from edgeseg.backends.decide import decide
from edgeseg.errors import ModelError, need
from edgeseg.types import FRAME, LOGITS, Frames, Masks, Precision

name = "openvino"
isolate = True
built_here = False
decisions: tuple[Decision, ...] = ("host", "graph")


def _runtime() -> ModuleType:
    return need("openvino", extra="openvino", why="the backend 'openvino'")


@cache
def core() -> Any:
    """The one `openvino.Core` of this process, which is never given up.

    Its CPU plugin gives the thread that loads it an alternate signal stack (sigaltstack(2)) and unmaps that stack when
    the core is destroyed, whichever thread does that and in whatever order cores go. Python's signal handlers run on
    that stack: after it is gone, Ctrl-C ends the process with a segmentation fault.
    """
    return _runtime().Core()


def version() -> str:
    return str(_runtime().__version__).split("-")[0]


def place() -> dict[str, Value]:
    return cpu_place(name, version())


def half_graphs(precision: Precision) -> bool:
    """Never: it computes an FP32 graph in half precision by itself."""
    return False


def settings(precision: Precision) -> tuple[Settings, ...]:
    if precision == "int8":  # what stands between the INT8 convolutions may run in half precision
        return tuple({"arithmetic": _ARITHMETIC[kind]} for kind in (*halves()[:1], "fp32"))
    return ({"arithmetic": _ARITHMETIC[precision]},)


_ARITHMETIC: dict[Precision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


def halves() -> tuple[Precision, ...]:
    """The half precisions that this processor computes in."""
    capabilities = set(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    found: list[Precision] = []
    if "BF16" in capabilities:
        found.append("bf16")
    if "FP16" in capabilities:
        found.append("fp16")
    return tuple(found)


def convert(graph: bytes) -> dict[str, bytes]:
    """An ONNX graph as OpenVINO IR: {"graph.xml": …, "graph.bin": …}. Reads FakeQuantize of its own ONNX domain."""
    runtime = _runtime()
    try:
        model = core().read_model(graph)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.xml"
            runtime.save_model(model, path, compress_to_fp16=False)
            return {"graph.xml": path.read_bytes(), "graph.bin": path.with_suffix(".bin").read_bytes()}
    except RuntimeError as error:
        raise ModelError(f"OpenVINO {version()} cannot read the graph: {error}") from error


class _Session(Session):
    def __init__(self, engine: Engine) -> None:
        weights = next((data for file, data in engine.files.items() if file.endswith(".bin")), b"")
        self._threshold = float(engine.settings.get("threshold", 0.0))
        try:
            model = core().read_model(engine.files[engine.graph], weights)
            compiled = core().compile_model(
                model,
                "CPU",
                {
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_NUM_THREADS": int(engine.settings.get("threads", 0)) or threads_allowed(),
                    "INFERENCE_PRECISION_HINT": str(engine.settings.get("arithmetic", "f32")),
                },
            )
        except RuntimeError as error:
            raise ModelError(f"OpenVINO {version()} refuses the graph: {error}") from error
        self._request: Any = compiled.create_infer_request()
        self._scores = LOGITS in compiled.output(0).get_names()
        self._compiled = compiled
        first = compiled.input(0).get_partial_shape()[0]
        self.batch = int(first.get_length()) if first.is_static else 0

    def run(self, frames: Frames, out: Masks | None = None) -> Masks:
        result = self._request.infer({FRAME: frames}, share_inputs=True, share_outputs=True)[0]
        if self._scores:
            return decide(result, self._threshold, out)
        masks = np.empty(result.shape, np.uint8) if out is None else out
        np.copyto(masks, result, casting="unsafe")
        return masks

    def close(self) -> None:
        self._request = self._compiled = None


def open(engine: Engine) -> Session:  # noqa: A001 - the seam's word
    return _Session(engine)
