"""What engines that were built here are really made of, and whether that is what was asked for.

Asking for FP16 and getting FP32, without a word, is how TensorRT 11 answers a graph in FP32: so it is read back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeseg.backends import Engine, get
from edgeseg.backends.tensorrt import TensorRT
from edgeseg.backends.tensorrt.inspection import absent, blockers, layers_of, precisions, summary, with_times
from edgeseg.backends.tensorrt.options import options_from
from edgeseg.errors import CannotTell, PrecisionAbsent
from edgeseg.graph import Graph
from edgeseg.types import Precision


@dataclass(frozen=True, slots=True)
class ReadBack:
    """By engine: the row for the document, and of those that are not what they were built as, why."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)


def read_back(engines: Sequence[Engine], asked: Precision) -> ReadBack:
    """Layers and precisions of the engines that are built on this machine.

    Raises PrecisionAbsent where an engine of the precision asked for lacks it, unless its settings allow that.
    """
    found = ReadBack()
    for engine in engines:
        backend = get(engine.backend)
        if not isinstance(backend, TensorRT):
            continue
        stored = backend.stored(engine)
        graph = Graph(engine.files[engine.graph])
        convolutions = [node.name for node in graph.nodes if node.op_type in ("Conv", "ConvTranspose")]
        layers = with_times(layers_of(stored.information, convolutions), stored.times)
        try:
            lacks = absent(layers, engine.precision)
            unknown = None
        except CannotTell as error:
            lacks, unknown = None, str(error)
        found.rows[engine.name] = {
            "precisions": precisions(layers).to_json(),
            "summary": unknown or summary(layers),
            "others": list(blockers(layers, engine.precision)),
            "repairs": [f"{repair.node} {repair.how}" for repair in stored.repairs],
            "warnings": list(stored.warnings),
            "engine_bytes": len(stored.engine),
        }
        if lacks is None or options_from(engine.settings).fallback:
            continue
        if engine.precision == asked:
            raise PrecisionAbsent(
                f"the engine '{engine.name}' does not run in {asked.upper()}: {lacks.rstrip('.')}. Build with --fp32 "
                "or another precision, or accept it with --trt fallback."
            )
        found.lacking[engine.name] = lacks
    return found
