"""Accuracy of engines on a split, computed once for each engine and data: what builds judge by."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict

import numpy as np

from edgeseg import __version__, cache
from edgeseg.backends import Engine, Session, get, open_engine
from edgeseg.console import Console
from edgeseg.data import Reading, fit
from edgeseg.errors import CannotTell
from edgeseg.measure.agreement import Agreement
from edgeseg.measure.evaluate import Accuracy, FrameCounts
from edgeseg.measure.evaluate import evaluate as run_over
from edgeseg.measure.machine import machine
from edgeseg.types import Mask, ModelSpec, Pixels


def accuracies(
    engines: Sequence[Engine],
    spec: ModelSpec,
    reading: Reading,
    *,
    classes: int,
    ignore_index: int | None,
    console: Console,
    use_cache: bool = True,
) -> dict[str, Accuracy]:
    """Accuracy of each engine by name; agreement is with the first. One pass over the frames, all engines open.

    An engine that was evaluated before, with the same runtime on the same frames, is not run again.
    """
    data = reading.split.digest(reading.indices, labels=True)
    common = (
        __version__,
        "with counts per frame",
        data,
        classes,
        ignore_index,
        repr(spec.input),
        machine()["cpu"],
        identity(engines[0]),
    )
    keys = {engine.name: cache.key("accuracy", identity(engine), *common) for engine in engines}
    found: dict[str, Accuracy] = {}
    for engine in engines:
        kept = use_cache and not get(engine.backend).built_here
        stored = cache.load("accuracy", keys[engine.name]) if kept else None
        if stored is not None:
            found[engine.name] = _from_json(stored)
    if missing := [engine for engine in engines if engine.name not in found]:
        opened = [engines[0], *(engine for engine in missing if engine is not engines[0])]
        with ExitStack() as stack:
            runs = {engine.name: _single(stack.enter_context(open_engine(engine))) for engine in opened}
            samples = console.track(reading, len(reading), "evaluate")
            fresh = run_over(
                runs,
                samples,
                prepare=lambda pixels: fit(pixels, spec.input.size, spec.input.resize),
                classes=classes,
                ignore_index=ignore_index,
            )
        if not fresh:
            raise CannotTell(f"no frame of split '{reading.split.name}' could be read, so nothing was evaluated")
        for name, accuracy in fresh.items():
            found[name] = accuracy
            if use_cache and not reading.skipped:
                cache.store("accuracy", keys[name], _to_json(accuracy))
    return {engine.name: found[engine.name] for engine in engines}


def _single(session: Session) -> Callable[[Pixels], Mask]:
    return lambda pixels: session.run(pixels[None])[0]


def identity(engine: Engine) -> str:
    """A hash of all that an engine's masks depend on.

    Who decides between equal scores does not change a mask. A converted file may differ from one conversion to the
    next, so the graph it was made from counts instead, where that is known.
    """
    files = [part for name in sorted(engine.files) for part in (name.rsplit("/")[-1], engine.files[name])]
    settings = {key: value for key, value in engine.settings.items() if key != "decision"}
    made_from = [engine.source] if engine.source else files
    return cache.key(engine.backend, get(engine.backend).version(), sorted(settings.items()), *made_from)


def _to_json(accuracy: Accuracy) -> bytes:
    kept = accuracy.per_frame
    return json.dumps(
        {
            "matrix": accuracy.matrix.tolist(),
            "agreement": asdict(accuracy.agreement),
            "frames": accuracy.frames,
            "labelled": accuracy.labelled,
            "per_frame": None if kept is None else {"names": list(kept.names), "counts": kept.counts.tolist()},
        }
    ).encode()


def _from_json(stored: bytes) -> Accuracy:
    found = json.loads(stored)
    kept = found["per_frame"]
    return Accuracy(
        np.array(found["matrix"], np.int64),
        Agreement(**found["agreement"]),
        found["frames"],
        found["labelled"],
        None if kept is None else FrameCounts(tuple(kept["names"]), np.array(kept["counts"], np.int64)),
    )
