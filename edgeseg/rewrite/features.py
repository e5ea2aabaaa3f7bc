"""The features that the linear rules make of a patch, each a matrix F (q, D) as a function of a vector theta.

A patch is (n, t) here, flattened: n things that are mixed and t that are not, such as channels and taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeseg.rewrite.solve import Problem, damped


@dataclass(frozen=True, slots=True)
class Blocks:
    """Each of n channels seen through m filters of its own: theta is (n, m, t), feature (i, b) of channel i."""

    n: int
    m: int
    t: int

    def filters(self, theta: Tensor) -> Tensor:
        return theta.view(self.n, self.m, self.t)

    def of_gram(self, theta: Tensor, gram: Tensor) -> Tensor:
        return torch.bmm(self.filters(theta), gram.view(self.n, self.t, -1)).flatten(0, 1)

    def of_rows(self, theta: Tensor, rows: Tensor) -> Tensor:
        by_channel = rows.view(-1, self.n, self.t).transpose(0, 1)
        return torch.bmm(by_channel, self.filters(theta).mT).transpose(0, 1).flatten(1)

    def expand(self, theta: Tensor, last: Tensor) -> Tensor:
        by_channel = last.view(-1, self.n, self.m).transpose(0, 1)
        return torch.bmm(by_channel, self.filters(theta)).transpose(0, 1).flatten(1)

    def pull(self, theta: Tensor, last: Tensor, residual: Tensor) -> Tensor:
        by_channel = last.view(-1, self.n, self.m).permute(1, 2, 0)
        return torch.bmm(by_channel, residual.view(-1, self.n, self.t).transpose(0, 1)).flatten()

    def precondition(self, theta: Tensor, last: Tensor, problem: Problem) -> Callable[[Tensor], Tensor]:
        # The scale of each filter alone: measured, with the metrics of taps and filters it ends worse.
        outer = last.view(-1, self.n, self.m).square().sum(0)
        inner = own(problem.gram, self.n, self.t).diagonal(dim1=1, dim2=2).mean(1)
        scale = (outer + 1e-3 * outer.mean()) * (inner + 1e-3 * inner.mean())[:, None] + 1e-30
        return lambda slope: (self.filters(slope) / scale[:, :, None]).flatten()


@dataclass(frozen=True, slots=True)
class Mixed:
    """r mixtures of the n channels, each with all its t taps: theta is (r, n), feature (a, s) tap s of mixture a."""

    n: int
    t: int
    r: int

    def mixing(self, theta: Tensor) -> Tensor:
        return theta.view(self.r, self.n)

    def of_gram(self, theta: Tensor, gram: Tensor) -> Tensor:
        return (self.mixing(theta) @ gram.view(self.n, -1)).view(self.r * self.t, -1)

    def of_rows(self, theta: Tensor, rows: Tensor) -> Tensor:
        return (self.mixing(theta) @ rows.view(-1, self.n, self.t)).flatten(1)

    def expand(self, theta: Tensor, last: Tensor) -> Tensor:
        return (self.mixing(theta).T @ last.view(-1, self.r, self.t)).flatten(1)

    def pull(self, theta: Tensor, last: Tensor, residual: Tensor) -> Tensor:
        left = last.view(-1, self.r, self.t).transpose(0, 1).flatten(1)
        return (left @ residual.view(-1, self.n, self.t).transpose(1, 2).flatten(0, 1)).flatten()

    def precondition(self, theta: Tensor, last: Tensor, problem: Problem) -> Callable[[Tensor], Tensor]:
        left = last.view(-1, self.r, self.t).transpose(0, 1).flatten(1)
        outer, inner = damped(left @ left.T), damped(shared(problem.gram, self.n, self.t))
        return lambda slope: (outer @ self.mixing(slope) @ inner).flatten()


@dataclass(frozen=True, slots=True)
class MixedOnce:
    """r mixtures of the n channels, each through one filter: theta is (r, n) and then (r, t)."""

    n: int
    t: int
    r: int

    def parts(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        split = self.r * self.n
        return theta[:split].view(self.r, self.n), theta[split:].view(self.r, self.t)

    def formed(self, theta: Tensor) -> Tensor:
        mixing, filters = self.parts(theta)
        return (mixing[:, :, None] * filters[:, None]).flatten(1)

    def of_gram(self, theta: Tensor, gram: Tensor) -> Tensor:
        return self.formed(theta) @ gram

    def of_rows(self, theta: Tensor, rows: Tensor) -> Tensor:
        return rows @ self.formed(theta).T

    def expand(self, theta: Tensor, last: Tensor) -> Tensor:
        return last @ self.formed(theta)

    def pull(self, theta: Tensor, last: Tensor, residual: Tensor) -> Tensor:
        mixing, filters = self.parts(theta)
        slope = (last.T @ residual).view(self.r, self.n, self.t)
        return torch.cat([(slope @ filters[:, :, None]).flatten(), (mixing[:, None] @ slope).flatten()])

    def precondition(self, theta: Tensor, last: Tensor, problem: Problem) -> Callable[[Tensor], Tensor]:
        # The scales of the features alone: measured, metrics of the channels and taps start faster and end worse.
        mixing, filters = self.parts(theta)
        weight = last.square().sum(0) * problem.gram.diagonal().mean()
        scales = [(weight * part.square().sum(1))[:, None] for part in (filters, mixing)]
        for_mixing, for_filters = (scale + 1e-3 * scale.mean() + 1e-30 for scale in scales)

        def apply(slope: Tensor) -> Tensor:
            of_mixing, of_filters = self.parts(slope)
            return torch.cat([(of_mixing / for_mixing).flatten(), (of_filters / for_filters).flatten()])

        return apply


def own(gram: Tensor, n: int, t: int) -> Tensor:
    """The moments (n, t, t) of each channel's taps among themselves."""
    return gram.reshape(n, t, n, t).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def shared(gram: Tensor, n: int, t: int) -> Tensor:
    """The moments (n, n) of the channels among themselves at one tap, in the mean over taps."""
    return gram.view(n, t, n, t).diagonal(dim1=1, dim2=3).mean(-1)
