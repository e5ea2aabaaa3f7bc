"""How near a student is to its teacher on frames that it does not learn from: what is kept is decided by this."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from edgeseg.distill.features import scores_of
from edgeseg.distill.frames import Prepare, stack
from edgeseg.distill.losses import as_logits, kl_divergence
from edgeseg.distill.values import Distillation, Score
from edgeseg.errors import BadInput
from edgeseg.types import Pixels


def decide(logits: Tensor, threshold: float) -> Tensor:
    """Logits (N, C, H, W) as classes uint8 (N, H, W); of one channel 1 where the probability is at least threshold."""
    if logits.shape[1] == 1:
        return (logits[:, 0] >= math.log(threshold / (1 - threshold))).to(torch.uint8)
    return logits.argmax(1).to(torch.uint8)


def confusion(teacher: Tensor, student: Tensor, classes: int) -> Tensor:
    """Pixels by the teacher's class (rows) and the student's (columns): int64 (classes, classes), on the CPU."""
    keys = teacher.flatten().long() * classes + student.flatten().long()
    return torch.bincount(keys, minlength=classes * classes).view(classes, classes).cpu()


def agreement(matrix: Tensor) -> tuple[float, float]:
    """Mean IoU over the classes that one of both decides for, so that rare ones count too, and fraction of pixels."""
    both = matrix.diagonal().double()
    either = matrix.sum(0).double() + matrix.sum(1).double() - both
    held = either > 0
    return float((both[held] / either[held]).mean()), float(both.sum() / matrix.sum())


class Judge:
    """Scores students by a teacher on held-out frames. Keeps the teacher's decisions, a byte a pixel, and no scores."""

    def __init__(
        self, teacher: nn.Module, frames: Sequence[Pixels], prepare: Prepare, options: Distillation, at_once: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.teacher, self.frames, self.prepare = teacher, frames, prepare
        self.options, self.at_once, self.device = options, at_once, device
        self.decided: list[Tensor] = []

    def images(self, limit: int | None = None) -> Iterator[Tensor]:
        """The frames as the networks take them, `at_once` at a time."""
        count = min(len(self.frames), limit or len(self.frames))
        for first in range(0, count, self.at_once):
            chosen = [self.frames[i] for i in range(first, min(first + self.at_once, count))]
            yield self.prepare(stack(chosen).to(self.device))

    def score(self, student: nn.Module) -> Score:
        """All of it: both networks run."""
        return self._score(student, full=True)

    def glance(self, student: nn.Module) -> Score:
        """Without kl, by what the teacher is known to have decided: the student alone runs."""
        return self._score(student, full=not self.decided)

    @torch.no_grad()
    def _score(self, student: nn.Module, *, full: bool) -> Score:
        matrix: Tensor | None = None
        divergence, seen = 0.0, 0
        known = list(self.decided)
        decided: list[Tensor] = []
        for number, image in enumerate(self.images()):
            ours = self._logits(student, image)
            if full:
                theirs = self._logits(self.teacher, image)
                if ours.shape != theirs.shape:
                    raise BadInput(
                        f"the student's scores are {tuple(ours.shape)} and the teacher's {tuple(theirs.shape)}; a "
                        "student learns from scores of its own shape"
                    )
                divergence += float(kl_divergence(ours, theirs)) * len(image)
                decided.append(decide(theirs, self.options.threshold).cpu())
            target = decided[number] if full else known[number]
            classes = max(2, ours.shape[1])
            seen += len(image)
            new = confusion(target.to(ours.device), decide(ours, self.options.threshold), classes)
            matrix = new if matrix is None else matrix + new
        if full:
            self.decided = decided
        assert matrix is not None
        same, pixels = agreement(matrix)
        return Score(same, pixels, divergence / seen if full else math.nan)

    def _logits(self, network: nn.Module, image: Tensor) -> Tensor:
        scores, _ = scores_of(network(image), self.options.output)
        return as_logits(scores, self.options.probabilities)
