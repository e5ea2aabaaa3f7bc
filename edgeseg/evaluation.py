"""Accuracy of engines on a split: computed once for each engine and data, and as the document that `eval` writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg import __version__, cache
from edgeseg.backends import Engine, Session, get, open_engine
from edgeseg.bundle import read_bundle
from edgeseg.console import Console
from edgeseg.data import Dataset, Reading, fit, load_dataset, read
from edgeseg.errors import BadInput, CannotTell, DatasetError
from edgeseg.measure.agreement import Agreement
from edgeseg.measure.confusion import scores
from edgeseg.measure.evaluate import Accuracy
from edgeseg.measure.evaluate import evaluate as run_over
from edgeseg.measure.machine import machine, versions
from edgeseg.segmenter import engine_of
from edgeseg.selfcheck import require_elsewhere
from edgeseg.types import Mask, ModelSpec, Pixels


def class_names(spec: ModelSpec, dataset: Dataset | None) -> tuple[str, ...]:
    """The classes of spec and data set, which must be the same in the same order. Raises DatasetError."""
    theirs = dataset.classes if dataset is not None else ()
    if spec.output.classes and theirs and tuple(spec.output.classes) != tuple(theirs):
        raise DatasetError(
            f"the classes of the model ({', '.join(spec.output.classes)}) are not those of the data set "
            f"'{dataset.name if dataset else ''}' ({', '.join(theirs)}), or not in this order. Indices would mean "
            "other things: bring both lists in line, with [label_map] in the data set's file if need be."
        )
    return tuple(spec.output.classes or theirs)


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
    common = (__version__, data, classes, ignore_index, repr(spec.input), machine()["cpu"], identity(engines[0]))
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


def evaluate(
    bundle: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    variant: str | None = None,
    threads: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a bundle's engine on a labelled split: the document that `edgeseg eval --json` writes.

    `miou`, `pixel_accuracy`, `dice` and `iou` (class → 0 to 1, or None for a class that does not occur) come from one
    confusion matrix summed over the split, at the labels' resolution. Raises BundleError, DatasetError (no such split,
    no labels, more than a tenth of the frames unreadable), MissingOnMachine.
    """
    opened = read_bundle(Path(bundle))
    chosen = opened.variant(variant)
    dataset = load_dataset(Path(data))
    frames = dataset.split(split)
    if not frames.has_labels:
        raise DatasetError(f"split '{split}' of '{dataset.name}' has no labels; mIoU needs them")
    names = class_names(opened.spec, dataset)
    if not names:
        raise BadInput("neither the bundle nor the data set names the classes; add them to the data set's file")
    with open_engine(engine_of(opened, chosen)) as session:
        require_elsewhere(opened, chosen, session)
    reading = read(frames, color=opened.spec.input.frame)
    accuracy = accuracies(
        [engine_of(opened, chosen, {"threads": threads})],
        opened.spec,
        reading,
        classes=len(names),
        ignore_index=dataset.ignore_index,
        console=console or Console(),
        use_cache=False,
    )[chosen.name]
    return {
        "schema": "edgeseg.eval/1",
        "bundle": opened.spec.name,
        "variant": chosen.name,
        "precision": chosen.precision,
        "data": {"name": dataset.name, "split": split, "digest": frames.digest(labels=True)},
        **scores(accuracy.matrix, names).to_json(),
        "frames": accuracy.frames,
        "skipped": [asdict(skipped) for skipped in reading.skipped],
        "graph": identity(engine_of(opened, chosen)),
        "machine": machine(),
        "versions": versions(),
    }


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
    return json.dumps(
        {
            "matrix": accuracy.matrix.tolist(),
            "agreement": asdict(accuracy.agreement),
            "frames": accuracy.frames,
            "labelled": accuracy.labelled,
        }
    ).encode()


def _from_json(stored: bytes) -> Accuracy:
    found = json.loads(stored)
    return Accuracy(
        np.array(found["matrix"], np.int64), Agreement(**found["agreement"]), found["frames"], found["labelled"]
    )
