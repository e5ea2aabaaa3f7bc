"""The whole explanation, read top to bottom: a bundle and frames in, a document out.

bundle → variant, FP32 graph, deployed graph, engine → masks of many frames → layers on a few → flicker → document
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.backends import open_engine
from edgeseg.backends.onnxruntime import inference_session
from edgeseg.bundle import FP32, Bundle, Variant, read_bundle
from edgeseg.console import Console
from edgeseg.data import Reading, fit, load_dataset
from edgeseg.errors import BadInput, BundleError, MissingOnMachine, ModelError
from edgeseg.evaluation import class_names
from edgeseg.measure.agreement import Agreement, agreement
from edgeseg.measure.machine import machine, versions
from edgeseg.pipeline.engines import REWRITTEN
from edgeseg.pipeline.explain.damage import Budget, Ends, alone, damages, outputs, parts_alone, without
from edgeseg.pipeline.explain.emulate import Emulated, emulation_of
from edgeseg.pipeline.explain.frames import fitted, frames_to_see, video_frames
from edgeseg.pipeline.explain.masks import Judged, Run, flicker, judge
from edgeseg.pipeline.explain.pictures import gallery_rows
from edgeseg.pipeline.explain.placed import found_row
from edgeseg.pipeline.explain.rows import (
    end_cells,
    layer_rows,
    output_rows,
    placed_rows,
    rescaled,
    sentences,
    worst_first,
)
from edgeseg.pipeline.explain.transplant import Deployed
from edgeseg.pipeline.search.build import MIXED
from edgeseg.segmenter import engine_of
from edgeseg.types import FRAME, Frames, Mask, ModelSpec, Pixels

SCHEMA = "edgeseg.explain/1"
WORST = 5  # layers that are looked at more closely
SAME = 0.98  # agreement with the masks stored in the bundle, below which it is said
# Of the seconds allowed, when each part has to be over.
_MASKS_UNTIL, _FLICKER_UNTIL, _ALONE_UNTIL, _ALL_UNTIL = 0.4, 0.55, 0.85, 1.0


def explain(
    bundle: str | Path,
    *,
    data: str | Path | None = None,
    split: str = "val",
    variant: str | None = None,
    frames: int = 64,
    layer_frames: int = 4,
    video: str | None = None,
    gallery: int = 6,
    seconds: float = 60.0,
    threads: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Where the accuracy of a bundle's engine went: the document that `edgeseg explain --json` writes.

    `variant`: an engine of the bundle by name; by default the one handed over, or the first in INT8 if that has none.
    `data`, `split`: frames to compare FP32 with the engine on, `frames` of them at most, spread over the split; labels
    give mIoU. Without, the bundle's reference frames. `layer_frames`: of these, on how many layers are compared.
    `video`: a video for flicker, in the words of `edgeseg stream --source`; without, frames of the split that follow
    one another. `gallery`: how many of the frames that differ most are kept as pictures. `seconds`: after about so long
    the rest is left out, and that is said; a few frames and the worst-looking layers are always there.

    Raises BundleError, DatasetError, BadInput, and MissingOnMachine where neither the engine runs here nor its graph
    can be emulated.
    """
    if frames < 1 or layer_frames < 1 or gallery < 0 or not seconds > 0:
        raise BadInput(
            "frames and layer_frames are counts from 1, gallery from 0, seconds above 0; "
            f"{frames}, {layer_frames}, {gallery} and {seconds} came"
        )
    console = console or Console()
    budget = Budget(seconds)
    opened = read_bundle(Path(bundle))
    chosen = _variant(opened, variant)
    reference, compared_with = _reference(opened, chosen)
    spec, notes = opened.spec, list[str]()
    dataset = load_dataset(Path(data)) if data is not None else None
    names = class_names(spec, dataset)
    given = frames_to_see(opened, dataset, split, frames, layer_frames)

    emulated = emulation_of(opened, chosen, reference)
    notes += emulated.notes
    with ExitStack() as stack:
        exact = _exact(reference, spec)
        engine, why_not = _engine(stack, opened, chosen, threads)
        run = engine or _emulating(emulated, spec, why_not)
        if engine is None:
            notes.append(f"the engine cannot run here, so its masks are those of its graph in ONNX Runtime: {why_not}")
        else:
            notes += _stored(opened, chosen, engine)
        # Where nobody names the classes, as many as occur.
        judged = Judged(max(len(names), 2) if names else 256, dataset.ignore_index if dataset else None, worst=gallery)
        with console.step("masks") as step:
            judge(
                judged,
                console.track(given.samples, given.count, "masks"),
                exact,
                run,
                prepare=lambda pixels: fit(pixels, spec.input.size, spec.input.resize),
                ended=lambda: budget.spent(_MASKS_UNTIL),
            )
            step.note = f"{judged.frames} frames, {judged.labelled} of them labelled"
        skipped = given.samples.skipped if isinstance(given.samples, Reading) else []
        if not judged.frames:
            raise BadInput(f"none of the frames of '{split}' could be read: {skipped[0].reason if skipped else ''}")
        classes = judged.classes if names else judged.trimmed()
        names = (*names, *(f"class {index}" for index in range(len(names), classes)))
        if judged.frames + len(skipped) < given.count:
            notes.append(f"time was up after {judged.frames} of {given.count} frames; --seconds gives more")
        moving = _flicker(given.sequence, video, spec, {"fp32": exact, "deployed": run}, budget, console)
        layers = _layers(reference, emulated, chosen, given.close, spec, engine, budget, console, notes)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "bundle": spec.name,
        "variant": chosen.name,
        "backend": chosen.backend,
        "precision": chosen.precision,
        "reference": compared_with,
        "data": {"name": dataset.name, "split": split, "digest": given.digest} if dataset else None,
        "frames": judged.frames,
        "labelled": judged.labelled,
        "skipped": [asdict(one) for one in skipped],
        "classes": list(names),
        "agreement": judged.agreement_document(names),
        "miou": judged.miou_document(names),
        **layers,
        "flicker": moving,
        "gallery": gallery_rows(judged.gallery, opened, dataset, chosen.name),
        "notes": notes,
    }
    document["says"] = sentences(document)
    document["seconds"] = {name: round(took, 2) for name, took in console.seconds.items()}
    return {**document, "machine": machine(), "versions": versions()}


