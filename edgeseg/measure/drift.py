"""Does a camera still show what the model was calibrated on? Class shares and confidence against a baseline.

Frames of a video resemble one another, and one scene rightly differs from a set of many; a test of means would always
sound. So the yardstick is how far single calibration frames lie from the rest of them: a stream is told of only when
the mean of its last frames, which lies nearer to any centre than single frames do, is farther out than those.

The distance of class shares is the divergence of Jensen and Shannon (Lin, "Divergence Measures Based on the Shannon
Entropy", IEEE Trans. Inf. Theory 37(1), 1991) in bits: 0 for equal shares, 1 for shares with no class in common.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import BadInput, CannotTell

SCHEMA = "edgeseg.baseline/1"
LEAST_FRAMES = 4  # for a baseline; below, nothing is known of how frames differ

WINDOW = 200  # frames that a judgement looks back on
LEAST = 60  # frames before there is one
# Chosen on CamVid's training frames alone: baselines of 8 to 64 frames of one or two of its three drives, and the mean
# of at least 60 frames of another drive. Its distance was at most 1.27 times the 99 % quantile of the baseline's own
# frames, its lack of confidence at most 0.93 times, so that the latter needs no margin.
MARGIN = 1.5
# Where all calibration frames are alike (one fixed camera) their own spread says too little. 0.02 bits are about 16 %
# of the pixels going from one class to another; and networks are less sure of new frames than of those trained on.
LEAST_DISTANCE = 0.02
LEAST_LOSS = 0.05

Floats64 = NDArray[np.float64]

_SURE = ("confidence", "confidence_spread", "confidence_low")


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the float network saw on calibration frames. Shares and confidences from 0 to 1, distances in bits.

    `confidence` and what belongs to it are None for a network that gives no scores.
    """

    frames: int
    shares: tuple[float, ...]  # by class: the mean share of the pixels
    spread: tuple[float, ...]  # by class: its standard deviation between frames
    distance: float  # median over frames: from a frame's shares to the mean of all others
    distance_high: float  # and its 99 % quantile
    confidence: float | None = None  # mean
    confidence_spread: float | None = None  # standard deviation between frames
    confidence_low: float | None = None  # 1 % quantile

    @property
    def distance_limit(self) -> float:
        """A stream farther away than this shows something else."""
        return max(LEAST_DISTANCE, MARGIN * self.distance_high)

    @property
    def confidence_limit(self) -> float | None:
        """A network that is less sure than this sees something else."""
        if self.confidence is None or self.confidence_low is None:
            return None
        return min(self.confidence_low, self.confidence - LEAST_LOSS)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as it travels in a bundle's verdict."""
        return {
            "schema": SCHEMA,
            "frames": self.frames,
            "shares": list(self.shares),
            "spread": list(self.spread),
            "distance": self.distance,
            "distance_high": self.distance_high,
            "confidence": self.confidence,
            "confidence_spread": self.confidence_spread,
            "confidence_low": self.confidence_low,
        }


def distance(one: Floats64, other: Floats64) -> float:
    """The Jensen-Shannon divergence in bits, 0 to 1, of two vectors of shares (C,) that each sum to 1."""
    between = _entropy((one + other) / 2) - (_entropy(one) + _entropy(other)) / 2
    return min(1.0, max(0.0, between))


def _entropy(shares: Floats64) -> float:
    held = shares[shares > 0]
    return -float(held @ np.log2(held))


def baseline(shares: Sequence[Sequence[float]], confidences: Sequence[float | None]) -> Baseline:
    """The baseline of calibration frames: the class shares of each (the same classes) and its confidence.

    A frame's distance is to the mean of the others, or few frames would look closer than new ones are. Raises
    CannotTell for fewer than 4 frames. Frames that the network was trained on look surer than new ones.
    """
    if len(shares) < LEAST_FRAMES:
        raise CannotTell(f"a baseline needs {LEAST_FRAMES} frames or more, there are {len(shares)}; calibrate on more")
    rows = np.asarray(shares, np.float64)
    others = (rows.sum(axis=0) - rows) / (len(rows) - 1)
    away = [distance(row, np.maximum(rest, 0.0)) for row, rest in zip(rows, others, strict=True)]
    sure = [value for value in confidences if value is not None]
    known = len(sure) == len(rows)
    return Baseline(
        frames=len(rows),
        shares=tuple(rows.mean(axis=0).tolist()),
        spread=tuple(rows.std(axis=0).tolist()),
        distance=float(np.median(away)),
        distance_high=float(np.quantile(away, 0.99)),
        confidence=float(np.mean(sure)) if known else None,
        confidence_spread=float(np.std(sure)) if known else None,
        confidence_low=float(np.quantile(sure, 0.01)) if known else None,
    )


