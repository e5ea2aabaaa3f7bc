"""The numerics that the linear rules share: variable projection over the second moments of a layer.

A rule's kernel is W = P F(theta): features F (q, D) of a patch, and a last factor P (Co, q) that follows from them in
closed form. With K = F G F^T and B = C F^T (G, C: gram and cross moments) the best one is P = B K^-1, and what is left
is a function of theta alone, `power - tr(B K^-1 B^T)` (variable projection: Golub and Pereyra 1973). Its gradient is
that of the residual with P held fixed, so nothing is differentiated automatically: 2 P^T (P F G - C), pulled back to
theta. It is minimised by L-BFGS from a closed-form start; there is no learning rate.

The ridge draws the effective kernel towards the layer's own weights (not to zero, and not the factors, whose scale
means nothing), as if a share of the patches were white noise: where the frames do not say, the trained kernel does,
and a rule of full rank gives back the layer exactly.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from edgeseg.rewrite.moments import Moments
from edgeseg.rewrite.values import Conv, Fitted, Piece, macs

RIDGES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
ENOUGH = 3e-4  # of the variance unexplained: no network's output shows the difference
SLOW = 1e-3  # of the value, gained in a step: hardly worth the time
DOUBLE = 1000  # of larger D the products with G are taken in float32
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """One layer's moments, with the ridge, ready for any number of fits.

    gram (D, D), cross (Co, D) and weight (Co, D) are float64, or float32 for large D; `weight` is the layer's own
    kernel, each output scaled as its target is. `power` is the variance of all targets.
    """

    gram: Tensor
    cross: Tensor
    power: float
    weight: Tensor
    share: float  # what the ridge added to gram's diagonal
    _kept: dict[Hashable, object] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made at the first call with this key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[return-value]

    def ordered(self, order: Tensor) -> Problem:
        """The same with the elements of a patch in another order (D, int64)."""
        gram = self.gram[order[:, None], order]
        return Problem(gram, self.cross[:, order], self.power, self.weight[:, order], self.share)


class Features(Protocol):
    """F (q, D) as a function of theta (a vector), multiplied with and never formed."""

    def of_gram(self, theta: Tensor, gram: Tensor) -> Tensor:
        """F gram (q, D)."""

    def of_rows(self, theta: Tensor, rows: Tensor) -> Tensor:
        """rows F^T (n, q), for rows (n, D)."""

    def expand(self, theta: Tensor, last: Tensor) -> Tensor:
        """last F (Co, D), for last (Co, q)."""

    def pull(self, theta: Tensor, last: Tensor, residual: Tensor) -> Tensor:
        """The gradient with respect to theta of <residual, last F>, for residual (Co, D)."""

    def precondition(self, theta: Tensor, last: Tensor, problem: Problem) -> Callable[[Tensor], Tensor]:
        """Roughly the inverse of the Hessian of <last F gram, last F> / 2 with respect to theta."""


@dataclass(frozen=True, slots=True)
class Projected:
    """The last factor is left @ core (Co, q), or core alone; float64. `lost`: unexplained, as a fraction of power."""

    core: Tensor
    left: Tensor | None
    lost: float

    @property
    def last(self) -> Tensor:
        return self.core if self.left is None else self.left @ self.core


def problem_of(moments: Moments, weight: Tensor) -> Problem:
    """The problem of these moments and this kernel (Co, Ci, kh, kw), kept while the same moments are asked for."""
    return _last.problem(moments, weight)


def project(k: Tensor, b: Tensor, power: float, rank: int | None = None) -> Projected:
    """The best last factor (Co, q) for K (q, q) and B (Co, q), of at most `rank` if given (reduced-rank regression:
    Izenman 1975)."""
    k, b = k.double(), b.double()
    scale = k.diagonal().clamp_min(1e-30 + 1e-14 * float(k.diagonal().max())).rsqrt()
    lower = cholesky(k * scale[:, None] * scale)
    half = torch.linalg.solve_triangular(lower, (b * scale).T, upper=False)  # (q, Co)
    last = (torch.linalg.solve_triangular(lower.T, half, upper=True) * scale[:, None]).T
    if rank is None or rank >= len(b):
        return Projected(last, None, 1 - float(half.square().sum()) / power)
    values, vectors = torch.linalg.eigh(half.T @ half)
    left = vectors[:, -rank:]
    return Projected(left.T @ last, left, 1 - float(values[-rank:].sum()) / power)


def vary(
    features: Features, problem: Problem, start: Tensor, steps: int, rank: int | None = None
) -> tuple[Tensor, Projected]:
    """theta after at most `steps` steps of L-BFGS from `start` (never worse than it), and its last factor.

    A start that leaves less than ENOUGH unexplained is kept as it is."""
    gram, cross, power = problem.gram, problem.cross, problem.power
    start = start.to(gram.dtype)

    def solved(theta: Tensor) -> tuple[Projected, Tensor]:
        of_gram = features.of_gram(theta, gram)
        found = project(features.of_rows(theta, of_gram), features.of_rows(theta, cross), power, rank)
        return found, of_gram

    def evaluate(theta: Tensor) -> tuple[float, Tensor]:
        found, of_gram = solved(theta)
        core = found.core.to(gram.dtype)
        target = cross if found.left is None else found.left.to(gram.dtype).T @ cross
        return found.lost, features.pull(theta, core, core @ of_gram - target) * (2 / power)

    first = solved(start)[0]
    if not steps or first.lost < ENOUGH:
        return start, first
    inverse = features.precondition(start, first.core.to(gram.dtype), problem)
    theta = minimise(evaluate, start, steps, lambda slope: inverse(slope) * (power / 2))
    return theta, solved(theta)[0]


def minimise(
    evaluate: Callable[[Tensor], tuple[float, Tensor]],
    start: Tensor,
    steps: int,
    precondition: Callable[[Tensor], Tensor] = lambda slope: slope,
    memory: int = 10,
) -> Tensor:
    """L-BFGS (Nocedal 1980) from a vector; `evaluate` gives value and gradient. The value never rises.

    `precondition` applies a first guess of the inverse Hessian. Steps are chosen by bisection for the Wolfe conditions
    (Lewis and Overton 2013). Ends early where three steps in a row gain next to nothing.
    """
    point = start
    value, slope = evaluate(point)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    slow = 0
    for _ in range(steps):
        direction = -_inverse(pairs, slope, precondition)
        decline = float(direction @ slope)
        if not decline < -1e-12 * max(abs(value), 1e-12):
            break
        found = _search(evaluate, point, value, decline, direction)
        if found is None:
            break
        moved, lower, there = found
        step, change = moved - point, there - slope
        if float(step @ change) > 1e-10 * float(step.norm() * change.norm()):
            pairs = [*pairs[1 - memory :], (step, change, 1 / (step @ change))]
        slow = slow + 1 if value - lower <= SLOW * abs(value) else 0
        point, value, slope = moved, lower, there
        if slow == 3:
            break
    return point


def best_ridge(fit: Callable[[float], Fitted], held: Moments, ridges: Sequence[float] = RIDGES) -> float:
    """The ridge whose fit leaves least of the variance in `held` unexplained; those moments are of frames that the
    fit has not seen. A fit without steps ranks the ridges well enough:

        best_ridge(lambda ridge: rule.fit(choice, conv, replace(moments, ridge=ridge), weight, 0), held)
    """
    return min(ridges, key=lambda ridge: held.unexplained(fit(ridge).effective))


def cholesky(matrix: Tensor) -> Tensor:
    """Lower factor of a symmetric matrix whose diagonal is about 1, even if it is singular but for rounding."""
    tiny = 1e-13 if matrix.dtype == torch.float64 else 1e-7
    while True:
        factor, failed = torch.linalg.cholesky_ex(matrix + tiny * torch.eye(len(matrix), dtype=matrix.dtype))
        if not failed:
            return cast(Tensor, factor)
        if not (tiny < 1 and bool(matrix.isfinite().all())):
            raise ValueError("the moments of a layer are not finite, or not those of anything")
        tiny *= 10


def principal(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Directions R (..., n, n) in the order of what they carry (..., n), the first the most: projected on the first r
    of them, R x, `weight` (..., n, n), a W^T W, loses least of its output's variance if `gram` (..., n, n) is that of
    its input. R gram R^T is the identity. Float64."""
    weight, gram = weight.double(), gram.double()
    size = gram.shape[-1]
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    lower = torch.linalg.cholesky(gram + (1e-7 * mean + 1e-30) * torch.eye(size, dtype=torch.float64))
    carried, vectors = torch.linalg.eigh(lower.mT @ weight @ lower)
    rows = torch.linalg.solve_triangular(lower.mT, vectors, upper=True).mT
    return rows.flip(-2), carried.flip(-1)


