"""Bottleneck: fewer channels by a 1x1 convolution, k x k among these, and a 1x1 convolution back.

Tucker-2 (Kim et al. 2016): W[o, i, s] = sum_ab E[o, b] core[b, a, s] R[a, i]. Core and E follow from R by reduced-rank
regression. Where one side has few channels anyway, its 1x1 convolution is left out; of a 1x1 convolution two remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log

import torch
from torch import Tensor

from edgeseg.rewrite.features import Mixed, shared
from edgeseg.rewrite.moments import DEEPEST, Moments
from edgeseg.rewrite.rule import Rule
from edgeseg.rewrite.solve import Problem, principal, problem_of, project, saves, share_of, vary
from edgeseg.rewrite.values import Choice, Conv, Fitted, Piece

SHARES = (0.08, 0.16, 0.28, 0.42, 0.6)  # of the layer's multiplications that a choice is sought for
DEEP = 2000  # D from which the smaller shares are enough, and a fit takes a second


def sought(conv: Conv) -> Sequence[float]:
    return SHARES[:3] if conv.depth > DEEP else SHARES


def choices(conv: Conv, align: int) -> Sequence[Choice]:
    """Ranks: (channels that go in, channels that come out) of the k x k convolution."""
    if conv.groups != 1:
        return []
    if conv.taps == 1:
        middle = widths(min(conv.inputs, conv.outputs), align)
        every = [(conv.inputs, width) for width in middle]
    else:
        inner, outer = _inner(conv, align), [*widths(conv.outputs, align), conv.outputs]
        every = [(r1, r2) for r1 in inner for r2 in outer if (r1, r2) != (conv.inputs, conv.outputs)]
    shares = {ranks: share_of(_pieces(conv, *ranks), conv) for ranks in every}
    picked = {ranks for share in sought(conv) if (ranks := _nearest(conv, shares, share)) is not None}
    return [
        Choice("bottleneck", ranks, _pieces(conv, *ranks))
        for ranks in sorted(picked, key=lambda ranks: shares[ranks])
        if saves(_pieces(conv, *ranks), conv)
    ]


def fit(choice: Choice, conv: Conv, moments: Moments, weight: Tensor, steps: int) -> Fitted:
    r1, r2 = choice.ranks
    problem = problem_of(moments, weight)
    if r1 == conv.inputs:
        left, core = problem.once("every output", lambda: _outputs(problem))
        core = left[:, -r2:].T @ core
        last = left[:, -r2:]
        kernel = core.view(r2, conv.inputs, *conv.kernel)
        return Fitted((kernel, last[:, :, None, None]), last @ core)
    features = Mixed(conv.inputs, conv.taps, r1)
    theta, found = vary(features, problem, start(problem, conv)[:r1].flatten(), steps, r2)
    theta = theta.double()
    reduce = features.mixing(theta)[:, :, None, None]
    kernel = found.core.view(-1, r1, *conv.kernel)
    effective = features.expand(theta, found.last)
    if found.left is None:
        return Fitted((reduce, kernel), effective)
    return Fitted((reduce, kernel, found.left[:, :, None, None]), effective)


def start(problem: Problem, conv: Conv) -> Tensor:
    """Mixtures (Ci, Ci) float64 of the input's channels, the first carrying the most."""

    def make() -> Tensor:
        by_tap = problem.weight.double().view(-1, conv.inputs, conv.taps).transpose(1, 2).flatten(0, 1)
        return principal(by_tap.T @ by_tap, shared(problem.gram, conv.inputs, conv.taps))[0]

    return problem.once("bottleneck", make)


def widths(channels: int, align: int) -> list[int]:
    """Multiples of `align` below `channels`; of few channels, none fewer than half."""
    least = channels / 2 if channels <= 32 else 1
    return [width for width in range(align, channels, align) if width >= least]


def _inner(conv: Conv, align: int) -> list[int]:
    """Channels that may go into the k x k convolution: of one too deep for its moments fewer than can be seen of it."""
    if conv.depth > DEEPEST:
        return [width for width in widths(conv.inputs, align) if width < DEEPEST // conv.taps]
    return [*widths(conv.inputs, align), conv.inputs]


def _outputs(problem: Problem) -> tuple[Tensor, Tensor]:
    """Directions (Co, Co) of the outputs, the last the strongest, and the kernel that explains most (Co, D)."""
    found = project(problem.gram, problem.cross, problem.power)
    _, vectors = torch.linalg.eigh(found.core @ problem.cross.double().T)
    return vectors, found.core


def _nearest(conv: Conv, shares: dict[tuple[int, int], float], share: float) -> tuple[int, int] | None:
    """Ranks near to a share of the multiplications, and to what is best for most layers: a few more channels out of
    the k x k convolution than into it, whatever the layer has around them; all of a side that has fewer anyway."""

    def distance(ranks: tuple[int, int]) -> float:
        r1, r2 = ranks
        uneven = log(r2 / min(1.3 * r1, conv.outputs)) if r1 < conv.inputs else min(log(r2 / (1.3 * r1)), 0.0)
        return abs(log(shares[ranks] / share)) + (0.0 if conv.taps == 1 else 0.5 * abs(uneven))

    near = [ranks for ranks in shares if 0.6 < shares[ranks] / share < 1.6]
    return min(near, key=distance, default=None)


def _pieces(conv: Conv, r1: int, r2: int) -> tuple[Piece, ...]:
    core = replace(conv, inputs=r1, outputs=r2)
    first = () if r1 == conv.inputs else (Conv(conv.inputs, r1),)
    last = () if r2 == conv.outputs else (Conv(r2, conv.outputs),)
    return (*first, core, *last)


BOTTLENECK = Rule(
    "bottleneck", "1x1 to fewer channels, k x k among them, 1x1 back (Tucker-2)", choices, fit, mixes=True
)
