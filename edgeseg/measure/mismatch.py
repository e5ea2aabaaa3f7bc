"""Do the frames reach the network as they did in training? Other preprocessing is tried, and must not look better.

A wrong channel order, scale or mean raises no error and costs most of the accuracy. With labels, mIoU tells. Without,
the network itself does, but not by its confidence alone: pixels that were not divided by 255 make every score 255
times larger, and the network all the surer (98 % sure of 8 % mIoU, where the right choice is 89 % sure of 59 %). So
confidence is multiplied with how far the best score is from the second in standard deviations of all scores, which no
common factor changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from edgeseg.types import Floats, InputSpec

FRAMES = 4  # enough, see BETTER
# Measured on training frames of CamVid with a U-Net of its own, and on those of the rendered street with another. The
# right choice was beaten by no other by more than a factor of 1.07 in 99 of 100 draws of 4 frames (by mean and std 0.5,
# which costs that network 1 point of mIoU); it beats each that costs 10 points or more by 1.15 to 3.7 on all 40 frames.
BETTER = 1.10
BETTER_MIOU = 0.03  # with labels: the right choice was beaten by none

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue
ZERO, HALF, ONE = (0.0,) * 3, (0.5,) * 3, (1.0,) * 3


@dataclass(frozen=True, slots=True)
class Look:
    """What a network makes of a few frames under one preprocessing; None where it cannot be known."""

    decisiveness: float | None  # mean over frames of `decisiveness`
    miou: float | None  # 0 to 1


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another preprocessing, and how it differs in words that follow "with"."""

    name: str
    input: InputSpec


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The judgement: `better` is what to change, or None where nothing looks better than what the spec says."""

    own: Look
    others: tuple[tuple[str, Look], ...]
    better: Alternative | None
    by: Literal["miou", "decisiveness"] | None  # what was judged by; None: by nothing, for want of scores and labels
    found: Look | None = None  # of `better`

    @property
    def sentence(self) -> str:
        """For the console."""
        if self.by is None:
            return "preprocessing: the network gives no scores and there are no labels to judge it by"
        if self.better is None or self.found is None:
            return f"preprocessing: none of {len(self.others)} others looks better than the spec's"
        if self.by == "miou":
            why = f"mIoU {100 * (self.found.miou or 0):.1f} instead of {100 * (self.own.miou or 0):.1f} %"
        else:
            ratio = (self.found.decisiveness or 0) / max(self.own.decisiveness or 0, 1e-9)
            why = f"the network decides {ratio:.2f} times as clearly" if ratio < 100 else "else it decides nothing"
        given = self.better.input
        return (
            f"preprocessing: the frames do not look like those the network was trained on. It sees more with "
            f'{self.better.name} ({why}). Check [input] of the spec: color = "{given.color}", scale = {given.scale:g}, '
            f"mean = {[round(value, 4) for value in given.mean]}, std = {[round(value, 4) for value in given.std]}"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict: `by`, `own`, `others` (name, decisiveness, miou), and `better` (a name or None)."""
        return {
            "by": self.by,
            "own": asdict(self.own),
            "others": [{"name": name, **asdict(look)} for name, look in self.others],
            "better": self.better.name if self.better else None,
        }


def alternatives(spec: InputSpec) -> tuple[Alternative, ...]:
    """The usual other choices, each once, none that is the spec's own: channel order, scale, mean and std."""
    mean, std = (values if spec.color == "rgb" else values[::-1] for values in IMAGENET)
    pixels = (mean[0] * 255, mean[1] * 255, mean[2] * 255)
    divided = spec.scale > 2
    unit = replace(spec, scale=255.0)
    tried = (
        Alternative("red and blue swapped", replace(spec, color="bgr" if spec.color == "rgb" else "rgb")),
        Alternative(
            "pixels not divided by 255" if divided else "pixels divided by 255",
            replace(spec, scale=1.0 if divided else 255.0),
        ),
        Alternative("the mean and std of ImageNet", replace(unit, mean=mean, std=std)),
        Alternative("pixels from 0 to 1, no mean and std", replace(unit, mean=ZERO, std=ONE)),
        Alternative("mean and std 0.5", replace(unit, mean=HALF, std=HALF)),
        Alternative("pixels from 0 to 255 as they are", replace(spec, scale=1.0, mean=ZERO, std=ONE)),
        Alternative(
            "the mean of ImageNet taken from pixels of 0 to 255", replace(spec, scale=1.0, mean=pixels, std=ONE)
        ),
    )
    found: dict[tuple[object, ...], Alternative] = {}
    for other in tried:
        if _effect(other.input) != _effect(spec):
            found.setdefault(_effect(other.input), other)
    return tuple(found.values())


