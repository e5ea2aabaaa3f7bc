"""FP32 and deployed masks of many frames beside each other: where labels differ, what that costs, the worst frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.data.prepare import to_size
from edgeseg.measure.agreement import Agreement, agreement
from edgeseg.measure.confusion import confusion, scores
from edgeseg.measure.still import StillFlicker
from edgeseg.types import Mask, Pixels, Sample

BANDS = (1, 2, 5)  # pixels either side of a boundary of the FP32 mask
Run = Callable[[Pixels], Mask]


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A frame of the gallery, at the network's size."""

    name: str
    agreement: float
    frame: Pixels
    fp32: Mask
    deployed: Mask
    label: Mask | None


@dataclass(slots=True)
class Judged:
    """Sums over frames. Matrices int64 (C, C): rows are what should be, columns what came."""

    classes: int
    ignore_index: int | None
    worst: int = 6  # frames to keep
    overall: Agreement = field(default_factory=Agreement)
    bands: dict[int, Agreement] = field(default_factory=lambda: dict.fromkeys(BANDS, Agreement()))
    frames: int = 0
    labelled: int = 0
    gallery: list[Shown] = field(default_factory=list)
    between: NDArray[np.int64] = field(init=False)  # the FP32 graph's classes against the deployed engine's
    before: NDArray[np.int64] = field(init=False)  # labels against the FP32 graph's
    after: NDArray[np.int64] = field(init=False)  # labels against the deployed engine's

    def __post_init__(self) -> None:
        self.between, self.before, self.after = (np.zeros((self.classes,) * 2, np.int64) for _ in range(3))

    def add(self, sample: Sample, frame: Pixels, fp32: Mask, deployed: Mask) -> None:
        seen = {width: agreement(fp32, deployed, width) for width in BANDS}
        self.bands = {width: self.bands[width] + seen[width] for width in BANDS}
        self.overall += seen[BANDS[0]]
        self.between += confusion(deployed, fp32, self.classes)
        self.frames += 1
        if sample.label is not None:
            size = (sample.label.shape[0], sample.label.shape[1])
            self.before += confusion(to_size(fp32, size), sample.label, self.classes, self.ignore_index)
            self.after += confusion(to_size(deployed, size), sample.label, self.classes, self.ignore_index)
            self.labelled += 1
        share = seen[BANDS[0]].overall
        if share < 1 and self.worst and (len(self.gallery) < self.worst or share < self.gallery[-1].agreement):
            label = None if sample.label is None else to_size(sample.label, (fp32.shape[0], fp32.shape[1]))
            shown = Shown(sample.name, share, frame.copy(), fp32.copy(), deployed.copy(), label)
            self.gallery = sorted([*self.gallery, shown], key=lambda one: one.agreement)[: self.worst]

    def trimmed(self) -> int:
        """Forget the classes above the highest that occurs; how many are left, two at least."""
        seen = sum(matrix.sum(0) + matrix.sum(1) for matrix in (self.between, self.before, self.after))
        self.classes = max(2, int(np.flatnonzero(seen).max(initial=0)) + 1)
        kept = slice(self.classes)
        self.between, self.before, self.after = (m[kept, kept] for m in (self.between, self.before, self.after))
        return self.classes

    def agreement_document(self, names: Sequence[str]) -> dict[str, Any]:
        """Shares 0 to 1 of labels that stayed. By class: of the pixels that FP32 gave it, and what most others became.

        A band without pixels and a class that FP32 never gave have None.
        """
        classes = {}
        for index, name in enumerate(names):
            row = self.between[index]
            pixels, others = int(row.sum()), row.copy()
            others[index] = 0
            classes[name] = {
                "agreement": int(row[index]) / pixels if pixels else None,
                "pixels": pixels,
                "becomes": names[int(others.argmax())] if others.any() else None,
            }
        bands = {
            str(width): found.boundary if found.band_pixels else None for width, found in sorted(self.bands.items())
        }
        return {
            "overall": self.overall.overall,
            "bands": bands,
            "band_share": {
                str(width): found.band_pixels / found.pixels if found.pixels else None
                for width, found in sorted(self.bands.items())
            },
            "classes": classes,
        }

    def miou_document(self, names: Sequence[str]) -> dict[str, Any] | None:
        """IoU 0 to 1 of FP32 and of the deployed engine, by class; None without a labelled pixel."""
        if not self.before.any():
            return None
        before, after = scores(self.before, names), scores(self.after, names)
        return {
            "before": before.miou,
            "after": after.miou,
            "frames": self.labelled,
            "iou": {name: {"before": before.iou[name], "after": after.iou[name]} for name in names},
        }


def judge(
    judged: Judged,
    samples: Iterable[Sample],
    fp32: Run,
    deployed: Run,
    *,
    prepare: Callable[[Pixels], Pixels],
    ended: Callable[[], bool] = lambda: False,
    least: int = 4,
) -> None:
    """Look at each frame with both; when `ended`, no more than the first `least` of them."""
    for sample in samples:
        if judged.frames >= least and ended():
            return
        frame = prepare(sample.pixels)
        judged.add(sample, frame, fp32(frame), deployed(frame))


def flicker(
    frames: Iterable[Pixels], runs: Mapping[str, Run], *, ended: Callable[[], bool] = lambda: False, least: int = 6
) -> dict[str, Any]:
    """What each network does on consecutive frames, of the network's size, where nothing moves."""
    found = StillFlicker()
    for count, frame in enumerate(frames):
        if count >= least and ended():
            break
        found.update(frame, {name: run(frame) for name, run in runs.items()})
    return found.document()
