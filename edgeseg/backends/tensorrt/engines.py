"""Engines are a cache: made where they run, kept by all that they depend on, never trusted for being there.

An engine opens on the GPU, the driver and the version of the library that it was built with, and on no other. What
travels is the graph; here it becomes an engine, once, and one line says so and why. Whether its masks are right is
found out by who opens it; only then a note beside it says that it was checked, with the hash of these very bytes.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass, replace
from typing import Any

from edgeseg import cache
from edgeseg.backends.listen import listener
from edgeseg.backends.tensorrt.cuda import Gpu
from edgeseg.backends.tensorrt.library import Library
from edgeseg.backends.tensorrt.options import Options
from edgeseg.backends.tensorrt.repair import Repair
from edgeseg.backends.tensorrt.worker import made
from edgeseg.types import Precision

FORMAT = "edgeseg.engine/1"  # raise it when build.py makes another engine of the same graph and options
_unkept: dict[str, Stored] = {}  # this process's own engines, by entry, where the cache folder did not take them


@dataclass(frozen=True, slots=True)
class Stored:
    """An engine as the cache holds it."""

    entry: str  # its key
    engine: bytes
    information: str  # the inspector's JSON
    times: dict[str, float]  # median milliseconds by layer
    repairs: tuple[Repair, ...]
    warnings: tuple[str, ...]
    digest: str  # SHA-256 of `engine`
    built: bool = False  # just now, and not read from the cache
    checked: bool = False  # somebody has compared the masks of these very bytes, on this machine


def place_of(library: Library, version: str, gpu: Gpu) -> dict[str, str]:
    """What an engine depends on besides its graph and the options."""
    return {
        library.name: version,
        "gpu": f"{gpu.name}, compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}",
        "driver": f"CUDA {gpu.driver // 1000}.{gpu.driver % 1000 // 10}",
        "system": f"{platform.system()} {platform.machine()}",
    }


def engine_for(
    library: Library,
    version: str,
    gpu: Gpu,
    graph: bytes,
    precision: Precision,
    options: Options,
    name: str,
    refused: str = "",
) -> Stored:
    """The engine of a graph for this device: from the cache, or built now, which the listener is told with the reason.

    `name` is the engine's for people. `refused`: why the library does not open the one in the cache; it is built anew.
    Of two processes that want the same engine one builds it. Raises what a build raises.
    """
    place = place_of(library, version, gpu)
    recipe = {"precision": precision, **options.to_settings()}
    for run_only in ("cuda_graph", "fallback"):  # they change how an engine is used, not what it is
        recipe.pop(run_only, None)
    digest = hashlib.sha256(graph).hexdigest()
    fields = {"format": FORMAT, "graph": digest, "recipe": recipe, "place": place}
    entry = cache.key(json.dumps(fields, sort_keys=True))
    if not refused and (stored := _read(entry, fields)) is not None:
        return stored
    ears = listener()

    def waiting() -> None:
        ears.say(f"engine     {name}: another process is building it; waiting for that")

    with cache.locked("engines", entry, waiting):
        if not refused and (stored := _read(entry, fields)) is not None:
            return stored
        last = cache.key("last", library.name, digest, json.dumps(recipe, sort_keys=True))
        why = refused or _why(cache.load("engines", last), place)
        ears.say(f"engine     building {name} for {gpu.name}: {why}")
        found = _built(library, gpu, graph, precision, options, name, entry, json.dumps(place, sort_keys=True))
        if _write(found, fields):
            cache.store("engines", last, json.dumps(place).encode())
        else:
            _unkept[entry] = found
            ears.say(
                f"           note: {name} is not kept: {cache.folder()} cannot be written, or its disk is full. Each "
                "program builds it again until EDGESEG_CACHE names a folder that can"
            )
        return found


def note_checked(entry: str, digest: str) -> None:
    """Remember that the masks of the engine with these bytes were compared and are right."""
    if entry in _unkept:
        _unkept[entry] = replace(_unkept[entry], checked=True)
    else:
        cache.store("engines", f"{entry}.checked", digest.encode())


def _built(
    library: Library, gpu: Gpu, graph: bytes, precision: Precision, options: Options, name: str, entry: str, place: str
) -> Stored:
    ears = listener()

    def progress(phase: str, done: int, total: int) -> None:
        ears.progress(f"engine     {name}: {phase} {done} of {total}")

    try:
        built = made(
            library.name,
            graph,
            precision,
            options,
            timings="" if library.builds_without_gpu else cache.key("timings", place),
            capability=gpu.compute_capability if library.builds_without_gpu else None,
            on_progress=progress,
        )
    finally:
        ears.progress("")
    for repair in built.repairs:
        ears.say(f"           note: {name}: {repair.node} {repair.how}")
    digest = hashlib.sha256(built.engine).hexdigest()
    return Stored(
        entry, built.engine, built.information, built.times, built.repairs, built.warnings, digest, built=True
    )


def _why(last: bytes | None, place: dict[str, str]) -> str:
    """What is different here from where this graph was last built."""
    try:
        before = json.loads(last) if last else None
    except ValueError:
        before = None
    if not isinstance(before, dict):
        return "there is none for it yet"
    changed = [f"{key} was {before.get(key)} and is {now}" for key, now in place.items() if before.get(key) != now]
    return "; ".join(changed) or "the one in the cache is gone or damaged"


def _write(stored: Stored, fields: dict[str, Any]) -> bool:
    head = {
        **fields,
        "sha256": stored.digest,
        "information": stored.information,
        "times": stored.times,
        "repairs": [{"node": repair.node, "how": repair.how} for repair in stored.repairs],
        "warnings": list(stored.warnings),
    }
    text = json.dumps(head).encode()
    return cache.store("engines", stored.entry, len(text).to_bytes(8, "little") + text + stored.engine)


def _read(entry: str, fields: dict[str, Any]) -> Stored | None:
    """What is stored, if it is whole and is what it should be: a deserializer runs what it is given."""
    data = cache.load("engines", entry)  # checks the checksum of all of it
    if data is None:
        kept = _unkept.get(entry)
        return None if kept is None else replace(kept, built=False)
    size = int.from_bytes(data[:8], "little")
    try:
        head = json.loads(data[8 : 8 + size])
        engine = data[8 + size :]
        if any(head.get(key) != value for key, value in fields.items()):
            return None
        digest = hashlib.sha256(engine).hexdigest()
        if digest != head["sha256"]:
            return None
        repairs = tuple(Repair(**row) for row in head["repairs"])
        checked = cache.load("engines", f"{entry}.checked") == digest.encode()
        return Stored(
            entry,
            engine,
            head["information"],
            head["times"],
            repairs,
            tuple(head["warnings"]),
            digest,
            checked=checked,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # not of our making: built again, and written over
