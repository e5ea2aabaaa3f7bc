"""Where a series of measurements changed its level for good: for results over weeks, one number a run.

Binary segmentation, for one change and for a level that comes and goes (circular, as in Olshen et al. 2004, "Circular
binary segmentation for the analysis of array-based DNA copy number data"). Values are measured from the median in
robust standard deviations and clipped at 3 (Huber), so that a run on a busy machine weighs little. A split is kept
where its statistic, the largest standardised difference of means over all splits, is reached by few random orders of
the same values (a permutation test, as in Matteson and James 2014, "A nonparametric approach for multiple change point
analysis of multivariate data"): the share of false alarms is what is asked for, whatever the noise looks like, as long
as neighbouring runs are independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST = 3  # values on each side of a change
ORDERS = 2000  # random ones
PARTS = 8  # they are judged in, for their memory
PLACES = 40  # tried for either end of a level that comes and goes


@dataclass(frozen=True, slots=True)
class Change:
    """The level is another one from `index` on; `before` and `after` are the medians up to the changes next to it."""

    index: int
    before: float
    after: float
    p: float  # the chance of a split as clear as this in a series that does not change; 0 for series without noise


def changes(values: ArrayLike, *, p: float = 0.01, least: int = LEAST, seed: int = 0) -> list[Change]:
    """The changes of a series of numbers, in order; at least `least` values lie between two of them.

    `p`: the chance that a series without any change gives one. A series in which most values equal the one before has
    no noise (sizes, accuracies of a deterministic engine): there each step that lasts `least` values, or to the end,
    is a change. Raises ValueError for a value that is not finite and for `least` below 2.

    >>> changes([10.0, 10.1, 9.9, 10.2, 10.0, 9.8, 12.1, 12.0, 11.9, 12.2, 12.3, 12.0])[0].index
    6
    """
    series = np.asarray(values, np.float64)
    if series.ndim != 1 or not np.isfinite(series).all():
        raise ValueError("wanted a list of finite numbers")
    if least < 2:
        raise ValueError(f"a level is known from at least 2 values, got least={least}")
    if series.size < 2:
        return []
    if np.count_nonzero(np.diff(series)) * 2 < series.size - 1:
        found = dict.fromkeys(_steps(series, least), 0.0)
    else:
        found = dict(_splits(series, 0, p, least, np.random.default_rng(seed)))
    ends = [0, *sorted(found), series.size]
    levels = [float(np.median(series[a:b])) for a, b in pairwise(ends)]
    return [
        Change(at, before, after, found[at])
        for at, before, after in zip(ends[1:-1], levels[:-1], levels[1:], strict=True)
    ]


def _splits(
    series: NDArray[np.float64], start: int, p: float, least: int, random: np.random.Generator
) -> list[tuple[int, float]]:
    n = series.size
    if n < 2 * least:
        return []
    # One change first; then two at once, as a level that comes and goes hides both from a search for one.
    left = np.arange(least, n - least + 1)
    ends = [(np.zeros_like(left), left, p)]
    if n >= 5 * least:
        ends = [(np.zeros_like(left), left, 2 * p / 3)]
        grid = np.unique(np.linspace(least, n - least, min(n - 2 * least + 1, PLACES)).astype(np.int64))
        first, last = (some.ravel() for some in np.meshgrid(grid, grid, indexing="ij"))
        ends.append((first[last - first >= least], last[last - first >= least], p / 3))
    weights = _clipped(series)
    orders = random.permuted(np.broadcast_to(weights, (ORDERS, n)), axis=1)
    for first, last, allowed in ends:
        clear = _clear(weights[None], first, last)[0]
        best = float(clear.max())
        reached = sum(int((_clear(some, first, last).max(1) >= best - 1e-9).sum()) for some in np.split(orders, PARTS))
        chance = (1 + reached) / (1 + ORDERS)
        if chance > allowed:
            continue
        cuts = sorted({int(first[clear.argmax()]), int(last[clear.argmax()])} - {0})
        pieces = zip([0, *cuts], [*cuts, n], strict=True)
        inner = [_splits(series[a:b], start + a, p, least, random) for a, b in pieces]
        return sorted([(start + cut, chance) for cut in cuts] + [one for some in inner for one in some])
    return []


def _clipped(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances from the median in units of 1.4826 MAD, the standard deviation of normal noise, clipped at 3."""
    away = series - np.median(series)
    scale = 1.4826 * float(np.median(np.abs(away))) or float(np.mean(np.abs(away))) or 1.0
    return np.asarray(np.clip(away / scale, -3.0, 3.0), np.float64)


def _clear(weights: NDArray[np.float64], first: NDArray[Any], last: NDArray[Any]) -> NDArray[np.float64]:
    """How far the sums from `first` up to `last` are from their expectation, in standard deviations: (N, splits)."""
    n = weights.shape[1]
    centred = weights - weights[:1].mean()
    sums = np.pad(np.cumsum(centred, axis=1), ((0, 0), (1, 0)))
    inside = last - first
    deviation = np.sqrt(inside * (n - inside) / (n * (n - 1)) * np.sum(centred[0] ** 2))
    return np.asarray(np.abs(sums[:, last] - sums[:, first]) / np.maximum(deviation, 1e-12), np.float64)


def _steps(series: NDArray[np.float64], least: int) -> list[int]:
    """Where another value begins that lasts; a value that comes and goes is passed over."""
    begins = [0, *(int(at) + 1 for at in np.flatnonzero(np.diff(series))), series.size]
    found: list[int] = []
    level = series[0]
    for begin, end in pairwise(begins[1:]):
        if series[begin] != level and (end - begin >= least or end == series.size):
            found.append(begin)
            level = series[begin]
    return found
