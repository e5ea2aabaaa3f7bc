"""Recovery: a rewritten network learns from the one it came from, on frames that need no labels. Needs torch.

frames → augment → teacher and student → losses → a step → judged on held-out frames → the best is kept
"""

from __future__ import annotations

from edgeseg.distill.frames import Prepare, preparation
from edgeseg.distill.loop import distill
from edgeseg.distill.values import Augmentation, Distillation, Distilled, LabelLoss, Progress, Score

__all__ = [
    "Augmentation",
    "Distillation",
    "Distilled",
    "LabelLoss",
    "Prepare",
    "Progress",
    "Score",
    "distill",
    "preparation",
]
