"""From what was seen to where to clip: one function a method, each pure, all of the same shape.

    minmax           nothing is clipped
    moving-average   what frames reach on average, later ones weighing more (calibration/extremes.py)
    percentile       the rarest values are clipped
    entropy          least Kullback-Leibler divergence from the clipped, quantized distribution (calibration/entropy.py)
    mse              least expected squared error of the actual codes (calibration/error.py)

A range is (low, high) with minimum <= low <= 0 <= high <= maximum: zero padding must stay exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from calibration.entropy import entropy
from calibration.error import mse
from calibration.errors import BadScaleTable
from calibration.scheme import Quantizer, Scheme, affine
from calibration.seen import Seen, folded

Range = tuple[float, float]
Method = Literal["minmax", "moving-average", "percentile", "entropy", "mse"]

METHODS: tuple[Method, ...] = get_args(Method)
PARAMETERS: Mapping[str, Mapping[str, tuple[float, float, float]]] = {  # method, parameter: default, least, most
    "minmax": {},
    "moving-average": {},
    "percentile": {"percent": (99.99, 50.0, 100.0)},
    "entropy": {},
    "mse": {},
}


def quantizer(seen: Seen, method: Method, scheme: Scheme, parameters: Mapping[str, float] | None = None) -> Quantizer:
    """Scale and zero point of one tensor by one method. Raises TypeError for a parameter the method does not have."""
    low, high = _FUNCTIONS[method](seen, scheme, **(parameters or {}))
    scales, zero_points = affine(low, high, scheme)
    scale, zero_point = float(scales), int(zero_points)
    return Quantizer(scale, zero_point, (scheme.lowest - zero_point) * scale, (scheme.highest - zero_point) * scale)


def minmax(seen: Seen, scheme: Scheme) -> Range:
    """Everything that was seen, and zero."""
    del scheme
    return min(seen.minimum, 0.0), max(seen.maximum, 0.0)


def moving_average(seen: Seen, scheme: Scheme) -> Range:
    """The moving average of what each frame reached on either side, and zero; depends on the order of the frames.

    Raises BadScaleTable for statistics without it: those of a table that an older version wrote.
    """
    del scheme
    if seen.extremes is None:
        raise BadScaleTable(
            "the extremes of single frames, which 'moving-average' needs, were not kept when this scale table was "
            "made. Calibrate again, or use another recipe."
        )
    low, high = seen.extremes.average
    return min(max(low, seen.minimum), 0.0), max(min(high, seen.maximum), 0.0)


def percentile(seen: Seen, scheme: Scheme, percent: float = 99.99) -> Range:
    """`percent` of all values, zeros included, are at most `high`, and as many are at least `low`.

    For a symmetric scheme: `percent` of the magnitudes are at most the larger end. Exact to a bin's width, in which
    values are taken as evenly spread; 100 is minmax exactly. Where this leaves nothing (a tensor that is zero nearly
    everywhere) nothing is clipped.
    """
    allowed = (100.0 - percent) / 100.0 * seen.count  # values that may lie beyond an end
    split = -seen.first
    above, below = seen.counts[split:], seen.counts[:split][::-1]  # both outwards from zero
    if scheme.symmetric:
        reach = _reach(folded(seen), allowed) * seen.width
        low, high = max(seen.minimum, -reach), min(seen.maximum, reach)
    else:
        high = min(seen.maximum, _reach(above, allowed) * seen.width)
        low = max(seen.minimum, -_reach(below, allowed) * seen.width)
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else minmax(seen, scheme)


def _reach(outwards: NDArray[np.int64], allowed: float) -> float:
    """How many bins from zero, in fractions, so that `allowed` values lie further out."""
    beyond = np.append(np.cumsum(outwards[::-1])[::-1], 0)  # values in bin j and further out
    if not len(outwards) or beyond[0] <= allowed:
        return 0.0
    bin_ = int(np.flatnonzero(beyond > allowed)[-1])  # the outermost bin that may not be left out whole
    return bin_ + 1 - float(allowed - beyond[bin_ + 1]) / float(outwards[bin_])


_FUNCTIONS: Mapping[str, Callable[..., Range]] = {
    "minmax": minmax,
    "moving-average": moving_average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
