"""What travels through a running stream: a Shot from its capture to the sinks, and what sources and sinks are given.

Buffers belong to the stream and are used again: whoever keeps an array beyond the call that gave it copies it.
Times are nanoseconds of the stream's clock (monotonic, `time.perf_counter_ns` unless a test puts another in its place).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgeseg.types import Frames, Mask, Pixels

STAGES = ("capture", "prepare", "infer", "deliver")


@dataclass(frozen=True, slots=True)
class Grab:
    """A frame as a source gives it."""

    pixels: Pixels  # (h, w, 3), BGR
    time_ns: int  # when it was there to be taken, by the stream's clock
    position: int  # its number in the source, from 0
    name: str  # the file's stem in a folder, else the position as six digits
    label: Mask | None = None  # where the source knows the truth: (h, w), class indices


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A frame that was there and could not be read: it counts as captured and as failed."""

    position: int
    why: str


@dataclass(slots=True, eq=False)
class Shot:
    """One frame on its way, with its buffers. Filled stage by stage; made once, used again and again."""

    stream: int  # which of the sources, from 0
    input: Frames  # (1, H, W, 3) at the network's size, in the order of spec.input.frame: what the engine reads
    mask: Mask  # (H, W) at the network's size: what the engine wrote
    pixels: Pixels = field(default_factory=lambda: np.empty((0, 0, 3), np.uint8))  # (h, w, 3), BGR, source's size
    index: int = -1  # number of the capture in its stream, from 0; dropped and failed frames have one too
    position: int = -1  # Grab.position and Grab.name
    name: str = ""  # none where it could not be read
    label: Mask | None = None
    captured_ns: int = 0  # Grab.time_ns
    read_ns: int = 0  # capture: how long reading it took, without waiting for the source
    prepare_ns: int = 0  # how long each stage took, queues left out
    infer_ns: int = 0
    ready_ns: int = 0  # when its mask was there: ready_ns - captured_ns is the age from glass to mask
    shares: tuple[float, ...] = ()  # share of the mask's pixels by class, 0 to 1

    @property
    def age_ns(self) -> int:
        return self.ready_ns - self.captured_ns
