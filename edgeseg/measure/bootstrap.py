"""How far a score could be off: intervals by resampling blocks of neighbouring frames.

Frames of a video are not independent: resampling single frames would promise a certainty that is not there. Whole
blocks of consecutive frames are drawn instead (Carlstein 1986, "The use of subseries values for estimating the
variance of a general statistic from a stationary sequence"), and a block never spans two videos.

    length = block_length(sequences, influence(tp, fp, fn))
    numbers = blocks(sequences, length)
    weights = draws(numbers, 1000)
    miou = np.nanmean(iou(weights @ tp, weights @ fp, weights @ fn), axis=-1)
    low, high = interval(miou, blocks=int(numbers.max()) + 1)

A paired difference of two engines on the same frames takes the same `weights` for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def blocks(sequences: Sequence[str], length: int) -> NDArray[np.int64]:
    """The block number of every frame, int64 (N,), counted from 0: consecutive frames of one sequence, in order.

    A sequence of n frames becomes ceil(n / length) blocks of as equal a size as can be, at most `length` frames each.
    A sequence that is left and comes back later starts a new block. Raises ValueError for a length below 1.
    """
    if length < 1:
        raise ValueError(f"a block holds at least 1 frame, got length={length}")
    numbers: list[NDArray[np.int64]] = []
    first = 0
    for _, run in groupby(sequences):
        frames = sum(1 for _ in run)
        count = -(-frames // length)
        numbers.append(first + np.arange(frames, dtype=np.int64) * count // frames)
        first += count
    return np.concatenate(numbers) if numbers else np.zeros(0, np.int64)


def draws(blocks: NDArray[np.int64], resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """How often each frame is in each resample, int64 (resamples, N); as many blocks are drawn as there are.

    Depends on the blocks' count, `resamples` and `seed` alone, so two engines on the same frames get the same draws.
    """
    count = int(blocks.max(initial=-1)) + 1
    if not count:
        return np.zeros((resamples, 0), np.int64)
    random = np.random.default_rng(seed)
    times = random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.int64)
    drawn: NDArray[np.int64] = times[:, blocks]
    return drawn


def iou(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> NDArray[np.float64]:
    """TP / (TP + FP + FN) of counts (…, C), from 0 to 1; NaN where a class neither occurs nor is predicted."""
    hit = np.asarray(tp, np.float64)
    union = hit + np.asarray(fp, np.float64) + np.asarray(fn, np.float64)
    found: NDArray[np.float64] = np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)
    return found


def influence(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> NDArray[np.float64]:
    """How far each frame moves the mIoU of the set, float64 (N,), summing to 0; counts are (N, C).

    The derivative of mIoU in a frame's weight: the mean over classes of (TP_i - IoU * union_i) / union. Its
    autocorrelation, not that of the frames' own mIoU, decides how far off the set's mIoU may be: a frame without a
    class says nothing about it.
    """
    hit, union = np.asarray(tp, np.float64), np.asarray(tp, np.float64) + np.asarray(fp) + np.asarray(fn)
    whole = union.sum(axis=0)
    known = whole > 0
    if not known.any():
        return np.zeros(len(hit))
    score = hit.sum(axis=0)[known] / whole[known]
    moved: NDArray[np.float64] = ((hit[:, known] - score * union[:, known]) / whole[known]).mean(axis=1)
    return moved


def block_length(sequences: Sequence[str], values: NDArray[np.float64]) -> int:
    """Frames per block for a series of values (N,), from its autocorrelation within the sequences.

    Politis and White 2004, "Automatic block-length selection for the dependent bootstrap", with the correction by
    Patton, Politis and White 2009, for blocks of fixed length. Pairs of frames of different sequences do not count.
    At least 1, at most the smaller of 3 sqrt(N) and N / 3, as the authors bound it.
    """
    frames = len(values)
    bound = max(1, math.ceil(min(3 * math.sqrt(frames), frames / 3)))
    centred = np.asarray(values, np.float64) - np.mean(values) if frames else np.zeros(0)
    runs = _runs(sequences, centred)
    longest = max((len(run) for run in runs), default=0)
    variance = float(centred @ centred) / max(frames, 1)
    # Rounding leaves specks where every frame is alike; they have no autocorrelation to speak of.
    if frames < 4 or longest < 2 or variance <= (1e-12 * float(np.abs(values).max())) ** 2:
        return 1
    lags = min(longest - 1, math.ceil(math.sqrt(frames)) + max(5, math.ceil(math.sqrt(math.log10(frames)))))
    autocovariance = np.array(
        [sum(float(run[: len(run) - k] @ run[k:]) for run in runs if len(run) > k) / frames for k in range(lags + 1)]
    )
    width = 2 * _last_lag(autocovariance / variance, frames)
    lag = np.arange(min(width, lags) + 1)
    share = lag / max(width, 1)
    window = np.where(share <= 0.5, 1.0, 2 * (1 - share))  # the flat top of Politis and Romano 1995
    weighted = window * autocovariance[: len(lag)]
    spectrum = weighted[0] + 2 * float(weighted[1:].sum())
    slope = 2 * float((lag * weighted).sum())
    if spectrum <= 0:
        return 1  # neighbours cancel each other: single frames err on the safe side
    best = (2 * slope**2 / (4 / 3 * spectrum**2)) ** (1 / 3) * frames ** (1 / 3)
    return int(min(max(1, round(best)), bound, longest))


def interval(values: NDArray[np.float64], *, blocks: int, level: float = 0.95) -> tuple[float, float] | None:
    """The bounds between which the middle `level` of the resamples (R,) lie, NaN left out; None where nothing is known.

    Percentiles of few blocks are too narrow, so they are taken further out: where a normal deviate stands for Student's
    t with blocks - 1 degrees of freedom times sqrt(blocks / (blocks - 1)) (Hesterberg 2015, "What teachers should know
    about the bootstrap", the expanded percentile interval). None for fewer than two blocks: nothing was resampled.
    """
    known = values[~np.isnan(values)]
    if blocks < 2 or not known.size:
        return None
    tail = expanded_tail(level, blocks)
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def expanded_tail(level: float, blocks: int) -> float:
    """The share of resamples beyond either bound of a `level` interval of that many blocks (at least 2)."""
    deviate = student_t((1 + level) / 2, blocks - 1) * math.sqrt(blocks / (blocks - 1))
    return NormalDist().cdf(-deviate)


def student_t(probability: float, freedom: int) -> float:
    """The quantile of Student's t with `freedom` degrees of freedom, for a probability from 0.5 to 1 (exclusive)."""
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, freedom: int) -> float:
    """By the finite sum for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4); t is 0 or more."""
    if freedom > 1000:
        return NormalDist().cdf(t * (1 - 1 / (4 * freedom)) / math.sqrt(1 + t * t / (2 * freedom)))
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(freedom // 2):
        total += term
        term *= cosine * cosine * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2


def _runs(sequences: Sequence[str], values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    found, first = [], 0
    for _, run in groupby(sequences):
        frames = sum(1 for _ in run)
        found.append(values[first : first + frames])
        first += frames
    return found


def _last_lag(correlation: NDArray[Any], frames: int) -> int:
    """The lag after which the autocorrelation stays negligible, by the rule of Politis and White 2004 (c = 2)."""
    quiet = max(5, math.ceil(math.sqrt(math.log10(frames))))
    small = np.abs(correlation[1:]) < 2 * math.sqrt(math.log10(frames) / frames)
    for lag in range(len(small)):
        if small[lag : lag + quiet].all() and (lag + quiet <= len(small) or small[lag:].size):
            return lag
    return len(small)