def from_json(value: Any) -> Baseline:
    """The baseline of `to_json`. Raises BadInput, naming the field, for anything else: it may come from anybody."""
    if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
        came = value.get("schema") if isinstance(value, Mapping) else type(value).__name__
        raise BadInput(f"baseline: wanted schema {SCHEMA!r}, found {str(came)[:100]!r}. Build the bundle again.")
    table: dict[str, Any] = {key: value.get(key) for key in Baseline.__dataclass_fields__}
    if type(table["frames"]) is not int or table["frames"] < LEAST_FRAMES:
        raise _wrong("frames", f"a count of {LEAST_FRAMES} or more", table["frames"])
    for key in ("shares", "spread"):
        numbers = table[key]
        if not isinstance(numbers, list) or not 2 <= len(numbers) <= 256 or not all(map(_is_share, numbers)):
            raise _wrong(key, "2 to 256 numbers from 0 to 1", numbers)
        table[key] = tuple(map(float, numbers))
    if len(table["shares"]) != len(table["spread"]) or abs(sum(table["shares"]) - 1) > 1e-6:
        raise _wrong("shares", f"{len(table['spread'])} numbers that sum to 1", table["shares"])
    single = ["distance", "distance_high"]
    if any(table[key] is not None for key in _SURE):
        single += _SURE
    for key in single:
        if not _is_share(table[key]):
            raise _wrong(key, "a number from 0 to 1", table[key])
    return Baseline(**table)


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= 1 + 1e-9


def _wrong(key: str, wanted: str, found: object) -> BadInput:
    return BadInput(f"baseline.{key}: wanted {wanted}, found {found!r:.100}. Build the bundle again.")


class Drift:
    """One camera against a baseline. `update` from one thread; `document` and `warning` from any. Bounded memory.

    Best fed with frames sampled over minutes: the last 200 then say more than 13 seconds of a video would.
    """

    def __init__(self, against: Baseline, names: Sequence[str] = ()) -> None:
        self._against = against
        classes = len(against.shares)
        self._names = [*(names if len(names) == classes else map(str, range(classes))), "any other class"]
        self._mean = np.array([*against.shares, 0.0])
        self._lock = threading.Lock()
        self._shares = np.zeros((WINDOW, classes + 1))
        self._confidences = np.full(WINDOW, np.nan)
        self._seen = 0
        self._alarms = 0
        self._warning: str | None = None
        self._current: tuple[float, float | None] | None = None  # distance and confidence of the window

    def update(self, shares: Sequence[float] | Floats64, confidence: float | None = None) -> None:
        """Take the class shares of a frame's mask, each 0 to 1, and the confidence in it where that is known.

        Classes that the baseline does not know count together as one that was never seen.
        """
        known = min(len(shares), len(self._mean) - 1)
        with self._lock:
            row = self._shares[self._seen % WINDOW]
            row[:] = 0.0
            row[:known] = shares[:known]
            row[-1] = max(0.0, float(sum(shares[known:])))
            self._confidences[self._seen % WINDOW] = math.nan if confidence is None else confidence
            self._seen += 1
            held = min(self._seen, WINDOW)
            mean = self._shares[:held].mean(axis=0)
            sure = self._confidences[:held][~np.isnan(self._confidences[:held])]
            self._current = distance(mean, self._mean), float(sure.mean()) if sure.size else None
            before, self._warning = self._warning, self._judged(mean) if held >= LEAST else None
            self._alarms += int(before is None and self._warning is not None)

    def _judged(self, mean: Floats64) -> str | None:
        assert self._current is not None
        away, sure = self._current
        found = []
        if away > self._against.distance_limit:
            most = np.argsort(-np.abs(mean - self._mean))[:3].tolist()
            rows = ", ".join(f"{self._names[k]} {100 * self._mean[k]:.0f} → {100 * mean[k]:.0f} %" for k in most)
            found.append(
                f"class shares are {away:.2f} bits away, {self._against.distance_limit:.2f} being allowed ({rows})"
            )
        limit = self._against.confidence_limit
        if sure is not None and limit is not None and sure < limit:
            found.append(
                f"the network is {100 * sure:.1f} % sure of its pixels, and {100 * limit:.1f} % or more are usual"
            )
        if not found:
            return None
        return (
            f"the camera no longer shows what the model was calibrated on: {'; '.join(found)}. Look at the picture "
            "(lens, light, mounting); if it is as it should be, train and calibrate on frames like these."
        )

    @property
    def warning(self) -> str | None:
        """What is wrong with the last frames, None where nothing is or too few were seen."""
        with self._lock:
            return self._warning

    def document(self) -> dict[str, Any]:
        """The judgement as of now: `distance` and `confidence` of the last `window` frames with their limits."""
        with self._lock:
            away, sure = self._current or (None, None)
            return {
                "frames": self._seen,
                "window": min(self._seen, WINDOW),
                "distance": away,
                "distance_limit": self._against.distance_limit,
                "confidence": sure,
                "confidence_limit": self._against.confidence_limit,
                "alarms": self._alarms,
                "warning": self._warning,
            }
