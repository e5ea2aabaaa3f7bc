"""Stacked: a large convolution as two smaller ones in a row, k x k as 3 x 3 and then (k-2) x (k-2).

W[o, i, s + t] = sum_j B[o, j, t] A[j, i, s]. All padding is in front of the first, whose output is larger than that of
the layer: a second padding between the two would put zeros where the first has values, and be wrong at the border.

The start is alternating least squares under a gram matrix that is taken to be (channels) x (taps): then each input
channel can be solved for alone, with one small matrix for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from edgeseg.rewrite.features import own, shared
from edgeseg.rewrite.moments import Moments
from edgeseg.rewrite.rule import Rule
from edgeseg.rewrite.solve import Problem, cholesky, damped, problem_of, saves, share_of, vary
from edgeseg.rewrite.values import Choice, Conv, Fitted, Pair, Piece

SHARES = (0.16, 0.3, 0.5)  # of the layer's multiplications that a choice is sought for
ROUNDS = (8, 40)  # of alternating least squares: of many channels, whose rounds are slow; of few, which settle late
RIDGE = 1e-9  # of the normal equations of that, relative to their diagonal
FIRST = (3, 3)


def choices(conv: Conv, align: int) -> Sequence[Choice]:
    """Ranks: (channels between,). Only for kernels that are odd and at least 5 in both directions."""
    if conv.groups > 1 or min(conv.kernel) < 5 or not all(size % 2 for size in conv.kernel):
        return []
    least, most = min(conv.outputs, 32) / 2, min(2 * max(conv.inputs, conv.outputs), conv.inputs * prod(FIRST))
    shares = {width: share_of(_pieces(conv, width), conv) for width in range(align, most + 1, align) if width >= least}
    widths = {min(shares, key=lambda width: abs(shares[width] - share)) for share in SHARES if shares}
    made = [Choice("stacked", (width,), _pieces(conv, width)) for width in sorted(widths)]
    return [choice for choice in made if saves(choice.pieces, conv)]


def fit(choice: Choice, conv: Conv, moments: Moments, weight: Tensor, steps: int) -> Fitted:
    (width,) = choice.ranks
    problem = problem_of(moments, weight)
    features = Windows(conv.inputs, conv.kernel, FIRST)
    theta, found = vary(features, problem, _start(problem, features, width).flatten(), steps)
    first = features.kernel(theta.double())
    second = found.last.view(conv.outputs, width, *features.second)
    return Fitted((first, second), features.expand(theta.double(), found.last))


def _pieces(conv: Conv, width: int) -> tuple[Piece, ...]:
    rest = (conv.kernel[0] - FIRST[0] + 1, conv.kernel[1] - FIRST[1] + 1)
    return (
        Conv(conv.inputs, width, FIRST, (1, 1), conv.padding, conv.dilation),
        Conv(width, conv.outputs, rest, conv.stride, (0, 0), conv.dilation),
    )


@dataclass(frozen=True, slots=True)
class Windows:
    """What a small kernel A (r, n, *first), which is theta, sees in each of its places in a patch (n, *size).

    Features are in the order (r, *second), second being the places.
    """

    n: int
    size: Pair
    first: Pair

    @property
    def second(self) -> Pair:
        return self.size[0] - self.first[0] + 1, self.size[1] - self.first[1] + 1

    @property
    def places(self) -> tuple[tuple[slice, slice], ...]:
        return tuple(
            (slice(u, u + self.first[0]), slice(v, v + self.first[1]))
            for u in range(self.second[0])
            for v in range(self.second[1])
        )

    def kernel(self, theta: Tensor) -> Tensor:
        return theta.view(-1, self.n, *self.first)

    def of_gram(self, theta: Tensor, gram: Tensor) -> Tensor:
        return self.of_rows(theta, gram).T

    def of_rows(self, theta: Tensor, rows: Tensor) -> Tensor:
        small = self.kernel(theta).flatten(1).to(rows.dtype).T
        images = rows.reshape(len(rows), self.n, *self.size)
        seen = [images[(..., *place)].reshape(len(rows), -1) @ small for place in self.places]
        return torch.stack(seen, 2).flatten(1)

    def expand(self, theta: Tensor, last: Tensor) -> Tensor:
        small = self.kernel(theta).flatten(1).to(last.dtype)
        whole = last.new_zeros(len(last), self.n, *self.size)
        for place, part in zip(self.places, self._split(last), strict=True):
            whole[(..., *place)] += (part @ small).view(len(last), self.n, *self.first)
        return whole.flatten(1)

    def pull(self, theta: Tensor, last: Tensor, residual: Tensor) -> Tensor:
        images = residual.view(len(residual), self.n, *self.size)
        parts = zip(self.places, self._split(last), strict=True)
        return torch.stack([part.T @ images[(..., *place)].flatten(1) for place, part in parts]).sum(0).flatten()

    def precondition(self, theta: Tensor, last: Tensor, problem: Problem) -> Callable[[Tensor], Tensor]:
        channels, between = _apart(problem, self)
        outer = damped(_normal(last.double().T.view(-1, prod(self.second), len(last)), between))
        inner = damped(channels)

        def inverse(slope: Tensor) -> Tensor:
            by_tap = self.kernel(slope.double()).flatten(2).transpose(1, 2).flatten(0, 1)  # (r * taps, n)
            solved = outer @ by_tap @ inner
            return solved.view(-1, prod(self.first), self.n).transpose(1, 2).flatten().to(slope.dtype)

        return inverse

    @property
    def taps(self) -> Tensor:
        """Which tap of the patch each tap of the small kernel is in each place: int64 (places, taps)."""
        taps = torch.arange(prod(self.size)).view(self.size)
        return torch.stack([taps[place].flatten() for place in self.places])

    def _split(self, last: Tensor) -> Sequence[Tensor]:
        return last.view(len(last), -1, prod(self.second)).unbind(2)


def _start(problem: Problem, features: Windows, width: int) -> Tensor:
    """A (width, n, *first), flattened, float64."""
    channels, between = problem.once("stacked", lambda: _apart(problem, features))
    outputs, n, taps = len(problem.weight), features.n, features.taps
    places, small = taps.shape
    scale = channels.diagonal().mean().clamp_min(1e-30)
    white = cholesky(channels / scale)
    kernel = problem.weight.double().view(outputs, n, -1).transpose(1, 2) @ white  # (Co, all taps, n)
    target = (_taps(problem, features) @ kernel)[:, taps]  # (Co, places, small, n)
    first = _principal(kernel[:, taps].flatten(0, 1).flatten(1), width).view(width, small, n)
    for _ in range(min(max(640 // width, ROUNDS[0]), ROUNDS[1])):
        answer = torch.einsum("jsn,otsn->jto", first, target).flatten(0, 1)
        second = _solved(_normal(first, between.permute(1, 0, 3, 2)), answer).view(width, places, outputs)
        answer = torch.einsum("jto,otsn->jsn", second, target).flatten(0, 1)
        first = _solved(_normal(second, between), answer).view(width, small, n)
    found: Tensor = torch.linalg.solve_triangular(white, first, upper=False, left=False)
    return found.transpose(1, 2).flatten()


def _apart(problem: Problem, features: Windows) -> tuple[Tensor, Tensor]:
    """The gram matrix as (channels) x (taps), float64: moments (n, n), and (places, small, places, small)."""
    taps = features.taps
    channels = shared(problem.gram, features.n, prod(features.size)).double()
    return channels, _taps(problem, features)[taps[:, :, None, None], taps]


def _taps(problem: Problem, features: Windows) -> Tensor:
    """How the taps of a patch go together, in the mean over its channels: (taps, taps), float64, around 1."""
    mean = own(problem.gram, features.n, prod(features.size)).double().mean(0)
    return mean / mean.diagonal().mean().clamp_min(1e-30)


def _principal(rows: Tensor, width: int) -> Tensor:
    """About the `width` strongest directions of rows (n, d): subspace iteration from a fixed draw."""
    found = torch.randn(width, len(rows), generator=torch.Generator().manual_seed(0), dtype=rows.dtype) @ rows
    for _ in range(2):
        found = (torch.linalg.qr(found.T)[0].T @ rows.T) @ rows
    return found


def _normal(factor: Tensor, between: Tensor) -> Tensor:
    """The normal equations (r * s, r * s) of one factor, given the other (r, p, m), for between (p, s, p, s)."""
    width, p, s = len(factor), *between.shape[:2]
    flat = factor.flatten(0, 1)
    seen = (flat @ flat.T).view(width, p, width, p).transpose(1, 2).reshape(width**2, p**2)
    normal = seen @ between.transpose(1, 2).reshape(p**2, s**2)
    return normal.view(width, width, s, s).transpose(1, 2).reshape(width * s, width * s)


def _solved(normal: Tensor, answer: Tensor) -> Tensor:
    scale = normal.diagonal().clamp_min(1e-30).rsqrt()[:, None]
    damped_normal = normal * scale * scale.T + RIDGE * torch.eye(len(normal), dtype=normal.dtype)
    return torch.cholesky_solve(answer * scale, cholesky(damped_normal)) * scale


STACKED = Rule("stacked", "k x k as 3 x 3 and then (k-2) x (k-2)", choices, fit)