def _variant(opened: Bundle, name: str | None) -> Variant:
    """The one asked for; else the one handed over, unless only others are in INT8."""
    chosen = opened.variant(name)
    if name is None and chosen.precision != "int8":
        rewritten = chosen.name.startswith(REWRITTEN)
        for other in opened.variants:
            if other.precision == "int8" and other.name.startswith(REWRITTEN) == rewritten:
                return other
    return chosen


def _reference(opened: Bundle, chosen: Variant) -> tuple[bytes, str]:
    """The FP32 graph that a variant was made from, and what it is called."""
    if chosen.name.startswith(REWRITTEN) and f"{REWRITTEN}/{FP32}" in opened.files:
        return opened.files[f"{REWRITTEN}/{FP32}"], "the rewritten network's FP32 graph"
    if FP32 not in opened.files:
        raise BundleError("the bundle holds no FP32 graph to compare with. Build it again from the model.")
    return opened.files[FP32], "the bundle's FP32 graph"


def _exact(graph: bytes, spec: ModelSpec, optimization: str = "all") -> Run:
    session, ends = inference_session(graph, optimization), Ends(spec.output.score_threshold)
    wanted = [output.name for output in session.get_outputs()]

    def run(frame: Pixels) -> Mask:
        found = session.run(wanted, {FRAME: frame[None]})
        mask: Mask = ends.of(dict(zip(wanted, found, strict=True)))[0]
        return mask

    return run


def _engine(stack: ExitStack, opened: Bundle, chosen: Variant, threads: int) -> tuple[Run | None, str]:
    try:
        session = stack.enter_context(open_engine(engine_of(opened, chosen, {"threads": threads})))
    except (MissingOnMachine, ModelError) as error:
        return None, str(error)
    return lambda frame: session.run(frame[None])[0], ""


def _emulating(emulated: Emulated, spec: ModelSpec, why_not: str) -> Run:
    if emulated.graph is None:
        raise MissingOnMachine(f"the engine cannot run here, and it has no graph to emulate it by. {why_not}")
    return _exact(emulated.graph, spec, emulated.optimization)


def _stored(opened: Bundle, chosen: Variant, engine: Run) -> Iterator[str]:
    """A word where the engine does not give the masks that the bundle says it gave."""
    total = Agreement()
    for reference in opened.references:
        if chosen.name in reference.masks:
            total += agreement(reference.masks[chosen.name], engine(reference.frame))
    if total.pixels and total.overall < SAME:
        yield (
            f"the engine reproduces {100 * total.overall:.2f} % of the masks that the bundle stores of it: it is not "
            "what was built, or this machine computes otherwise"
        )


