"""A moving average of the least and greatest value of each frame: what one unusual frame cannot move far.

The exponential moving average of Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (CVPR 2018), section 3.1, as torch's MovingAverageMinMaxObserver keeps it: the first
frame as it is, then with every frame a hundredth of the way from the average towards that frame's own value.

With n frames it is a weighted mean of them: WEIGHT for the last, less by the factor 1 - WEIGHT for each before, and
what is left, (1 - WEIGHT)**(n - 1), for the first. So it can be continued from any state: what a run of n frames
that begins with the value f makes of an earlier average a is its own average plus (1 - WEIGHT)**n * (a - f). That
is all that merging needs: numbers of fixed size give what one process would have computed, up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WEIGHT = 0.01  # of a new frame: torch's default, and ONNX Runtime's

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Extremes:
    """Least and greatest value of single frames: the first frame's, and the moving average up to the last."""

    frames: int
    first: Pair
    average: Pair

    def __post_init__(self) -> None:
        if self.frames < 1 or not all(map(math.isfinite, (*self.first, *self.average))):
            raise ValueError(f"finite extremes of one frame or more were expected; got {self}")
        if self.first[0] > self.first[1] or self.average[0] > self.average[1]:
            raise ValueError(f"a least value above no greatest one was expected; got {self}")


def follow(before: Extremes | None, after: Extremes | None) -> Extremes | None:
    """The average over the frames of `before` and then those of `after`; None where either is not known."""
    if before is None or after is None:
        return None
    left = (1.0 - WEIGHT) ** after.frames
    low, high = (
        average + left * (earlier - first)
        for average, earlier, first in zip(after.average, before.average, after.first, strict=True)
    )
    return Extremes(before.frames + after.frames, before.first, (low, max(low, high)))


def widest(one: Extremes | None, other: Extremes | None) -> Extremes | None:
    """The wider of both on either side, for two tensors that were seen in the same frames."""
    if one is None or other is None:
        return None

    def around(a: Pair, b: Pair) -> Pair:
        return min(a[0], b[0]), max(a[1], b[1])

    return Extremes(max(one.frames, other.frames), around(one.first, other.first), around(one.average, other.average))
