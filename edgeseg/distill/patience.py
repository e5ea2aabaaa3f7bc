"""When training goes slower and when it ends: by how long a score has not become better."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeseg.errors import BadInput


@dataclass(frozen=True, slots=True)
class Patience:
    """After `slower` epochs in a row without a better score the learning rate is multiplied by `factor`, and again
    after as many more; after `end` of them training ends."""

    slower: int = 5
    end: int = 10
    factor: float = 0.1
    least: float = 1e-3  # of the first learning rate: it gets no smaller
    gain: float = 0.0  # how much higher than the best a score must be to count as better

    def __post_init__(self) -> None:
        if min(self.slower, self.end) < 1 or not (0 < self.factor < 1 and 0 <= self.least <= 1 and self.gain >= 0):
            raise BadInput(f"patience wants epochs >= 1, 0 < factor < 1, 0 <= least <= 1 and gain >= 0, got {self}")


@dataclass(frozen=True, slots=True)
class Watch:
    """What was seen of the scores so far; a new one after each."""

    best: float = -math.inf
    worse: int = 0  # epochs since the best
    waited: int = 0  # of them, those since the learning rate last became smaller
    speed: float = 1.0  # learning rate over the first one


def watch(seen: Watch, score: float, patience: Patience) -> Watch:
    """`seen` after one more epoch of this score, higher being better; one that is no number is never better."""
    if score > seen.best + patience.gain:
        return Watch(score, 0, 0, seen.speed)
    waited, speed = seen.waited + 1, seen.speed
    if waited >= patience.slower:
        waited, speed = 0, max(patience.least, speed * patience.factor)
    return Watch(seen.best, seen.worse + 1, waited, speed)


def over(seen: Watch, patience: Patience) -> bool:
    return seen.worse >= patience.end
