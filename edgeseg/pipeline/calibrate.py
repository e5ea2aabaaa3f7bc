"""What was seen of every tensor on calibration frames."""

from __future__ import annotations

from pathlib import Path

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
from edgeseg import cache, quantize
from edgeseg.backends.onnxruntime import probe
from edgeseg.console import Console
from edgeseg.data import Reading
from edgeseg.errors import BadInput
from edgeseg.measure.convergence import Convergence
from edgeseg.pipeline.frames import prepared
from edgeseg.pipeline.network import dialect_for
from edgeseg.pipeline.sampling import settled, watched
from edgeseg.types import OnnxModel


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
