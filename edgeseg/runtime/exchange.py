"""What passes shots from one thread to the next: first come, first served, and in turn between streams.

How much may wait is decided elsewhere: with policy "every" by the number of shots that there are (who reads the next
frame needs a free one), with "latest" here, where a newer shot takes the place of one that still waits.
"""

from __future__ import annotations

import threading
from collections import deque

from edgeseg.runtime.values import Shot


class Exchange:
    """Between `writers` threads that put and one that gets."""

    def __init__(self, streams: int, *, latest: bool, writers: int = 1) -> None:
        self._latest = latest
        self._writers = writers
        self._waiting: list[deque[Shot]] = [deque() for _ in range(streams)]
        self._turn = 0  # the stream that is served first
        self._count = 0
        self._changed = threading.Condition()

    def put(self, shot: Shot) -> Shot | None:
        """Hand a shot on; the one that it took the place of, if any, comes back."""
        with self._changed:
            waiting = self._waiting[shot.stream]
            old = waiting.popleft() if self._latest and waiting else None
            waiting.append(shot)
            if old is None:
                self._count += 1
                self._changed.notify()
            return old

    def get(self) -> Shot | None:
        """The next shot of the stream whose turn it is; waits for one. None when all writers closed and it is empty."""
        with self._changed:
            while not self._count:
                if not self._writers:
                    return None
                self._changed.wait()
            return self._take()

    def get_now(self, streams: set[int]) -> Shot | None:
        """The next shot of a stream that is not among `streams`, if one waits: what a batch is filled with."""
        with self._changed:
            return self._take(streams) if self._count else None

    def _take(self, but: frozenset[int] | set[int] = frozenset()) -> Shot | None:
        streams = len(self._waiting)
        for offset in range(streams):
            stream = (self._turn + offset) % streams
            if self._waiting[stream] and stream not in but:
                self._turn = (stream + 1) % streams
                self._count -= 1
                return self._waiting[stream].popleft()
        return None

    def close(self) -> None:
        """One writer will put no more."""
        with self._changed:
            self._writers -= 1
            self._changed.notify_all()
