"""What quantization did to tensors, layer by layer: sums over frames that say how far two graphs are apart.

Pure: arrays in, numbers out; memory does not grow with the number of frames. Decibels are of the signal-to-noise ratio
10 log10(sum of x^2 / sum of (y - x)^2), with x as it should be and y as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_DB = 300.0  # of float64, about; also what noise without any signal is worth, with a minus
_BLOCK = 1 << 18  # values converted to float64 at once


def decibels(signal: float, noise: float) -> float | None:
    """Signal-to-noise ratio of two powers, -MOST_DB to MOST_DB; None where there is no noise at all."""
    if noise == 0:
        return None
    if signal == 0 or not math.isfinite(noise):
        return -MOST_DB
    return min(max(10 * (math.log10(signal) - math.log10(noise)), -MOST_DB), MOST_DB)


@dataclass(frozen=True, slots=True)
class Difference:
    """Between a tensor and what it should be; add them up over frames.

    `signal`, `other`, `product`, `noise`: sums of x^2, y^2, x y and (y - x)^2 over the values that are finite in both.
    `largest`: the largest |y - x| of these. `broken`: how many values are NaN or infinite in y, or in x.
    """

    count: int = 0
    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    broken: int = 0

    def __add__(self, more: Difference) -> Difference:
        return Difference(
            self.count + more.count,
            self.signal + more.signal,
            self.other + more.other,
            self.product + more.product,
            self.noise + more.noise,
            max(self.largest, more.largest),
            self.broken + more.broken,
        )

    @property
    def snr_db(self) -> float | None:
        """None where all values are equal."""
        return decibels(self.signal, self.noise)

    @property
    def cosine(self) -> float | None:
        """Of the angle between the two as vectors, -1 to 1; None where one of them is zero."""
        if self.signal == 0 or self.other == 0:
            return None
        return min(max(self.product / math.sqrt(self.signal) / math.sqrt(self.other), -1.0), 1.0)


def difference(reference: NDArray[Any], other: NDArray[Any]) -> Difference:
    """Of two arrays of real numbers and one shape, summed in float64. Raises ValueError for two shapes."""
    if reference.shape != other.shape:
        raise ValueError(f"arrays of one shape are compared; these are {reference.shape} and {other.shape}")
    total = Difference()
    flat, found = reference.reshape(-1), other.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        x, y = (part[start : start + _BLOCK].astype(np.float64) for part in (flat, found))
        good = np.isfinite(x) & np.isfinite(y)
        broken = int(x.size - np.count_nonzero(good))
        if broken:
            x, y = x[good], y[good]
        error = y - x
        total += Difference(
            x.size + broken,
            float(x @ x),
            float(y @ y),
            float(x @ y),
            float(error @ error),
            float(np.abs(error).max(initial=0.0)),
            broken,
        )
    return total


def compare(pairs: Iterable[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]]) -> dict[str, Difference]:
    """Tensor → its difference over all frames. Of each frame a pair: what tensors should be, and what they are.

    Raises KeyError for a tensor that the second lacks.
    """
    total: dict[str, Difference] = {}
    for reference, other in pairs:
        for name, values in reference.items():
            total[name] = total.get(name, Difference()) + difference(values, other[name])
    return total


@dataclass(frozen=True, slots=True)
class Clipping:
    """What a quantizer cuts off; add them up over frames. `low`, `high`: of all values seen, infinities included."""

    count: int = 0
    clipped: int = 0
    low: float = math.inf
    high: float = -math.inf

    def __add__(self, more: Clipping) -> Clipping:
        return Clipping(
            self.count + more.count,
            self.clipped + more.clipped,
            min(self.low, more.low),
            max(self.high, more.high),
        )

    @property
    def share(self) -> float:
        """Share of all values that are cut off, 0 to 1; 0 if there are none."""
        return self.clipped / self.count if self.count else 0.0


def clipping(values: NDArray[Any], low: float, high: float, step: float) -> Clipping:
    """Values further outside of [low, high] than rounding to the nearest of `step` explains. NaN counts as clipped."""
    if not values.size:
        return Clipping()
    inside = np.count_nonzero((values >= low - step / 2) & (values <= high + step / 2))
    known = values[~np.isnan(values)] if np.isnan(values).any() else values
    least = float(known.min()) if known.size else math.inf
    most = float(known.max()) if known.size else -math.inf
    return Clipping(values.size, int(values.size - inside), least, most)


FACTORS = tuple(2.0**k for k in range(-6, 7))  # by which other scales are tried
_SAMPLED = 1 << 15  # values of a tensor and frame that they are tried on


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a quantizer would lose with other scales; add them up over frames, and over tensors that share a scale.

    `noise`: the sum of squared errors with its scale times each of FACTORS.
    """

    noise: tuple[float, ...] = (0.0,) * len(FACTORS)

    def __add__(self, more: Rounding) -> Rounding:
        return Rounding(tuple(a + b for a, b in zip(self.noise, more.noise, strict=True)))

    @property
    def factor(self) -> float:
        """That of FACTORS with the least noise; 1 where it is as good as any."""
        least = min(self.noise)
        at = FACTORS.index(1.0)
        return 1.0 if self.noise[at] <= least else FACTORS[self.noise.index(least)]

    @property
    def avoidable_db(self) -> float:
        """How many decibels that one saves, 0 to MOST_DB."""
        least, now = min(self.noise), self.noise[FACTORS.index(1.0)]
        if now <= least:
            return 0.0
        return min(10 * math.log10(now / least), MOST_DB) if least > 0 else MOST_DB


def rounding(values: NDArray[Any], low: float, high: float, step: float) -> Rounding:
    """Of values rounded to multiples of `step` within [low, high], on an even sample of those that are finite."""
    flat = values.reshape(-1)
    # An odd stride, so that it does not stay in a few columns of an image.
    sample = flat[:: max(1, flat.size // _SAMPLED) | 1].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not (step > 0 and math.isfinite(step) and math.isfinite(low) and math.isfinite(high)):
        return Rounding()
    noise = []
    for factor in FACTORS:
        error = np.clip(np.rint(sample / (step * factor)) * (step * factor), low * factor, high * factor) - sample
        noise.append(float(error @ error))
    return Rounding(tuple(noise))


@dataclass(frozen=True, slots=True)
class WeightLoss:
    """What became of a layer's weights. `channel`: the output channel with the largest error, and what it lost.

    `gain`: the factor by which its weights come back, by least squares: 1 for mere rounding.
    """

    snr_db: float | None
    channel: int
    channel_snr_db: float | None
    gain: float


def weight_loss(reference: NDArray[Any], other: NDArray[Any], axis: int = 0) -> WeightLoss:
    """Of weights (…, K, …) with K output channels along `axis`.

    The worst channel is the one of the largest error, not of the largest error for its size: channels of next to no
    weights lose all of these, and nobody misses them.
    """
    x = np.moveaxis(reference.astype(np.float64), axis, 0).reshape(reference.shape[axis], -1)
    y = np.moveaxis(other.astype(np.float64), axis, 0).reshape(x.shape)
    signal, noise = (x * x).sum(1), ((y - x) ** 2).sum(1)
    worst = int(np.argmax(np.nan_to_num(noise, nan=np.inf)))
    gain = float((x[worst] @ y[worst]) / signal[worst]) if signal[worst] > 0 else 1.0
    return WeightLoss(
        decibels(float(signal.sum()), float(noise.sum())),
        worst,
        decibels(float(signal[worst]), float(noise[worst])),
        gain if math.isfinite(gain) else 0.0,
    )
