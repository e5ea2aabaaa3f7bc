"""Frames to look at: what the labels say, what a bundle's network answered before, and what its engine answers now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeseg.bundle import Bundle, read_bundle
from edgeseg.data import fit, load_dataset, pick, read, to_size
from edgeseg.errors import BadInput, ModelError
from edgeseg.evaluation import Matching, matching
from edgeseg.measure.confusion import confusion, scores
from edgeseg.palette import Palette, palette_of
from edgeseg.segmenter import Segmenter, engine_of
from edgeseg.types import Mask, Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A frame, its true mask if there is one, and the masks of engines by name, the one to compare with first."""

    name: str
    frame: Pixels  # BGR (H, W, 3)
    masks: Mapping[str, Mask]  # uint8 (H, W)
    truth: Mask | None = None
    ignore_index: int | None = None
    miou: Mapping[str, float | None] = field(default_factory=dict)  # of this frame alone, 0 to 1


@dataclass(frozen=True, slots=True)
class Gallery:
    """Frames of one bundle, its class names, and the colours that classes have."""

    title: str
    frames: Sequence[Shown]
    classes: Sequence[str]
    palette: Palette


def references_of(bundle: Bundle) -> Gallery:
    """The frames that the bundle itself holds, with the masks it was built with; they have no truth."""
    frames = []
    for reference in bundle.references:
        bgr = bundle.spec.input.frame == "bgr"
        frame = reference.frame if bgr else np.ascontiguousarray(reference.frame[..., ::-1])
        masks = {"FP32": reference.mask, bundle.chosen: reference.masks.get(bundle.chosen, reference.mask)}
        frames.append(Shown(reference.name, frame, masks))
    return Gallery("Reference frames", frames, bundle.spec.output.classes, palette_of(bundle))


def gallery(
    path: str | Path, data: str | Path, *, split: str = "val", count: int = 4, names: Sequence[str] = ()
) -> Gallery:
    """Run a bundle's FP32 engine, if it has one, and its chosen one on labelled frames of a split.

    Shown are the frames of these `names`, say the worst of an evaluation, else `count` spread over the split. Masks and
    frames are at the labels' size. Raises BadInput for names that the split does not have, BundleError, DatasetError,
    MissingOnMachine, ModelError.
    """
    bundle = read_bundle(Path(path))
    dataset = load_dataset(data)
    frames = dataset.split(split)
    if strange := sorted(set(names) - set(frames.names)):
        raise BadInput(f"the split '{split}' of '{dataset.name}' has no frame called {', '.join(strange[:3])}")
    match = matching(bundle.spec, dataset)
    chosen = bundle.variant()
    before = next((v for v in bundle.variants if v.precision == "fp32" and not v.name.startswith("rewritten-")), None)
    wanted = {v.name: v for v in (before, chosen) if v is not None}
    indices = [frames.names.index(name) for name in names] or pick(len(frames), count)
    found = []
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(Segmenter(engine_of(bundle, variant), bundle.spec))
            for name, variant in wanted.items()
        }
        for sample in read(frames, indices, labels=frames.has_labels):
            truth = sample.label
            size = (truth if truth is not None else sample.pixels).shape[:2]
            rgb = bundle.spec.input.frame == "rgb"
            given = np.ascontiguousarray(sample.pixels[..., ::-1]) if rgb else sample.pixels
            masks = {name: to_size(_meant(engine.native(given), match), size) for name, engine in engines.items()}
            scored = {}
            if truth is not None:
                scored = {name: _miou(mask, truth, match, dataset.ignore_index) for name, mask in masks.items()}
            shown = Shown(sample.name, fit(sample.pixels, size), masks, truth, dataset.ignore_index, scored)
            found.append(shown)
    return Gallery(f"Frames of “{split}”", found, match.names, dataset.palette or palette_of(bundle))


def _meant(mask: Mask, match: Matching) -> Mask:
    """The mask in the data set's classes; what is none of them is one more."""
    if not match.table:
        return mask
    if (highest := int(mask.max(initial=0))) >= len(match.table):
        raise ModelError(f"The network predicts class {highest}, but its spec names {len(match.table)} classes.")
    meant: Mask = np.array(match.table, np.uint8)[mask]
    return meant


def _miou(mask: Mask, truth: Mask, match: Matching, ignore_index: int | None) -> float | None:
    classes = len(match.names)
    matrix = confusion(mask, truth, classes + match.none, ignore_index)[:classes]
    return scores(matrix, match.names).miou if matrix.sum() else None
