"""Single steps that run for every frame or every tensor, next to the obvious way to write them, interleaved."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import update
from calibration.seen import BINS
from edgeseg.backends.decide import decide
from edgeseg.measure.agreement import Agreement, agreement
from edgeseg.measure.confusion import confusion
from edgeseg.measure.latency import interleave
from edgeseg.types import Floats, Mask, Masks

CLASSES, IGNORED = 12, 255
CHANNELS = 32  # of the activations to calibrate on


def confusion_by_mask(prediction: Mask, label: Mask) -> NDArray[np.int64]:
    """The usual lines: leave out what is ignored, count label * classes + prediction."""
    known = label != IGNORED
    pairs = CLASSES * label[known].astype(np.int64) + prediction[known]
    return np.bincount(pairs, minlength=CLASSES * CLASSES).reshape(CLASSES, CLASSES)


def decide_by_argmax(scores: Floats) -> Masks:
    classes: Masks = scores.argmax(axis=1).astype(np.uint8)
    return classes


def histogram(values: Floats) -> tuple[float, float, NDArray[np.int64]]:
    low, high = float(values.min()), float(values.max())
    return low, high, np.histogram(values, BINS, (low, high))[0]


def agreement_by_shifts(one: Mask, other: Mask) -> Agreement:
    """The band of two pixels from 24 shifted comparisons."""
    height, width = one.shape
    band = np.zeros(one.shape, np.bool_)
    padded = np.pad(one, 2, mode="edge")
    for down in range(5):
        for right in range(5):
            band |= padded[down : down + height, right : right + width] != one
    same = one == other
    return Agreement(one.size, int(same.sum()), int(band.sum()), int((same & band).sum()))


def measure(height: int, width: int, rounds: int) -> list[dict[str, Any]]:
    """Median microseconds of ours and of the alternative, whose answers are compared before."""
    chance = np.random.default_rng(0)
    coarse = chance.standard_normal((1, CLASSES, -(-height // 24), -(-width // 24))).astype(np.float32)
    smooth = np.ascontiguousarray(coarse.repeat(24, axis=2).repeat(24, axis=3)[..., :height, :width])
    noise = chance.standard_normal(smooth.shape).astype(np.float32)
    scores = smooth + np.float32(0.2) * noise
    first, second = decide(scores)[0], decide(scores + np.float32(0.1) * noise[:, ::-1])[0]
    label = np.where(chance.random(first.shape) < 0.05, IGNORED, second).astype(np.uint8)
    activations = np.maximum(chance.standard_normal((1, CHANNELS, height, width)), 0).astype(np.float32)

    assert np.array_equal(confusion(first, label, CLASSES, IGNORED), confusion_by_mask(first, label))
    assert np.array_equal(decide(scores), decide_by_argmax(scores))
    assert agreement(first, second) == agreement_by_shifts(first, second)
    assert update(None, activations).maximum == histogram(activations)[1]
    pairs: dict[str, tuple[Callable[[], object], str, Callable[[], object]]] = {
        "confusion": (
            lambda: confusion(first, label, CLASSES, IGNORED),
            "np.bincount with a mask",
            lambda: confusion_by_mask(first, label),
        ),
        "decide": (lambda: decide(scores), "np.argmax", lambda: decide_by_argmax(scores)),
        "calibration.update": (lambda: update(None, activations), "np.histogram", lambda: histogram(activations)),
        "agreement": (
            lambda: agreement(first, second),
            "24 shifted comparisons",
            lambda: agreement_by_shifts(first, second),
        ),
    }
    elements = {"calibration.update": activations.size, "decide": scores.size}
    rows = []
    for name, (ours, alternative, theirs) in pairs.items():
        times = interleave({"ours": ours, "theirs": theirs}, rounds=rounds, warmup=2)
        mine, other = (statistics.median(times[key]) for key in ("ours", "theirs"))
        size = elements.get(name, first.size)
        row = {"step": name, "alternative": alternative, "elements": size}
        rows.append(row | {"us": mine / 1e3, "alternative_us": other / 1e3, "ns_per_element": mine / size})
    return rows
