"""The numbers of a document under plain names, such as "latency.p50" and "iou.road": for histories and exports."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeseg.errors import BadInput
from edgeseg.report.sources import Source

# Latencies are in ms, shares from 0 to 1, sizes in bytes, or MB (10^6) and memory in MiB where the name says _mb.
LESS_IS_BETTER = (
    *("latency", "end_to_end", "cold", "stages", "bytes", "size_mb", "memory_mb", "frames.dropped", "frames.failed"),
)
_ANYWHERE = ("dropped", "late", "missed", "missed_share", "mask_age_ms", "service_ms", "load", "flicker")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one document says about one engine."""

    source: Source
    bundle: str
    variant: str
    scenario: str  # how it was timed, or the split it was judged on; empty where that is open
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        """The processor, how many cores may be used, and the GPU where the document names one, in words."""
        here = self.source.document.get("machine") or {}
        cores = here.get("cores_usable")
        parts = (here.get("cpu") or "unknown machine", None if cores is None else f"{cores:g} cores", here.get("gpu"))
        return ", ".join(str(part) for part in parts if part is not None)


def less_is_better(metric: str) -> bool:
    return metric.startswith(LESS_IS_BETTER) or any(part in _ANYWHERE for part in metric.split("."))


def measured(source: Source) -> list[Measured]:
    """One for the engine of a bench, eval or stream document, one for each engine of a build, none for others.

    Raises BadInput, naming the file, for a document that does not look like its schema.
    """
    read = {"bench": _bench, "eval": _eval, "stream": _stream, "build": _build}.get(source.kind)
    if read is None:
        return []
    try:
        found = list(read(source))
        for m in found:
            if strange := [name for name in (m.bundle, m.variant, m.scenario, m.machine) if not isinstance(name, str)]:
                raise TypeError(f"a name is {strange[0]!r}")
        return found
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadInput(f"{source.path} is damaged: {source.schema} does not look like this ({error!r})") from error


def _bench(source: Source) -> Iterator[Measured]:
    document = source.document
    values = {
        **_flat("latency", document["latency_ms"]),
        **_flat("end_to_end", document.get("end_to_end_ms")),
        **_flat("cold", document.get("cold_ms")),
        "fps": document.get("fps"),
        "size_mb": document.get("size_mb"),
        "memory_mb": document.get("memory_mb"),
    }
    for key in ("multi_stream", "offline", "camera"):
        values |= _flat(key, document.get(key))
    scenario = str(document.get("scenario") or "single-stream")
    yield Measured(source, document["bundle"], document["variant"], scenario, _known(values))


def _eval(source: Source) -> Iterator[Measured]:
    document = source.document
    values = {key: document.get(key) for key in ("miou", "pixel_accuracy", "dice")}
    values |= _flat("iou", document["iou"])
    for width, found in (document.get("boundary") or {}).items():
        values[f"boundary.{width}.miou"] = found.get("miou")
    yield Measured(source, document["bundle"], document["variant"], document["data"]["split"], _known(values))


def _stream(source: Source) -> Iterator[Measured]:
    document = source.document
    values = {**_flat("latency", document["latency_ms"]), "fps": document["fps"], "miou": document.get("miou")}
    values |= _flat("frames", document["frames"])
    for stage, times in document["stages_ms"].items():
        values |= _flat(f"stages.{stage}", times)
    values |= _flat("quality", document.get("quality"))
    yield Measured(source, document["bundle"], document["variant"], "stream", _known(values))


def _build(source: Source) -> Iterator[Measured]:
    document = source.document
    for engine in document["engines"]:
        values = {key: engine.get(key) for key in ("miou", "pixel_accuracy", "dice", "agreement", "bytes")}
        values |= {"boundary_agreement": engine.get("boundary_agreement"), **_flat("latency", engine["latency_ms"])}
        values |= _flat("iou", engine.get("iou"))
        yield Measured(source, document["name"], engine["name"], "build", _known(values))


def _flat(prefix: str, found: Mapping[str, Any] | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in (found or {}).items():
        values |= _flat(f"{prefix}.{key}", value) if isinstance(value, Mapping) else {f"{prefix}.{key}": value}
    return values


def _known(values: Mapping[str, Any]) -> dict[str, float]:
    """Finite numbers only: a percentile of too few samples is None, reasons are words."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
