"""The second step: what was seen of every tensor on calibration frames, and biases for rounded weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
from edgeseg import backends, cache, quantize
from edgeseg.backends.onnxruntime import probe
from edgeseg.console import Console
from edgeseg.data import Reading
from edgeseg.errors import BadInput
from edgeseg.measure.machine import machine
from edgeseg.pipeline.frames import prepared
from edgeseg.trials.candidates import dialect_of
from edgeseg.types import OnnxModel, Pixels

Biases = dict[int, dict[str, NDArray[np.float32]]]  # bits of the weights → node → bias


def recipe_named(name: str | Path) -> Recipe:
    try:
        return load_recipe(name)
    except CalibrationError as error:
        raise BadInput(str(error)) from error


def calibrated(model: OnnxModel, reading: Reading, recipe: Recipe, use_cache: bool, console: Console) -> ScaleTable:
    """What was seen of every tensor that any dialect quantizes; one frame after the other."""
    data = cache.key(reading.split.digest(reading.indices), repr(model.spec.input))
    key = cache.key("scales", SCHEMA, model.digest, data, recipe.digest)
    with console.step("calibrate") as step:
        if use_cache and (stored := cache.load("scales", key)) is not None:
            table = from_json(stored.decode())
            check(table, model=model.digest, data=data, recipe=recipe)
            step.note = f"reused: {table.frames} frames of '{reading.split.name}', recipe {recipe.name}"
            return table
        graph = quantize.Graph(model.graph)
        tensors = sorted(set().union(*(quantize.place(graph, d).observed for d in quantize.DIALECTS.values())))
        frames = (frame[None] for frame in prepared(reading, model.spec))
        try:
            table = calibrate(
                console.track(probe(model.graph, tensors, frames), len(reading), "calibrate"),
                recipe,
                model=model.digest,
                data=data,
            )
        except CalibrationError as error:
            raise BadInput(f"calibration stopped: {error}") from error
        if not reading.skipped:
            cache.store("scales", key, to_json(table).encode())
        step.note = f"{table.frames} frames of '{reading.split.name}', {len(tensors)} tensors, recipe {recipe.name}"
    for skipped in reading.skipped:
        console.say(f"           skipped {skipped.name}: {skipped.reason}")
    return table


def corrected(model: OnnxModel, frames: Sequence[Pixels], console: Console) -> Biases:
    """Biases that take back what rounding the weights shifts, for the weights of this machine's dialects."""
    found: Biases = {}
    with console.step("correct") as step:
        for bits in sorted({dialect_for(name).weight_bits for name in backends.installed()}):
            graph, shifts = quantize.shift_graph(model.graph, bits)
            probed = probe(graph, list(shifts.values()), (frame[None] for frame in frames))
            found[bits] = quantize.corrected_biases(model.graph, shifts, probed)
        step.note = f"biases of {len(shifts)} convolutions, on {len(frames)} frames"
    return found


def dialect_for(backend: str) -> quantize.Dialect:
    return quantize.DIALECTS[dialect_of(backend, frozenset(machine()["isa"]))]
