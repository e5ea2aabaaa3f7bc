"""What a student makes small: its distance from the teacher's scores and features, and from labels if there are any.

Scores are float32 (N, C, H, W): logits of C classes, or with C = 1 the logit of class 1. All losses are means over
pixels, computed without probabilities that could underflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgeseg.distill.values import LabelLoss
from edgeseg.errors import BadInput


def as_logits(scores: Tensor, probabilities: bool) -> Tensor:
    """Scores as logits: as they are, or the logits (C = 1) or log-probabilities that belong to probabilities."""
    scores = scores.float()
    if not probabilities:
        return scores
    if scores.shape[1] == 1:
        return torch.logit(scores, eps=1e-6)
    return scores.clamp_min(1e-7).log()


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher, student) in nats, mean over pixels (Hinton et al. 2015); a scalar.

    Both are logits (N, C, H, W). With C = 1 it is the divergence of the Bernoulli distributions. T^2 keeps the
    gradient's size as T grows.
    """
    student, teacher = student / temperature, teacher / temperature
    if student.shape[1] == 1:
        p = teacher.sigmoid()
        # log p = logsigmoid(z), log(1 - p) = logsigmoid(-z), both exact where p itself rounds to 0 or 1
        one = functional.logsigmoid(teacher) - functional.logsigmoid(student)
        zero = functional.logsigmoid(-teacher) - functional.logsigmoid(-student)
        pixels = p * one + (-teacher).sigmoid() * zero
    else:
        log_p, log_q = teacher.log_softmax(1), student.log_softmax(1)
        pixels = (log_p.exp() * (log_p - log_q)).sum(1)
    return pixels.mean() * temperature**2


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], variances: Sequence[Tensor]) -> Tensor:
    """Squared difference over the teacher's variance of a channel, mean over channels and then over features.

    As FitNets (Romero et al. 2015), without a regressor: a rewritten network has its teacher's channels. Features
    (N, C, H, W), variances (C) and positive; a scalar.
    """
    parts = [
        ((s.float() - t.float()).square().mean((0, 2, 3)) / v).mean()
        for s, t, v in zip(student, teacher, variances, strict=True)
    ]
    return torch.stack(parts).mean()


def label_loss(scores: Tensor, labels: Tensor, losses: LabelLoss, *, align_corners: bool = False) -> Tensor:
    """Cross entropy, focal or not, and Dice of `losses`, each with its weight, at the labels' resolution; a scalar.

    scores: logits (N, C, h, w), brought to the labels' size bilinearly; labels int64 (N, H, W), 0 <= label < max(C, 2)
    or ignore_index. Zero, with a gradient, where all pixels are ignored. Raises BadInput for other labels, and for
    class weights of another count.
    """
    classes = scores.shape[1]
    counted = max(classes, 2)
    if losses.class_weights and len(losses.class_weights) != counted:
        raise BadInput(f"there are {len(losses.class_weights)} class weights for {counted} classes")
    valid = labels != losses.ignore_index if losses.ignore_index is not None else torch.ones_like(labels).bool()
    if bool((valid & ((labels < 0) | (labels >= counted))).any()):
        wrong = int(labels[valid & ((labels < 0) | (labels >= counted))][0])
        raise BadInput(f"a label holds {wrong}, which is none of {counted} classes and not ignore_index")
    if scores.shape[2:] != labels.shape[1:]:
        scores = functional.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=align_corners)
    weights = torch.tensor(losses.class_weights or (1.0,) * counted, device=scores.device)
    target = labels.where(valid, torch.zeros_like(labels))
    total = scores.sum() * 0.0
    if losses.cross_entropy:
        total = total + losses.cross_entropy * _cross_entropy(scores, target, valid, weights, losses)
    if losses.dice:
        total = total + losses.dice * _dice(scores, target, valid, weights)
    return total


def _cross_entropy(scores: Tensor, target: Tensor, valid: Tensor, weights: Tensor, losses: LabelLoss) -> Tensor:
    """Each pixel counts by the weight of its label, whose mean over the pixels is taken out, and by how far its
    probability is from 1, if focal."""
    weight = weights[target] * valid
    smoothing = losses.smoothing
    if scores.shape[1] == 1:
        logit = scores[:, 0]
        one, zero = functional.logsigmoid(logit), functional.logsigmoid(-logit)
        wanted = target.float() * (1 - smoothing) + smoothing / 2
        pixels = -(wanted * one + (1 - wanted) * zero)
        others = zero.where(target == 1, one)  # log(1 - p) of the label
    else:
        log_q = scores.log_softmax(1)
        pixels = -(1 - smoothing) * log_q.gather(1, target[:, None])[:, 0] - smoothing * log_q.mean(1)
        others = log_q.scatter(1, target[:, None], -torch.inf).logsumexp(1) if losses.focal else pixels
    if losses.focal:
        # (1 - p)^gamma as exp(gamma log(1 - p)): 1 - p itself loses its digits near p = 1, and its root its gradient
        pixels = pixels * (losses.focal * others).exp()
    return (pixels * weight).sum() / weight.sum().clamp_min(1e-12)


def _dice(scores: Tensor, target: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """1 - 2 sum(p y) / (sum(p) + sum(y)), mean over the classes that labels hold (Milletari et al. 2016).

    With one channel that is class 1 alone, and it counts if no label holds it too: then what is predicted is wrong.
    """
    if scores.shape[1] == 1:
        p, y, weights = scores.sigmoid(), target[:, None].float(), weights[1:]
    else:
        p = scores.softmax(1)
        y = functional.one_hot(target, scores.shape[1]).movedim(3, 1).float()
    p, y = p * valid[:, None], y * valid[:, None]
    both, sizes, held = ((p * y).sum((0, 2, 3)), (p + y).sum((0, 2, 3)), y.sum((0, 2, 3)))
    # One pixel's worth on both sides keeps a class of few pixels from ruling the gradient.
    distance = 1 - (2 * both + 1) / (sizes + 1)
    counts = weights if scores.shape[1] == 1 else weights * (held > 0)
    return (distance * counts).sum() / counts.sum().clamp_min(1e-12) * bool(valid.any())
