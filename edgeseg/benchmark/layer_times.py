"""What an engine's own profiler says of each layer: ONNX Runtime's trace, OpenVINO's counters.

A profiler costs time, so this is a session of its own; its times are medians over runs and add up to about a run.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from edgeseg.backends import Engine
from edgeseg.errors import need
from edgeseg.measure.profile import profile
from edgeseg.measure.roofline import LayerTime
from edgeseg.types import FRAME, Frames

RUNS = 20
Shape = Sequence[int]
_ITEM = {"float": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "bool": 1, "double": 8}
_ITEM |= {"f32": 4, "f16": 2, "bf16": 2, "u8": 1, "i8": 1, "i32": 4, "i64": 8, "boolean": 1, "u1": 1, "f64": 8}
_MADE = re.compile(r"(_nchwc|_nhwc|_token_\d+)+$")  # what ONNX Runtime's passes append to a name
_MULTIPLIES = re.compile(r"Conv|Gemm|MatMul")
_FUSED = {"BatchNormalization", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Add", "Mul"}
_PRECISION = {"float": "fp32", "float16": "fp16", "uint8": "int8", "int8": "int8"}


def layer_times(engine: Engine, threads: int, frames: Sequence[Frames], runs: int = RUNS) -> list[LayerTime] | None:
    """The layers in the order of their running; None where the engine's runtime has no profiler that is read here."""
    read = _READERS.get(engine.backend)
    return None if read is None else read(engine, threads, frames, runs)


def from_trace(events: Sequence[Mapping[str, Any]], macs: Mapping[str, tuple[int, int]], runs: int) -> list[LayerTime]:
    """The layers of ONNX Runtime's trace of `runs` runs.

    `macs`: see `names`; what is not in it is counted by the shapes that are run, where channels may be padded.
    """
    seen: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            name = str(event["name"]).removesuffix("_kernel_time")
            seen.setdefault((int(event["args"]["node_index"]), name), []).append(event)
    layers = []
    for (_, name), found in seen.items():
        arguments = found[-1]["args"]
        op = str(arguments["op_name"])
        inputs, outputs = _tensors(arguments["input_type_shape"]), _tensors(arguments["output_type_shape"])
        known, weights = macs.get(_MADE.sub("", name), (0, 0)) if _MULTIPLIES.search(op) else (0, 0)
        kernels = [shape for _, shape in inputs[1:] if len(shape) == 4]
        if not known and op.endswith("Conv") and kernels and outputs:
            known = prod(outputs[0][1]) * prod(kernels[0][1:])
        moved = sum(int(arguments[key]) for key in ("activation_size", "parameter_size", "output_size"))
        if not any(prod(shape) >= weights for kind, shape in inputs[1:] if kind in ("int8", "uint8")):
            moved += weights if op.startswith("QLinear") else 0
        precision = _PRECISION.get(inputs[0][0], inputs[0][0]) if inputs else "fp32"
        if op.startswith("QLinear"):
            precision = "int8"
        # All runs of one layer; a layer that ran twice a run (a name that repeats) counts with both.
        ms = statistics.median(float(event["dur"]) for event in found) * max(1, round(len(found) / runs)) / 1e3
        layers.append(LayerTime(name, op, precision, ms, known, moved))
    return layers


def names(graph: bytes) -> dict[str, tuple[int, int]]:
    """Multiplications and weights of a graph by the names that ONNX Runtime may give to what does them.

    That is the node's own, or one of what follows it and was fused with it: a node's name, or its output's.
    """
    model = need("onnx", extra="build", why="layer times").load_model_from_string(graph)
    nodes = {node.name or node.output[0]: node for node in model.graph.node}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, tuple[int, int]] = {}
    for layer in profile(graph).layers:
        node = nodes.get(layer.name)
        while layer.macs and node is not None:
            for name in (node.name, *node.output):
                found.setdefault(name, (layer.macs, layer.parameters))
            after = readers.get(node.output[0], [])
            node = after[0] if len(after) == 1 and after[0].op_type in _FUSED else None
    return found


