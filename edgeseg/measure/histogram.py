"""A distribution of durations for streams that run for weeks: what summarize() gives for a list, in bounded memory.

Bins are those of HdrHistogram (hdrhistogram.org) at eight bits: single nanoseconds below 256, above that 128 bins for
every doubling, so none is wider than 0.8 % of its lower edge and any percentile is right within 0.4 %. Only bins that
were hit exist: a steady stage has a few dozen, all that 63 bits can hold would be 7,300. Count, sum, spread, least and
most are exact, so tails are never clipped.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import CannotTell
from edgeseg.measure.latency import Latency, Percentile, samples_needed

_BITS = 8  # of a duration that tell its bin; the rest of them only say how far it was shifted
_HALF = 1 << _BITS - 1
_PENDING = 128  # finding the bins of many together costs half of doing so one by one
_COUNT_BITS = 48  # of a packed bin; the 16 above them hold its number
_COUNT_MASK = (1 << _COUNT_BITS) - 1


class Histogram:
    """Durations in nanoseconds. Not to be shared between threads without a lock."""

    __slots__ = ("_bins", "_count", "_high", "_low", "_pending", "_squares", "_sum")

    def __init__(self, samples_ns: Iterable[int] = ()) -> None:
        self._pending: list[int] = []
        self._bins: Counter[int] | NDArray[np.int64] = Counter()  # packed bins are never written to
        self._count = self._sum = self._squares = 0  # ints: exact however many there are
        self._low: int | None = None
        self._high: int | None = None
        for ns in samples_ns:
            self.add(ns)

    def add(self, ns: int) -> None:
        """Count one duration. ValueError below zero: the clock went backwards."""
        if ns < 0:
            raise ValueError(f"a duration is at least 0 ns, got {ns}: was the clock set back?")
        pending = self._pending
        pending.append(ns)
        if len(pending) >= _PENDING:
            self._settle()

    def merge(self, other: Histogram) -> None:
        """Take in all that `other` has seen."""
        if other._pending:
            other._settle()
        if isinstance(self._bins, np.ndarray) and isinstance(other._bins, np.ndarray) and not self._pending:
            self._bins = _merged(self._bins, other._bins)
        else:
            bins = self._settle()
            seen = bins.get
            for number, count in other._items():
                bins[number] = seen(number, 0) + count
        self._count += other._count
        self._sum += other._sum
        self._squares += other._squares
        self._low = _either(min, self._low, other._low)
        self._high = _either(max, self._high, other._high)

    def __add__(self, other: Histogram) -> Histogram:
        both = Histogram(self._pending)
        both._bins = self._bins.copy() if isinstance(self._bins, Counter) else self._bins
        both._count, both._sum, both._squares = self._count, self._sum, self._squares
        both._low, both._high = self._low, self._high
        both.merge(other)
        return both

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self._state() == other._state()

    __hash__ = None  # type: ignore[assignment]  # it changes

    @property
    def count(self) -> int:
        return self._count + len(self._pending)

    def pack(self) -> None:
        """Keep the bins in eight bytes each until the next add(). For those of which there are many."""
        if self._pending or isinstance(self._bins, Counter):
            bins = sorted(self._settle().items())
            self._bins = np.array([number << _COUNT_BITS | count for number, count in bins], np.int64)

    def percentile(self, p: float) -> Percentile:
        """The nearest-rank percentile `p` (0 to 1, exclusive) by the rules of latency.percentile, within 0.4 %.

        It is the middle of the bin that the rank falls into, cut to what was really seen.
        """
        return self._percentiles((p,))[0]

    def latency(self) -> Latency:
        """The summary of all samples, as summarize() makes it. CannotTell without samples."""
        if not self.count:
            raise CannotTell("No latency was measured, so there is nothing to summarise.")
        found = dict(zip(("p50", "p90", "p99"), self._percentiles((0.5, 0.9, 0.99)), strict=True))
        return Latency(
            count=self._count,
            mean=self._sum / self._count / 1e6,
            min=(self._low or 0) / 1e6,
            max=(self._high or 0) / 1e6,
            stdev=self._stdev_ns() / 1e6,
            p50=found["p50"].value_ms,
            p90=found["p90"].value_ms,
            p99=found["p99"].value_ms,
            reasons={name: item.reason for name, item in found.items() if item.reason is not None},
        )

    def to_json(self) -> dict[str, Any]:
        """What summarize().to_json() gives, and `bins_ms`: [from, below, count] of each that is not empty, in order.

        CannotTell without samples.
        """
        bins = [(*_edges(number), count) for number, count in sorted(self._items())]
        return {**self.latency().to_json(), "bins_ms": [[low / 1e6, below / 1e6, count] for low, below, count in bins]}

    def _percentiles(self, ps: tuple[float, ...]) -> list[Percentile]:
        bins = sorted(self._items())
        passed = list(accumulate(count for _, count in bins))  # samples up to and including each bin
        found = []
        for p in ps:
            needed, value = samples_needed(p), None
            if self._count >= needed:
                number, _ = bins[bisect_left(passed, math.ceil(_share(p) * self._count))]
                low, below = _edges(number)
                value = min(max((low + below - 1) / 2, self._low or 0), self._high or 0) / 1e6
            found.append(Percentile(value, needed, self._count, p))
        return found

    def _stdev_ns(self) -> float:
        n = self._count
        return math.sqrt((n * self._squares - self._sum**2) / (n * (n - 1))) if n > 1 else 0.0

    def _items(self) -> Iterable[tuple[int, int]]:
        if self._pending:
            self._settle()
        if isinstance(self._bins, np.ndarray):
            return [(word >> _COUNT_BITS, word & _COUNT_MASK) for word in self._bins.tolist()]
        return self._bins.items()

    def _settle(self) -> Counter[int]:
        """The bins, open for changes, with all that was pending in them."""
        pending, self._pending = self._pending, []
        bins = self._bins if isinstance(self._bins, Counter) else Counter(dict(self._items()))
        self._bins = bins
        if pending:
            bins.update([(ns >> (s := (ns | _HALF).bit_length() - _BITS)) + s * _HALF for ns in pending])
            self._count += len(pending)
            self._sum += sum(pending)
            self._squares += sum(map(mul, pending, pending))
            self._low = _either(min, self._low, min(pending))
            self._high = _either(max, self._high, max(pending))
        return bins

    def _state(self) -> tuple[object, ...]:
        return dict(self._items()), self._count, self._sum, self._squares, self._low, self._high


def _merged(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Packed bins of both, in order."""
    words = np.concatenate((a, b))
    if not len(words):
        return words
    words.sort()
    numbers = words >> _COUNT_BITS
    new = np.empty(len(words), np.bool_)
    new[0] = True
    np.not_equal(numbers[1:], numbers[:-1], out=new[1:])
    starts = new.nonzero()[0]
    merged: NDArray[np.int64] = (numbers[starts] << _COUNT_BITS) + np.add.reduceat(words & _COUNT_MASK, starts)
    return merged


def _either(choose: Callable[[int, int], int], a: int | None, b: int | None) -> int | None:
    if a is None or b is None:
        return b if a is None else a
    return choose(a, b)


def _edges(number: int) -> tuple[int, int]:
    """The least duration of a bin and the least of the next one."""
    shift = max(number // _HALF - 1, 0)
    lead = number - shift * _HALF
    return lead << shift, (lead + 1) << shift


@lru_cache
def _share(p: float) -> Fraction:
    return Fraction(str(p))  # as a decimal fraction, as in latency.percentile
