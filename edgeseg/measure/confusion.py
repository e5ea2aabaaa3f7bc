"""Accuracy on labelled frames: one confusion matrix, summed over the set, turned into scores once at the end.

Averaging IoU over images instead would weigh a class by how many images it happens to touch; it is a different number
(on one network and set: 46.7 against 57.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import BadInput, CannotTell, DatasetError, ModelError
from edgeseg.types import Mask

Confusion = NDArray[np.int64]  # (C, C): rows are labels, columns predictions, entries pixels


@dataclass(frozen=True, slots=True)
class Scores:
    """What a confusion matrix says; fractions from 0 to 1, by class name where there is one a class.

    With TP, FP and FN of a class in pixels of the whole set, ignored pixels left out:
    IoU = TP / (TP + FP + FN), Dice = 2 TP / (2 TP + FP + FN).
    A class that neither a label nor a prediction holds has no score: None, and it is left out of the means. A class
    that is predicted but never labelled, or labelled but never predicted, scores 0 and counts.
    """

    miou: float  # mean of IoU over the classes that have one
    pixel_accuracy: float  # correct pixels / labelled pixels
    dice: float  # mean of Dice over the same classes
    iou: Mapping[str, float | None]
    dice_per_class: Mapping[str, float | None]
    frequency: Mapping[str, float]  # share of the labelled pixels that are labelled so

    def to_json(self) -> dict[str, Any]:
        """A plain dict with the fields' names; None where a class is absent."""
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "dice": self.dice,
            "iou": dict(self.iou),
            "dice_per_class": dict(self.dice_per_class),
            "frequency": dict(self.frequency),
        }


def confusion(prediction: Mask, label: Mask, classes: int, ignore_index: int | None = None) -> Confusion:
    """Pixels by label (rows) and prediction (columns), int64 (classes, classes); sum matrices with `+`.

    Both masks are uint8 (H, W) of one size. Pixels labelled ignore_index do not count. Raises BadInput for different
    sizes, ModelError for a predicted value that is no class, DatasetError for a label neither class nor ignore_index.
    """
    if prediction.shape != label.shape:
        raise BadInput(
            f"The prediction is {prediction.shape} and the label {label.shape}; resize the prediction to the label's "
            "size, nearest, first (edgeseg.data.to_size)."
        )
    if prediction.dtype != np.uint8 or label.dtype != np.uint8:
        raise BadInput(f"Masks must be uint8, got a prediction of {prediction.dtype} and a label of {label.dtype}.")
    if not 1 <= classes <= 256:
        raise BadInput(f"8-bit masks hold 1 to 256 classes, got classes={classes}.")
    highest = int(prediction.max(initial=0))
    if highest >= classes:
        raise ModelError(
            f"The network predicts class {highest}, but there are {classes} classes (0 to {classes - 1}); its outputs "
            "and the data set's `classes` do not belong together."
        )
    counts = _count(prediction, label, classes)
    outside = int(counts[classes:].sum())  # rows of labels that are no class
    if outside:
        ignored = 0 if ignore_index is None else int(np.count_nonzero(label == ignore_index))
        if outside != ignored:
            values = [v for v in np.unique(label).tolist() if v >= classes and v != ignore_index]
            raise DatasetError(
                f"The label holds the value {values[0]}, but there are {classes} classes and ignore_index is "
                f"{ignore_index}; set ignore_index or [label_map] in DATASET.toml."
            )
    matrix = np.array(counts[:classes, :classes], dtype=np.int64)
    if ignore_index is not None and ignore_index < classes:
        matrix[ignore_index] = 0
    return matrix


def _count(prediction: Mask, label: Mask, classes: int) -> Confusion:
    """Pixels by label and prediction, with at least one more row for labels of `classes` and above."""
    if (classes + 1) * classes > 256:
        keys = (label.astype(np.uint16) << np.uint16(8)) | prediction
        counts: Confusion = np.bincount(keys.ravel(), minlength=65536).reshape(256, 256)
        return counts
    # One byte a pixel holds label and prediction. Counting two neighbouring bytes at a time halves the trips of
    # bincount's slow loop; each pair then adds to the histogram of its high and of its low byte.
    keys8 = np.minimum(label, np.uint8(classes))
    keys8 *= np.uint8(classes)
    keys8 += prediction
    keys8 = keys8.ravel()
    even = keys8.size // 2 * 2
    pairs = np.bincount(keys8[:even].view(np.uint16), minlength=65536).reshape(256, 256)
    counts = pairs.sum(axis=0) + pairs.sum(axis=1)
    if even < keys8.size:
        counts[keys8[-1]] += 1
    return counts[: (classes + 1) * classes].reshape(classes + 1, classes)


def scores(matrix: Confusion, class_names: Sequence[str]) -> Scores:
    """The scores of a summed confusion matrix (C, C). CannotTell if it holds no pixel.

    A matrix (C, C + 1) has a last column for predictions that are none of these classes: always wrong.

    The ship example: of 100 pixels 5 show a ship, and all are predicted background.

    >>> import numpy as np
    >>> ship = scores(np.array([[95, 0], [5, 0]]), ["background", "ship"])
    >>> ship.pixel_accuracy, ship.miou
    (0.95, 0.475)
    >>> {name: round(dice, 3) for name, dice in ship.dice_per_class.items()}
    {'background': 0.974, 'ship': 0.0}
    >>> round(ship.dice, 3)
    0.487

    Dice by its definition, 2|A and B| / (|A| + |B|), divides by the background's 95 labelled and 100 predicted pixels:
    190/195. The well-known write-up of this example divides by 200, all pixels of both images, for either class, and so
    gets 0.95 and a mean of 47.5 %, which equals the mean IoU only because of that.
    """
    count = len(class_names)
    if matrix.shape not in ((count, count), (count, count + 1)):
        raise BadInput(f"A confusion matrix of {matrix.shape} does not fit {count} class names.")
    total = int(matrix.sum())
    if total == 0:
        raise CannotTell("No labelled pixel was compared, so there is nothing to score; are all labels ignore_index?")
    true = matrix.diagonal().tolist()
    labelled = matrix.sum(axis=1).tolist()
    predicted = matrix.sum(axis=0)[:count].tolist()
    iou: dict[str, float | None] = {}
    dice: dict[str, float | None] = {}
    for name, tp, row, column in zip(class_names, true, labelled, predicted, strict=True):
        present = row + column > 0
        iou[name] = tp / (row + column - tp) if present else None
        dice[name] = 2 * tp / (row + column) if present else None
    return Scores(
        miou=_mean(iou),
        pixel_accuracy=sum(true) / total,
        dice=_mean(dice),
        iou=iou,
        dice_per_class=dice,
        frequency={name: row / total for name, row in zip(class_names, labelled, strict=True)},
    )


def _mean(values: Mapping[str, float | None]) -> float:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known)
