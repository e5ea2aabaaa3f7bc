"""The losses against naive NumPy, pixel by pixel, and where numbers are extreme."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from edgeseg.distill.losses import as_logits, feature_distance, kl_divergence, label_loss
from edgeseg.distill.values import LabelLoss
from edgeseg.errors import BadInput

Array = NDArray[np.float64]


def probabilities(logits: Array) -> Array:
    """(C) logits of one pixel as probabilities of all classes: two of them where there is one channel."""
    if len(logits) == 1:
        one = 1 / (1 + math.exp(-logits[0]))
        return np.array([1 - one, one])
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def naive_kl(student: Array, teacher: Array, temperature: float) -> float:
    total, pixels = 0.0, 0
    for n, y, x in np.ndindex(student.shape[0], *student.shape[2:]):
        p = probabilities(teacher[n, :, y, x] / temperature)
        q = probabilities(student[n, :, y, x] / temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        pixels += 1
    return total / pixels * temperature**2


def random(*shape: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) * spread


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_kl(classes: int, temperature: float) -> None:
    student, teacher = random(2, classes, 3, 4), random(2, classes, 3, 4, seed=1)
    found = float(kl_divergence(student, teacher, temperature))
    assert found == pytest.approx(naive_kl(student.double().numpy(), teacher.double().numpy(), temperature), rel=1e-4)
    assert float(kl_divergence(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)


@given(st.floats(-300, 300), st.floats(-300, 300))
@settings(max_examples=60, deadline=None)
def test_one_channel_is_two_classes(student: float, teacher: float) -> None:
    """A logit z is the pair (0, z); numbers of any size stay numbers, and so do their gradients."""
    z = torch.full((1, 1, 1, 1), student, requires_grad=True)
    aim = torch.full((1, 1, 1, 1), teacher)
    loss = kl_divergence(z, aim)
    loss.backward()  # type: ignore[no-untyped-call]
    pair = kl_divergence(torch.cat([torch.zeros_like(z), z], 1).detach(), torch.cat([torch.zeros_like(aim), aim], 1))
    assert float(loss.detach()) == pytest.approx(float(pair), rel=1e-4, abs=1e-5)
    assert float(loss.detach()) >= -1e-6
    assert z.grad is not None
    assert float(z.grad) == pytest.approx(float(torch.sigmoid(z.detach()) - torch.sigmoid(aim)), abs=1e-5)


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    """For hot temperatures the gradient tends to that of a squared difference, whatever the temperature is."""
    lengths = []
    for temperature in (50.0, 100.0):
        student = random(1, 4, 2, 2).requires_grad_()
        kl_divergence(student, random(1, 4, 2, 2, seed=1), temperature).backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        lengths.append(float(student.grad.norm()))
    assert lengths[0] == pytest.approx(lengths[1], rel=0.03)


@pytest.mark.parametrize("classes", [1, 4])
def test_probabilities_become_their_logits(classes: int) -> None:
    logits = random(2, classes, 3, 3)
    scores = logits.sigmoid() if classes == 1 else logits.softmax(1)
    assert float(kl_divergence(as_logits(scores, True), logits)) == pytest.approx(0, abs=1e-6)
    assert as_logits(logits, False) is logits
    certain = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    assert bool(torch.isfinite(as_logits(certain, True)).all())
    assert bool(torch.isfinite(as_logits(torch.cat([certain, 1 - certain], 1), True)).all())


def test_features_are_measured_in_the_teachers_deviation() -> None:
    students, teachers = (
        [random(2, 3, 4, 5), random(2, 2, 2, 2)],
        [random(2, 3, 4, 5, seed=1), random(2, 2, 2, 2, seed=2)],
    )
    variances = [torch.tensor([1.0, 4.0, 0.25]), torch.tensor([2.0, 3.0])]
    expected = []
    for s, t, v in zip(students, teachers, variances, strict=True):
        a, b = s.double().numpy(), t.double().numpy()
        expected.append(np.mean([np.mean((a[:, c] - b[:, c]) ** 2) / float(v[c]) for c in range(a.shape[1])]))
    assert float(feature_distance(students, teachers, variances)) == pytest.approx(np.mean(expected), rel=1e-5)


def labels(*shape: int, classes: int, ignored: float = 0.2, seed: int = 3) -> torch.Tensor:
    numbers = np.random.default_rng(seed)
    drawn = numbers.integers(0, classes, shape)
    return torch.from_numpy(np.where(numbers.random(shape) < ignored, 255, drawn))


def naive_cross_entropy(scores: Array, target: NDArray[np.int64], loss: LabelLoss) -> float:
    total, weights = 0.0, 0.0
    for n, y, x in np.ndindex(*target.shape):
        label = int(target[n, y, x])
        if label == loss.ignore_index:
            continue
        q = probabilities(scores[n, :, y, x])
        weight = loss.class_weights[label] if loss.class_weights else 1.0
        wanted = [loss.smoothing / len(q) + (1 - loss.smoothing) * (c == label) for c in range(len(q))]
        total -= weight * sum(w * math.log(b) for w, b in zip(wanted, q, strict=True))
        weights += weight
    return total / weights


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(classes: int, smoothing: float, weighted: bool) -> None:
    counted = max(2, classes)
    loss = LabelLoss(smoothing=smoothing, class_weights=tuple(0.5 + k for k in range(counted)) if weighted else ())
    scores, target = random(2, classes, 5, 4), labels(2, 5, 4, classes=counted)
    found = float(label_loss(scores, target, loss))
    assert found == pytest.approx(naive_cross_entropy(scores.double().numpy(), target.numpy(), loss), rel=1e-4)
    if classes > 1 and not (smoothing and weighted):  # there torch weighs the smoothed part by each class's weight
        weight = torch.tensor(loss.class_weights) if weighted else None
        theirs = functional.cross_entropy(scores, target, weight, ignore_index=255, label_smoothing=smoothing)
        assert found == pytest.approx(float(theirs), rel=1e-4)


@pytest.mark.parametrize("classes", [1, 4])
def test_dice(classes: int) -> None:
    scores, target = random(2, classes, 5, 4), labels(2, 5, 4, classes=max(2, classes) - (classes > 1))
    found = float(label_loss(scores, target, LabelLoss(cross_entropy=0, dice=2.0)))
    q = np.stack([[probabilities(s) for s in image.reshape(classes, -1).T] for image in scores.double().numpy()])
    y = target.numpy().reshape(2, -1)
    distances = []
    for c in [1] if classes == 1 else range(classes):
        p, held = q[..., c][y != 255], (y == c)[y != 255]
        if classes == 1 or held.any():
            distances.append(1 - (2 * (p * held).sum() + 1) / (p.sum() + held.sum() + 1))
    assert len(distances) == (1 if classes == 1 else classes - 1)  # the last class is in no label
    assert found == pytest.approx(2 * np.mean(distances), rel=1e-4)


def test_labels_of_another_size_get_the_scores_brought_to_theirs() -> None:
    scores, target = random(1, 3, 4, 5), labels(1, 8, 10, classes=3)
    for aligned in (False, True):
        larger = functional.interpolate(scores, size=(8, 10), mode="bilinear", align_corners=aligned)
        expected = functional.cross_entropy(larger, target, ignore_index=255)
        assert float(label_loss(scores, target, LabelLoss(), align_corners=aligned)) == pytest.approx(float(expected))


@pytest.mark.parametrize("classes", [1, 3])
def test_nothing_labelled_teaches_nothing(classes: int) -> None:
    scores = random(1, classes, 2, 2).requires_grad_()
    loss = label_loss(scores, torch.full((1, 2, 2), 255), LabelLoss(dice=1.0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert scores.grad is not None
    assert float(scores.grad.abs().max()) == 0


def test_extreme_scores_stay_numbers() -> None:
    for classes in (1, 3):
        scores = torch.full((1, classes, 1, 2), 0.0)
        scores[0, 0, 0, 0], scores[0, 0, 0, 1] = 1e4, -1e4
        scores.requires_grad_()
        loss = label_loss(scores, torch.tensor([[[1, 0]]]), LabelLoss(dice=1.0))
        loss = loss + kl_divergence(scores, -scores.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        assert scores.grad is not None
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(scores.grad).all())


def test_labels_that_are_no_class_are_refused() -> None:
    with pytest.raises(BadInput, match="holds 3"):
        label_loss(random(1, 3, 1, 1), torch.tensor([[[3]]]), LabelLoss())
    with pytest.raises(BadInput, match="holds 255"):
        label_loss(random(1, 3, 1, 1), torch.tensor([[[255]]]), LabelLoss(ignore_index=None))
    with pytest.raises(BadInput, match="2 class weights for 3"):
        label_loss(random(1, 3, 1, 1), torch.tensor([[[1]]]), LabelLoss(class_weights=(1.0, 2.0)))
    with pytest.raises(BadInput):
        LabelLoss(smoothing=1.0)
    with pytest.raises(BadInput):
        LabelLoss(class_weights=(1.0, -1.0))
