"""What a split's frames add up to: one confusion matrix, the same near boundaries, and small counts for every frame.

Integers only, so that the sum over any division of the frames, in any order, is the same bit for bit. Memory: a few
numbers a class and frame, never masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeseg.data.prepare import to_size
from edgeseg.measure.agreement import boundary_band
from edgeseg.measure.confusion import Confusion, confusion
from edgeseg.types import Mask

BANDS = (1, 3, 5)  # pixels either side of a boundary between labels, at the labels' resolution


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """Of one labelled frame. Rows are labels, columns predictions, the last one for predictions of no class here."""

    matrix: Confusion  # int64 (C, C + 1)
    bands: NDArray[np.int64]  # int64 (len(BANDS), C, C + 1)


@dataclass(frozen=True, slots=True)
class Counts:
    """Of many labelled frames."""

    frames: NDArray[np.int64]  # (N,), numbers in the split
    tp: NDArray[np.int64]  # (N, C) pixels
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    matrix: Confusion  # (C, C + 1), summed
    bands: NDArray[np.int64]  # (len(BANDS), C, C + 1), summed
    near: NDArray[np.int64]  # (3, len(BANDS), N, C): tp, fp, fn of every frame within each band

    def chosen(self, order: Sequence[int]) -> Counts:
        """The same with the frames at these positions, in this order; the sums stay those of all."""
        rows = np.asarray(order, np.int64)
        return Counts(
            self.frames[rows],
            self.tp[rows],
            self.fp[rows],
            self.fn[rows],
            self.matrix,
            self.bands,
            self.near[:, :, rows],
        )


def frame_counts(prediction: Mask, label: Mask, classes: int, ignore_index: int | None, *, none: bool) -> FrameCounts:
    """Compare a class map uint8 (h, w) with a label uint8 (H, W); the map goes to the label's size by nearest.

    With `none` the value `classes` in the prediction means no class: wrong wherever the label is scored. Bands lie
    along every change of label, also to an ignored one; ignored pixels do not count. Raises as `confusion` does.
    """
    resized = to_size(prediction, (label.shape[0], label.shape[1]))
    everywhere = _matrix(resized, label, classes, ignore_index, none)
    bands = [_matrix(resized[near], label[near], classes, ignore_index, none) for near in _near(label)]
    return FrameCounts(everywhere, np.stack(bands))


def _near(label: Mask) -> Iterable[NDArray[np.bool_]]:
    return (boundary_band(label, width) for width in BANDS)


def _matrix(prediction: Mask, label: Mask, classes: int, ignore_index: int | None, none: bool) -> Confusion:
    if none:
        return confusion(prediction, label, classes + 1, ignore_index)[:classes]
    return np.pad(confusion(prediction, label, classes, ignore_index), ((0, 0), (0, 1)))


def gathered(frames: Sequence[int], seen: Sequence[FrameCounts], classes: int) -> Counts:
    """The counts of these frames, in this order; none are fine."""
    if not seen:
        return empty(classes)
    matrices = np.stack([one.matrix for one in seen])
    bands = np.stack([one.bands for one in seen], axis=1)  # (len(BANDS), N, C, C + 1)
    tp, fp, fn = _of_classes(matrices)
    near = np.stack(_of_classes(bands))
    return Counts(np.asarray(frames, np.int64), tp, fp, fn, matrices.sum(axis=0), bands.sum(axis=1), near)


def _of_classes(matrices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(…, C, C + 1) -> tp, fp, fn (…, C)."""
    tp = np.ascontiguousarray(np.diagonal(matrices, axis1=-2, axis2=-1))
    return tp, matrices[..., :-1].sum(axis=-2) - tp, matrices.sum(axis=-1) - tp


def empty(classes: int) -> Counts:
    """The counts of no frame."""
    none = np.zeros((0, classes), np.int64)
    shape = (classes, classes + 1)
    zero = np.zeros(shape, np.int64)
    bands, near = np.zeros((len(BANDS), *shape), np.int64), np.zeros((3, len(BANDS), 0, classes), np.int64)
    return Counts(np.zeros(0, np.int64), none, none, none, zero, bands, near)


def joined(parts: Sequence[Counts], classes: int) -> Counts:
    """All parts as one, frames in ascending order."""
    all_ = [empty(classes), *parts]
    whole = Counts(
        np.concatenate([part.frames for part in all_]),
        np.concatenate([part.tp for part in all_]),
        np.concatenate([part.fp for part in all_]),
        np.concatenate([part.fn for part in all_]),
        np.sum([part.matrix for part in all_], axis=0),
        np.sum([part.bands for part in all_], axis=0),
        np.concatenate([part.near for part in all_], axis=2),
    )
    return whole.chosen(np.argsort(whole.frames, kind="stable").tolist())