def _effect(spec: InputSpec) -> tuple[object, ...]:
    """What the network gets: (x / scale - mean) / std, channel for channel, and their order."""
    gains = [round(1 / (spec.scale * std), 6) for std in spec.std]
    shifts = [round(mean / std, 4) for mean, std in zip(spec.mean, spec.std, strict=True)]
    return spec.color, *gains, *shifts


def decisiveness(scores: Floats, *, probabilities: bool = False) -> float:
    """How clearly a network decides, from its scores float32 (C, H, W): 0 or more, comparable for one network only.

    Confidence (the mean over pixels of the winning class's probability) times the mean distance of the best score to
    the second, in standard deviations of the scores, each pixel's mean taken off. One channel counts as that of a
    class against 0. `probabilities`: the scores are some already; their logarithms count. Scores that are not finite,
    or are all equal, decide nothing: 0.
    """
    values = np.asarray(scores, np.float32)
    if probabilities:
        values = np.clip(values, np.float32(1e-7), np.float32(1 - 1e-7))
        values = np.log(values / (1 - values)) if len(values) == 1 else np.log(values)
    if len(values) == 1:
        values = np.concatenate([np.zeros_like(values), values])
    if not np.isfinite(values).all():
        return 0.0
    centred = values - values.mean(axis=0)
    flat = centred.ravel()
    spread = math.sqrt(float(flat @ flat) / flat.size)  # their mean is 0
    if spread == 0.0:
        return 0.0
    best, second = np.maximum(centred[0], centred[1]), np.minimum(centred[0], centred[1])
    for plane in centred[2:]:
        np.maximum(second, np.minimum(best, plane), out=second)
        np.maximum(best, plane, out=best)
    margin = float((best - second).mean(dtype=np.float64))
    centred -= best
    confidence = float((1.0 / np.exp(centred, out=centred).sum(axis=0)).mean(dtype=np.float64))
    return confidence * margin / spread


def mismatch(spec: InputSpec, run: Callable[[InputSpec], Look]) -> Mismatch:
    """Try the alternatives by `run`, which looks at the same few frames through each, and judge.

    By mIoU where `run` knows it, else by decisiveness. Where one looks visibly better, its own alternatives are tried
    too, as two things may be wrong at once.
    """
    own = run(spec)
    by: Literal["miou", "decisiveness"] | None = None
    if own.miou is not None:
        by = "miou"
    elif own.decisiveness is not None:
        by = "decisiveness"
    if by is None:
        return Mismatch(own, (), None, None)
    looks = [(other, run(other.input)) for other in alternatives(spec)]
    others = tuple((other.name, look) for other, look in looks)
    best, found = max(looks, key=lambda row: _value(row[1], by))
    if not _visibly(found, own, by):
        return Mismatch(own, others, None, by)
    again = [(other, run(other.input)) for other in alternatives(best.input) if _effect(other.input) != _effect(spec)]
    second, found_second = max(again, key=lambda row: _value(row[1], by))
    if _visibly(found_second, found, by):
        best, found = Alternative(f"{best.name} and {second.name}", second.input), found_second
    return Mismatch(own, others, best, by, found)


def _value(look: Look, by: Literal["miou", "decisiveness"]) -> float:
    value = look.miou if by == "miou" else look.decisiveness
    return -1.0 if value is None else value


def _visibly(look: Look, than: Look, by: Literal["miou", "decisiveness"]) -> bool:
    if by == "miou":
        return _value(look, by) > _value(than, by) + BETTER_MIOU
    return _value(look, by) > _value(than, by) * BETTER
