"""Recovery: a rewritten network learns from the one it came from, on frames that need no labels. Needs torch.

frames → augment → teacher and student → losses → a step → judged on held-out frames → the best is kept

`train` learns from labels alone, for networks that have no teacher.
"""

from __future__ import annotations

from edgeseg.distill.frames import Prepare, preparation
from edgeseg.distill.loop import distill
from edgeseg.distill.patience import Patience
from edgeseg.distill.supervised import Trained, Training, train
from edgeseg.distill.values import Augmentation, Distillation, Distilled, LabelLoss, Progress, Score

__all__ = [
    "Augmentation",
    "Distillation",
    "Distilled",
    "LabelLoss",
    "Patience",
    "Prepare",
    "Progress",
    "Score",
    "Trained",
    "Training",
    "distill",
    "preparation",
    "train",
]
