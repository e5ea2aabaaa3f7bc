"""The squared error that quantizing will cost, expected from the histogram, and the range that makes it least.

Values are taken as evenly spread within a bin, and the error is integrated over it in closed form, so bins may be
wider than a quantization step as well as narrower. The error is that of the actual codes: the float32 scale, the
rounded zero point, and saturation at the scheme's own ends.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.scheme import Scheme, affine
from calibration.seen import Seen

COARSE = np.geomspace(1.0, 2.0**-10, 81)  # fractions of an end, widest first; neighbours differ by a twelfth
FINE = tuple(np.geomspace(step, 1 / step, 13) for step in (1.09, 1.015))  # then around the best, twice

Errors = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]  # of ranges (lows, highs)


def mse(seen: Seen, scheme: Scheme) -> tuple[float, float]:
    """The range of least expected squared error, found on a grid that is refined twice. Of equal ones, the widest.

    A symmetric scheme, or values on one side of zero, has one number to find. Otherwise the ends are first moved
    together and then each by itself, twice.
    """

    def errors(lows: NDArray[np.float64], highs: NDArray[np.float64]) -> NDArray[np.float64]:
        return expected_error(seen, *affine(lows, highs, scheme), scheme)

    low, high = min(seen.minimum, 0.0), max(seen.maximum, 0.0)
    if low == high:
        return low, high
    if low == 0.0:
        return low, high * _best(lambda f: errors(low * f, high * f))
    if high == 0.0:
        return low * _best(lambda f: errors(low * f, high * f)), high
    if scheme.symmetric:
        reach = max(-low, high)
        # clipped to what was seen, as the result: the lowest code reaches further than the highest
        reach *= _best(lambda f: errors(np.maximum(low, -reach * f), np.minimum(high, reach * f)))
        return max(low, -reach), min(high, reach)
    low_part = high_part = _best(lambda f: errors(low * f, high * f))
    for _ in range(2):
        high_part = _best(lambda f: errors(np.full(f.shape, low * low_part), high * f))  # noqa: B023 (called at once)
        low_part = _best(lambda f: errors(low * f, np.full(f.shape, high * high_part)))  # noqa: B023
    return low * low_part, high * high_part


def expected_error(seen: Seen, scales: ArrayLike, zero_points: ArrayLike, scheme: Scheme) -> NDArray[np.float64]:
    """Mean squared error of all values seen, zeros included, for each pair of a scale and a zero point: (pairs,).

    With u = x / scale and n(u) the code (less the zero point) that u saturates and rounds to, the antiderivative of
    (u - n(u))**2 is n / 12 + (u - n)**3 / 3, on both sides of every step and beyond both ends.
    """
    scale = np.atleast_1d(np.asarray(scales, np.float64))[:, None]
    zero_point = np.atleast_1d(np.asarray(zero_points, np.float64))[:, None]
    edges = seen.edges
    used = np.flatnonzero(seen.counts)
    if not len(used):
        return np.zeros(len(scale))
    edges, counts = edges[used[0] : used[-1] + 2], seen.counts[used[0] : used[-1] + 1].astype(np.float64)
    u = edges / scale
    n = np.clip(np.rint(u), scheme.lowest - zero_point, scheme.highest - zero_point)
    off = u - n
    widths = np.diff(edges)
    points = (widths == 0) & (counts > 0)  # a bin that has only its first value: the maximum, on an edge
    density = np.where(widths > 0, counts / np.where(widths > 0, widths, 1.0), 0.0)
    # sum(density * diff(antiderivative)) without the diff: one product of a matrix and a vector
    weights = np.concatenate([[0.0], density]) - np.concatenate([density, [0.0]])
    total = ((n / 12 + off * off * off / 3) @ weights) * scale[:, 0] ** 3
    if points.any():
        total += (off[:, :-1][:, points] ** 2 @ counts[points]) * scale[:, 0] ** 2
    result: NDArray[np.float64] = np.maximum(total, 0.0) / seen.count
    return result


def _best(error: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
    best = float(COARSE[np.argmin(error(COARSE))])
    for steps in FINE:
        fractions = np.minimum(best * steps, 1.0)
        best = float(fractions[np.argmin(error(fractions))])
    return best
