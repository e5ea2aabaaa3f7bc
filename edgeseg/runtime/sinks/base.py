"""The seam to where masks go: a Sink is given every processed frame, in the thread that delivers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from edgeseg.backends.base import Closing
from edgeseg.errors import EdgesegError
from edgeseg.runtime.values import Shot
from edgeseg.types import Mask, Pixels


class SinkFailed(EdgesegError):
    """A sink cannot go on (disk full, display gone). The stream ends cleanly and says so."""


class View(Protocol):
    """Pictures of the shot at hand, each made when it is first asked for, in buffers that the next shot overwrites."""

    def mask(self) -> Mask:
        """The class map uint8 (h, w) at the source's size."""

    def coloured(self) -> Pixels:
        """The class map in the palette's colours, BGR (h, w, 3) at the source's size."""

    def overlay(self) -> Pixels:
        """The frame under its coloured mask with contours and legend, BGR (h, w, 3) at the source's size."""


class Sink(Closing):
    """Where masks go. One thread calls `put`, in order; and `close` once, after the last `put`, also a failed one."""

    name: str  # for messages: "recording to out.mp4"

    @abstractmethod
    def put(self, shot: Shot, view: View) -> bool:
        """Take a frame; False asks the stream to end (the window was closed). Raises SinkFailed or OSError.

        The arrays of `shot` and `view` are overwritten after the call.
        """

    def told(self) -> dict[str, Any]:
        """What it did, for the document, once it is closed: plain JSON."""
        return {}
