"""The calibration set of a build: which frames, whether they look right to the network, and whether they are enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import ScaleTable
from edgeseg import __version__, cache, quantize
from edgeseg.backends.onnxruntime import inference_session, probe
from edgeseg.console import Console
from edgeseg.data import Dataset, Reading, Split, fit, pick, read, to_size
from edgeseg.data.sample import Picked, calibration_frames
from edgeseg.errors import CannotTell, DatasetError, ModelError
from edgeseg.measure.confusion import Confusion, confusion, scores
from edgeseg.measure.convergence import Convergence, Snapshots, convergence
from edgeseg.measure.mismatch import FRAMES, Look, Mismatch, decisiveness, mismatch
from edgeseg.pipeline.preprocessing import with_input
from edgeseg.types import FRAME, LOGITS, MASK, InputSpec, Mask, ModelSpec, OnnxModel, Pixels, Sample

INDENT = " " * 11


def sampled(
    split: Split,
    count: int,
    spec: ModelSpec,
    *,
    fp32: OnnxModel | None = None,
    among: Sequence[int] | None = None,
    use_cache: bool,
    console: Console,
) -> tuple[Reading, Picked]:
    """The frames to calibrate on, and what is known of them; without labels classes are told by `fp32`, if given.

    They come in an order in which the first quarter, half and so on are spread over the set too: what more frames
    change then shows, and no moving average depends on how a video begins.
    """
    with console.step("sample") as step:
        if fp32 is not None and not split.has_labels:
            masks = _masks(fp32)
            picked = calibration_frames(
                split, count, spec=spec, predicted=masks, model=fp32.digest, among=among, use_cache=use_cache
            )
        else:
            picked = calibration_frames(split, count, spec=spec, among=among, use_cache=use_cache)
        step.note = _summary(picked, split)
    for note in picked.notes:
        console.say(f"{INDENT}{note}")
    return read(split, in_turn(picked.indices), color=spec.input.frame, labels=False), picked


def in_turn(indices: Sequence[int]) -> list[int]:
    """The same indices, each as far as it can be from those before it (van der Corput's order).

    >>> in_turn([10, 11, 12, 13, 14])
    [10, 14, 12, 11, 13]
    """
    bits = max(1, (len(indices) - 1).bit_length())
    ranks = sorted(range(1 << bits), key=lambda k: int(f"{k:0{bits}b}"[::-1], 2))
    return [indices[k] for k in ranks if k < len(indices)]


def preprocessing_checked(
    fp32: OnnxModel, reading: Reading, dataset: Dataset, *, use_cache: bool, console: Console
) -> Mismatch | None:
    """Whether other preprocessing looks better to the network on a few of these frames; None where none can be read."""
    indices = [reading.indices[k] for k in pick(len(reading), FRAMES)]
    classes = len(fp32.spec.output.classes)
    labelled = reading.split.has_labels and classes > 0
    digest = reading.split.digest(indices, labels=labelled)
    key = cache.key("mismatch", __version__, fp32.digest, repr(fp32.spec), digest, dataset.ignore_index)
    with console.step("preprocess") as step:
        samples: list[Sample] = []
        for index in indices:
            one = read(reading.split, [index], color=reading.color, labels=labelled)
            with suppress(DatasetError):  # one that cannot be read is named where all of them are
                samples += one
        if not samples:
            step.note = "not checked: none of the frames could be read"
            return None
        frames = [fit(sample.pixels, fp32.spec.input.size, fp32.spec.input.resize)[None] for sample in samples]
        known = _known(key) if use_cache else {}
        fresh = dict(known)

        def run(other: InputSpec) -> Look:
            if repr(other) not in fresh:
                graph = fp32.graph if other == fp32.spec.input else with_input(fp32.graph, fp32.spec.input, other)
                fresh[repr(other)] = _look(graph, frames, samples, fp32.spec, dataset)
            return fresh[repr(other)]

        try:
            found = mismatch(fp32.spec.input, run)
        except ModelError as error:  # a graph that edgeseg has not made
            step.note = f"not checked: {error}"
            return None
        if fresh != known:
            rows = {name: [look.decisiveness, look.miou] for name, look in fresh.items()}
            cache.store("mismatch", key, json.dumps(rows).encode())
        step.note = f"{found.sentence.removeprefix('preprocessing: ')}, on {len(frames)} frames"
    return found


def watched(reading: Reading) -> Snapshots:
    """What to give to `calibrate` as `watch`."""
    return Snapshots(len(reading))


def settled(
    snapshots: Snapshots, table: ScaleTable, dialects: Sequence[quantize.Dialect], console: Console
) -> Convergence:
    """Whether more frames would change the scales of these dialects; says so."""
    schemes = list(dict.fromkeys(dialect.activations for dialect in dialects))
    found = convergence(snapshots, table, schemes)
    console.say(f"{INDENT}{found.sentence}")
    return found


def calibration_notes(
    picked: Picked | None, found: Mismatch | None, converged: Convergence | None
) -> dict[str, dict[str, object] | None]:
    """The rows "coverage", "convergence" and "mismatch" of the report; None where that was not looked at."""
    return {
        "coverage": picked.to_json() if picked else None,
        "convergence": converged.to_json() | {"sentence": converged.sentence} if converged else None,
        "mismatch": found.to_json() | {"sentence": found.sentence} if found else None,
    }


def _look(graph: bytes, frames: Sequence[Pixels], samples: Sequence[Sample], spec: ModelSpec, dataset: Dataset) -> Look:
    classes = len(spec.output.classes)
    probabilities = spec.output.activation == "probabilities"
    try:
        seen = list(_decided(probe(graph, [MASK, LOGITS], frames), probabilities=probabilities))
    except ModelError:  # a network that decides itself has no scores
        seen = [(inside[MASK][0], None) for inside in probe(graph, [MASK], frames)]
    sure = [value for _, value in seen if value is not None]
    total: Confusion = np.zeros((classes, classes), np.int64)
    for (mask, _), sample in zip(seen, samples, strict=True):
        if sample.label is not None:
            total += confusion(to_size(mask, _shape(sample.label)), sample.label, classes, dataset.ignore_index)
    miou = None
    with suppress(CannotTell):  # no labels, or nothing but ignored pixels
        if classes:
            miou = scores(total, spec.output.classes).miou
    return Look(float(np.mean(sure)) if sure else None, miou)


def _decided(probed: Iterator[dict[str, NDArray[Any]]], *, probabilities: bool) -> Iterator[tuple[Mask, float | None]]:
    """One frame after the other, so that the scores of all of them are never held at once."""
    for inside in probed:
        yield inside[MASK][0], decisiveness(inside[LOGITS][0], probabilities=probabilities)


def _shape(label: Mask) -> tuple[int, int]:
    return label.shape[0], label.shape[1]


def _known(key: str) -> dict[str, Look]:
    stored = cache.load("mismatch", key)
    return {} if stored is None else {name: Look(*row) for name, row in json.loads(stored).items()}


def _masks(model: OnnxModel) -> Callable[[Pixels], Mask]:
    session = inference_session(model.graph)

    def masks(pixels: Pixels) -> Mask:
        (found,) = session.run([MASK], {FRAME: np.ascontiguousarray(pixels[None])})
        return np.asarray(found[0])

    return masks


def _summary(picked: Picked, split: Split) -> str:
    note = f"{len(picked.indices)} of {len(split)} frames of '{split.name}'"
    if not picked.coverage:
        return f"{note}; no labels, so classes are not known"
    shown = sum(row.frames > 0 for row in picked.coverage)
    how = "labels" if picked.known_by == "labels" else "the float network's masks"
    return f"{note}, {shown} of {len(picked.coverage)} classes by {how}"
