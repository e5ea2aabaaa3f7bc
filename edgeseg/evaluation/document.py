"""What counts say, as the parts of the document that `eval --json` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.data import Split
from edgeseg.data.sequences import in_order
from edgeseg.errors import CannotTell
from edgeseg.measure.bootstrap import block_length, blocks, draws, influence, interval, iou
from edgeseg.measure.confusion import scores
from edgeseg.measure.counts import BANDS, Counts

LEVEL = 0.95
RESAMPLES = 2000
WORST = 10
FEW_BLOCKS = 6
MOST_NEAR = 200_000  # numbers of single frames near boundaries that a document holds; beyond, their sums only


def parts(counts: Counts, split: Split, names: Sequence[str], block: int | None = None) -> dict[str, Any]:
    """Scores, counts of each frame, intervals, sequences, boundary bands, confusion matrix and worst frames.

    `block`: frames per block of the resampling, by default from the data (`bootstrap.block_length`). Raises CannotTell
    if no labelled pixel was compared.
    """
    whole = scores(counts.matrix, names)
    sequences = split.sequences
    counts = counts.chosen(
        in_order([split.names[k] for k in counts.frames.tolist()], [sequences[k] for k in counts.frames.tolist()])
    )
    frames = counts.frames.tolist()
    of = [sequences[k] for k in frames]
    labels = [split.names[k] for k in frames]
    width = len(names)
    drawn = _resampling(counts, of, block)
    return {
        **whole.to_json(),
        "frames": len(frames),
        "per_frame": {
            "names": labels,
            "sequences": of,
            "tp": counts.tp.tolist(),
            "fp": counts.fp.tolist(),
            "fn": counts.fn.tolist(),
            "boundary": _near(counts) if counts.near.size <= MOST_NEAR else None,
        },
        "intervals": intervals(counts, names, drawn),
        "sequences": _sequences(counts, of, names),
        "boundary": {
            str(band): _band(matrix, names) | {"interval": _interval_near(counts.near[:, at], drawn)}
            for at, (band, matrix) in enumerate(zip(BANDS, counts.bands, strict=True))
        },
        "confusion": counts.matrix[:, :width].tolist(),
        "unassigned": counts.matrix[:, width].tolist(),
        "worst_frames": _worst(counts, labels),
    }


@dataclass(frozen=True, slots=True)
class Resampling:
    """Which frames are drawn together, and how often each block is in every resample: the same for all metrics."""

    length: int  # frames a block, at most
    given: bool  # by the caller, not by the data
    starts: NDArray[np.int64]  # the first frame of each block
    weights: NDArray[np.float64]  # (RESAMPLES, blocks)

    def summed(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Counts (N, C) of all resamples (RESAMPLES, C).

        Summed by block first: the same draws as for single frames, and far fewer products. In floating point, where
        whole numbers below 2**53 are exact, because that is many times as fast.
        """
        found: NDArray[np.float64] = self.weights @ np.add.reduceat(counts, self.starts, axis=0).astype(np.float64)
        return found


def _resampling(counts: Counts, sequences: Sequence[str], block: int | None) -> Resampling:
    length = block or block_length(sequences, influence(counts.tp, counts.fp, counts.fn))
    numbers = blocks(sequences, length)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    weights = draws(np.arange(int(numbers.max()) + 1), RESAMPLES).astype(np.float64)
    return Resampling(length, block is not None, starts, weights)


def intervals(counts: Counts, names: Sequence[str], drawn: Resampling) -> dict[str, Any]:
    """Intervals of mIoU, pixel accuracy and the IoU of each class, by resampling blocks of neighbouring frames."""
    count = len(drawn.starts)
    tp, fp, fn = map(drawn.summed, (counts.tp, counts.fp, counts.fn))
    each = iou(tp, fp, fn)
    labelled = (tp + fn).sum(axis=1)
    right = np.divide(tp.sum(axis=1), labelled, out=np.full(len(tp), np.nan), where=labelled > 0)
    return {
        "level": LEVEL,
        "resamples": RESAMPLES,
        "method": "percentiles of a block bootstrap, expanded for few blocks",
        "block": drawn.length,
        "block_from": "given" if drawn.given else "autocorrelation",
        "blocks": count,
        "miou": _bounds(_means(each), count),
        "pixel_accuracy": _bounds(right, count),
        "iou": {name: _bounds(each[:, k], count) for k, name in enumerate(names)},
    }


