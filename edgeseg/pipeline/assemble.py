"""The last step: everything the device needs, in one bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from calibration import ScaleTable, to_json
from edgeseg import __version__, backends
from edgeseg.backends import Engine
from edgeseg.bundle import FP32, Bundle, Reference, Variant
from edgeseg.pipeline.engines import fp32_masks
from edgeseg.selfcheck import place_now
from edgeseg.types import Masks, ModelSpec, OnnxModel, Pixels

REFERENCES = 4


def assemble(
    spec: ModelSpec,
    engines: Sequence[Engine],
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
    for engine in engines:
        for file, data in engine.files.items():
            name = stored.setdefault(_content(data), f"{engine.name}/{file}")
            files[name] = data
    if table is not None:
        files["scales.json"] = to_json(table).encode()
    shown = list(frames[:REFERENCES])
    expected = fp32_masks(fp32, shown)
    answers: dict[str, Masks] = {}
    for engine in engines:
        with backends.open_engine(engine) as session:
            answers[engine.name] = np.concatenate([session.run(frame[None]) for frame in shown])
    references = tuple(
        Reference(f"{i}", frame, expected[i], {name: masks[i] for name, masks in answers.items()})
        for i, frame in enumerate(shown)
    )
    variants = tuple(
        Variant(
            engine.name,
            engine.backend,
            engine.precision,
            tuple(stored[_content(engine.files[file])] for file in _graph_first(engine)),
            dict(engine.settings),
        )
        for engine in engines
    )
    created = {
        "edgeseg": __version__,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "place": {name: place_now(name) for name in {engine.backend for engine in engines}},
        "machine": report["machine"],
        "versions": report["versions"],
    }
    return Bundle(spec, variants, chosen, files, references, report, created)


def _content(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _graph_first(engine: Engine) -> list[str]:
    return sorted(engine.files, key=lambda file: file != engine.graph)
