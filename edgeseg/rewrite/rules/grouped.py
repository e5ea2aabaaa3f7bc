"""Grouped: the k x k convolution in groups of channels, and a 1 x 1 that mixes the groups again.

The 1 x 1 is dense, or grouped itself behind a channel shuffle (Zhang et al. 2018, "ShuffleNet"). Which inputs go
together is free, since their order can be changed before: those whose parts of the targets lie in the same directions,
because few features then serve all of them.

For one group's block of the kernel the best few features, and how they are mixed, are a reduced-rank regression on
what the other groups leave (Izenman 1975), in closed form. Sweeps over the groups go on until they settle; then all of
the 1 x 1 is solved at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgeseg.rewrite.features import own
from edgeseg.rewrite.moments import Moments
from edgeseg.rewrite.rule import Rule
from edgeseg.rewrite.solve import Problem, cholesky, problem_of, project, saves, share_of
from edgeseg.rewrite.values import Choice, Conv, Fitted, Piece, Shuffle, Take

GROUPS = (8, 4, 2)
SHARES = (0.12, 0.24, 0.4)  # of the layer's multiplications that a choice is sought for, with a dense 1 x 1
SHUFFLED = 0.28  # the same with a grouped one
NEAR = 0.25  # relative to the share that was sought
SWEEPS = 2  # over the groups, at least


def choices(conv: Conv, align: int) -> Sequence[Choice]:
    """Ranks: (groups of the k x k, channels between, groups of the 1 x 1), each group of a multiple of `align`.

    At one number of multiplications more groups of more channels explain more. Nothing for 1 x 1 kernels.
    """
    if conv.groups > 1 or conv.taps == 1:
        return []
    shares: dict[tuple[int, int, int], float] = {}
    for groups in GROUPS:
        if conv.inputs % (groups * align):
            continue
        for width in range(groups * align, 2 * conv.outputs + 1, groups * align):
            shares[groups, width, 1] = share_of(_pieces(conv, groups, width, 1), conv)
            if width % groups**2 == 0 and conv.outputs % (groups * align) == 0:
                shares[groups, width, groups] = share_of(_pieces(conv, groups, width, groups), conv)
    picked = []
    for share, shuffled in (*((share, False) for share in SHARES), (SHUFFLED, True)):
        near = [r for r in shares if (r[2] > 1) == shuffled and abs(shares[r] - share) <= NEAR * share]
        if near:  # a shuffled block has a rank of channels / groups ** 2, so that there few groups are better
            picked.append(min(near, key=lambda r: (r[0] if shuffled else -r[0], abs(shares[r] - share))))
    made = [Choice("grouped", ranks, _pieces(conv, *ranks)) for ranks in sorted(set(picked), key=shares.__getitem__)]
    return [choice for choice in made if saves(choice.pieces, conv)]


def fit(choice: Choice, conv: Conv, moments: Moments, weight: Tensor, steps: int) -> Fitted:
    """`steps`: sweeps over the groups beyond the first ones."""
    groups, width, mixers = choice.ranks
    given = problem_of(moments, weight)
    most = max(count for count in GROUPS if conv.inputs % count == 0)
    order, columns, problem = given.once("grouped", lambda: _arranged(given, conv, most))
    lowers = problem.once(("lowers", groups), lambda: _lowers(problem, groups))
    features = _features(problem, lowers, mixers, width // groups // mixers, SWEEPS + steps)
    last, kernel = _mixed(problem, features)
    effective = torch.empty_like(kernel)
    effective[:, columns] = kernel
    rank = features.shape[2]
    first = features.double().transpose(0, 1).reshape(width, conv.inputs // groups, *conv.kernel)
    if mixers == 1:
        return Fitted((order, first, last.reshape(conv.outputs, width, 1, 1)), effective)
    # Shuffled, the channels of one mixer are (rank, groups).
    last = last.view(conv.outputs, groups, rank).transpose(1, 2)
    return Fitted((order, first, None, last.reshape(conv.outputs, rank * groups, 1, 1)), effective)


def _pieces(conv: Conv, groups: int, width: int, mixers: int) -> tuple[Piece, ...]:
    first = replace(conv, outputs=width, groups=groups)
    shuffle = (Shuffle(groups),) if mixers > 1 else ()
    return (Take(conv.inputs), first, *shuffle, Conv(width, conv.outputs, groups=mixers))


def _arranged(problem: Problem, conv: Conv, groups: int) -> tuple[Tensor, Tensor, Problem]:
    """The order of the input channels, that of the columns, and the problem in it."""
    weight = problem.weight.view(-1, conv.inputs, conv.taps).transpose(0, 1)
    alone = (weight @ own(problem.gram, conv.inputs, conv.taps) @ weight.mT).flatten(1)  # covariances of their parts
    alone = alone / alone.norm(dim=1, keepdim=True).clamp_min(1e-30)
    order = _nested((alone @ alone.T).double(), groups)
    columns = (order[:, None] * conv.taps + torch.arange(conv.taps)).flatten()
    return order, columns, problem.ordered(columns)


def _nested(affinity: Tensor, groups: int) -> Tensor:
    """An order whose parts are groups of what is alike, and whose pairs of parts are so too."""
    order = _clustered(affinity, groups)
    if groups < 4:
        return order
    size = len(order) // groups
    between = affinity[order][:, order].view(groups, size, groups, size).sum((1, 3))
    return order.view(groups, size)[_nested(between, groups // 2)].flatten()


def _clustered(affinity: Tensor, groups: int) -> Tensor:
    """An order of n things, in `groups` equal parts, in which much of the affinity (n, n) is inside of the parts.

    Parts grow from things unlike one another, the most decided thing first, and then things change places.
    """
    n = len(affinity)
    seeds = [0]
    while len(seeds) < groups:
        near = affinity[:, seeds].amax(1)
        near[seeds] = torch.inf
        seeds.append(int(near.argmin()))
    part = torch.full((n,), -1)
    part[seeds] = torch.arange(groups)
    to_part = affinity[:, seeds].clone()
    counts = torch.ones(groups)
    for _ in range(n - groups):
        mean = to_part / counts
        mean[:, counts == n // groups] = -torch.inf
        best = mean.topk(2, 1).values
        decided = torch.where(best[:, 1].isfinite(), best[:, 0] - best[:, 1], 0.0)
        decided[part >= 0] = -torch.inf
        thing = int(decided.argmax())
        there = int(mean[thing].argmax())
        part[thing] = there
        counts[there] += 1
        to_part[:, there] += affinity[:, thing]
    diagonal = affinity.diagonal()
    for _ in range(4 * n):
        moved = to_part[:, part] - to_part.gather(1, part[:, None])  # what i wins in the part of j
        gain = moved + moved.T - 2 * affinity + diagonal[:, None] + diagonal
        gain[part[:, None] == part] = 0
        i, j = divmod(int(gain.argmax()), n)
        if gain[i, j] <= 1e-9 * diagonal.max():
            break
        change = affinity[:, j] - affinity[:, i]
        to_part[:, part[i]] += change
        to_part[:, part[j]] -= change
        part[[i, j]] = part[[j, i]]
    return part.argsort(stable=True)


def _lowers(problem: Problem, groups: int) -> Tensor:
    """Cholesky factors (groups, d, d) of each group's own moments."""
    depth = len(problem.gram) // groups
    blocks = own(problem.gram, groups, depth)
    scale = blocks.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    return torch.stack([cholesky(block / s) * s.sqrt() for block, s in zip(blocks, scale, strict=True)])


