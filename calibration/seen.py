"""What was seen of one tensor while calibrating: exact ends, exact zeros, and a histogram on a fixed grid.

The grid makes the statistics a commutative monoid. Bin j holds the values in [j w, (j + 1) w); the width w is a power
of two and follows from the minimum and maximum alone: the smallest with which the values, and zero, fall into at most
BINS bins. A wider grid is an exact coarsening of a narrower one (floor(floor(x / w) / 2) = floor(x / 2w)), so frames
may come in any order, in any number of processes, and `merge` gives what one pass over everything would have given,
bin for bin. One pass, and memory that does not depend on the number of frames.

Beside it goes a moving average of every frame's own extremes (calibration/extremes.py). That one has an order: merging
`one` and `other` means that the frames of `other` came after those of `one`.

Exact zeros are counted apart. A ReLU puts half of its output there, every quantizer represents them exactly, and they
would drown the first bin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.errors import BadActivations
from calibration.extremes import Extremes, follow, widest

BINS = 2048
BLOCK = 32_768  # elements; a block and its two temporaries (float32, int64) stay in a core's own cache
NARROWEST = -126  # exponent of the narrowest bin: 2**126 still is a finite float32 to multiply by


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Sufficient statistics of every value that a tensor took. All that range methods are given."""

    minimum: float  # exact; a float32 value
    maximum: float
    zeros: int  # values equal to 0.0 or -0.0; not in the histogram
    counts: NDArray[np.int64]  # (bins,), from the bin of min(minimum, 0) to the bin of max(maximum, 0); read-only
    extremes: Extremes | None = None  # of frames, in their order; None in tables of before there were any

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum <= self.maximum):
            raise ValueError(f"a finite minimum <= maximum was expected; got {self.minimum} and {self.maximum}")
        bins = grid(self.minimum, self.maximum)[2]
        if self.counts.shape != (bins,) or self.counts.dtype != np.int64:
            raise ValueError(
                f"int64 counts of shape ({bins},) were expected for values in [{self.minimum}, {self.maximum}]; "
                f"got {self.counts.dtype} of shape {self.counts.shape}"
            )
        self.counts.setflags(write=False)

    @property
    def count(self) -> int:
        """Values seen, zeros included."""
        return self.zeros + int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin: a power of two."""
        return math.ldexp(1.0, grid(self.minimum, self.maximum)[0])

    @property
    def first(self) -> int:
        """Number of the first bin, 0 or negative: bin j begins at j * width."""
        return grid(self.minimum, self.maximum)[1]

    @property
    def edges(self) -> NDArray[np.float64]:
        """The bins' ends, (bins + 1,), narrowed to where values were seen: a bin may have become a point or empty."""
        exponent, first, bins = grid(self.minimum, self.maximum)
        ends = np.arange(first, first + bins + 1) * math.ldexp(1.0, exponent)
        narrowed: NDArray[np.float64] = np.clip(ends, self.minimum, self.maximum)
        return narrowed

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Seen):
            return NotImplemented
        mine, theirs = ((s.minimum, s.maximum, s.zeros, s.extremes) for s in (self, other))
        return mine == theirs and bool(np.array_equal(self.counts, other.counts))

    def __hash__(self) -> int:
        return hash((self.minimum, self.maximum, self.zeros, self.extremes, self.counts.tobytes()))


def grid(minimum: float, maximum: float) -> tuple[int, int, int]:
    """Exponent of the bins' width, number of the first bin, how many bins: for values within these ends, and zero."""
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    if low == high:
        return NARROWEST, 0, 1
    # frexp gives 2**(e - 1) <= span < 2**e: the exponent is this or, because bins are aligned, one or two more.
    exponent = max(NARROWEST, math.frexp((high - low) / BINS)[1] - 1)
    while True:
        first, last = math.floor(math.ldexp(low, -exponent)), math.floor(math.ldexp(high, -exponent))
        if last - first < BINS:
            return exponent, first, last - first + 1
        exponent += 1


