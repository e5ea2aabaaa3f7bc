"""Scales of weights: symmetric, one a channel. Weights are at hand, so their error is computed and not estimated."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calibration.errors import BadWeights
from calibration.scheme import Scheme, affine

FRACTIONS = np.linspace(1.0, 0.2, 41)  # of the largest magnitude; 8 bits end above 0.8, 4 bits around 0.5


def weight_scales(
    weights: NDArray[np.float32], axis: int, bits: int = 8, narrow: bool = False, method: Literal["max", "mse"] = "max"
) -> NDArray[np.float32]:
    """float32 scales (channels,) of float32 weights whose channels lie along `axis`; zero points are 0.

    "max" clips nothing; "mse" takes, channel by channel, the clipping of least squared error among FRACTIONS. A
    channel of zeros gets scale 1. Raises BadWeights for NaN or Inf.
    """
    scheme = Scheme(signed=True, symmetric=True, bits=bits, narrow=narrow)
    rows = np.ascontiguousarray(np.moveaxis(np.asarray(weights, np.float32), axis, 0))
    rows = rows.reshape(rows.shape[0], -1)
    if not np.isfinite(rows).all():
        channels = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        raise BadWeights(
            f"finite weights were expected; channels {channels[:8].tolist()} of {len(rows)} hold NaN or Inf. "
            "The checkpoint is damaged, or training diverged."
        )
    # initial: zero belongs to every range, and a channel may have no weights at all
    low, high = rows.min(axis=1, initial=0.0), rows.max(axis=1, initial=0.0)
    if method == "max":
        return affine(low, high, scheme)[0]
    best, least = affine(low, high, scheme)[0], np.full(len(rows), np.inf)
    for fraction in FRACTIONS:
        scales = affine(low * fraction, high * fraction, scheme)[0]
        codes = np.clip(np.rint(rows / scales[:, None]), scheme.lowest, scheme.highest)
        # relative to the channel's scale at no clipping, so that squares of tiny weights do not underflow
        difference = (codes * scales[:, None] - rows) / scales[:, None]
        error = np.einsum("ij,ij->i", difference, difference, dtype=np.float64) * scales.astype(np.float64) ** 2
        better = error < least
        best, least = np.where(better, scales, best), np.where(better, error, least)
    return best
