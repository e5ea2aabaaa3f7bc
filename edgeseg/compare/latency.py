"""Whether times changed, from raw samples of one run or of several.

Three cases, from the surest to the least:

- Paired: both engines took turns in one call of `edgeseg bench`. Neighbours, heat and clocks hit both alike, so the
  same blocks of rounds are drawn for both, and what they share cancels. Still each engine was opened once, and where
  its memory came to lie is luck (Mytkowicz, Diwan, Hauswirth and Sweeney 2009, "Producing wrong data without doing
  anything obviously wrong!"): `PLACEMENT` stands for that.
- Repeated: at least `REPEATS` runs a side. Runs of one bundle differ by more than their samples say, so the number of
  runs decides and not that of samples: Welch's test on a value a run (Georges, Buytaert and Eeckhout 2007,
  "Statistically rigorous Java performance evaluation"; Kalibera and Jones 2013, "Rigorous benchmarking in reasonable
  time", on repeating at the level that varies most).
- Single: fewer runs. How much runs differ is then unknown, and `RUN_SPREAD` is assumed: only a change far beyond it can
  be told.

Samples follow each other, so whole blocks of them are drawn (moving blocks: Künsch 1989, "The jackknife and the
bootstrap for general stationary observations"), of the length by Politis and White 2004. All values are logarithms, so
that a difference is a ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.compare.chance import Estimate, welch
from edgeseg.errors import BadInput
from edgeseg.measure.bootstrap import block_length
from edgeseg.measure.latency import samples_needed

RESAMPLES = 1000
REPEATS = 3  # runs a side from which their own spread is used
PLACEMENT = 0.005  # standard deviation of log time between two openings of one engine in one call
RUN_SPREAD = {
    "cold": 0.25,
    "memory": 0.05,
    "build_memory": 0.25,  # a step that comes from the cache takes none
    "engine_memory": 0.01,  # in a process of its own: six runs of an engine came within 0.02 %
}  # the same between separate runs, by the metric's first name
OTHER_SPREAD = 0.10
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_SAMPLES = {"latency": "engine", "end_to_end": "whole"}
Array = NDArray[np.float64]


def paired(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    """The pairs of bench documents whose samples belong together; empty unless every document has its partner."""
    partners = {one.get("run"): one for one in before if one.get("paired") and one.get("run")}
    pairs = [(partners[one["run"]], one) for one in after if one.get("paired") and one.get("run") in partners]
    matched = len(pairs) == len(before) == len(after) == len(partners)
    return pairs if matched and all(_as_many(*pair) for pair in pairs) else []


def of_pairs(pairs: Sequence[tuple[Any, Any]], where: str, seed: int = 0) -> dict[str, Estimate]:
    """The log ratio of every statistic of samples over runs in which both took turns. BadInput as `samples`."""
    found: dict[str, list[Estimate]] = {}
    for a, b in pairs:
        for name, kind in _SAMPLES.items():
            for key, one in _paired(samples(a, kind, where), samples(b, kind, where), seed).items():
                found.setdefault(f"{name}.{key}", []).append(one)
    merged = {name: _merged(each) for name, each in found.items() if len(each) == len(pairs)}
    return with_rate(merged, [document for pair in pairs for document in pair])


def of_runs(name: str, before: Sequence[float], after: Sequence[float], errors: Sequence[float] = ()) -> Estimate:
    """The difference of values on their metric's scale, one a separate run; `errors`: standard errors within runs."""
    if min(len(before), len(after)) >= REPEATS:
        return welch(before, after)
    spread = RUN_SPREAD.get(name.split(".")[0], OTHER_SPREAD)
    between = spread * math.sqrt(1 / len(before) + 1 / len(after))
    change = float(np.mean(after) - np.mean(before))
    return Estimate(change, math.hypot(between, *errors))


def of_one(document: Mapping[str, Any], where: str, seed: int = 0) -> dict[str, Estimate]:
    """The logarithm of every statistic of one run's samples, with its error. BadInput as `samples`."""
    found: dict[str, Estimate] = {}
    for name, kind in _SAMPLES.items():
        values = samples(document, kind, where)
        if len(values) < samples_needed(0.5):
            continue
        length = _length([_around(values, p) for p in (0.5, 0.9)])
        found |= {
            f"{name}.{key}": Estimate(float(one), float(resampled.std()), len(values) / length - 1)
            for key, one, resampled in zip(
                _known(len(values)), _statistics(values), _resampled([values], length, seed)[0].T, strict=True
            )
        }
    return with_rate(found, [document])


