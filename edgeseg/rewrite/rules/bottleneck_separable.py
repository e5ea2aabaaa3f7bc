"""Bottleneck with a depthwise core: 1x1, one k x k filter for each of the mixtures, 1x1.

W[o, i, s] = sum_a P[o, a] R[a, i] d[a, s]: with merged taps this is the CP decomposition (Lebedev et al. 2015), and in
form an inverted residual block (Sandler et al. 2018) without its non-linearity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgeseg.rewrite.features import Mixed, MixedOnce
from edgeseg.rewrite.moments import Moments
from edgeseg.rewrite.rule import Rule
from edgeseg.rewrite.rules import bottleneck, separable
from edgeseg.rewrite.solve import Problem, Projected, problem_of, project, saves, share_of, vary
from edgeseg.rewrite.values import Choice, Conv, Fitted, Piece


def choices(conv: Conv, align: int) -> Sequence[Choice]:
    """Ranks: (mixtures,), which may be more than the layer has channels."""
    if conv.groups != 1 or conv.taps == 1:
        return []
    least = min(conv.outputs, 32) / 2
    most = min(conv.inputs * conv.taps, 2 * max(conv.inputs, conv.outputs)) + 1
    shares = {r: share_of(_pieces(conv, r), conv) for r in range(align, most, align) if r >= least}
    picked = set()
    for share in bottleneck.sought(conv):
        r = min(shares, key=lambda r: abs(shares[r] - share), default=None)
        if r is not None and abs(shares[r] - share) < 0.25 * share + 0.02:
            picked.add(r)
    made = [Choice("bottleneck-separable", (r,), _pieces(conv, r)) for r in sorted(picked)]
    return [choice for choice in made if saves(choice.pieces, conv)]


def fit(choice: Choice, conv: Conv, moments: Moments, weight: Tensor, steps: int) -> Fitted:
    (r,) = choice.ranks
    problem = problem_of(moments, weight)
    features = MixedOnce(conv.inputs, conv.taps, r)
    theta, found = _start(problem, conv, r)
    if steps:
        theta, found = vary(features, problem, theta, steps)
    theta, last = theta.double(), found.last
    mixing, filters = features.parts(theta)
    weights = (mixing[:, :, None, None], filters.reshape(-1, 1, *conv.kernel), last[:, :, None, None])
    return Fitted(weights, features.expand(theta, last))


def _start(problem: Problem, conv: Conv, r: int) -> tuple[Tensor, Projected]:
    """The best of some: the layer made separable among its own channels, or among a part of the mixtures that a
    bottleneck would take."""
    counts = {min(r, conv.inputs), (r + 1) // 2, (r + 2) // 3}
    tries = [_mixtures(problem, conv, n) for n in sorted(counts) if n <= conv.inputs and n * conv.taps >= r]
    if r >= conv.inputs:
        same = torch.eye(conv.inputs, dtype=problem.gram.dtype)
        tries.append((same, problem.gram, problem.cross, problem.weight))
    return min((_separable(problem, conv, r, *parts) for parts in tries), key=lambda start: start[1].lost)


def _mixtures(problem: Problem, conv: Conv, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """n mixtures (n, Ci) of the channels; gram, cross and kernel for what they give."""
    every = Mixed(conv.inputs, conv.taps, conv.inputs)

    def make() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mixing = bottleneck.start(problem, conv).to(problem.gram.dtype)
        theta = mixing.flatten()
        gram = every.of_rows(theta, every.of_gram(theta, problem.gram))
        back = torch.linalg.inv(mixing.double()).T.flatten().to(mixing.dtype)
        return mixing, gram, every.of_rows(theta, problem.cross), every.of_rows(back, problem.weight)

    mixing, gram, cross, weight = problem.once("mixtures", make)
    depth = n * conv.taps
    return mixing[:n], gram[:depth, :depth], cross[:, :depth], weight[:, :depth]


def _separable(
    problem: Problem, conv: Conv, r: int, mixing: Tensor, gram: Tensor, cross: Tensor, weight: Tensor
) -> tuple[Tensor, Projected]:
    """theta made of the r filters that carry most among those of a kernel (Co, n * taps), and its last factor."""
    n, taps = len(mixing), conv.taps
    filters, carried = separable.start(weight, gram, n, taps)
    strongest = carried.flatten().topk(r).indices
    channel, taken = strongest // taps, filters.flatten(0, 1)[strongest].to(gram.dtype)
    of_gram = torch.bmm(taken[:, None], gram.reshape(n, taps, -1)[channel]).view(r, n, taps)
    k = (of_gram[:, channel] * taken).sum(-1)
    b = (cross.reshape(-1, n, taps)[:, channel] * taken).sum(-1)
    return torch.cat([mixing[channel].flatten(), taken.flatten()]), project(k, b, problem.power)


def _pieces(conv: Conv, r: int) -> tuple[Piece, ...]:
    return (Conv(conv.inputs, r), replace(conv, inputs=r, outputs=r, groups=r), Conv(r, conv.outputs))


BOTTLENECK_SEPARABLE = Rule(
    "bottleneck-separable", "1x1, one k x k filter for each channel of these, 1x1", choices, fit, mixes=True
)
