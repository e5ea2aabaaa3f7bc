"""Channel pruning: the convolution itself, on fewer of its inputs.

Which inputs stay is found by greedy forward selection on the gram matrix in blocks of one channel's taps: in each round
the channel comes in that explains most of what is left of the targets, given those that are in already. The kernel is
then the least-squares one on the channels that stayed (He, Zhang and Sun 2017, "Channel pruning for accelerating very
deep neural networks", whose LASSO lets each channel have only one coefficient). Both come out of one Cholesky
factorisation with pivots, of which the next rank is the continuation.

Outputs of earlier layers that nothing takes any more are for another stage to remove.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgeseg.rewrite.moments import Moments
from edgeseg.rewrite.rule import Rule
from edgeseg.rewrite.solve import Problem, problem_of, saves
from edgeseg.rewrite.values import Choice, Conv, Fitted, Piece, Take

SHARES = (0.65, 0.5, 0.35, 0.22)  # of the inputs that stay
IGNORED = 1e-5  # share of the targets' variance, in directions of least, that has no say in which channels stay


def choices(conv: Conv, align: int) -> Sequence[Choice]:
    """Ranks: (input channels that stay,), the most first, which makes the others free. Nothing for groups.

    1 x 1 kernels are pruned too.
    """
    if conv.groups > 1:
        return []
    least = max(align, conv.inputs // 2 if conv.inputs <= 32 else 0)
    counts = dict.fromkeys(round(conv.inputs * share / align) * align for share in SHARES)
    made = (Choice("pruned", (count,), _pieces(conv, count)) for count in counts if least <= count < conv.inputs)
    return [choice for choice in made if saves(choice.pieces, conv)]


def fit(choice: Choice, conv: Conv, moments: Moments, weight: Tensor, steps: int) -> Fitted:
    """The channels in their own order, and the kernel on them; `steps` changes nothing, all is in closed form."""
    problem = problem_of(moments, weight)
    greedy = problem.once("pruned", lambda: _Greedy(problem, conv.taps))
    order, kernel = greedy.first(choice.ranks[0])
    kept, place = order.sort()
    kernel = kernel.view(conv.outputs, len(order), conv.taps)[:, place].double()
    effective = kernel.new_zeros(conv.outputs, conv.inputs, conv.taps)
    effective[:, kept] = kernel
    return Fitted((kept, kernel.reshape(conv.outputs, len(kept), *conv.kernel)), effective.flatten(1))


def _pieces(conv: Conv, count: int) -> tuple[Piece, ...]:
    return Take(count), replace(conv, inputs=count)


class _Greedy:
    """Block Cholesky factorisation of the gram matrix, pivoted by what each channel adds; goes on where it stopped."""

    def __init__(self, problem: Problem, taps: int) -> None:
        _require_finite(problem.gram)
        _require_finite(problem.cross)
        self._taps = taps
        self._gram = problem.gram
        self._cross = problem.cross
        count = len(problem.gram) // taps
        diagonal = problem.gram.diagonal()
        single = problem.gram.dtype == torch.float32
        self._floor = (1e-5 if single else 1e-10) * diagonal.view(count, taps).mean(1)[:, None]
        self._floor = self._floor.clamp_min((1e-7 if single else 1e-14) * float(diagonal.mean()) + 1e-30)
        blocks = problem.gram.view(count, taps, count, taps).diagonal(dim1=0, dim2=2)  # (taps, taps, count)
        self._blocks = blocks.permute(2, 0, 1).contiguous()  # what is left of each channel's own gram
        self._left = _fewer(problem)  # what is left of the cross moments
        self._upper = torch.empty_like(problem.gram)  # a column a column of the gram, in rows as they are chosen
        self._order: list[int] = []

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best channels (int64) and the least-squares kernel (Co, count * taps) on them, in that order."""
        while len(self._order) < count:
            self._choose()
        order = torch.tensor(self._order[:count])
        rows = (order[:, None] * self._taps + torch.arange(self._taps)).flatten()
        upper = self._upper[: len(rows), rows].triu()
        half = torch.linalg.solve_triangular(upper.T, self._cross[:, rows].T, upper=False)
        return order, torch.linalg.solve_triangular(upper, half, upper=True).T

    def _choose(self) -> None:
        taps, done = self._taps, len(self._order) * self._taps
        waiting = torch.ones(len(self._blocks), dtype=torch.bool)
        waiting[self._order] = False
        open_ = waiting.nonzero().flatten()
        left = self._left.view(len(self._left), len(self._blocks), taps)[:, open_].permute(1, 2, 0)
        half = torch.linalg.solve_triangular(self._factor(open_), left, upper=False)
        best = int(open_[half.square().sum((1, 2)).argmax()])
        rows = slice(best * taps, (best + 1) * taps)
        panel = self._gram[rows] - self._upper[:done, rows].T @ self._upper[:done]
        factor = self._factor(torch.tensor([best]))[0]
        panel = torch.linalg.solve_triangular(factor, panel, upper=False)
        panel[:, rows] = factor.T
        self._upper[done : done + taps] = panel
        self._left = self._left - torch.linalg.solve_triangular(factor, self._left[:, rows].T, upper=False).T @ panel
        panels = panel.view(taps, -1, taps).transpose(0, 1)
        self._blocks = self._blocks - panels.mT @ panels
        self._order.append(best)

    def _factor(self, channels: Tensor) -> Tensor:
        """Lower factors of what is left of the channels' grams, of which rounding may have left nothing."""
        blocks, floor = self._blocks[channels], self._floor[channels]
        factor: Tensor
        while True:
            factor, failed = torch.linalg.cholesky_ex(blocks + torch.diag_embed(floor.expand(-1, self._taps)))
            if not failed.any():
                return factor
            _require_finite(blocks)
            floor = torch.where(failed[:, None] > 0, floor * 10, floor)


def _fewer(problem: Problem) -> Tensor:
    """The cross moments (n, D) in as few directions of the outputs as hold nearly all that can be explained."""
    explained = (problem.weight @ problem.cross.T).double()
    values, vectors = torch.linalg.eigh(explained + explained.T)
    few = int((values.abs().cumsum(0) <= IGNORED * float(values.abs().sum())).sum())
    kept: Tensor = vectors[:, few:].T.to(problem.cross.dtype)
    return kept @ problem.cross


def _require_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError("the moments of a layer are not finite, or not those of anything")


PRUNED = Rule("pruned", "fewer of the input channels, chosen by what they explain together", choices, fit)
