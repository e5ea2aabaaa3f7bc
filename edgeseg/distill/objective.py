"""What one pass of both networks over some images costs: all losses, each with its weight."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn

from edgeseg.distill.features import choose, scores_of, tapped
from edgeseg.distill.losses import as_logits, feature_distance, kl_divergence, label_loss
from edgeseg.distill.values import Distillation, LabelLoss


class Objective:
    """The loss of a student by its teacher, a function of images; the student's weights are read when it is called."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        options: Distillation,
        images: Callable[[], Iterable[Tensor]],
    ) -> None:
        """`images`: float32 (N, 3, H, W), which show what shapes and variances features have."""
        self.options = options
        names = options.features if options.feature_weight else ()
        if names is None:
            names = choose(teacher, student, next(iter(images()))[:1])
        self.names = names
        self.teacher, self.student = tapped(teacher, names), tapped(student, names)
        self.variances = variances(self.teacher, images()) if names else []

    def __call__(self, image: Tensor, labels: Tensor | None) -> Tensor:
        """A scalar for images float32 (N, 3, H, W) and labels int64 (N, h, w) or none; mean over the images."""
        options = self.options
        with torch.no_grad(), _precision(image.device):
            wanted, wanted_features = self.teacher(image)
        with _precision(image.device):
            given, features = self.student(image)
        theirs, their_others = scores_of(wanted, options.output)
        ours, our_others = scores_of(given, options.output)
        pairs = [(1.0, ours, theirs)]
        pairs += [
            (options.auxiliary_weight, our_others[key], their_others[key]) for key in our_others if key in their_others
        ]
        total = torch.zeros((), device=image.device)
        for weight, scores, target in pairs:
            logits = as_logits(scores, options.probabilities)
            aim = as_logits(target, options.probabilities)
            total = total + weight * options.logit_weight * kl_divergence(logits, aim, options.temperature)
            if labels is not None:
                supervised = label_loss(logits, labels, options.labels, align_corners=options.align_corners)
                total = total + weight * options.label_weight * supervised
        if features:
            total = total + options.feature_weight * feature_distance(features, wanted_features, self.variances)
        return total


def supervised_loss(
    returned: Any,
    labels: Tensor,
    losses: LabelLoss,
    *,
    output: int | str = 0,
    auxiliary_weight: float = 0.3,
    probabilities: bool = False,
    align_corners: bool = False,
) -> Tensor:
    """`label_loss` of the scores that a network returned, and of each of its auxiliary ones times `auxiliary_weight`.

    0.3 is what GoogLeNet takes (Szegedy et al. 2015). labels: int64 (N, H, W). A network that returns a tensor has no
    auxiliary scores. Raises ModelError where there is no such output, BadInput for labels that do not fit.
    """
    scores, others = scores_of(returned, output)
    parts = [(1.0, scores), *((auxiliary_weight, other) for other in others.values())]
    total = torch.zeros((), device=scores.device)
    for weight, part in parts:
        if weight:
            logits = as_logits(part, probabilities)
            total = total + weight * label_loss(logits, labels, losses, align_corners=align_corners)
    return total


@torch.no_grad()
def variances(teacher: nn.Module, images: Iterable[Tensor]) -> list[Tensor]:
    """Of a tapped teacher's features, by channel (C); a channel that hardly varies is given a tenth of the mean."""
    sums: list[Tensor] = []
    seen = 0
    for image in images:
        _, features = teacher(image)
        new = [torch.stack([f.double().mean((2, 3)), f.double().square().mean((2, 3))]).sum(1) for f in features]
        sums = [old + more for old, more in zip(sums, new, strict=True)] if sums else new
        seen += len(image)
    found = []
    for total, squares in sums:
        variance = (squares / seen - (total / seen).square()).clamp_min(0.0)
        found.append(variance.clamp_min(max(0.1 * float(variance.mean()), 1e-12)).float())
    return found


def at_once(networks: Sequence[nn.Module], example: Tensor, options: Distillation) -> int:
    """How many frames the networks take together: a batch, or 1 where a graph was captured for one."""
    if options.batch == 1:
        return 1
    two = torch.cat([example, example.flip(3)])
    with torch.no_grad():
        for network in networks:
            alone, _ = scores_of(network(example), options.output)
            try:
                with redirect_stderr(io.StringIO()):  # a graph prints where it failed
                    both, _ = scores_of(network(two), options.output)
            except (RuntimeError, ValueError, AssertionError):  # a shape for one image is written into the graph
                return 1
            if both.shape[1:] != alone.shape[1:] or len(both) != 2:
                return 1
            if not torch.allclose(both[:1].float(), alone.float(), rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
                return 1
    return options.batch


def _precision(device: torch.device) -> torch.autocast | nullcontext[None]:
    """bfloat16 on GPUs that have it; it needs no scaling of the loss."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()