def damped(matrix: Tensor) -> Tensor:
    """The inverse of positive semidefinite matrices (..., n, n) in which no direction is much flatter than the mean."""
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    inverse: Tensor = torch.linalg.inv(matrix + (1e-3 * mean + 1e-30) * torch.eye(matrix.shape[-1], dtype=matrix.dtype))
    return inverse


def share_of(pieces: Sequence[Piece], conv: Conv) -> float:
    """Multiplications of the pieces relative to those of the layer, for an image of middling size."""
    height, width = (64 * conv.stride[axis] + conv.dilation[axis] * (conv.kernel[axis] - 1) for axis in (0, 1))
    return macs(pieces, (height, width)) / macs((conv,), (height, width))


def saves(pieces: Sequence[Piece], conv: Conv, most: float = 0.72) -> bool:
    """Whether the pieces need clearly fewer multiplications than the layer: of little savings no time is won."""
    return share_of(pieces, conv) <= most


def _prepared(moments: Moments, weight: Tensor) -> Problem:
    depth = len(moments.gram)
    dtype = torch.float32 if moments.rows and depth > DOUBLE else torch.float64
    share = moments.ridge * float(moments.gram.diagonal().mean())
    gram = moments.gram.to(dtype, copy=True)
    gram.diagonal().add_(share)
    return _aimed(gram, share, moments, weight)


