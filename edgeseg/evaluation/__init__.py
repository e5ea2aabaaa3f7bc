"""Accuracy of engines on a split: computed once for each engine and data, and as the document that `eval` writes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeseg.backends.base import threads_allowed
from edgeseg.bundle import read_bundle
from edgeseg.console import Console
from edgeseg.data import Skipped, load_dataset
from edgeseg.data.reader import give_up_if_too_many
from edgeseg.errors import BadInput, CannotTell, DatasetError
from edgeseg.evaluation.accuracy import accuracies, identity
from edgeseg.evaluation.classes import Matching, class_names, matching
from edgeseg.evaluation.document import notes, parts
from edgeseg.evaluation.work import Part, Work, chunks, opened
from edgeseg.measure.counts import joined
from edgeseg.measure.machine import machine, versions
from edgeseg.segmenter import engine_of

__all__ = ["SCHEMA", "Matching", "accuracies", "class_names", "evaluate", "identity", "matching"]

SCHEMA = "edgeseg.eval/2"


def evaluate(
    bundle: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    variant: str | None = None,
    threads: int = 0,
    block: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a bundle's engine on a labelled split: the document that `edgeseg eval --json` writes.

    `miou`, `pixel_accuracy`, `dice` and `iou` (class → 0 to 1, or None for a class that does not occur) come from one
    confusion matrix summed over the split, at the labels' resolution; with intervals, per sequence, near boundaries,
    per frame. `block`: frames per block of the resampling, by default from the data. `workers`: processes (of this
    machine by default, of the cluster at address `ray`), each with its own engine and its share of `threads`; the
    counts are the same whoever does them. A model of other classes is scored by the data set's [class_map].

    Raises BundleError, DatasetError (no such split, no labels, more than a tenth of the frames unreadable),
    MissingOnMachine, and CannotTell when nothing could be compared or a worker died.
    """
    console = console or Console()
    if block is not None and block < 1:
        raise BadInput(f"a block holds at least 1 frame, got {block}")
    source = read_bundle(Path(bundle))
    chosen = source.variant(variant)
    dataset = load_dataset(Path(data))
    frames = dataset.split(split)
    if not frames.has_labels:
        raise DatasetError(f"split '{split}' of '{dataset.name}' has no labels; mIoU needs them")
    match = matching(source.spec, dataset)
    _ = frames.sequences  # a pattern that does not fit is an error now, not after the work
    count = min(workers or 1, len(frames))
    share = threads if ray is not None or count == 1 else max(1, (threads or threads_allowed()) // count)
    work = Work(source, chosen.name, frames, match, dataset.ignore_index, share)
    found: list[Part] = []
    lost: list[tuple[int, Skipped]] = []
    running = _done(work, ray, workers or 0 if ray is not None else count, console)
    with closing(running), console.bar(len(frames), "evaluate") as advance:
        for part in running:
            found.append(part)
            lost = sorted([*lost, *part.skipped], key=lambda one: one[0])
            give_up_if_too_many([skipped for _, skipped in lost], len(frames), frames.name)
            for _ in range(part.frames):
                advance()
    counts = joined([part.counts for part in found], len(match.names))
    if not len(counts.frames):
        raise CannotTell(f"no frame of split '{frames.name}' could be read, so nothing was evaluated")
    places = sorted({f"{part.host} ({_said(part)})" for part in found})
    document = {
        "schema": SCHEMA,
        "bundle": source.spec.name,
        "variant": chosen.name,
        "precision": chosen.precision,
        "data": {"name": dataset.name, "split": split, "digest": frames.digest(labels=True)},
        **parts(counts, frames, match.names, block),
        "classes_of_model": list(source.spec.output.classes),
        "class_map": dict(zip(source.spec.output.classes, _targets(match), strict=True)) if match.table else None,
        "skipped": [asdict(skipped) for _, skipped in lost],
        "workers": {
            "count": count if ray is None else len({(part.host, part.process) for part in found}),
            "threads": found[0].threads,
            "ray": ray is not None,
            "places": places,
        },
        "graph": identity(engine_of(source, chosen)),
        "machine": machine() | {key: value for key, value in found[0].place.items() if key == "gpu"},
        "versions": versions(),
    }
    distinct = {_said(part) for part in found}
    document["notes"] = notes(document, match.unreachable, places if len(distinct) > 1 else ())
    return document


def _done(work: Work, ray: str | None, workers: int, console: Console) -> Generator[Part, None, None]:
    """The parts of the work, as they are done."""
    count = len(work.split)
    if ray is not None:
        from edgeseg.evaluation.cluster import over_cluster

        yield from over_cluster(work, chunks(count, workers or 16), ray, workers, console)
    elif workers > 1:
        from edgeseg.evaluation.processes import over_processes

        yield from over_processes(work, chunks(count, workers), workers)
    else:
        with opened(work) as worker:
            for part in chunks(count, 1):
                yield worker.count(part)


def _said(part: Part) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(part.place.items()))


def _targets(match: Matching) -> list[str | None]:
    return [match.names[index] if index < len(match.names) else None for index in match.table]