def _layers(
    reference: bytes,
    emulated: Emulated,
    chosen: Variant,
    frames: Sequence[Frames],
    spec: ModelSpec,
    engine: Run | None,
    budget: Budget,
    console: Console,
    notes: list[str],
) -> dict[str, Any]:
    """The part of the document about layers."""
    found: dict[str, Any] = {"layers": [], "float_layers": [], "whole": None, "layer_frames": 0, "placement": None}
    found["emulation"] = {"how": emulated.how, "agreement": None}
    if emulated.graph is None:
        return found
    try:
        deployed = Deployed(reference, emulated.graph)
    except ModelError as error:
        notes.append(f"no layer can be explained: {error}")
        return found
    ends = Ends(spec.output.score_threshold)
    quantizers = {q.node: q for layer in deployed.layers for q in layer.quantizers}
    named = {layer.node: deployed.outputs[layer.node] for layer in deployed.layers if layer.node in deployed.outputs}
    half = not deployed.layers
    with console.step("layers") as step:
        seen = outputs(
            reference,
            emulated.graph,
            deployed.outputs if half else named,
            list(quantizers.values()),
            frames,
            ends,
            emulated.optimization,
        )
        step.note = f"{len(seen.layers)} outputs on {len(frames)} frames"
    found["layer_frames"] = len(frames)
    found["whole"] = end_cells(seen.whole)
    if engine is not None:
        equal = [np.mean(engine(frame[0]) == mask[0]) for frame, mask in zip(frames, seen.masks, strict=True)]
        found["emulation"]["agreement"] = float(np.mean(equal))
    if half:
        found["layers"] = output_rows(deployed, seen)
        return found
    found["placement"] = _placement(reference, chosen, deployed, notes)
    nodes = worst_first(deployed, seen)
    with console.step("damage") as step, console.bar(len(nodes), "damage") as done:
        own = dict(
            damages(
                reference,
                reference,
                alone(deployed, nodes),
                frames,
                ends,
                ended=lambda: budget.spent(_ALONE_UNTIL),
                done=done,
            )
        )
        worst = sorted(own, key=lambda node: -own[node].rank)[:WORST]
        parts, rest = {}, {}

        def late() -> bool:
            return budget.spent(_ALL_UNTIL)

        if not late():
            parts = dict(damages(reference, reference, parts_alone(deployed, worst), frames, ends, ended=late))
        if not late():
            whole = frozenset(nodes)
            start = deployed.graph(whole)
            rest = dict(damages(reference, start, without(deployed, worst, whole), frames, ends, ended=late))
        step.note = f"{len(own)} of {len(nodes)} layers alone, {len(rest)} left out one at a time"
    if len(own) < len(nodes):
        notes.append(f"time was up after {len(own)} of {len(nodes)} layers; --seconds gives more")
    found["layers"] = placed_rows(layer_rows(deployed, seen, own, parts, rest), found["placement"])
    if rescaled(found["layers"]):
        notes.append(
            "most layers have other weights than the FP32 graph, as after equalization: what is said of one layer "
            "alone holds only if the graph that was quantized is the one compared with"
        )
    found["float_layers"] = list(deployed.floats)
    return found


def _placement(reference: bytes, chosen: Variant, deployed: Deployed, notes: list[str]) -> dict[str, Any] | None:
    """Which convolutions and edges are quantized, and why; None where the rules do not take the FP32 graph."""
    try:
        return found_row(reference, chosen.backend, deployed, searched=chosen.name.endswith(f"-{MIXED}"))
    except ModelError as error:
        notes.append(f"why layers run as they do is not known: {error}")
        return None


def _flicker(
    sequence: Reading | None,
    video: str | None,
    spec: ModelSpec,
    runs: Mapping[str, Run],
    budget: Budget,
    console: Console,
) -> dict[str, Any] | None:
    """None where there are no frames in a row."""
    if video is None and sequence is None:
        return None
    frames = video_frames(video, spec) if video is not None else fitted(sequence, spec)
    with console.step("flicker") as step:
        found = flicker(frames, runs, ended=lambda: budget.spent(_FLICKER_UNTIL))
        step.note = f"{found['pairs']} pairs of frames"
    return {"source": "video" if video is not None else "data", **found}