def samples(document: Mapping[str, Any], kind: str, where: str) -> Array:
    """Raw samples in ms, "engine" or "whole"; none for documents without. BadInput if they are not the summary's."""
    found = (document.get("samples_ms") or {}).get(kind) or []
    try:
        values = np.asarray(found, np.float64)
        if values.ndim != 1 or (values <= 0).any():
            raise ValueError("wanted a list of numbers above 0")
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where}, samples_ms.{kind}: {error}. Measure again.") from error
    summary = "latency_ms" if kind == "engine" else "end_to_end_ms"
    said = (document.get(summary) or {}).get("p50")
    if len(values) and said is not None and abs(_statistics(values)[0] - math.log(said)) > 1e-3 + 1e-3 / said:
        raise BadInput(
            f"{where}, samples_ms.{kind}: their median is {math.exp(_statistics(values)[0]):.4f} ms, "
            f"{summary}.p50 says {said:.4f}. The file was changed by hand or mixed from two; measure again."
        )
    return values


def with_rate(found: dict[str, Estimate], documents: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """The same with "fps", where that is the mean latency's inverse in all documents: so for a single stream."""
    mean = found.get("latency.mean")
    rates = [(one.get("fps") or 0.0) * (one["latency_ms"].get("mean") or 0.0) / 1000 for one in documents]
    if mean is not None and all(math.isclose(rate, 1.0, rel_tol=0.005) for rate in rates):
        found["fps"] = Estimate(math.log(1000) * (len(documents) == 1) - mean.change, mean.error, mean.freedom)
    return found


def _as_many(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    first, second = (one.get("samples_ms") or {} for one in (a, b))
    return all(first.get(kind) and len(first[kind]) == len(second.get(kind) or ()) for kind in _SAMPLES.values())


def _known(count: int) -> list[str]:
    """The statistics that so many samples can state."""
    return [*(name for name, p in _PERCENTILES.items() if count >= samples_needed(p)), "mean"]


def _statistics(values: Array) -> Array:
    """Logarithms of the known percentiles (nearest rank) and of the mean, over the last axis: (…, S)."""
    count = values.shape[-1]
    shares = [_PERCENTILES[name] for name in _known(count) if name in _PERCENTILES]
    ranks = [math.ceil(round(p * count, 9)) - 1 for p in shares]
    ordered = np.partition(values, ranks, axis=-1)[..., ranks] if ranks else values[..., :0]
    found: Array = np.log(np.concatenate([ordered, values.mean(axis=-1, keepdims=True)], axis=-1))
    return found


def _around(values: Array, p: float) -> Array:
    """The influence of every sample on a percentile, up to a factor: on which side of it the sample lies."""
    found: Array = (values > np.quantile(values, p)).astype(np.float64) - (1 - p)
    return found


def _length(series: Sequence[Array]) -> int:
    """The longest block that any series asks for."""
    return max(block_length(["run"] * len(one), one) for one in series)


def _resampled(sides: Sequence[Array], length: int, seed: int) -> list[Array]:
    """The statistics (RESAMPLES, S) of each side, the same moving blocks drawn for all."""
    count = len(sides[0])
    chance = np.random.default_rng(seed)
    found: list[list[Array]] = [[] for _ in sides]
    for _ in range(RESAMPLES // 50):
        starts = chance.integers(0, count - length + 1, (50, -(-count // length)))
        drawn = (starts[:, :, None] + np.arange(length)).reshape(50, -1)[:, :count]
        for side, values in zip(found, sides, strict=True):
            side.append(_statistics(values[drawn]))
    return [np.concatenate(side) for side in found]


def _paired(a: Array, b: Array, seed: int) -> dict[str, Estimate]:
    count = len(a)
    if count < samples_needed(0.5):
        return {}
    # What both share cancels in the difference, so that is the series whose memory matters.
    length = _length([_around(b, p) - _around(a, p) for p in (0.5, 0.9)])
    of_a, of_b = _resampled([a, b], length, seed)
    if np.array_equal(a, b):
        return {name: Estimate(0.0) for name in _known(count)}  # the same document twice
    change, moved = _statistics(b) - _statistics(a), of_b - of_a
    return {
        name: Estimate(float(change[i]), math.hypot(float(moved[:, i].std()), PLACEMENT), count / length - 1)
        for i, name in enumerate(_known(count))
    }


def _merged(each: Sequence[Estimate]) -> Estimate:
    """Of several paired runs: their own spread decides once there are enough."""
    changes = [one.change for one in each]
    if len(each) == 1:
        return each[0]
    within = math.hypot(*(one.error for one in each)) / len(each)
    if len(each) < REPEATS:
        return Estimate(float(np.mean(changes)), within, min(one.freedom for one in each))
    between = float(np.std(changes, ddof=1)) / math.sqrt(len(each))
    # Few runs may agree by luck: never surer than their samples allow.
    if between >= within:
        return Estimate(float(np.mean(changes)), between, len(each) - 1)
    return Estimate(float(np.mean(changes)), within, min(one.freedom for one in each))
