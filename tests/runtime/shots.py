"""What the tests of sinks share: shots of a rendered street, shown by a Painter, and what a process holds open."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

import numpy as np

from edgeseg.data import street
from edgeseg.data.prepare import to_size
from edgeseg.runtime.overlay import Painter
from edgeseg.runtime.sinks.base import Sink
from edgeseg.runtime.values import Shot
from edgeseg.types import Mask, Pixels


@lru_cache
def rendered(size: tuple[int, int], number: int) -> tuple[Pixels, Mask]:
    return street.render(size, 7, 3 * number)


def shot_of(number: int = 0, size: tuple[int, int] = (96, 128), stream: int = 0) -> Shot:
    """A shot of its own, 40 ms after the one before it, with a mask of half the height and width of 96 x 128."""
    pixels, truth = rendered(size, number)
    mask = to_size(truth, (48, 64)).copy()
    shares = tuple((np.bincount(mask.ravel(), minlength=len(street.CLASSES)) / mask.size).tolist())
    shot = Shot(stream, np.empty((1, 48, 64, 3), np.uint8), mask, pixels, shares=shares)
    shot.index, shot.name, shot.captured_ns = number, f"{number:06d}", 1_000_000_000 + 40_000_000 * number
    shot.read_ns, shot.prepare_ns, shot.infer_ns = 1_000_000, 500_000, 2_500_000
    shot.ready_ns = shot.captured_ns + 7_000_000
    return shot


def shown(painter: Painter, shot: Shot) -> tuple[Shot, Painter]:
    painter.show(shot)
    return shot, painter


def put_until_it_ends(sink: Sink, painter: Painter, pause_s: float = 0.01) -> int:
    """Put shots until the sink wants no more; how many it took."""
    for number in range(2000):
        if not sink.put(*shown(painter, shot_of(number % 3))):
            return number
        time.sleep(pause_s)
    raise AssertionError(f"{sink.name} did not end")


def descriptors() -> int:
    """How many files, pipes and sockets this process has open; 0 where the system does not tell."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
