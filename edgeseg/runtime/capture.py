"""One source for as long as a stream runs: paced where it has no pace of its own, opened again where it breaks.

What the source does not give, `Capture` does not give either: an outage is a gap and a line in the record, never a
black frame and never the last one again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from edgeseg.backends.base import Closing
from edgeseg.errors import BadInput, EdgesegError
from edgeseg.runtime.sources.base import Source, SourceBroken
from edgeseg.runtime.sources.schedule import Schedule
from edgeseg.runtime.values import Grab, Unreadable
from edgeseg.types import Pixels

State = Literal["opening", "live", "reopening", "ended"]


@dataclass(frozen=True, slots=True)
class Retry:
    """How a live source that broke is opened again: after `first_s` seconds, then each time `factor` times later."""

    first_s: float = 0.5
    factor: float = 2.0
    longest_s: float = 5.0
    attempts: int | None = None  # failures in a row until it is given up; None: never


@dataclass(frozen=True, slots=True)
class Outages:
    """When a live source gave nothing. An outage lasts from the break to the next frame."""

    count: int
    seconds: float  # all together, one that lasts still included
    last: str | None  # why, the last time that something failed
    reopened: int  # how often it was opened again, also when it broke before it gave a frame


class Capture(Closing):
    """Frames of one source, one at a time, for one thread. The properties may be read by others.

    A source that is not live is given at `pace` frames a second, frame k at the start + k / pace and never earlier, or
    as fast as it is taken (None). Who takes them more than a period late starts the schedule again. `loop` starts it
    again at its end, its positions too. A live source keeps its own pace.

    A live source that breaks is closed and opened again by `retry`, whose waits start afresh once it gave a frame; its
    positions and names go on.
    Whatever `opener` raises then (the camera is unplugged, so there is no such device) is one more failure. One that
    is not live is never opened again: that it broke is its `complaint`, and it has ended.
    """

    def __init__(
        self,
        opener: Callable[[], Source],
        *,
        pace: float | None = None,
        retry: Retry | None = None,
        loop: bool = False,
        stop: threading.Event | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._opener, self._loop, self._clock = opener, loop, clock
        self._retry = retry or Retry()
        self._stop = stop or threading.Event()
        self._wait = wait or self._stop.wait
        self._pace: float | None = None
        self._schedule: Schedule | None = None
        if pace is not None:
            self.keep_pace(pace)
        self._source: Source | None = None
        self.name = ""  # the source's, once it was open
        self.live = True  # of the source: known once it was open; what fails to open and may later is live
        self.state: State = "opening"
        self.finished = False  # whether it ended by itself, and not because it was to stop
        self.read_ns = 0  # how long the last frame took to read, waiting for the source or for its time left out
        self.complaint: str | None = None  # after the end: what was missing
        self._fps: float | None = None
        self._frames = 0  # since the source was opened
        self._before = 0  # positions that a live source gave before it was opened again: its own begin at 0 each time
        self._last_position = -1
        self._delay_s, self._failures = self._retry.first_s, 0
        self._count, self._reopened, self._down_ns = 0, 0, 0
        self._last: str | None = None
        self._down_since: int | None = None

    @property
    def pace(self) -> float | None:
        """Frames a second that a source is given at that is not live; None: as fast as it is taken."""
        return self._pace

    def keep_pace(self, rate: float) -> None:
        """Give what is not live at `rate` frames a second from now on."""
        if not 0 < rate < math.inf:
            raise ValueError(f"a pace is a positive number of frames a second, got {rate}")
        self._pace, self._schedule = rate, Schedule(rate)

    @property
    def fps(self) -> float | None:
        """The nominal rate: the pace it is given at, or else what the source says."""
        return self._fps if self.live or not self._pace else self._pace

    @property
    def outages(self) -> Outages:
        since = self._down_since
        lasting = 0 if since is None else max(0, self._clock() - since)
        return Outages(self._count, (self._down_ns + lasting) / 1e9, self._last, self._reopened)

    def open(self) -> None:
        """Open the source once, so that wrong words fail before a stream starts.

        BadInput and MissingOnMachine are passed on. A live source that does not answer yet is not an error: it is an
        outage, and `next` goes on trying.
        """
        try:
            self._take(self._opener())
        except SourceBroken as error:
            self._broke(str(error))

    def next(self, into: Pixels | None) -> Grab | Unreadable | None:
        """The next frame, in `into` where that has its size; None at the end, or when `stop` is set.

        `time_ns` is when it was there, or where there is a pace when it was given. Raises BadInput when a live source
        failed `attempts` times in a row. Waits at most the source's stall time longer than `stop`.
        """
        if self._source is None and self.state == "opening" and not self._stop.is_set():
            self.open()
        while self.state != "ended" and not self._stop.is_set():
            if self._source is None:
                self._reopen()
                continue
            begin = self._clock()
            try:
                got = self._source.read(into)
            except SourceBroken as error:
                self._broke(str(error))
                continue
            if got is None:
                self._at_end(self._source)
                continue
            return self._given(got, begin)
        self.close()
        return None

    def close(self) -> None:
        """Close the source; what comes after is None. May be called again."""
        source, self._source = self._source, None
        self._up(self._clock())
        self.state = "ended"
        if source is not None:
            source.close()

    def _given(self, got: Grab | Unreadable, begin: int) -> Grab | Unreadable | None:
        now = self._clock()
        frame = isinstance(got, Grab)
        self.read_ns = max(0, now - (got.time_ns if self.live and isinstance(got, Grab) else begin))
        if frame:
            self._frames += 1
            self._up(now)
        if self.live:
            self._last_position = self._before + got.position
            return _moved(got, self._before) if self._before else got
        if self._schedule is None:
            return got
        for _ in range(3):  # a wait may end a little early; a clock that stands still must not keep us here
            left = self._schedule.left_ns(self._clock())
            if left <= 0:
                break
            if self._wait(left / 1e9):
                break  # it was read, so it is given: the one after it is not
        now = self._clock()
        self._schedule.give(now)
        return replace(got, time_ns=now) if isinstance(got, Grab) else got

    def _take(self, source: Source) -> None:
        self._source, self._frames = source, 0
        self.name, self.live, self._fps = source.name, source.live, source.fps
        if self._down_since is None:
            self.state = "live"

    def _at_end(self, source: Source) -> None:
        self.complaint = source.complaint or self.complaint
        if not self._loop or self._frames == 0:  # nothing in it: it would only be opened over and over
            self.finished = True
            self.close()
            return
        self._source = None
        source.close()
        try:
            self._take(self._opener())
        except SourceBroken as error:
            self.complaint, self.finished = str(error), True
            self.close()

    def _broke(self, why: str) -> None:
        """Note that the source died or did not open, and close it. Given up: BadInput."""
        source, self._source = self._source, None
        if source is not None:
            source.close()
            if not source.live:
                self.complaint, self.finished = why, True
                self.close()
                return
        self._last, self.state = why, "reopening"
        if self._down_since is None:
            self._count, self._down_since = self._count + 1, self._clock()
            self._delay_s, self._failures = self._retry.first_s, 0
        else:
            self._failures += 1
        if self._retry.attempts is not None and self._failures >= self._retry.attempts:
            self.close()
            times = f"{self._failures} times" if self._failures != 1 else "once"
            again = f" and was opened again {times} in vain" if self._failures else " and is not to be opened again"
            raise BadInput(f"{why}: the source broke{again}. Mend it, or allow more attempts.")

    def _reopen(self) -> None:
        if self._wait(self._delay_s):
            self.close()
            return
        self._delay_s = min(self._delay_s * self._retry.factor, self._retry.longest_s)
        try:
            source = self._opener()
        except (SourceBroken, EdgesegError) as error:
            self._broke(str(error))
            return
        self._reopened += 1
        self._before = self._last_position + 1
        self._take(source)

    def _up(self, now: int) -> None:
        """A frame came, or no more is wanted: an outage that lasted is over."""
        since, self._down_since = self._down_since, None
        if since is not None:
            self._down_ns += max(0, now - since)
            self.state = "live"


def _moved(got: Grab | Unreadable, before: int) -> Grab | Unreadable:
    """`got` with a position that goes on from `before`: names of frames are given once, or masks would be lost."""
    position = before + got.position
    if isinstance(got, Grab):
        return replace(got, position=position, name=f"{position:06d}")
    return replace(got, position=position)
