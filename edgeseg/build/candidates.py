"""The engines worth measuring on this machine: backend x precision x where the decision is made x settings."""

from __future__ import annotations

import math
import platform

from edgeseg.backends import Engine, get
from edgeseg.backends.base import Settings
from edgeseg.types import LOGITS, ModelSpec, OnnxModel, Precision


def dialect_of(backend: str, isa: frozenset[str], machine: str | None = None) -> str:
    """The name of the INT8 dialect (edgeseg.quantize) for a backend on a processor with these instruction sets."""
    if backend == "openvino":
        return "openvino"
    if (machine or platform.machine()).lower() in ("aarch64", "arm64"):
        return "onnxruntime-arm"
    vnni = isa & {"avx512_vnni", "avx_vnni", "amx_int8"}
    return "onnxruntime-x86" if vnni else "onnxruntime-x86-no-vnni"


def candidates(model: OnnxModel, backend: str, precision: Precision) -> tuple[Engine, ...]:
    """Engines that compute the same thing and differ in how: the graph whole or cut at the scores, and settings.

    `model` is already written in the dialect of the backend.
    """
    runtime = get(backend)
    engines = []
    graphs = {"graph": model.graph}
    if (cut := cut_decision(model.graph)) is not None:
        graphs["host"] = cut
    for decision, graph in graphs.items():
        files = runtime.convert(graph)
        for settings in runtime.settings(precision):
            told: Settings = {**settings, "decision": decision, "threshold": threshold_of_scores(model.spec)}
            label = ",".join(str(value) for value in (*settings.values(), decision))
            engines.append(
                Engine(f"{backend}-{precision}[{label}]", backend, precision, next(iter(files)), files, told)
            )
    return tuple(engines)


def cut_decision(graph: bytes) -> bytes | None:
    """The graph up to the scores: the host decides between the classes. None for a network that gives a class map."""
    import onnx

    model = onnx.load_from_string(graph)
    nodes = {output: node for node in model.graph.node for output in node.output}
    if LOGITS not in nodes:
        return None
    needed: set[int] = set()
    pending = [LOGITS]
    while pending:
        node = nodes.get(pending.pop())
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            pending.extend(node.input)
    kept = [node for node in model.graph.node if id(node) in needed]
    read = {tensor for node in kept for tensor in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    copied_weights = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in weights]
    del model.graph.node[:], model.graph.initializer[:], model.graph.output[:], model.graph.value_info[:]
    model.graph.node.extend(copies)
    model.graph.initializer.extend(copied_weights)
    model.graph.output.append(onnx.helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, None))
    serialized: bytes = model.SerializeToString()
    return serialized


def threshold_of_scores(spec: ModelSpec) -> float:
    """The score from which a pixel of a one-channel network is class 1."""
    p = spec.output.threshold
    return p if spec.output.activation == "probabilities" else math.log(p / (1 - p))
