"""The engines worth measuring on this machine: backend x precision x where the decision is made x settings."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from edgeseg.backends import Engine, get
from edgeseg.backends.base import Settings
from edgeseg.graph import Graph
from edgeseg.types import LOGITS, OnnxModel, Precision


def dialect_of(backend: str, isa: frozenset[str], machine: str | None = None) -> str:
    """The name of the INT8 dialect (edgeseg.quantize) for a backend on a processor with these instruction sets."""
    if backend == "openvino":
        return "openvino"
    if backend.startswith("tensorrt"):
        return "tensorrt"
    if (machine or platform.machine()).lower() in ("aarch64", "arm64"):
        return "onnxruntime-arm"
    vnni = isa & {"avx512_vnni", "avx_vnni", "amx_int8"}
    return "onnxruntime-x86" if vnni else "onnxruntime-x86-no-vnni"


def candidates(
    model: OnnxModel,
    backend: str,
    precision: Precision,
    settings: Sequence[Settings] | None = None,
    asked: Settings | None = None,
) -> tuple[Engine, ...]:
    """Engines that compute the same thing and differ in how: settings, and the graph whole or cut at the scores.

    The likely winners come first. `model` is already written in the dialect of the backend. `settings`: those to
    try, by default the backend's own for this precision. `asked`: what all of them are told besides, by a user.
    """
    runtime = get(backend)
    engines = []
    cut = cut_decision(model.graph) if "host" in runtime.decisions else None
    graphs = {"host": cut} if cut is not None else {}
    graphs["graph"] = model.graph
    # A network with two classes may have one channel; with more it cannot.
    binary = len(model.spec.output.classes) <= 2
    one_channel = {"threshold": model.spec.output.score_threshold} if binary else {}
    files = {decision: runtime.convert(graph) for decision, graph in graphs.items()}
    for chosen in runtime.settings(precision) if settings is None else settings:
        for decision, parts in files.items():
            told: Settings = {**chosen, **(asked or {}), "decision": decision, **one_channel}
            label = ",".join(str(value) for value in (*chosen.values(), decision))
            engines.append(
                Engine(
                    f"{backend}-{precision}[{label}]", backend, precision, next(iter(parts)), parts, told, model.digest
                )
            )
    return tuple(engines)


def cut_decision(graph: bytes) -> bytes | None:
    """The graph up to the scores: the host decides between the classes. None for a network that gives a class map."""
    whole = Graph(graph)
    return None if whole.producer(LOGITS) is None else whole.upto(LOGITS)