def _interval_near(near: NDArray[np.int64], drawn: Resampling) -> list[float] | None:
    """Of the mIoU within a band: (3, N, C) counts of single frames there."""
    tp, fp, fn = map(drawn.summed, near)
    return _bounds(_means(iou(tp, fp, fn)), len(drawn.starts))


def _near(counts: Counts) -> dict[str, Any]:
    return {
        str(band): dict(zip(("tp", "fp", "fn"), counts.near[:, at].tolist(), strict=True))
        for at, band in enumerate(BANDS)
    }


def _means(each: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the classes that are known; NaN where none is, as near boundaries of frames without any."""
    known = ~np.isnan(each)
    number = known.sum(axis=1)
    found: NDArray[np.float64] = np.divide(
        np.where(known, each, 0).sum(axis=1), number, out=np.full(len(each), np.nan), where=number > 0
    )
    return found


def _bounds(values: Any, count: int) -> list[float] | None:
    found = interval(values, blocks=count, level=LEVEL)
    return None if found is None else list(found)


def _sequences(counts: Counts, of: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for sequence in dict.fromkeys(of):
        rows = np.array([k for k, one in enumerate(of) if one == sequence])
        tp, fp, fn = (array[rows].sum(axis=0) for array in (counts.tp, counts.fp, counts.fn))
        each = iou(tp, fp, fn)
        labelled = int((tp + fn).sum())
        found.append(
            {
                "name": sequence,
                "frames": len(rows),
                "miou": _mean(each),
                "pixel_accuracy": int(tp.sum()) / labelled if labelled else None,
                "iou": dict(zip(names, _plain(each), strict=True)),
            }
        )
    return found


def _band(matrix: Any, names: Sequence[str]) -> dict[str, Any]:
    pixels = int(matrix.sum())
    try:
        found = scores(matrix, names)
    except CannotTell:  # no boundary in any frame, as where one class fills them all
        return {"miou": None, "pixel_accuracy": None, "iou": dict.fromkeys(names), "pixels": pixels}
    return {"miou": found.miou, "pixel_accuracy": found.pixel_accuracy, "iou": dict(found.iou), "pixels": pixels}


def _worst(counts: Counts, labels: Sequence[str]) -> list[dict[str, Any]]:
    each = iou(counts.tp, counts.fp, counts.fn)
    known = ~np.isnan(each)
    miou = np.where(known.any(axis=1), np.where(known, each, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1), np.inf)
    labelled = (counts.tp + counts.fn).sum(axis=1)
    order = [k for k in np.argsort(miou, kind="stable").tolist() if np.isfinite(miou[k]) and labelled[k]]
    return [
        {
            "name": labels[k],
            "miou": float(miou[k]),
            "pixel_accuracy": int(counts.tp[k].sum()) / int(labelled[k]),
        }
        for k in order[:WORST]
    ]


def _plain(each: Any) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in each]


def _mean(each: Any) -> float | None:
    known = [value for value in _plain(each) if value is not None]
    return sum(known) / len(known) if known else None


def notes(document: dict[str, Any], unreachable: Sequence[str], places: Sequence[str]) -> list[str]:
    """What a person should know before believing the numbers."""
    found = []
    count, frames = document["intervals"]["blocks"], document["frames"]
    if count < 2:
        found.append("the frames are one block of neighbours: no interval can be told")
    elif count < FEW_BLOCKS:
        found.append(
            f"the intervals rest on {count} blocks only: neighbours are alike, so {frames} frames say as little as "
            f"{count} would"
        )
    if len(document["sequences"]) == 1 and document["intervals"]["block"] > 1:
        found.append("all frames are of one video: the intervals say how it would score elsewhere in this video only")
    if unreachable:
        found.append(f"no class of the model is {', '.join(unreachable)}: scored 0 wherever it is labelled")
    if len(places) > 1:
        found.append(f"workers differ, so masks may too: {'; '.join(places)}")
    if document["skipped"]:
        found += [f"skipped {one['name']}: {one['reason']}" for one in document["skipped"][:5]]
    return found
