"""The numbers of a document under the metrics' names, in the metrics' units; points for what is a share there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeseg.errors import BadInput

KINDS = ("bench", "eval", "build", "stream")
Document = Mapping[str, Any]


def kind_of(document: Document) -> str:
    """Such as "bench"."""
    return str(document["schema"]).removeprefix("edgeseg.").partition("/")[0]


def values(document: Document) -> dict[str, float]:
    """Metric -> value; what the document leaves open is left out. KeyError, TypeError for one unlike its schema."""
    found = {"bench": _bench, "eval": _eval, "build": _build, "stream": _stream}[kind_of(document)](document)
    return {name: float(value) for name, value in found.items() if value is not None}


def reasons(document: Document) -> dict[str, str]:
    """Why a percentile has no value: metric -> words."""
    engine = chosen_engine(document) if kind_of(document) == "build" else document
    found = {}
    for name, key in (("latency", "latency_ms"), ("end_to_end", "end_to_end_ms")):
        for p, why in ((engine.get(key) or {}).get("reasons") or {}).items():
            found[f"{name}.{p}"] = str(why)
    return found


def classes(document: Document) -> list[str] | None:
    """The classes that it was judged on; None where it was not."""
    found = (chosen_engine(document) if kind_of(document) == "build" else document).get("iou")
    return None if found is None else list(found)


def identity(document: Document) -> tuple[str, str, str]:
    """Scenario or split, bundle, variant."""
    kind = kind_of(document)
    if kind == "build":
        return "build", str(document["name"]), str(document["chosen"])
    where = document.get("scenario") or "single-stream" if kind == "bench" else kind
    if kind == "eval":
        where = document["data"]["split"]
    return str(where), str(document["bundle"]), str(document["variant"])


def check(document: Document, path: object) -> None:
    """Raises BadInput, naming the file, for a document that is no kind to compare or unlike its schema."""
    if kind_of(document) not in KINDS:
        raise BadInput(
            f"{path}, schema: {document['schema']!r} holds nothing to compare; wanted documents of "
            f"`edgeseg {'`, `edgeseg '.join(KINDS)}`."
        )
    try:
        values(document)
        reasons(document)
        identity(document)
        classes(document)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadInput(
            f"{path} is damaged: {document['schema']} does not look like this ({error!r}). Make it again."
        ) from error


def _latency(name: str, found: Mapping[str, Any] | None) -> dict[str, Any]:
    return {f"{name}.{p}": (found or {}).get(p) for p in ("p50", "p90", "p99", "mean")}


def _shares(found: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: None if found.get(key) is None else 100 * found[key] for key in keys}


def _ious(found: Mapping[str, Any] | None) -> dict[str, Any]:
    return {f"iou.{name}": None if share is None else 100 * share for name, share in (found or {}).items()}


def _bench(document: Document) -> dict[str, Any]:
    cold = document.get("cold_ms") or {}
    camera = ((document.get("camera") or {}).get("whole") or {}).get("missed_share")
    return {
        **_latency("latency", document["latency_ms"]),
        **_latency("end_to_end", document.get("end_to_end_ms")),
        "fps": document.get("fps"),
        **{f"cold.{key}": cold.get(key) for key in ("open", "first_frame")},
        "missed": None if camera is None else 100 * camera,
        "size": document.get("size_mb"),
        "memory": document.get("memory_mb"),
    }


def _eval(document: Document) -> dict[str, Any]:
    found = _shares(document, "miou", "pixel_accuracy", "dice") | _ious(document["iou"])
    for width, band in (document.get("boundary") or {}).items():
        found |= {f"boundary.{width}.miou": None if band["miou"] is None else 100 * band["miou"]}
    sequences = document.get("sequences") or []
    if len(sequences) > 1:
        found |= {
            f"sequence.{one['name']}.miou": None if one["miou"] is None else 100 * one["miou"] for one in sequences
        }
    return found


def chosen_engine(document: Document) -> Mapping[str, Any]:
    """The row of a build document's chosen engine; LookupError if there is none."""
    for engine in document["engines"]:
        if engine["name"] == document["chosen"]:
            found: Mapping[str, Any] = engine
            return found
    raise LookupError(f"no engine is called {document['chosen']!r}")


def _build(document: Document) -> dict[str, Any]:
    engine = chosen_engine(document)
    peak = document.get("peak_rss_mb")
    return {
        **_shares(engine, "miou", "pixel_accuracy", "dice"),
        **_ious(engine.get("iou")),
        **_latency("latency", engine["latency_ms"]),
        "size": engine["bytes"] / 1e6,
        "build_memory": peak,
    }


def _stream(document: Document) -> dict[str, Any]:
    frames, deadline = document["frames"], document.get("deadline") or {}
    machines = [row.get("machine_range") or {} for row in document.get("timeline") or ()]
    memory = [found["rss_mb"][1] for found in machines if found.get("rss_mb")]
    return {
        **_latency("latency", document["latency_ms"]),
        "fps": document["fps"],
        "dropped": 100 * frames["dropped"] / frames["captured"] if frames["captured"] else None,
        "missed": 100 * deadline["missed"] / deadline["of"] if deadline.get("of") else None,
        "memory": max(memory, default=None),
        **_shares(document.get("quality") or {}, "miou", "streaming_miou", "flicker"),
        **_ious(document.get("iou")),
    }
