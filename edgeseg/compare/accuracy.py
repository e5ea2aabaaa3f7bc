"""Whether accuracy changed, from the pixel counts of the same labelled frames under two engines.

Both engines saw the same frames, and most of what makes a frame hard is hard for both. So the difference is resampled,
not the two scores: each resample draws the same blocks of neighbouring frames for both (paired block bootstrap;
Carlstein 1986 for the blocks, Politis and White 2004 for their length, here taken from the series of differences).
Its spread, with Student's t for the few blocks that a short video gives, says how the difference would vary on other
frames like these. Without counts of frames there is nothing to resample, and only equality can be told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.compare.chance import Estimate
from edgeseg.compare.values import chosen_engine, kind_of
from edgeseg.errors import BadInput
from edgeseg.measure.bootstrap import block_length, blocks, draws, influence, iou

RESAMPLES = 2000
LEAST_BLOCKS = 10
Array = NDArray[np.float64]
_SLACK = 1e-3  # points by which the sum of the frames may miss the document's own number


def other_frames(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Why two documents of eval or build are not of the same labelled frames; None if they are."""
    if kind_of(before) == "build":
        # Builds state a digest since they state counts of frames; before, how many frames of which split.
        judged = [dict(one.get("evaluation") or {}) for one in (before, after)]
        digests = [one.pop("digest", None) for one in judged]
        if judged[0] != judged[1]:
            return "other frames: evaluation differs"
        if None not in digests and digests[0] != digests[1]:
            return "other data: the data digests differ"
    else:
        digests = [(one.get("data") or {}).get("digest") for one in (before, after)]
        if None in digests or digests[0] != digests[1]:
            return "other data: the data digests differ" if None not in digests else "the data digest is missing"
    frames = [one.get("per_frame") for one in (before, after)]
    if frames[0] and frames[1] and list(frames[0]["names"]) != list(frames[1]["names"]):
        return "other frames: the frames' names differ"
    return None


