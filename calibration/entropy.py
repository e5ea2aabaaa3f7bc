"""Clipping by least Kullback-Leibler divergence.

After S. Migacz, "8-bit Inference with TensorRT", GTC 2017: for every candidate range, P is the histogram with all
that is clipped added to the outermost bins, and Q is what is left of the unclipped part after its bins were merged
into as many levels as there are codes and each level was spread again, evenly, over those of its bins that were
not empty. The range with the least KL(P || Q) wins. What differs from the talk:

- Q is not scaled up to a sum of 1: what was clipped stays missing from it. Otherwise a range of a single bin, with
  everything clipped into it, would fit perfectly;
- an asymmetric scheme has 2**bits levels over [low, high] and searches both ends, one after the other, until neither
  moves; a symmetric one has 2**(bits - 1) levels over magnitudes, as in the talk;
- candidates narrower than the number of levels are allowed (a level is then a single bin), so that one huge outlier
  does not decide the range. A candidate is ruled out if its outermost level holds nothing but what was clipped.

Exact zeros are left out, as the talk advises for the first bin. With fewer bins than levels the method sees only
what is clipped and never the loss of resolution; it knows nothing of the size of an error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.scheme import Scheme
from calibration.seen import Seen, folded

AT_ONCE = 256  # candidates evaluated together: 256 x 257 levels stay within a few megabytes


def entropy(seen: Seen, scheme: Scheme) -> tuple[float, float]:
    """The range of least divergence, at the edges of bins. Of equal ones, the narrowest."""
    if scheme.symmetric:
        counts = folded(seen)
        stops = np.arange(1, len(counts) + 1)
        errors = divergences(counts, np.zeros_like(stops), stops, 1 << (scheme.bits - 1))
        reach = int(stops[np.argmin(errors)]) * seen.width
        return min(0.0, max(seen.minimum, -reach)), max(0.0, min(seen.maximum, reach))
    bins, split, levels = len(seen.counts), -seen.first, 1 << scheme.bits
    start, stop = 0, bins
    for _ in range(4):  # settles after two rounds in practice
        stops = np.arange(max(split, start + 1), bins + 1)
        stop = int(stops[np.argmin(divergences(seen.counts, np.full_like(stops, start), stops, levels))])
        starts, before = np.arange(min(split, stop - 1), -1, -1), start
        start = int(starts[np.argmin(divergences(seen.counts, starts, np.full_like(starts, stop), levels))])
        if start == before:  # for which this stop is the best already
            break
    low, high = (seen.first + start) * seen.width, (seen.first + stop) * seen.width
    return min(0.0, max(seen.minimum, low)), max(0.0, min(seen.maximum, high))


def divergences(
    counts: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64], levels: int
) -> NDArray[np.float64]:
    """KL(P || Q) in nats of each candidate counts[start:stop]; inf where Q is 0 and P is not. At least 0.

    Every candidate costs as many steps as there are levels, not bins: all sums come from three cumulative ones.
    """
    mass = _cumulative(counts.astype(np.float64))
    own = _cumulative(_xlogx(counts.astype(np.float64)))
    filled = _cumulative((counts > 0).astype(np.float64))
    parts = [
        _divergences(counts, mass, own, filled, starts[i : i + AT_ONCE], stops[i : i + AT_ONCE], levels)
        for i in range(0, len(starts), AT_ONCE)
    ]
    return np.concatenate(parts)


def _divergences(
    counts: NDArray[np.int64],
    mass: NDArray[np.float64],
    own: NDArray[np.float64],
    filled: NDArray[np.float64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    levels: int,
) -> NDArray[np.float64]:
    rows, widths = np.arange(len(starts)), stops - starts
    used = np.minimum(levels, widths)  # levels past the number of bins are empty, and come last
    edges = starts[:, None] + np.minimum(np.arange(levels + 1), used[:, None]) * widths[:, None] // used[:, None]
    sums, bins = np.diff(mass[edges], axis=1), np.diff(filled[edges], axis=1)
    under, over = mass[starts], mass[-1] - mass[stops]  # what is clipped on either side
    first, last = counts[starts].astype(np.float64), counts[stops - 1].astype(np.float64)
    # An empty outermost bin is not empty in P once the clipped values are added, so Q gets a share there too.
    single = widths == 1
    bins[:, 0] += (under > 0) & (first == 0)
    bins[rows, used - 1] += (over > 0) & (last == 0) & ~(single & (under > 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(bins > 0, sums / bins, 0.0)  # of each bin of a level, in Q
        logs = np.where(share > 0, np.log(share), 0.0)
        low_end, high_end = np.log(share[:, 0]), np.log(share[rows, used - 1])
        cross = (sums * logs).sum(axis=1) + _times(under, low_end) + _times(over, high_end)
        first_p, last_p = first + under, last + over
        first_p = np.where(single, first_p + over, first_p)  # both outermost bins are the same one
        entropy_p = own[stops] - own[starts] + _xlogx(first_p) - _xlogx(first)
        entropy_p += np.where(single, 0.0, _xlogx(last_p) - _xlogx(last))
        result: NDArray[np.float64] = (entropy_p - cross) / mass[-1]
    # inf - inf where both ends are ruled out; 0 / 0 if nothing was seen but zeros
    return np.where(np.isnan(result), np.inf, result)


def _cumulative(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])


def _xlogx(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = values * np.log(np.maximum(values, 1.0))  # counts: 0 or at least 1
    return result


def _times(weight: NDArray[np.float64], log: NDArray[np.float64]) -> NDArray[np.float64]:
    """weight * log, with 0 * -inf = 0."""
    return np.where(weight > 0, weight * log, 0.0)
