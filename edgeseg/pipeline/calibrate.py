"""The second step: what was seen of every tensor on calibration frames, and biases for rounded weights."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibration import (
    SCHEMA,
    CalibrationError,
    Recipe,
    ScaleTable,
    calibrate,
    check,
    from_json,
    load_recipe,
    to_json,
)
from edgeseg import __version__, cache, quantize
from edgeseg.backends.onnxruntime import probe
from edgeseg.console import Console
from edgeseg.data import Reading
from edgeseg.errors import BadInput
from edgeseg.measure.convergence import Convergence
from edgeseg.measure.machine import machine
from edgeseg.pipeline.frames import prepared
from edgeseg.pipeline.sampling import settled, watched
from edgeseg.trials.candidates import dialect_of
from edgeseg.types import OnnxModel, Pixels


def recipe_named(name: str | Path) -> Recipe:
    try:
        return load_recipe(name)
    except CalibrationError as error:
        raise BadInput(str(error)) from error


def calibrated(
    model: OnnxModel, reading: Reading, recipe: Recipe, use_cache: bool, console: Console
) -> tuple[ScaleTable, Convergence | None]:
    """What was seen of every tensor that any dialect quantizes, one frame after the other; and whether that is enough.

    Nothing is known of the latter where the table comes from the cache.
    """
    data = cache.key(reading.split.digest(reading.indices), repr(model.spec.input))
    key = cache.key("scales", SCHEMA, model.digest, data, recipe.digest)
    with console.step("calibrate") as step:
        if use_cache and (stored := cache.load("scales", key)) is not None:
            table = from_json(stored.decode())
            check(table, model=model.digest, data=data, recipe=recipe)
            step.note = f"reused: {table.frames} frames of '{reading.split.name}', recipe {recipe.name}"
            return table, None
        graph = quantize.Graph(model.graph)
        tensors = sorted(set().union(*(quantize.place(graph, d).observed for d in quantize.DIALECTS.values())))
        frames = (frame[None] for frame in prepared(reading, model.spec))
        snapshots = watched(reading)
        try:
            table = calibrate(
                console.track(probe(model.graph, tensors, frames), len(reading), "calibrate"),
                recipe,
                model=model.digest,
                data=data,
                watch=snapshots,
            )
        except CalibrationError as error:
            raise BadInput(f"calibration stopped: {error}") from error
        if not reading.skipped:
            cache.store("scales", key, to_json(table).encode())
        step.note = f"{table.frames} frames of '{reading.split.name}', {len(tensors)} tensors, recipe {recipe.name}"
    for skipped in reading.skipped:
        console.say(f"           skipped {skipped.name}: {skipped.reason}")
    return table, settled(snapshots, table, (dialect_for("onnxruntime"), quantize.TENSORRT), console)


def quantized(
    model: OnnxModel,
    table: ScaleTable,
    names: Sequence[str],
    frames: Sequence[Pixels],
    use_cache: bool,
    console: Console,
    kept: frozenset[str] = frozenset(),
) -> dict[str, OnnxModel]:
    """The graph in INT8 for each of the backends named, in its dialect; with biases corrected if there are frames.

    `kept`: names of convolutions that stay in float. The others keep the biases of the network all in INT8.
    """
    biases = _corrected(model, table, names, frames, use_cache, console) if frames else {}
    found = {}
    for name in names:
        dialect = dialect_for(name)
        placement = quantize.place(quantize.Graph(model.graph), dialect, keep_float=kept)
        bias = {node: value for node, value in biases.get(name, {}).items() if node in placement.convolutions}
        found[name] = quantize.quantize(model, table, dialect, placement=placement, bias=bias)
    return found


def _corrected(
    model: OnnxModel,
    table: ScaleTable,
    names: Sequence[str],
    frames: Sequence[Pixels],
    use_cache: bool,
    console: Console,
) -> dict[str, quantize.Biases]:
    """For each of the backends named, the biases that take back what rounding shifts in its dialect."""
    found: dict[str, quantize.Biases] = {}
    reused = 0
    with console.step("correct") as step:
        for name in names:
            dialect = dialect_for(name)
            placement = quantize.place(quantize.Graph(model.graph), dialect)
            rules = (repr(dialect), placement.convolutions, sorted(placement.quantizers.items()))
            key = cache.key("biases", __version__, to_json(table), *rules, *map(np.ndarray.tobytes, frames))
            if use_cache and (stored := cache.load("biases", key)) is not None:
                with np.load(io.BytesIO(stored)) as arrays:
                    found[name] = dict(arrays)
                reused += 1
                continue
            found[name] = quantize.corrected_biases(model, table, dialect, probe, [frame[None] for frame in frames])
            buffer = io.BytesIO()
            np.savez(buffer, **found[name])  # type: ignore[arg-type]
            cache.store("biases", key, buffer.getvalue())
        count = max(map(len, found.values()), default=0)
        step.note = (
            f"{'reused: ' if reused == len(names) else ''}biases of {count} convolutions, on {len(frames)} frames"
        )
    return found


def dialect_for(backend: str) -> quantize.Dialect:
    return quantize.DIALECTS[dialect_of(backend, frozenset(machine()["isa"]))]
