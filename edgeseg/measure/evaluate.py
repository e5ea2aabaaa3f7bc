"""Several engines over one labelled split, in one pass: confusion matrices, and agreement with the first of them.

Frames are read once and dropped at once: memory does not grow with the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeseg.data.prepare import to_size
from edgeseg.measure.agreement import Agreement, agreement
from edgeseg.measure.confusion import confusion
from edgeseg.types import Mask, Pixels, Sample


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """Of each labelled frame, at the labels' resolution: what two engines on the same frames are compared by."""

    names: tuple[str, ...]  # N, in the order in which they were read
    counts: NDArray[np.int64]  # (3, N, C): true positives, false positives, false negatives, in pixels


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What one engine did on a split.

    `matrix`: int64 (C, C), rows are labels, columns predictions, summed over all labelled frames at the labels'
    resolution. `agreement`: with the reference engine, at the network's resolution. `frames`, `labelled`: how many.
    `per_frame`: None where no frame was labelled, or nobody kept them.
    """

    matrix: NDArray[np.int64]
    agreement: Agreement
    frames: int
    labelled: int
    per_frame: FrameCounts | None = None

    def __add__(self, other: Accuracy) -> Accuracy:
        """The sums; counts of single frames are not kept."""
        return Accuracy(
            self.matrix + other.matrix,
            self.agreement + other.agreement,
            self.frames + other.frames,
            self.labelled + other.labelled,
        )


def evaluate(
    runs: Mapping[str, Callable[[Pixels], Mask]],
    samples: Iterable[Sample],
    *,
    prepare: Callable[[Pixels], Pixels],
    classes: int,
    ignore_index: int | None,
) -> dict[str, Accuracy]:
    """Accuracy of each run (prepared frame → mask); the first is the reference for agreement.

    `prepare` brings a frame to the network's input size. Class maps go to the labels' resolution by nearest neighbour.
    """
    total: dict[str, Accuracy] = {}
    names: list[str] = []
    counts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in runs}
    for sample in samples:
        frame = prepare(sample.pixels)
        masks = {name: run(frame) for name, run in runs.items()}
        reference = next(iter(masks.values()))
        if sample.label is not None:
            names.append(sample.name)
        for name, mask in masks.items():
            matrix = np.zeros((classes, classes), np.int64)
            if sample.label is not None:
                resized = to_size(mask, (sample.label.shape[0], sample.label.shape[1]))
                matrix = confusion(resized, sample.label, classes, ignore_index)
                right = matrix.diagonal()
                counts[name].append(np.stack([right, matrix.sum(axis=0) - right, matrix.sum(axis=1) - right]))
            seen = Accuracy(matrix, agreement(reference, mask), 1, int(sample.label is not None))
            total[name] = total[name] + seen if name in total else seen
    if not names:
        return total
    kept = {name: FrameCounts(tuple(names), np.stack(counts[name], axis=1)) for name in total}
    return {name: replace(found, per_frame=kept[name]) for name, found in total.items()}
