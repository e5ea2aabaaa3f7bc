"""How much accuracy may be lost, what was lost, and how sure that is: pure numbers from confusion matrices by frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import BadInput

Matrices = NDArray[np.int64]  # (F, C, C): by frame; rows are labels, columns predictions
_Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Floor:
    """What may be lost against FP32, in points of 100.

    `max_drop`: of mean IoU, or of agreement where frames have no labels. `max_class_drop`: of the IoU of any class.
    `margin`: standard errors by which a loss must stay below what is allowed. A choice that just passes on a sample of
    frames fails on every other sample as often as not; 0 takes the sample at its word.
    """

    max_drop: float
    max_class_drop: float | None = None
    margin: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_drop", "max_class_drop", "margin"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise BadInput(f"{name} is a number from 0; {value} came")

    def short(self, outcome: Outcome) -> float:
        """Points beyond what is allowed, the worse of both sides: 0 or less meets the floor."""
        sides = [outcome.drop + self.margin * outcome.error - self.max_drop]
        if self.max_class_drop is not None:
            sides += [
                drop + self.margin * error - self.max_class_drop
                for drop, error in zip(outcome.class_drops, outcome.class_errors, strict=True)
                if drop is not None and error is not None
            ]
        return max(sides)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a network loses against FP32 on the selection frames. Points of 100."""

    accuracy: float
    drop: float
    error: float  # standard error of `drop`
    class_drops: tuple[float | None, ...]  # of IoU; None for a class that does not occur
    class_errors: tuple[float | None, ...]

    @property
    def worst_class(self) -> int | None:
        """The class that loses most."""
        known = [(drop, -index) for index, drop in enumerate(self.class_drops) if drop is not None]
        return -max(known)[1] if known else None

    def to_json(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "drop": self.drop,
            "error": self.error,
            "class_drops": list(self.class_drops),
            "class_errors": list(self.class_errors),
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Outcome:
        drops, errors = tuple(row["class_drops"]), tuple(row["class_errors"])
        return cls(float(row["accuracy"]), float(row["drop"]), float(row["error"]), drops, errors)


def outcome(fp32: Matrices, other: Matrices, *, overall: bool = False) -> Outcome:
    """What `other` loses against `fp32` on the same frames: int64 (F, C, C) each.

    Mean IoU of the summed matrices, or with `overall` the share of pixels on the diagonal. Standard errors are the
    jackknife's (Efron and Stein 1981): each frame left out in turn, losses of both networks paired. With one frame
    they are 0. Raises ValueError for matrices that do not belong together.
    """
    if fp32.shape != other.shape or fp32.ndim != 3 or not len(fp32):
        raise ValueError(f"matrices (F, C, C) of the same frames were wanted, got {fp32.shape} and {other.shape}")
    before, after = _figures(fp32.sum(0)[None], overall), _figures(other.sum(0)[None], overall)
    drops = (before - after)[0]
    errors = np.zeros(len(drops))
    count = len(fp32)
    if count > 1:
        left = _figures(fp32.sum(0) - fp32, overall) - _figures(other.sum(0) - other, overall)
        # Without the one frame that has it a class has no figure: the loss is then as sure as that frame alone.
        left = np.where(np.isnan(left), 0.0, left)
        errors = np.sqrt((count - 1) / count * np.square(left - left.mean(0)).sum(0))
    known = [None if math.isnan(drop) else float(drop) for drop in drops[1:]]
    spread = [None if drop is None else float(error) for drop, error in zip(known, errors[1:], strict=True)]
    return Outcome(float(after[0, 0]), float(drops[0]), float(errors[0]), tuple(known), tuple(spread))


def _figures(matrices: Matrices, overall: bool) -> _Numbers:
    """Points of 100, float64 (F, 1 + C): the mean, then the IoU of each class; NaN where there is nothing to count."""
    true = np.diagonal(matrices, axis1=1, axis2=2).astype(np.float64)
    union = matrices.sum(1) + matrices.sum(2) - true
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(union > 0, true / union, np.nan)
        if overall:
            mean = true.sum(1) / matrices.sum((1, 2))
        else:
            present = np.count_nonzero(union > 0, axis=1)
            mean = np.nansum(iou, axis=1) / present
    figures: _Numbers = 100 * np.concatenate([mean[:, None], iou], axis=1)
    return figures
