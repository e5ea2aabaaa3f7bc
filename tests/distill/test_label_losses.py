"""Focal loss and auxiliary outputs, against NumPy a pixel at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeseg.distill.losses import label_loss
from edgeseg.distill.objective import supervised_loss
from edgeseg.distill.values import LabelLoss
from edgeseg.errors import BadInput, ModelError
from tests.distill.test_losses import Array, labels, probabilities, random


def naive_focal(scores: Array, target: Array, loss: LabelLoss) -> float:
    total, weights = 0.0, 0.0
    for n, y, x in np.ndindex(*target.shape):
        label = int(target[n, y, x])
        if label == 255:
            continue
        q = probabilities(scores[n, :, y, x])
        weight = loss.class_weights[label] if loss.class_weights else 1.0
        wanted = [loss.smoothing / len(q) + (1 - loss.smoothing) * (c == label) for c in range(len(q))]
        entropy = -sum(w * math.log(b) for w, b in zip(wanted, q, strict=True))
        total += weight * (1 - q[label]) ** loss.focal * entropy
        weights += weight
    return total / weights


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal(classes: int, gamma: float, smoothing: float) -> None:
    counted = max(2, classes)
    weights = tuple(0.5 + k for k in range(counted))
    loss = LabelLoss(focal=gamma, smoothing=smoothing, class_weights=weights)
    scores, target = random(2, classes, 5, 4), labels(2, 5, 4, classes=counted)
    found = float(label_loss(scores, target, loss))
    assert found == pytest.approx(naive_focal(scores.double().numpy(), target.double().numpy(), loss), rel=1e-4)


@pytest.mark.parametrize("classes", [1, 3])
def test_focal_stays_a_number_at_both_ends(classes: int) -> None:
    """Sure and right: nothing to learn. Sure and wrong: the gradient of cross entropy. At gamma < 1 too."""
    for gamma in (0.5, 2.0):
        for sign, expected in ((1.0, 0.0), (-1.0, 1.0)):
            logits = torch.zeros(1, classes, 1, 1)
            logits[0, -1] = 200.0 * sign
            scores = logits.requires_grad_()
            label_loss(scores, torch.tensor([[[max(1, classes - 1)]]]), LabelLoss(focal=gamma)).backward()  # type: ignore[no-untyped-call]
            assert scores.grad is not None
            assert float(scores.grad[0, -1, 0, 0]) == pytest.approx(-expected, abs=1e-5)


def test_focal_gradient_is_that_of_the_formula() -> None:
    scores, target = random(1, 3, 3, 3).double().requires_grad_(), labels(1, 3, 3, classes=3)
    loss = LabelLoss(focal=2.0, dice=1.0)
    label_loss(scores, target, loss).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    step = 1e-5
    for place in [(0, 0, 0, 0), (0, 2, 1, 1), (0, 1, 2, 2)]:
        both = []
        for sign in (step, -step):
            moved = scores.detach().clone()
            moved[place] += sign
            both.append(float(label_loss(moved, target, loss)))
        assert float(scores.grad[place]) == pytest.approx((both[0] - both[1]) / (2 * step), rel=2e-3, abs=1e-7)


def test_cross_entropy_and_dice_are_summed() -> None:
    scores, target = random(2, 3, 4, 4), labels(2, 4, 4, classes=3)
    parts = [label_loss(scores, target, LabelLoss(cross_entropy=c, dice=d)) for c, d in ((1, 0), (0, 1), (2, 3))]
    assert float(parts[2]) == pytest.approx(float(2 * parts[0] + 3 * parts[1]), rel=1e-5)


def test_auxiliary_outputs_count_three_tenths_each() -> None:
    """As in the lecture: total = real + 0.3 first + 0.3 second."""
    target, loss = labels(2, 8, 8, classes=3), LabelLoss()
    parts = [random(2, 3, 8, 8), random(2, 3, 4, 4, seed=1), random(2, 3, 2, 2, seed=2)]
    real, first, second = (float(label_loss(part, target, loss)) for part in parts)
    expected = real + 0.3 * first + 0.3 * second
    features = random(2, 7, 4, 4)  # of another number of channels: no scores
    returned: list[object] = [tuple(parts), [*parts, features], dict(zip(("out", "aux", "more"), parts, strict=True))]
    for one in returned:
        assert float(supervised_loss(one, target, loss)) == pytest.approx(expected, rel=1e-5)
    keyed = {"aux": parts[1], "out": parts[0]}
    found = supervised_loss(keyed, target, loss, output="out", auxiliary_weight=0.5)
    assert float(found) == pytest.approx(real + 0.5 * first, rel=1e-5)
    assert float(supervised_loss(keyed, target, loss, output="out", auxiliary_weight=0)) == pytest.approx(real)
    assert float(supervised_loss(parts[0], target, loss)) == pytest.approx(real)


def test_what_is_no_score_is_refused() -> None:
    target: Tensor = labels(1, 2, 2, classes=3)
    with pytest.raises(ModelError, match="output 'main' was wanted"):
        supervised_loss({"out": random(1, 3, 2, 2)}, target, LabelLoss(), output="main")
    with pytest.raises(BadInput, match="focal >= 0"):
        LabelLoss(focal=-1.0)
