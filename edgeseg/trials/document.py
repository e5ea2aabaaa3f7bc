"""The document of a build: what was measured, in the words of the JSON that travels in the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibration import ScaleTable
from edgeseg.backends import Engine
from edgeseg.data.reader import Reading
from edgeseg.data.sequences import in_order
from edgeseg.measure.confusion import scores
from edgeseg.measure.evaluate import Accuracy

# Numbers of single frames in a document at most: two engines on 500 frames of 19 classes. A bundle is read whenever it
# is opened, and on a device that should stay quick.
MOST_COUNTS = 60_000


def points(accuracy: Mapping[str, Accuracy], names: Sequence[str]) -> dict[str, float]:
    """Accuracy of each engine in points of 100: mIoU where frames are labelled, else agreement with FP32."""
    return {
        engine: 100 * (scores(found.matrix, names).miou if found.labelled else found.agreement.overall)
        for engine, found in accuracy.items()
    }


def worst_class(accuracy: Mapping[str, Accuracy], engine: str, names: Sequence[str]) -> tuple[str, float] | None:
    """The class that loses most IoU against the first engine evaluated, and how many points; None without labels."""
    first = next(iter(accuracy.values()), None)
    if first is None or engine not in accuracy or not accuracy[engine].labelled:
        return None
    before, after = scores(first.matrix, names).iou, scores(accuracy[engine].matrix, names).iou
    drops = {name: 100 * (value - (after[name] or 0.0)) for name, value in before.items() if value is not None}
    return max(drops.items(), key=lambda drop: drop[1]) if drops else None


def engine_row(
    engine: Engine,
    latency: Mapping[str, Any],
    accuracy: Accuracy | None,
    names: Sequence[str],
    built: Mapping[str, Any] | None = None,
    placement: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One engine: what it is, how fast, how accurate; where it was built here, what was read back from it.

    `placement`: of one in INT8, what runs in it and what in float, and why.
    """
    row: dict[str, Any] = {
        "name": engine.name,
        "backend": engine.backend,
        "precision": engine.precision,
        "settings": dict(engine.settings),
        "bytes": sum(map(len, engine.files.values())),
        "latency_ms": dict(latency),
        "agreement": None,
        "boundary_agreement": None,
        "miou": None,
        "built": None if built is None else dict(built),
        "placement": None if placement is None else dict(placement),
    }
    if accuracy is not None:
        row["agreement"] = accuracy.agreement.overall
        row["boundary_agreement"] = accuracy.agreement.boundary
        if accuracy.labelled:
            row |= scores(accuracy.matrix, names).to_json()
    return row


def calibration_row(table: ScaleTable, reading: Reading) -> dict[str, Any]:
    """What was calibrated on."""
    return {
        "frames": table.frames,
        "split": reading.split.name,
        "skipped": [{"name": s.name, "reason": s.reason} for s in reading.skipped],
        "recipe": {"name": table.recipe.name, "digest": table.recipe.digest},
        "tensors": len(table.tensors),
        "model": table.model,
        "data": table.data,
    }


def evaluation_row(accuracy: Mapping[str, Accuracy], reading: Reading) -> dict[str, Any]:
    """What the accuracy was measured on."""
    first = next(iter(accuracy.values()))
    return {
        "frames": first.frames,
        "labelled": first.labelled,
        "split": reading.split.name,
        "digest": reading.split.digest(reading.indices, labels=True),
        "skipped": [{"name": s.name, "reason": s.reason} for s in reading.skipped],
    }


def per_frame_row(accuracy: Mapping[str, Accuracy], reading: Reading, chosen: str) -> dict[str, Any] | None:
    """Counts of each labelled frame for the first engine evaluated (FP32) and the chosen one, frames in their order.

    With them two builds are compared frame by frame. None without labels, and where they would be more than MOST_COUNTS
    numbers.
    """
    names = dict.fromkeys((next(iter(accuracy)), chosen))
    kept = {name: accuracy[name].per_frame for name in names if name in accuracy}
    first = kept.get(chosen)
    if first is None or sum(one.counts.size for one in kept.values() if one is not None) > MOST_COUNTS:
        return None
    videos = dict(zip(reading.split.names, reading.split.sequences, strict=True))
    sequences = [videos[name] for name in first.names]
    order = list(in_order(first.names, sequences))
    return {
        "names": [first.names[k] for k in order],
        "sequences": [sequences[k] for k in order],
        "engines": {
            name: dict(zip(("tp", "fp", "fn"), one.counts[:, order].tolist(), strict=True))
            for name, one in kept.items()
            if one is not None and one.names == first.names
        },
    }
