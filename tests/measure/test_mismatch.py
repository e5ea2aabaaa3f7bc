"""Wrong preprocessing is found and right preprocessing raises no alarm; the measure it is judged by, by its formula."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeseg.measure.mismatch import BETTER, BETTER_MIOU, HALF, IMAGENET, Look, alternatives, decisiveness, mismatch
from edgeseg.types import InputSpec

SPEC = InputSpec((24, 32), mean=(0.4, 0.42, 0.43), std=(0.29, 0.3, 0.3))


def plainly(scores: NDArray[np.float32]) -> float:
    """Pixel for pixel, in Python's floats."""
    classes, height, width = scores.shape
    sure, margins, centred = [], [], []
    for y in range(height):
        for x in range(width):
            pixel = sorted((float(scores[c, y, x]) for c in range(classes)), reverse=True)
            sure.append(1 / sum(math.exp(value - pixel[0]) for value in pixel))
            margins.append(pixel[0] - pixel[1])
            centred += [value - sum(pixel) / classes for value in pixel]
    spread = math.sqrt(sum(value**2 for value in centred) / len(centred))  # its mean is 0
    return sum(sure) / len(sure) * sum(margins) / len(margins) / spread


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_decisiveness_by_its_definition(classes: int) -> None:
    scores = np.random.default_rng(classes).normal(0, 3, (classes, 5, 7)).astype(np.float32)
    assert decisiveness(scores) == pytest.approx(plainly(scores), rel=1e-6)
    assert decisiveness(scores + np.float32(100)) == pytest.approx(decisiveness(scores), rel=1e-4)
    shifted = scores + np.random.default_rng(0).normal(0, 9, (1, 5, 7)).astype(np.float32)  # no class gains by it
    assert decisiveness(shifted) == pytest.approx(decisiveness(scores), rel=1e-4)


def test_one_channel_is_a_class_against_none() -> None:
    score = np.random.default_rng(1).normal(0, 3, (1, 6, 6)).astype(np.float32)
    assert decisiveness(score) == pytest.approx(plainly(np.concatenate([np.zeros_like(score), score])), rel=1e-6)
    probability = (1 / (1 + np.exp(-score))).astype(np.float32)
    assert decisiveness(probability, probabilities=True) == pytest.approx(decisiveness(score), rel=1e-4)
    several = np.random.default_rng(1).normal(0, 1, (4, 6, 6)).astype(np.float32)
    softmax = np.exp(several) / np.exp(several).sum(axis=0)
    assert decisiveness(softmax, probabilities=True) == pytest.approx(decisiveness(several), rel=1e-4)


def test_a_factor_makes_it_no_better_than_sure() -> None:
    """What confidence alone falls for: scores 255 times larger are certain, and as clear as they were."""
    scores = np.random.default_rng(2).normal(0, 1, (5, 8, 8)).astype(np.float32)
    confidence = float((np.exp(scores).max(axis=0) / np.exp(scores).sum(axis=0)).mean())
    assert decisiveness(scores * np.float32(255)) == pytest.approx(decisiveness(scores) / confidence, rel=0.02)


def test_scores_that_say_nothing_decide_nothing() -> None:
    assert decisiveness(np.full((3, 4, 4), 7, np.float32)) == 0
    broken = np.ones((3, 4, 4), np.float32)
    broken[1, 2, 3] = np.nan
    assert decisiveness(broken) == 0


def test_alternatives_differ_from_the_spec_and_from_one_another() -> None:
    found = alternatives(SPEC)
    assert len(found) == 7
    effects = {(o.input.color, o.input.scale, o.input.mean, o.input.std) for o in found}
    assert len(effects) == 7
    assert all(o.input != SPEC and o.input.size == SPEC.size and o.input.frame == SPEC.frame for o in found)
    assert "ImageNet" not in " ".join(
        o.name for o in alternatives(replace(SPEC, mean=IMAGENET[0], std=IMAGENET[1]))[:5]
    )
    plain = alternatives(InputSpec((24, 32)))
    assert len(plain) == 5  # not divided is as it is
    # the same in other numbers is the same
    assert len(alternatives(InputSpec((24, 32), scale=1.0, std=(255.0, 255.0, 255.0)))) <= 6


def test_imagenets_mean_comes_in_the_networks_order() -> None:
    blue_first = alternatives(replace(SPEC, color="bgr"))
    (chosen,) = [o for o in blue_first if "std of ImageNet" in o.name]
    assert chosen.input.mean == IMAGENET[0][::-1]


def looks(table: dict[str, float], own: float, *, labelled: bool = False) -> Callable[[InputSpec], Look]:
    named = {repr(o.input): table.get(o.name, 0.1) for o in alternatives(SPEC)}

    def run(other: InputSpec) -> Look:
        value = own if other == SPEC else named.get(repr(other), 0.1)
        return Look(1.0, value) if labelled else Look(value, None)

    return run


def test_the_threshold() -> None:
    quiet = mismatch(SPEC, looks({"mean and std 0.5": BETTER - 0.01}, 1.0))
    assert quiet.better is None
    assert quiet.sentence == "preprocessing: none of 7 others looks better than the spec's"
    alarm = mismatch(SPEC, looks({"mean and std 0.5": BETTER + 0.01}, 1.0))
    assert alarm.better is not None
    assert alarm.better.input.mean == HALF
    assert "with mean and std 0.5 (the network decides 1.11 times as clearly)" in alarm.sentence
    assert "mean = [0.5, 0.5, 0.5]" in alarm.sentence
    json.dumps(alarm.to_json(), allow_nan=False)
    assert alarm.to_json()["better"] == "mean and std 0.5"


def test_labels_decide_where_there_are_some() -> None:
    swapped = "red and blue swapped"
    assert mismatch(SPEC, looks({swapped: 0.5 + BETTER_MIOU / 2}, 0.5, labelled=True)).better is None
    alarm = mismatch(SPEC, looks({swapped: 0.58}, 0.5, labelled=True))
    assert alarm.by == "miou"
    assert "mIoU 58.0 instead of 50.0 %" in alarm.sentence


def test_two_mistakes_at_once() -> None:
    truth = replace(SPEC, color="bgr", scale=255.0)
    wrong = replace(SPEC, scale=1.0)

    def run(other: InputSpec) -> Look:
        return Look(1.0 * 1.5 ** ((other.color == "bgr") + (other.scale == 255.0 and other.mean == SPEC.mean)), None)

    found = mismatch(wrong, run)
    assert found.better is not None
    assert found.better.input == truth
    assert found.better.name == "red and blue swapped and pixels divided by 255"


def test_a_network_that_gives_nothing_to_judge_by() -> None:
    found = mismatch(SPEC, lambda _: Look(None, None))
    assert (found.better, found.by, found.others) == (None, None, ())
    assert "no scores" in found.sentence


def test_a_network_that_decides_nothing_is_beaten() -> None:
    found = mismatch(SPEC, lambda other: Look(0.0 if other == SPEC else 0.4, None))
    assert found.better is not None
    assert "else it decides nothing" in found.sentence
