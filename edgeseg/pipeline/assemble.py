"""The last step: everything the device needs, in one bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from edgeseg import __version__
from edgeseg.backends import Engine
from edgeseg.bundle import Bundle, Reference, Variant
from edgeseg.pipeline.engines import REWRITTEN, Tried
from edgeseg.pipeline.network import Network, files_of
from edgeseg.selfcheck import place_now
from edgeseg.types import ModelSpec, Pixels

REFERENCES = 4


def assemble(
    spec: ModelSpec,
    tried: Tried,
    chosen: str,
    frames: Sequence[Pixels],
    network: Network,
    small: Network | None,
    report: Mapping[str, Any],
) -> Bundle:
    """Everything the device needs: all measured engines, the FP32 graph and its INT8, frames with expected masks.

    `small`: a rewritten network whose engines are among the measured ones.

    Engines that open the same bytes with other settings share one file.
    """
    files = files_of(network) | ({} if small is None else files_of(small, f"{REWRITTEN}/"))
    stored = {_content(data): name for name, data in files.items() if name.endswith(".onnx")}
    for engine in tried.engines:
        for file, data in engine.files.items():
            name = stored.setdefault(_content(data), f"{engine.name}/{file}")
            files[name] = data
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