def uncounted(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Why documents on the same frames cannot be resampled; None if they can."""
    for one in (before, after):
        if not counted(one)["per_frame"]:
            what = "build" if kind_of(one) == "build" else "evaluate"
            return f"no counts per frame: {what} again with this edgeseg"
    return None


def counted(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """An eval document; of a build the chosen engine's scores and counts, in the words of one."""
    if kind_of(document) != "build":
        return document if document.get("per_frame") else {**document, "per_frame": None}
    engine = chosen_engine(document)
    frames = document.get("per_frame") or {}
    # In the counts' order of classes: a bundle's manifest has its keys sorted.
    iou = engine.get("iou") or {}
    own = (frames.get("engines") or {}).get(document["chosen"])
    return {
        "miou": engine.get("miou"),
        "iou": {name: iou[name] for name in document["classes"] if name in iou},
        "per_frame": own and {"names": frames["names"], "sequences": frames["sequences"], **own},
    }


def accuracy(before: Mapping[str, Any], after: Mapping[str, Any], where: str, seed: int = 0) -> dict[str, Estimate]:
    """The change of every metric that frames' counts give, in points of 100, for documents on the same frames.

    Of eval or, by what was chosen, of build. Fewer than two blocks give no estimate. Raises BadInput, naming `where`,
    if counts are not those of the scores.
    """
    before, after = counted(before), counted(after)
    classes = list(before["iou"])
    sides = [_counts(document, classes, where) for document in (before, after)]
    sequences = list(before["per_frame"]["sequences"])
    found = _changes(sides[0], sides[1], sequences, classes, seed)
    for name in dict.fromkeys(sequences) if len(set(sequences)) > 1 else ():
        rows = np.array([one == name for one in sequences])
        part = _changes(sides[0][:, rows], sides[1][:, rows], [name] * int(rows.sum()), classes, seed)
        if "miou" in part:
            found[f"sequence.{name}.miou"] = part["miou"]
    bands = [one["per_frame"].get("boundary") or {} for one in (before, after)]
    for width in bands[0].keys() & bands[1].keys():
        near = [_counts(document, classes, where, width) for document in (before, after)]
        part = _changes(near[0], near[1], sequences, classes, seed)
        if "miou" in part:
            found[f"boundary.{width}.miou"] = part["miou"]
    return found


def _changes(a: Array, b: Array, sequences: list[str], classes: list[str], seed: int) -> dict[str, Estimate]:
    """`a`, `b`: (3, N, C) true positives, false positives, false negatives."""
    numbers = blocks(sequences, _length(a, b, sequences))
    count = int(numbers.max(initial=-1)) + 1
    names = ["miou", "pixel_accuracy", "dice", *(f"iou.{name}" for name in classes)]
    whole = _scores(b.sum(axis=1)) - _scores(a.sum(axis=1))
    if not a.shape[1] or (count < 2 and not np.array_equal(a, b)):
        return {}
    if np.array_equal(a, b):
        return {name: Estimate(0.0) for name, known in zip(names, ~np.isnan(whole), strict=True) if known}
    drawn = []
    for part in range(RESAMPLES // 250):  # in parts: 2000 weights for each of many frames would not fit
        weights = draws(numbers, 250, seed + part).astype(np.float64)
        drawn.append(_scores(np.stack([weights @ side for side in b])) - _scores(np.stack([weights @ s for s in a])))
    resampled = np.concatenate(drawn)
    found = {}
    for column, name in enumerate(names):
        known = resampled[~np.isnan(resampled[:, column]), column]
        if math.isnan(whole[column]) or len(known) < RESAMPLES // 2:
            continue  # a class that neither engine saw, or that too few blocks hold
        # The bootstrap's variance divides by the blocks, not by one less.
        error = float(known.std()) * math.sqrt(count / (count - 1))
        found[name] = Estimate(float(whole[column]), error, count - 1)
    return found


def _length(a: Array, b: Array, sequences: list[str]) -> int:
    """Frames per block: the longest that the difference in mIoU or in the IoU of any class asks for.

    From a short series the rule often asks for too short blocks, and these promise too much; one length for all metrics
    by the longest errs on the safe side. But at least `LEAST_BLOCKS` should remain to be drawn.
    """
    series = [influence(*b) - influence(*a)]
    for c in range(a.shape[2]):
        series.append(influence(*b[:, :, [c]]) - influence(*a[:, :, [c]]))
    longest = max(block_length(sequences, one) for one in series)
    return max(1, min(longest, int(a.shape[1]) // LEAST_BLOCKS))


def _scores(sums: Array) -> Array:
    """(3, …, C) counts -> (…, 3 + C) mIoU, pixel accuracy, Dice, IoU of each class, in points; NaN where unknown."""
    tp, fp, fn = sums
    each = iou(tp, fp, fn)
    total, double = (tp + fn).sum(axis=-1), 2 * tp + fp + fn
    dice = np.divide(2 * tp, double, out=np.full(tp.shape, np.nan), where=double > 0)
    right = np.divide(tp.sum(axis=-1), total, out=np.full(total.shape, np.nan), where=total > 0)
    found: Array = 100 * np.concatenate([np.stack([_mean(each), right, _mean(dice)], axis=-1), each], axis=-1)
    return found


def _mean(each: Array) -> Array:
    """Over the classes that are known; NaN where none is."""
    known = ~np.isnan(each)
    count = known.sum(axis=-1)
    summed = np.where(known, each, 0.0).sum(axis=-1)
    found: Array = np.divide(summed, count, out=np.full(summed.shape, np.nan), where=count > 0)
    return found


def _counts(document: Mapping[str, Any], classes: list[str], where: str, width: str | None = None) -> Array:
    """(3, N, C), classes in this order, whatever the document's is; near boundaries where a `width` is given."""
    frames, of = document["per_frame"], document
    key, prefix = "per_frame", ""
    counted_there = frames
    if width is not None:
        key, prefix = f"per_frame.boundary.{width}", f"boundary.{width}."
        counted_there, of = frames["boundary"][width], (document.get("boundary") or {}).get(width) or {"iou": {}}
    try:
        counts = np.stack([np.asarray(counted_there[name], np.float64) for name in ("tp", "fp", "fn")])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{where}, {key}: wanted tp, fp and fn of equal size ({error!r}).") from error
    shape = (3, len(frames["names"]), len(document["iou"]))
    if counts.shape != shape or len(frames["sequences"]) != shape[1] or (counts < 0).any():
        raise BadInput(f"{where}, {key}: wanted counts of shape {shape}, none negative, came {counts.shape}.")
    scores, own = _scores(counts.sum(axis=1)), list(document["iou"])
    told = {"miou": of.get("miou"), **{f"iou.{name}": of["iou"].get(name) for name in own}}
    for name, found, said in zip(told, [scores[0], *scores[3:]], told.values(), strict=True):
        if said is not None and not math.isclose(found, 100 * said, abs_tol=_SLACK):
            raise BadInput(
                f"{where}, {key}: its frames give {found:.3f} points of {prefix}{name}, the key {prefix}{name} says "
                f"{100 * said:.3f}. The file was changed by hand or mixed from two; evaluate again."
            )
    return counts[:, :, [own.index(name) for name in classes]]
