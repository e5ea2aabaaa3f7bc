"""The last step: everything the device needs, in one bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from calibration import ScaleTable, to_json
from edgeseg import __version__
from edgeseg.backends import Engine
from edgeseg.bundle import FP32, Bundle, Reference, Variant
from edgeseg.pipeline.engines import Tried
from edgeseg.selfcheck import place_now
from edgeseg.types import ModelSpec, OnnxModel, Pixels

REFERENCES = 4


def assemble(
    spec: ModelSpec,
    tried: Tried,
    chosen: str,
    frames: Sequence[Pixels],
    table: ScaleTable | None,
    fp32: OnnxModel,
    report: Mapping[str, Any],
) -> Bundle:
    """Everything the device needs: all measured engines, the scales, the FP32 graph, frames with expected masks.

    Engines that open the same bytes with other settings share one file.
    """
    files = {FP32: fp32.graph}
    stored = {_content(fp32.graph): FP32}
    for engine in tried.engines:
        for file, data in engine.files.items():
            name = stored.setdefault(_content(data), f"{engine.name}/{file}")
            files[name] = data
    if table is not None:
        files["scales.json"] = to_json(table).encode()
    references = tuple(
        Reference(f"{i}", frame, tried.expected[i], {e.name: tried.masks[e.name][i] for e in tried.engines})
        for i, frame in enumerate(frames[:REFERENCES])
    )
    variants = tuple(
        Variant(
            engine.name,
            engine.backend,
            engine.precision,
            tuple(stored[_content(engine.files[file])] for file in _graph_first(engine)),
            dict(engine.settings),
        )
        for engine in tried.engines
    )
    created = {
        "edgeseg": __version__,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "place": {name: place_now(name) for name in {engine.backend for engine in tried.engines}},
        "machine": report["machine"],
        "versions": report["versions"],
    }
    return Bundle(spec, variants, chosen, files, references, report, created)


def _content(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _graph_first(engine: Engine) -> list[str]:
    return sorted(engine.files, key=lambda file: file != engine.graph)
