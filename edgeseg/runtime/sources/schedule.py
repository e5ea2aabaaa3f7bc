"""When the next frame is due, for what has no pace of its own: files, folders and the rendered street."""

from __future__ import annotations


class Schedule:
    """Frame k is due k / rate seconds after the first was given.

    Who takes frames more than a period late starts the schedule again: what was missed is not hurried after. A clock
    that jumps forward looks like that; one that jumps back does so too, so no wait is longer than a period.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._period_ns = round(1e9 / rate)
        self._start_ns: int | None = None
        self._given = 0  # since the start

    def left_ns(self, now_ns: int) -> int:
        """How long it is until the next frame is due, 0 to one period."""
        if self._start_ns is None:
            return 0
        left = self._due_ns(self._start_ns) - now_ns
        if left > self._period_ns:
            self._start_ns, self._given = now_ns, 1
            return self._period_ns
        return max(0, left)

    def give(self, now_ns: int) -> None:
        """Note that a frame was given."""
        if self._start_ns is None or now_ns - self._due_ns(self._start_ns) > self._period_ns:
            self._start_ns, self._given = now_ns, 0
        self._given += 1

    def _due_ns(self, start_ns: int) -> int:
        return start_ns + round(self._given * 1e9 / self._rate)
