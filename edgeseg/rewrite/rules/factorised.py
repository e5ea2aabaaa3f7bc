"""Factorised: k x 1 and then 1 x k, with some channels between (Jaderberg et al. 2014, their second scheme).

W[o, i, u, v] = sum_a P[o, a, v] B[a, i, u]. Stride, padding and dilation are split by axis, so borders are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeseg.rewrite.features import Mixed, shared
from edgeseg.rewrite.moments import Moments
from edgeseg.rewrite.rule import Rule
from edgeseg.rewrite.rules.bottleneck import sought
from edgeseg.rewrite.solve import Problem, principal, problem_of, saves, share_of, vary
from edgeseg.rewrite.values import Choice, Conv, Fitted, Pair, Piece

MOST = 0.25  # a width further than this from a share that is sought is not taken for it


def choices(conv: Conv, align: int) -> Sequence[Choice]:
    """Ranks: (channels between,). The axis that comes first is the one with which fewer multiplications are needed."""
    if conv.groups != 1 or min(conv.kernel) == 1:
        return []
    least = min(conv.outputs, 32) / 2
    shares = {
        width: min(share_of(_pieces(conv, width, first), conv) for first in (0, 1))
        for width in range(align, max(conv.inputs, conv.outputs) * max(conv.kernel) + 1, align)
        if width >= least
    }
    picked = set()
    for share in sought(conv):
        width = min(shares, key=lambda width: abs(shares[width] - share), default=None)
        if width is not None and abs(shares[width] - share) < MOST * share + 0.02:
            picked.add(width)
    made = [Choice("factorised", (width,), _cheaper(conv, width)) for width in sorted(picked)]
    return [choice for choice in made if saves(choice.pieces, conv)]


def fit(choice: Choice, conv: Conv, moments: Moments, weight: Tensor, steps: int) -> Fitted:
    (width,) = choice.ranks
    first = 0 if choice.pieces[0] == _along(conv, 0, conv.inputs, width) else 1
    problem = problem_of(moments, weight)
    order = torch.arange(conv.depth).view(conv.inputs, *conv.kernel)
    order = order.flatten() if first == 0 else order.transpose(1, 2).flatten()
    turned = problem if first == 0 else problem.once("turned", lambda: problem.ordered(order))
    features = Mixed(conv.inputs * conv.kernel[first], conv.kernel[1 - first], width)
    begin = turned.once("factorised", lambda: _start(turned, features))
    theta, found = vary(features, turned, begin[:width].flatten(), steps)
    theta = theta.double()
    effective = torch.empty(conv.outputs, conv.depth, dtype=torch.float64)
    effective[:, order] = features.expand(theta, found.last)
    shape = ((-1, 1), (1, -1))
    before = features.mixing(theta).view(width, conv.inputs, *shape[first])
    after = found.last.view(conv.outputs, width, *shape[1 - first])
    return Fitted((before, after), effective)


def _start(problem: Problem, features: Mixed) -> Tensor:
    by_tap = problem.weight.double().view(-1, features.n, features.t).transpose(1, 2).flatten(0, 1)
    return principal(by_tap.T @ by_tap, shared(problem.gram, features.n, features.t))[0]


def _cheaper(conv: Conv, width: int) -> tuple[Piece, ...]:
    return min((_pieces(conv, width, first) for first in (0, 1)), key=lambda pieces: share_of(pieces, conv))


def _pieces(conv: Conv, width: int, first: int) -> tuple[Piece, ...]:
    return (_along(conv, first, conv.inputs, width), _along(conv, 1 - first, width, conv.outputs))


def _along(conv: Conv, axis: int, inputs: int, outputs: int) -> Conv:
    def only(values: Pair, otherwise: int) -> Pair:
        return (values[0], otherwise) if axis == 0 else (otherwise, values[1])

    return Conv(
        inputs, outputs, only(conv.kernel, 1), only(conv.stride, 1), only(conv.padding, 0), only(conv.dilation, 1)
    )


FACTORISED = Rule("factorised", "k x 1 and then 1 x k, with some channels between", choices, fit)