def _onnxruntime(engine: Engine, threads: int, frames: Sequence[Frames], runs: int) -> list[LayerTime]:
    runtime = need("onnxruntime", extra="run", why="layer times")
    levels = {"all": "ENABLE_ALL", "extended": "ENABLE_EXTENDED", "basic": "ENABLE_BASIC", "off": "DISABLE_ALL"}
    options = runtime.SessionOptions()
    level = levels[str(engine.settings.get("optimization", "all"))]
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, f"ORT_{level}")
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    graph = engine.files[engine.graph]
    with tempfile.TemporaryDirectory() as folder:
        # Not while the session warms up: the first runs are slower, and a trace cannot be begun later.
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "trace")
        session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for run in range(runs):
            session.run(None, {FRAME: frames[run % len(frames)]})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return from_trace(events, names(graph), runs)


def from_counters(nodes: Sequence[Mapping[str, Any]], times_ms: Mapping[str, Sequence[float]]) -> list[LayerTime]:
    """The layers of OpenVINO's executable graph: those that were run.

    `nodes`: name, op, kind (which kernel), and inputs and outputs as pairs of element type and shape, and `constant`:
    which inputs are weights. `times_ms`: name → of each run.
    """
    layers = []
    for node in nodes:
        times = times_ms.get(node["name"])
        if not times:
            continue
        moved = sum(prod(shape) * _ITEM.get(kind, 4) for kind, shape in (*node["inputs"], *node["outputs"]))
        kind = str(node["kind"]).rpartition("_")[2].lower()
        precision = {"i8": "int8", "u8": "int8", "f32": "fp32", "f16": "fp16", "bf16": "bf16"}.get(kind, kind)
        layers.append(
            LayerTime(node["name"], node["op"], precision, statistics.median(times), _openvino_macs(node), moved)
        )
    return layers


def _openvino_macs(node: Mapping[str, Any]) -> int:
    shapes: list[tuple[int, ...]] = [shape for _, shape in node["inputs"]]
    out: tuple[int, ...] = node["outputs"][0][1] if node["outputs"] else ()
    if len(shapes) < 2 or not out:
        return 0
    weights = shapes[1]
    if node["op"] == "Convolution":  # of groups (G, O, I, …), else (O, I, …)
        return prod(out) * prod(weights[2:] if len(weights) == len(out) + 1 else weights[1:])
    if node["op"] == "Deconvolution":
        return prod(shapes[0]) * prod(weights[2:] if len(weights) == len(out) + 1 else weights[1:])
    if node["op"] in ("MatMul", "FullyConnected"):
        return prod(out) * shapes[0][-1]
    return 0


def _openvino(engine: Engine, threads: int, frames: Sequence[Frames], runs: int) -> list[LayerTime]:
    from edgeseg.backends.openvino import core

    weights = next((data for file, data in engine.files.items() if file.endswith(".bin")), b"")
    told = {
        "PERF_COUNT": True,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": str(engine.settings.get("arithmetic", "f32")),
    }
    compiled = core().compile_model(core().read_model(engine.files[engine.graph], weights), "CPU", told)
    request = compiled.create_infer_request()
    times: dict[str, list[float]] = {}
    for run in range(runs):
        request.infer({FRAME: frames[run % len(frames)]}, share_inputs=True)
        for info in request.get_profiling_info():
            if info.status.name == "EXECUTED":
                times.setdefault(info.node_name, []).append(info.real_time.total_seconds() * 1e3)
    nodes = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        about = operation.get_rt_info()
        nodes.append(
            {
                "name": operation.get_friendly_name(),
                "op": _text(about, "layerType"),
                "kind": _text(about, "primitiveType"),
                "inputs": [
                    (_kind(value.get_source_output()), tuple(map(int, value.get_shape())))
                    for value in operation.inputs()
                ],
                "outputs": [(_kind(value), tuple(map(int, value.get_shape()))) for value in operation.outputs()],
            }
        )
    return from_counters(nodes, times)


def _kind(output: Any) -> str:
    kinds = _text(output.get_node().get_rt_info(), "outputPrecisions").split(",")
    return kinds[output.get_index()] if output.get_index() < len(kinds) else kinds[0]


def _text(about: Any, key: str) -> str:
    found = about[key] if key in about else ""  # noqa: SIM401 - OpenVINO's map has no get
    return str(found.astype(str) if hasattr(found, "astype") else found)


def _tensors(given: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Element type and shape of each; None where one is left out."""
    return [(kind, tuple(shape)) for one in given or () for kind, shape in one.items()]


_READERS: dict[str, Callable[[Engine, int, Sequence[Frames], int], list[LayerTime]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