def see(values: NDArray[np.float32] | NDArray[np.float16], name: str = "the tensor") -> Seen:
    """What is in one array, of any shape and strides: one frame's values. `name` is for messages only.

    Raises BadActivations if a value is NaN or Inf, if there is none, or if they are not float32 or float16.
    """
    if values.dtype not in (np.float32, np.float16):
        raise BadActivations(f"{name}: float32 values were expected, got {values.dtype}. Convert them first.")
    flat = values.astype(np.float32, copy=False).ravel(order="K")  # K: no copy of a transposed array
    if not flat.size:
        raise BadActivations(f"{name}: values were expected, got an empty array of shape {values.shape}.")
    minimum, maximum = float(flat.min()), float(flat.max())
    if not (math.isfinite(minimum) and math.isfinite(maximum)):  # both propagate NaN
        raise BadActivations(_where_not_finite(values, name))
    exponent, first, bins = grid(minimum, maximum)
    zeros, counts = _histogram(flat, exponent, first, bins)
    minimum, maximum = minimum + 0.0, maximum + 0.0  # no -0.0, which would print differently
    return Seen(minimum, maximum, zeros, counts, Extremes(1, (minimum, maximum), (minimum, maximum)))


def update(seen: Seen | None, values: NDArray[np.float32] | NDArray[np.float16], name: str = "the tensor") -> Seen:
    """What was seen before, and one more array. Begin with None."""
    new = see(values, name)
    return new if seen is None else merge(seen, new)


def merge(one: Seen, other: Seen) -> Seen:
    """What was seen in the frames of `one` and then in those of `other`: all but the extremes is the same either way.

    Bin for bin what `see` would have returned for all values at once.
    """
    return _together(one, other, follow(one.extremes, other.extremes))


def unite(one: Seen, other: Seen) -> Seen:
    """What was seen of two tensors in the same frames, for one scale that serves both, as inputs of a concatenation."""
    return _together(one, other, widest(one.extremes, other.extremes))


def _together(one: Seen, other: Seen, extremes: Extremes | None) -> Seen:
    minimum, maximum = min(one.minimum, other.minimum), max(one.maximum, other.maximum)
    exponent, first, bins = grid(minimum, maximum)
    counts = np.zeros(bins, np.int64)
    for part in (one, other):
        was, start, length = grid(part.minimum, part.maximum)
        if was == exponent:
            counts[start - first : start - first + length] += part.counts
        else:
            # The shift of a negative number floors, as the grid does. Past 62 all bits are gone anyway.
            into = (np.arange(start, start + length) >> min(exponent - was, 62)) - first
            np.add.at(counts, into, part.counts)
    return Seen(minimum, maximum, one.zeros + other.zeros, counts, extremes)


def folded(seen: Seen) -> NDArray[np.int64]:
    """Histogram of the magnitudes: bin j counts j * width to (j + 1) * width on both sides of zero."""
    split = -seen.first
    counts = np.zeros(max(split, len(seen.counts) - split), np.int64)
    counts[: len(seen.counts) - split] += seen.counts[split:]
    counts[:split] += seen.counts[:split][::-1]
    return counts


def _histogram(flat: NDArray[np.float32], exponent: int, first: int, bins: int) -> tuple[int, NDArray[np.int64]]:
    # Scaling by a power of two is exact in float32 as long as nothing underflows, which it can only for bins wider
    # than 1: -1e-45 / 2 would become -0.0 and fall into bin 0 instead of bin -1.
    work: type[np.float32] | type[np.float64] = np.float32 if exponent <= 0 else np.float64
    inverse = math.ldexp(1.0, -exponent)
    scratch = np.empty(min(BLOCK, flat.size), work)
    into = np.empty(min(BLOCK, flat.size), np.intp)
    counts = np.zeros(bins, np.int64)
    zeros = 0
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        scaled, index = scratch[: block.size], into[: block.size]
        np.multiply(block, inverse, out=scaled, dtype=work)
        # floor before the shift: -1e-9 + 1024 would round to 1024. Bins from 0 on need none, the cast truncates.
        if first:
            np.floor(scaled, out=scaled)
            np.subtract(scaled, first, out=scaled)
        np.copyto(index, scaled, casting="unsafe")
        counts += np.bincount(index, minlength=bins)
        zeros += block.size - int(np.count_nonzero(block != 0))
    counts[-first] -= zeros
    return zeros, counts


def _where_not_finite(values: NDArray[np.float32] | NDArray[np.float16], name: str) -> str:
    bad = ~np.isfinite(values)
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    return (
        f"{name}: finite values were expected, but {int(bad.sum())} of {values.size} are NaN or Inf "
        f"(first: {values[index]} at {list(index)}). Ranges cannot be taken from them: look at the frame that "
        "gave this, and at the operation before this tensor (overflow in half precision, division by zero)."
    )