def _features(problem: Problem, lowers: Tensor, mixers: int, rank: int, sweeps: int) -> Tensor:
    """The k x k kernels (mixers, groups, rank, d): for each mixer's outputs those that it takes from each group."""
    groups, depth = lowers.shape[:2]
    kernel = problem.weight.clone()
    missing = problem.cross - kernel @ problem.gram
    features = kernel.new_empty(mixers, groups, rank, depth)
    for _ in range(sweeps):
        for group, lower in enumerate(lowers):
            rows = slice(group * depth, (group + 1) * depth)
            white = torch.linalg.solve_triangular(lower, missing[:, rows].T, upper=False).T + kernel[:, rows] @ lower
            parts = white.view(mixers, -1, depth)
            left = torch.linalg.eigh(parts @ parts.mT)[1][:, :, -rank:]
            core = torch.linalg.solve_triangular(lower, left.mT @ parts, upper=False, left=False)
            features[:, group] = core
            change = (left @ core).flatten(0, 1) - kernel[:, rows]
            kernel[:, rows] += change
            missing -= change @ problem.gram[rows]
    return features


def _mixed(problem: Problem, features: Tensor) -> tuple[Tensor, Tensor]:
    """The best 1 x 1 (mixers, Co / mixers, groups * rank) for the features, and the kernel (Co, D) of both."""
    mixers, groups, rank, depth = features.shape
    lasts, kernels = [], []
    for own_features, cross in zip(features, problem.cross.view(mixers, -1, groups * depth), strict=True):
        of_gram = (own_features @ problem.gram.view(groups, depth, -1)).view(-1, groups, depth)
        k = (of_gram.transpose(0, 1) @ own_features.mT).transpose(0, 1).flatten(1)
        b = (cross.view(-1, groups, depth).transpose(0, 1) @ own_features.mT).transpose(0, 1).flatten(1)
        last = project(k, b, problem.power).last
        by_group = last.view(-1, groups, rank).transpose(0, 1)
        kernels.append((by_group @ own_features.double()).transpose(0, 1).flatten(1))
        lasts.append(last)
    return torch.stack(lasts), torch.cat(kernels)


GROUPED = Rule("grouped", "k x k in groups of channels, mixed by a 1 x 1", choices, fit)
