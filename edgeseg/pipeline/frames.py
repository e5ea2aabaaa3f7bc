"""Which frames a build works with: to calibrate on, to judge by, and a few to look at."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from edgeseg.data import Dataset, Reading, fit, pick, read
from edgeseg.data.street import render
from edgeseg.errors import BadInput, DatasetError
from edgeseg.types import Frames, ModelSpec, Pixels

MEMORY = 256 << 20  # bytes of frames that are held at once

Preparation = Literal["equalization", "rounding", "bias"]  # of INT8


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. Enough for a verdict that holds, or a quick look."""

    samples: int = 64  # frames to calibrate on
    look: int = 8  # frames to compare with torch and to time with
    even: bool = True  # even out channels before INT8
    fit: int = 16  # calibration frames to round weights by; 0: to the nearest
    correct: int = 8  # where weights are not rounded so, frames to correct biases on; 0: leave biases as they are
    evaluate: int = 500  # labelled frames for the verdict, at most
    settings: int | None = None  # settings of one engine to time, at most
    halves: int | None = None  # half precisions to try, at most
    tune: int = 12  # rounds in which settings of one engine are timed
    rounds: int = 80  # rounds of the deciding race: enough for a p90
    limit_s: float = 30.0  # and its longest duration, for slow networks


QUICK = Effort(
    samples=16, look=4, even=False, fit=0, correct=0, evaluate=16, settings=1, halves=1, tune=1, rounds=11, limit_s=5.0
)


def effort_for(quick: bool, samples: int | None, without: Collection[Preparation] = ()) -> Effort:
    """What is done in a build. Raises BadInput for a preparation that there is not."""
    if unknown := sorted(set(without) - set(get_args(Preparation))):
        raise BadInput(f"a build can go without {', '.join(get_args(Preparation))}; not without {', '.join(unknown)}")
    effort = QUICK if quick else Effort()
    return replace(
        effort,
        samples=effort.samples if samples is None else samples,
        even=effort.even and "equalization" not in without,
        fit=0 if "rounding" in without else effort.fit,
        correct=0 if "bias" in without else effort.correct,
    )


def frames_for(
    dataset: Dataset | None, split: str, eval_split: str | None, effort: Effort, spec: ModelSpec
) -> tuple[Reading | None, Reading | None, Reading | None]:
    """The frames to calibrate on, those for the verdict, and those to look at: none of the verdict's in the others."""
    if dataset is None:
        return None, None, None
    if split == "train" and len(dataset.splits) == 1:
        (split,) = dataset.splits  # a plain folder of images has one split, of another name
    chosen = dataset.split(split)
    if eval_split is None and "val" in dataset.splits and split != "val":
        eval_split = "val"
    if eval_split is None or eval_split == split:
        samples = min(effort.samples, max(1, 3 * len(chosen) // 4))  # something must be left to judge by
        indices = pick(len(chosen), samples)
        used = set(indices)
        left = [index for index in range(len(chosen)) if index not in used]
        calibration = read(chosen, indices, color=spec.input.frame, labels=False)
        judged = [left[i] for i in pick(len(left), effort.evaluate)]
        return calibration, read(chosen, judged, color=spec.input.frame) if judged else None, calibration
    calibration = read(chosen, pick(len(chosen), effort.samples), color=spec.input.frame, labels=False)
    others = dataset.split(eval_split)
    verdict = read(others, pick(len(others), effort.evaluate), color=spec.input.frame)
    return calibration, verdict, read(chosen, color=spec.input.frame, labels=False)


def prepared(reading: Reading, spec: ModelSpec) -> Iterator[Pixels]:
    for sample in reading:
        yield fit(sample.pixels, spec.input.size, spec.input.resize)


def look_at(reading: Reading | None, spec: ModelSpec, count: int) -> list[Pixels]:
    """A few frames spread over the set, to compare and to time with; rendered ones where no frames were given."""
    if reading is None:
        frames = (render(spec.input.size, seed, 0)[0] for seed in range(count))
        return [np.ascontiguousarray(frame[..., ::-1]) if spec.input.frame == "rgb" else frame for frame in frames]
    spread = pick(len(reading.indices), count)
    spare = sorted(set(range(len(reading.indices))) - set(spread))
    found: list[Pixels] = []
    for position in (*spread, *spare):
        if len(found) == count:
            break
        one = read(reading.split, [reading.indices[position]], color=reading.color, labels=False)
        with suppress(DatasetError):  # one that cannot be read is named and counted where all of them are read
            found += prepared(one, spec)
    return found or list(prepared(reading, spec))


def fitting_frames(reading: Reading, spec: ModelSpec, most: int) -> list[Frames]:
    """The first frames, each a batch uint8 (1, H, W, 3) of the network's size; of large ones fewer."""
    height, width = spec.input.size
    count = max(2, min(most, MEMORY // (3 * height * width)))
    found: list[Frames] = []
    for index in reading.indices:
        if len(found) == count:
            break
        with suppress(DatasetError):  # one that cannot be read is named and counted where all of them are read
            one = read(reading.split, [index], color=reading.color, labels=False)
            found += [frame[None] for frame in prepared(one, spec)]
    return found
