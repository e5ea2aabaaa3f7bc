"""The seam to where frames come from: a Source gives one after the other, and says when it is at its end or broken.

A source knows nothing of pace, of other sources, or of being opened again: that is `capture`.
"""

from __future__ import annotations

from abc import abstractmethod

from edgeseg.backends.base import Closing
from edgeseg.runtime.values import Grab, Unreadable
from edgeseg.types import Pixels


class SourceBroken(Exception):
    """The source died or stalled; opening it again may help. Caught by `capture`, never seen by a user."""


class Source(Closing):
    """An opened source. Used by one thread; `close` may be called by another once that one has ended."""

    name: str  # as the user typed it, without passwords
    live: bool  # frames come at the source's own pace and are lost if nobody takes them
    fps: float | None  # its nominal rate, where it tells
    complaint: str | None = None  # after the end: what was missing ("ended after 412 of 900 frames")

    @abstractmethod
    def read(self, into: Pixels | None) -> Grab | Unreadable | None:
        """The next frame, or None at the end, which is for good: a live source that stops by itself is broken.

        Written into `into` (uint8 (h, w, 3)) where that has the frame's size, else into a new array. Returns or raises
        within the stall time that the source was opened with. Raises SourceBroken when the source died or stalled.
        """
