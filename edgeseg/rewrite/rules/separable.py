"""Depthwise separable: every channel through a few filters of its own, then a mixture of all at each pixel.

A kernel W (Co, Ci, k, k) becomes sum_b P[o, (i, b)] d[i, b, :]. With as many filters as taps it is the convolution
itself; one each is what MobileNet (Howard et al. 2017) is made of, several are network decoupling (Guo et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from edgeseg.rewrite.features import Blocks, own
from edgeseg.rewrite.moments import Moments
from edgeseg.rewrite.rule import Rule
from edgeseg.rewrite.solve import Problem, Projected, principal, problem_of, saves, vary
from edgeseg.rewrite.values import Choice, Conv, Fitted, Fork

FILTERS = (1, 2, 3, 4, 6, 9, 12)
COUNT = 5


def stacked(conv: Conv, align: int) -> Sequence[Choice]:
    """Ranks: (filters per channel,)."""
    return [Choice("separable", (m,), (_depthwise(conv, m), _pointwise(conv, m))) for m in _filters(conv)]


def forked(conv: Conv, align: int) -> Sequence[Choice]:
    """Ranks: (filters per channel,)."""
    return [
        Choice("separable-forked", (m,), (Fork((_depthwise(conv, 1),) * m), _pointwise(conv, m)))
        for m in _filters(conv)
        if m > 1
    ]


def fit(choice: Choice, conv: Conv, moments: Moments, weight: Tensor, steps: int) -> Fitted:
    (m,) = choice.ranks
    problem = problem_of(moments, weight)
    features = Blocks(conv.inputs, m, conv.taps)
    theta, found = problem.once(("separable", m, steps), lambda: _varied(features, problem, steps))
    theta = theta.double()
    filters, last = features.filters(theta), found.last
    effective = features.expand(theta, last)
    if not isinstance(choice.pieces[0], Fork):
        return Fitted((filters.reshape(-1, 1, *conv.kernel), last[:, :, None, None]), effective)
    branches = tuple(filters[:, b].reshape(-1, 1, *conv.kernel) for b in range(m))
    by_branch = last.view(-1, conv.inputs, m).transpose(1, 2).flatten(1)
    return Fitted((branches, by_branch[:, :, None, None]), effective)


def start(weight: Tensor, gram: Tensor, n: int, t: int) -> tuple[Tensor, Tensor]:
    """Filters (n, t, t) of each channel in the order of what they carry (n, t), of a kernel (Co, n * t): the singular
    vectors of its kernels in the metric of the channel's own patches."""
    by_channel = weight.double().reshape(-1, n, t).transpose(0, 1)
    return principal(by_channel.mT @ by_channel, own(gram, n, t))


def _varied(features: Blocks, problem: Problem, steps: int) -> tuple[Tensor, Projected]:
    n, t = features.n, features.t
    filters, _ = problem.once("separable", lambda: start(problem.weight, problem.gram, n, t))
    return vary(features, problem, filters[:, : features.m].flatten(), steps)


def _filters(conv: Conv) -> list[int]:
    if conv.groups != 1 or conv.taps == 1:
        return []
    enough = min(conv.outputs, 32) / 2
    fits = [m for m in FILTERS if m < conv.taps and m * conv.inputs >= enough]
    return [m for m in fits if saves((_depthwise(conv, m), _pointwise(conv, m)), conv)][:COUNT]


def _depthwise(conv: Conv, m: int) -> Conv:
    return replace(conv, outputs=conv.inputs * m, groups=conv.inputs)


def _pointwise(conv: Conv, m: int) -> Conv:
    return Conv(conv.inputs * m, conv.outputs)


SEPARABLE = Rule("separable", "k x k filters for each channel, then a 1x1 convolution", stacked, fit)
FORKED = Rule("separable-forked", "the same with one depthwise convolution for each filter, side by side", forked, fit)
