"""What became of every frame: captured = processed + dropped + failed, at any time but for those under way.

And whether it came in time: a frame has missed its deadline when its mask was older than one period of the camera (or
the deadline that was asked for), or when there never was one.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeseg.measure.timeline import Timeline
from edgeseg.runtime.values import STAGES, Shot

KINDS = ("captured", "processed", "dropped", "failed")
# Reasons are texts of engines and systems: they may be many and long.
_REASONS, _LENGTH, _OTHER = 20, 300, "other reasons"
_NUMBERS = re.compile(r"\d+")


@dataclass(slots=True)
class Counts:
    """Frames of one source."""

    captured: int = 0
    processed: int = 0
    dropped: int = 0
    failed: int = 0
    missed: int = 0  # of `judged`: without a mask, or with one older than the deadline
    judged: int = 0  # frames for which there was a deadline; those under way are not yet judged
    deadline_ns: int | None = None  # the last that was known: a camera that is opened again may tell no rate any more
    first_ns: int | None = None  # when the first and the last were captured
    last_ns: int | None = None
    size: tuple[int, int] | None = None  # height and width of the last
    sizes: int = 0  # how often it changed
    reasons: Counter[str] = field(default_factory=Counter)  # by the first text of its kind
    _kinds: dict[str, str] = field(default_factory=dict)

    def because(self, why: str) -> None:
        """Count a reason. Texts that differ in their numbers only, such as the frame's, are of one kind."""
        kind = _NUMBERS.sub("#", why)
        if kind not in self._kinds and len(self._kinds) < _REASONS:
            self._kinds[kind] = why[:_LENGTH]
        self.reasons[self._kinds.get(kind, _OTHER)] += 1

    def frames(self) -> dict[str, int]:
        return {kind: getattr(self, kind) for kind in KINDS}

    @property
    def rate(self) -> float | None:
        """Frames captured a second, from the first to the last."""
        if self.first_ns is None or self.last_ns is None or self.last_ns <= self.first_ns or self.captured < 2:
            return None
        return (self.captured - 1) * 1e9 / (self.last_ns - self.first_ns)


class Tally:
    """The observer of a flow: counts, and fills a timeline. Safe to call from all its threads."""

    def __init__(
        self,
        streams: int,
        timeline: Timeline,
        clock: Callable[[], int],
        deadline_ns: Callable[[int], int | None],
        on_dropped: Callable[[Shot], object] = lambda shot: None,
        on_captured: Callable[[Shot], object] = lambda shot: None,
    ) -> None:
        """`deadline_ns(stream)`: how old a mask of that source may be, None where nobody knows."""
        self.streams = [Counts() for _ in range(streams)]
        self._timeline, self._clock, self._deadline = timeline, clock, deadline_ns
        self._on_dropped, self._on_captured = on_dropped, on_captured
        self._lock = threading.Lock()

    def captured(self, shot: Shot) -> None:
        counts, size = self.streams[shot.stream], (shot.pixels.shape[0], shot.pixels.shape[1])
        with self._lock:
            counts.captured += 1
            counts.first_ns = shot.captured_ns if counts.first_ns is None else counts.first_ns
            counts.last_ns = shot.captured_ns
            if size != counts.size and size != (0, 0):
                counts.sizes += counts.size is not None
                counts.size = size
        self._on_captured(shot)

    def dropped(self, shot: Shot) -> None:
        with self._lock:
            self._ended(shot).dropped += 1
        self._timeline.count(self._clock(), "dropped")
        self._on_dropped(shot)

    def failed(self, shot: Shot, why: str) -> None:
        with self._lock:
            counts = self._ended(shot)
            counts.failed += 1
            counts.because(why)
        self._timeline.count(self._clock(), "failed")
        self._on_dropped(shot)

    def processed(self, shot: Shot, deliver_ns: int) -> None:
        with self._lock:
            self._ended(shot, shot.age_ns).processed += 1
        values = (shot.read_ns, shot.prepare_ns, shot.infer_ns, deliver_ns)
        times = dict(zip(STAGES, values, strict=True))
        times["age"] = max(0, shot.age_ns)
        self._timeline.add(self._clock(), times)

    def _ended(self, shot: Shot, age_ns: int | None = None) -> Counts:
        """Its counts, the frame judged by how old its mask was, None where there was none."""
        counts, deadline = self.streams[shot.stream], self._deadline(shot.stream)
        if deadline is not None:
            counts.judged += 1
            counts.missed += age_ns is None or age_ns > deadline
            counts.deadline_ns = deadline
        return counts

    def total(self) -> dict[str, int]:
        """Frames of all sources together."""
        with self._lock:
            return {kind: sum(getattr(counts, kind) for counts in self.streams) for kind in KINDS}

    def deadline(self) -> dict[str, Any]:
        """`ms` (the longest of the sources' deadlines), frames that missed it, and of how many."""
        with self._lock:
            both = ((self._deadline(stream), counts.deadline_ns) for stream, counts in enumerate(self.streams))
            known = [ns for now, last in both if (ns := last if now is None else now) is not None]
            return {
                "ms": max(known) / 1e6 if known else None,
                "missed": sum(counts.missed for counts in self.streams),
                "of": sum(counts.judged for counts in self.streams),
            }


def reasons(counts: Sequence[Counts]) -> dict[str, int]:
    """Why frames failed, the most frequent first."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one.reasons)
    return dict(total.most_common())
