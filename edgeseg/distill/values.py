"""The words of recovery: what is asked for, how near a student is to its teacher, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edgeseg.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

Norm = Literal["none", "frozen", "updating"]
Stopped = Literal["finished", "interrupted", "diverged", "no time"]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to a frame, at random, before both networks see it; its size stays."""

    flip: float = 0.5  # probability of mirroring left and right
    crop: tuple[float, float] = (0.8, 1.0)  # side of the part that is cut out, as a fraction; resized to the whole
    brightness: float = 0.2  # pixels times 1 - this to 1 + this
    contrast: float = 0.2  # distance to the frame's mean grey, likewise
    color: float = 0.2  # distance of a pixel's channels to its grey, likewise

    def __post_init__(self) -> None:
        low, high = self.crop
        jitters = (self.brightness, self.contrast, self.color)
        if not (0 <= self.flip <= 1 and 0 < low <= high <= 1 and all(0 <= jitter < 1 for jitter in jitters)):
            raise BadInput(
                f"augmentation wants 0 <= flip <= 1, 0 < crop <= 1 and jitters from 0 to below 1, got {self}"
            )


AS_THEY_ARE = Augmentation(0.0, (1.0, 1.0), 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class LabelLoss:
    """How much labels count beside the teacher, where there are labels. Weights multiply means over pixels."""

    cross_entropy: float = 1.0  # of one channel: binary cross entropy
    dice: float = 0.0
    smoothing: float = 0.0  # of labels: 1 - this for the class, the rest spread evenly over all (Szegedy et al. 2016)
    ignore_index: int | None = 255  # pixels labelled so do not count
    class_weights: tuple[float, ...] = ()  # one a class; empty: all alike; see `edgeseg.distill.balance`
    focal: float = 0.0  # gamma: cross entropy of a pixel times (1 - its label's probability) ** this (Lin et al. 2017)

    def __post_init__(self) -> None:
        if min(self.cross_entropy, self.dice, self.focal) < 0 or not 0 <= self.smoothing < 1:
            raise BadInput(f"losses of labels want weights, focal >= 0 and a smoothing from 0 to below 1, got {self}")
        if any(not weight >= 0 for weight in self.class_weights) or (
            self.class_weights and not any(self.class_weights)
        ):
            raise BadInput(f"class weights must be >= 0 and not all 0, got {self.class_weights}")


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a student learns from its teacher. The defaults suit a student that starts close to it."""

    minutes: float = 10.0  # of everything, evaluation included
    steps: int | None = None  # given: so many steps, whatever they take; the same seed then gives the same weights
    seed: int = 0
    batch: int = 4  # frames a step and process
    at_once: int | None = None  # of them, how many the networks get together; None: found out
    learning_rate: float = 5e-4  # its highest; higher ones first destroy what a good start knows
    warmup: float = 0.05  # fraction of the run in which the learning rate rises; then it falls as a cosine
    weight_decay: float = 1e-4  # of weights, not of biases and norms
    clip: float = 1.0  # longest gradient
    average: float = 0.99  # decay of the weights' moving average, which is what is judged and kept
    temperature: float = 1.0
    logit_weight: float = 1.0
    feature_weight: float = 2.0
    features: tuple[str, ...] | None = None  # nodes of both graphs to be matched; None: chosen; (): none
    label_weight: float = 0.5
    auxiliary_weight: float = 0.3  # of further outputs, as for GoogLeNet's (Szegedy et al. 2015)
    labels: LabelLoss = field(default_factory=LabelLoss)
    norm: Norm = "none"  # batch norm during training, folded at the end
    augmentation: Augmentation = field(default_factory=Augmentation)
    output: int | str = 0  # which output holds the scores, if there are several
    probabilities: bool = False  # the scores have gone through a sigmoid or softmax in the network
    threshold: float = 0.5  # one channel: the probability from which a pixel is class 1
    align_corners: bool = False  # how scores are brought to the size of labels

    def __post_init__(self) -> None:
        whole = (self.batch, self.at_once or 1, 1 if self.steps is None else self.steps)
        if any(value < 1 for value in whole) or self.seed < 0:
            raise BadInput(f"batch, at_once and steps must be at least 1, and the seed not negative: {self}")
        positive = (self.minutes, self.learning_rate, self.clip, self.temperature)
        if not all(0 < value < math.inf for value in positive):
            raise BadInput(f"minutes, learning_rate, clip and temperature must be positive: {self}")
        weights = (self.weight_decay, self.logit_weight, self.feature_weight, self.label_weight, self.auxiliary_weight)
        if not all(0 <= value < math.inf for value in weights):
            raise BadInput(f"weights of losses and weight_decay must be 0 or more: {self}")
        if not (0 <= self.warmup < 1 and 0 <= self.average < 1 and 0 < self.threshold < 1):
            raise BadInput(f"warmup and average must be from 0 to below 1, the threshold between 0 and 1: {self}")


@dataclass(frozen=True, slots=True)
class Score:
    """How near a student is to its teacher, on frames that it did not learn from; from 0 to 1, but for kl."""

    agreement: float  # mean over classes of the IoU of their decisions, one confusion matrix for all frames
    pixels: float  # fraction that get the same class
    kl: float  # mean over pixels of KL(teacher, student) in nats; nan where it was not computed


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    fraction: float  # of the run, 0 to 1
    seconds: float
    learning_rate: float
    loss: float
    score: Score | None = None  # of the averaged weights, where they were judged after this step


@dataclass(frozen=True, slots=True)
class Distilled:
    """The better one of before and after: in eval mode, on the CPU, its weights without gradients."""

    student: nn.Module
    before: Score
    after: Score  # of the best that training came by, kept or not
    kept: Literal["before", "after"]
    stopped: Stopped
    steps: int
    seconds: float  # of all runs that a checkpoint joins
    history: tuple[Progress, ...]  # the steps after which it was judged
    notes: tuple[str, ...] = ()  # for people
