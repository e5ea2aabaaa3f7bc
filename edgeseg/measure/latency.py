"""Latency is a distribution: samples in nanoseconds, percentiles only where there are enough samples, tails kept.

How many are enough is the early-stopping rule of MLPerf Inference (mlcommons/inference_policies, appendix "Early
stopping criterion"; confidence 0.99, tolerance 0): a p99 needs 662 samples, and fewer cannot state one.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from edgeseg.errors import CannotTell

Item = TypeVar("Item")

CONFIDENCE = 0.99
_RESAMPLES = 2000  # of the bootstrap; the ends of a 95 % interval then rest on about 50 resamples each


@dataclass(frozen=True, slots=True)
class Percentile:
    """A percentile, or the number of samples that it lacks."""

    value_ms: float | None
    needed: int  # samples
    have: int
    p: float  # 0.99 for the 99th

    @property
    def reason(self) -> str | None:
        """Why there is no value; None if there is one."""
        if self.value_ms is not None:
            return None
        return f"p{100 * self.p:g} needs {self.needed} samples, there are {self.have}"


@dataclass(frozen=True, slots=True)
class Latency:
    """A summary of samples, in milliseconds. A percentile is None where there were too few samples: see `reasons`."""

    count: int
    mean: float
    min: float
    max: float
    stdev: float  # of the sample; 0 for a single one
    p50: float | None
    p90: float | None
    p99: float | None
    reasons: Mapping[str, str] = field(default_factory=dict)  # "p99" -> why it is None

    def to_json(self) -> dict[str, Any]:
        """A plain dict with the fields' names, milliseconds, null for a percentile that cannot be stated."""
        return {
            "count": self.count,
            "mean": self.mean,
            "min": self.min,
            "max": self.max,
            "stdev": self.stdev,
            "p50": self.p50,
            "p90": self.p90,
            "p99": self.p99,
            "reasons": dict(self.reasons),
        }


class RatioInterval(NamedTuple):
    """A ratio of medians and its 95 % interval."""

    ratio: float
    low: float
    high: float