def _aimed(gram: Tensor, share: float, moments: Moments, weight: Tensor) -> Problem:
    flat, cross = weight.detach().flatten(1).to(gram.dtype), moments.cross.to(gram.dtype)
    # How strongly each target follows the layer's own kernel: 1 if the targets are the layer's outputs.
    own = ((flat @ gram) * flat).sum(1).double() - share * flat.square().sum(1).double()
    follows = (cross * flat).sum(1).double() / own.clamp_min(1e-30)
    flat = flat * follows.clamp_min(0.0)[:, None].to(gram.dtype)
    power = float(moments.power.sum()) + share * float(flat.double().square().sum())
    return Problem(gram, cross + share * flat, max(power, 1e-30), flat, share)


def _inverse(
    pairs: list[tuple[Tensor, Tensor, Tensor]], slope: Tensor, precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """The inverse Hessian that the last steps suggest, times the slope (the two-loop recursion)."""
    weights = []
    for step, change, over in reversed(pairs):
        weights.append(over * (step @ slope))
        slope = slope - weights[-1] * change
    slope = precondition(slope)
    if pairs:
        step, change, over = pairs[-1]
        slope = slope / (over * (change @ precondition(change)))
    for (step, change, over), weight in zip(pairs, reversed(weights), strict=True):
        slope = slope + (weight - over * (change @ slope)) * step
    return slope


def _search(
    evaluate: Callable[[Tensor], tuple[float, Tensor]], point: Tensor, value: float, decline: float, direction: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    low, high, length = 0.0, float("inf"), 1.0
    best: tuple[Tensor, float, Tensor] | None = None
    for _ in range(12):
        moved = point + length * direction
        there, slope = evaluate(moved)
        if not there <= value + 1e-4 * length * decline:
            high = length
            if best is None:  # the parabola through what is known
                curve = 2 * (there - value - length * decline)
                guess = -decline * length * length / curve if curve > 0 else 0.0
                length = min(max(guess, 0.1 * high), 0.5 * high)
                continue
        else:
            if best is None or there < best[1]:
                best = (moved, there, slope)
            low = length
            if not float(slope @ direction) < 0.9 * decline:
                return best
        if best is not None and high < float("inf"):
            return best
        length = 2 * length if high == float("inf") else (low + high) / 2
    return best


class _Slot:
    """The last problem, for as long as its gram lives: the choices of a layer are fitted one after another."""

    def __init__(self) -> None:
        self._kept: tuple[weakref.ref[Tensor], float, Tensor, Tensor, Problem] | None = None

    def problem(self, moments: Moments, weight: Tensor) -> Problem:
        kept = self._kept
        if kept is None or kept[0]() is not moments.gram or kept[1] != moments.ridge:
            problem = _prepared(moments, weight)
        elif _same(kept[2], moments.cross) and _same(kept[3], weight):
            return kept[4]
        else:
            problem = _aimed(kept[4].gram, kept[4].share, moments, weight)
        gram = weakref.ref(moments.gram, self._forget)
        self._kept = (gram, moments.ridge, moments.cross.clone(), weight.detach().clone(), problem)
        return problem

    def _forget(self, gone: weakref.ref[Tensor]) -> None:
        if self._kept is not None and self._kept[0] is gone:
            self._kept = None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


_last = _Slot()
