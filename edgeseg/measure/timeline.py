"""How the stages of a stream fared over time, beside what the machine did: windows of a second, in bounded memory.

When there are more windows than are kept, old ones are joined in pairs, the oldest first, and when all the old ones
are of twice the length, that length doubles: a week fits into 360 rows of at most 68 minutes. The newest sixth keeps
its length, so that what is happening now is always seen by the second. Joining loses nothing but time: each window
holds whole distributions.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeseg.measure.histogram import Histogram
from edgeseg.measure.latency import Latency
from edgeseg.measure.sensors import MachineSample
from edgeseg.measure.slowdown import Slowdown, slowdowns

__all__ = ["Slowdown", "Timeline", "slowdowns"]

_CELLS = 4  # of a number that the machine told, in a window: how often, sum, least, most


@dataclass(slots=True)
class _Window:
    first: int  # which of the shortest windows since the start it begins with
    length: int  # how many of them it spans
    stages: dict[str, Histogram]
    events: dict[str, int]
    frames: int = 0
    numbers: array[float] = field(default_factory=lambda: array("d"))  # _CELLS for each name, in the timeline's order
    throttled: bool | None = None  # whether any sample said so
    reasons: tuple[str, ...] = ()
    told: dict[str, dict[str, float | None] | None] | None = None  # its stages as in a row, once they were asked for


class Timeline:
    """Latencies by stage, events and machine samples over time. Each method may be called from any thread.

    Times are nanoseconds of one clock. What comes with an older time than the newest window goes into that: a clock
    that jumps back makes no window twice. The first call sets time zero, unless `start_ns` does.
    """

    def __init__(
        self,
        stages: Sequence[str],
        *,
        window_s: float = 1.0,
        keep: int = 360,
        events: Sequence[str] = ("dropped", "failed"),
        start_ns: int | None = None,
    ) -> None:
        if window_s <= 0 or keep < 2:
            raise ValueError(f"windows longer than 0 s and at least two of them, got window_s={window_s}, keep={keep}")
        self._stages, self._events, self._keep = tuple(stages), tuple(events), keep
        self._window_ns = max(1, round(window_s * 1e9))
        self._fine = keep // 6
        self._length = 1  # of the windows that old ones are joined to
        self._lock = threading.Lock()
        self._closed: list[_Window] = []
        self._open = self._window(0)
        self._totals = {stage: Histogram() for stage in self._stages}  # of all closed windows, packed like these
        for histogram in self._totals.values():
            histogram.pack()
        self._names: dict[str, int] = {}  # of the machine's numbers, each with its place in a window
        self._start = start_ns
        self._until = -1 if start_ns is None else start_ns + self._window_ns  # when the open window ends
        self._seen = start_ns or 0
        self._impossible = 0

    def add(self, now_ns: int, took: Mapping[str, int]) -> None:
        """A frame that was processed, and how many ns each stage took. ValueError for an unknown stage.

        A negative duration (the clock was set back meanwhile) is left out and counted in `impossible`.
        """
        with self._lock:
            if now_ns >= self._until:
                self._advance(now_ns)
            self._open.frames += 1
            stages = self._open.stages
            for stage, ns in took.items():
                try:
                    stages[stage].add(ns)
                except KeyError:
                    raise ValueError(f"no stage '{stage}'; there are: {', '.join(self._stages)}") from None
                except ValueError:
                    self._impossible += 1
            if now_ns > self._seen:
                self._seen = now_ns

    def count(self, now_ns: int, kind: str, n: int = 1) -> None:
        """An event of one of the kinds that the timeline was made with: a frame was dropped, or failed."""
        with self._lock:
            if kind not in self._open.events:
                raise ValueError(f"no kind of event '{kind}'; there are: {', '.join(self._events)}")
            self._move(now_ns)
            self._open.events[kind] += n

    def machine(self, now_ns: int, sample: MachineSample) -> None:
        """What the machine did at that time."""
        numbers = sample.numbers()
        with self._lock:
            self._move(now_ns)
            window, names = self._open, self._names
            for name in numbers:
                names.setdefault(name, len(names))
            cells = window.numbers
            cells.extend([0.0] * (_CELLS * len(names) - len(cells)))
            for name, value in numbers.items():
                _put(cells, _CELLS * names[name], (1.0, value, value, value))
            window.throttled = _any(window.throttled, sample.throttled)
            window.reasons = _union(window.reasons, sample.throttle_reasons)

    @property
    def impossible(self) -> int:
        """How many durations were below zero."""
        return self._impossible

    def total(self, stage: str) -> Histogram:
        """All of a stage's durations since the start. KeyError for a stage that there is not."""
        with self._lock:
            return self._totals[stage] + self._open.stages[stage]

    def recent(self, seconds: float) -> dict[str, Latency | None]:
        """By stage, the latency in the windows that reach into the last `seconds`; None where nothing was measured."""
        with self._lock:
            since = (self._seen - (self._start or 0) - seconds * 1e9) / self._window_ns
            windows = [w for w in self._closed if w.first + w.length > since]
            merged = {stage: Histogram() + self._open.stages[stage] for stage in self._stages}
        for window in windows:
            for stage, histogram in window.stages.items():
                merged[stage].merge(histogram)
        return {stage: histogram.latency() if histogram.count else None for stage, histogram in merged.items()}

    def rows(self, *, ranges: bool = False, last: int = 0) -> list[dict[str, Any]]:
        """The windows in order, or the `last` of them, ready for JSON; those in which nothing happened are left out.

        t: seconds since the start. seconds: how long the window is, or was so far. frames: processed ones. fps: null
        while the window is too young to tell. A number for each kind of event. For each stage count, p50, p90, p99 and
        max in ms: a percentile is null where there were too few, all of it where nothing was measured.
        machine: name -> mean over the window's samples, names as in MachineSample.numbers(); with `ranges` also
        machine_range: name -> [least, most]. throttled: true if any sample said so, null if none could tell;
        throttle_reasons. Milliseconds are to the nanosecond, the machine's numbers to three decimals.
        """
        with self._lock:  # closed windows change no more, so only the open one must be copied
            windows, names, now = [*self._closed, _join(self._open, self._window(0), 1)], dict(self._names), self._seen
            start = now if self._start is None else self._start
        windows = windows[-last:]
        return [self._row(window, names, now - start, ranges) for window in windows if _used(window)]

    def _row(self, window: _Window, names: Mapping[str, int], age_ns: int, ranges: bool) -> dict[str, Any]:
        begin = window.first * self._window_ns
        seconds = min(window.length * self._window_ns, max(age_ns - begin, 0)) / 1e9
        if window.told is None:
            window.told = {name: _told(histogram) for name, histogram in window.stages.items()}
        cells, machine, extent = window.numbers, {}, {}
        for name, place in names.items():
            at = _CELLS * place
            if at < len(cells) and cells[at]:
                machine[name] = round(cells[at + 1] / cells[at], 3)
                extent[name] = [round(cells[at + 2], 3), round(cells[at + 3], 3)]
        return {
            "t": begin / 1e9,
            "seconds": seconds,
            "frames": window.frames,
            "fps": window.frames / seconds if seconds >= self._window_ns / 2e9 else None,
            **window.events,
            **{name: None if told is None else dict(told) for name, told in window.told.items()},
            "machine": machine,
            **({"machine_range": extent} if ranges else {}),
            "throttled": window.throttled,
            "throttle_reasons": list(window.reasons),
        }

    def _window(self, first: int) -> _Window:
        return _Window(first, 1, {stage: Histogram() for stage in self._stages}, dict.fromkeys(self._events, 0))

    def _move(self, now_ns: int) -> None:
        if now_ns >= self._until:
            self._advance(now_ns)
        self._seen = max(self._seen, now_ns)

    def _advance(self, now_ns: int) -> None:
        """Close the open window and open the one that `now_ns` falls into."""
        if self._start is None:
            self._start = self._seen = now_ns
        else:
            if _used(self._open):
                self._close(self._open)
            self._open = self._window((now_ns - self._start) // self._window_ns)
        self._until = self._start + (self._open.first + 1) * self._window_ns

    def _close(self, window: _Window) -> None:
        for stage, histogram in window.stages.items():
            histogram.pack()
            self._totals[stage].merge(histogram)
        self._closed.append(window)
        while len(self._closed) >= self._keep:
            self._shrink()

    def _shrink(self) -> None:
        """Join the oldest two neighbours that fit into one window of the present length, or double that."""
        old = self._closed[: len(self._closed) - self._fine]
        for i in range(len(old) - 1):
            if old[i].first // self._length == old[i + 1].first // self._length:
                joined = _join(old[i], old[i + 1], old[i + 1].first + old[i + 1].length - old[i].first)
                self._closed[i : i + 2] = [joined]
                return
        self._length *= 2


def _join(a: _Window, b: _Window, length: int) -> _Window:
    short, long = sorted((a.numbers, b.numbers), key=len)
    numbers = array("d", long)
    for at in range(0, len(short), _CELLS):
        _put(numbers, at, short[at : at + _CELLS])
    return _Window(
        first=a.first,
        length=length,
        stages={stage: histogram + b.stages[stage] for stage, histogram in a.stages.items()},
        events={kind: n + b.events[kind] for kind, n in a.events.items()},
        frames=a.frames + b.frames,
        numbers=numbers,
        throttled=_any(a.throttled, b.throttled),
        reasons=_union(a.reasons, b.reasons),
    )


def _put(cells: array[float], at: int, new: Sequence[float]) -> None:
    """Take the cells of one number (how often, sum, least, most) into those at `at`."""
    if not new[0]:
        return
    known = cells[at] > 0
    cells[at] += new[0]
    cells[at + 1] += new[1]
    cells[at + 2] = min(cells[at + 2], new[2]) if known else new[2]
    cells[at + 3] = max(cells[at + 3], new[3]) if known else new[3]


def _told(histogram: Histogram) -> dict[str, float | None] | None:
    if not histogram.count:
        return None
    found = histogram.latency()
    told = {"p50": found.p50, "p90": found.p90, "p99": found.p99, "max": found.max}
    return {"count": found.count, **{name: None if ms is None else round(ms, 6) for name, ms in told.items()}}


def _used(window: _Window) -> bool:
    return bool(window.frames or window.numbers or any(window.events.values()))


def _any(a: bool | None, b: bool | None) -> bool | None:
    return b if a is None else a or bool(b)


def _union(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return a if not b or set(b) <= set(a) else tuple(sorted({*a, *b}))