def summarize(samples_ns: Sequence[int]) -> Latency:
    """Count, mean, extremes, spread and percentiles of latencies in nanoseconds. CannotTell without samples."""
    if not samples_ns:
        raise CannotTell("No latency was measured, so there is nothing to summarise.")
    found = {name: percentile(samples_ns, p) for name, p in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    return Latency(
        count=len(samples_ns),
        mean=statistics.fmean(samples_ns) / 1e6,
        min=min(samples_ns) / 1e6,
        max=max(samples_ns) / 1e6,
        stdev=statistics.stdev(samples_ns) / 1e6 if len(samples_ns) > 1 else 0.0,
        p50=found["p50"].value_ms,
        p90=found["p90"].value_ms,
        p99=found["p99"].value_ms,
        reasons={name: item.reason for name, item in found.items() if item.reason is not None},
    )


def percentile(samples_ns: Sequence[int], p: float) -> Percentile:
    """The smallest sample with at least the share `p` (0 to 1, exclusive) of the samples at or below it (nearest rank).

    Without a value if there are fewer samples than the early-stopping rule asks for.
    """
    needed, have = samples_needed(p), len(samples_ns)
    if have < needed:
        return Percentile(None, needed, have, p)
    rank = math.ceil(Fraction(str(p)) * have)  # as a decimal fraction: 0.07 * 100 in floats is more than 7
    return Percentile(sorted(samples_ns)[rank - 1] / 1e6, needed, have, p)


def early_stopping_bound(samples_ns: Sequence[int], p: float) -> float | None:
    """An upper bound in ms on the true percentile `p`, with 99 % confidence; None with too few samples.

    MLPerf's early-stopping estimate: with t the most samples that could lie above the bound by chance, the slowest
    t - 1 are set aside and the slowest of the rest is reported.
    """
    above = _allowed_above(len(samples_ns), p)
    return None if above < 1 else sorted(samples_ns)[len(samples_ns) - above] / 1e6


@lru_cache
def samples_needed(p: float) -> int:
    """The fewest samples that can state the percentile `p`.

    >>> [samples_needed(p) for p in (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)]
    [11, 64, 130, 219, 662, 6636]
    """
    if not 0.0 < p < 1.0:
        raise ValueError(f"a percentile lies between 0 and 1, exclusive, got {p}")
    low, high = 1, 2
    while _allowed_above(high, p) < 1:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _allowed_above(middle, p) >= 1 else (middle, high)
    return high


def _allowed_above(count: int, p: float) -> int:
    """The largest t with P(at most t of `count` samples lie above the true percentile) <= 1 - CONFIDENCE; or -1."""
    total, t = 0.0, -1
    while t < count:
        k = t + 1
        ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        total += math.exp(ways + k * math.log1p(-p) + (count - k) * math.log(p))  # logs: p**count may underflow
        if total > 1.0 - CONFIDENCE:
            break
        t = k
    return t


class InTurn(Generic[Item]):
    """A callable without arguments that runs `run` on the next of `items` each time, from the first again at the end.

    What `interleave` times: real frames in turn, so that no engine is measured on one that its caches know.
    """

    def __init__(self, run: Callable[[Item], object], items: Sequence[Item]) -> None:
        if not items:
            raise CannotTell("There is no frame to time a run on.")
        self._run, self._items = run, itertools.cycle(items)

    def __call__(self) -> object:
        return self._run(next(self._items))


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    seconds: float = 0.0,
    limit_s: float | None = None,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    on_round: Callable[[], object] | None = None,
) -> dict[str, list[int]]:
    """Time callables in turn, so that drift (heat, neighbours) hits all alike: name -> nanoseconds, one a round.

    First `warmup` rounds that do not count, then rounds until there were `rounds` of them and `seconds` have passed, or
    until `limit_s` seconds have: the round under way is finished, so all have equally many samples and sample i of one
    belongs to sample i of another. The order is a
    random one, rotated by one each round, and drawn anew when it has come round: each run stands equally often in
    each place. `on_round` is called after each, outside what is timed. What a run raises is passed on.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"at least one round and no negative warm-up, got rounds={rounds}, warmup={warmup}")
    for _ in range(warmup):
        for run in runs.values():
            run()
    chance = random.Random(seed)
    order = list(runs)
    samples: dict[str, list[int]] = {name: [] for name in runs}
    start = clock()
    for number in itertools.count():
        passed = (clock() - start) / 1e9
        if (number >= rounds and passed >= seconds) or (number and limit_s is not None and passed >= limit_s):
            break
        if number % max(1, len(order)) == 0:
            chance.shuffle(order)
        else:
            order.append(order.pop(0))
        for name in order:
            before = clock()
            runs[name]()
            samples[name].append(clock() - before)
        if on_round is not None:
            on_round()
    return samples


def ratio_interval(a: Sequence[int], b: Sequence[int], seed: int = 0) -> RatioInterval:
    """median(a) / median(b) with a 95 % interval: above 1, `b` is the faster.

    A percentile bootstrap over pairs (Efron and Tibshirani, 1993): a[i] and b[i] are of the same round of `interleave`
    and are drawn together. CannotTell with fewer than 11 pairs, which cannot state a median.
    """
    if len(a) != len(b):
        raise ValueError(f"paired samples must be equally many, got {len(a)} and {len(b)}")
    if len(a) < samples_needed(0.5):
        raise CannotTell(f"A ratio of medians needs {samples_needed(0.5)} paired samples, there are {len(a)}.")
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    chance = np.random.default_rng(seed)
    ratios = []
    for _ in range(_RESAMPLES // 100):  # in parts: a long run's samples a thousand times over would not fit
        drawn = chance.integers(0, len(first), (100, len(first)))
        ratios.append(np.median(first[drawn], axis=1) / np.median(second[drawn], axis=1))
    low, high = np.quantile(np.concatenate(ratios), (0.025, 0.975))
    return RatioInterval(float(np.median(first) / np.median(second)), float(low), float(high))
