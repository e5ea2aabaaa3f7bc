"""Pictures as a source: a folder of them in the order of their names, or a single one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeseg.data.reader import read_frame
from edgeseg.data.splits import IMAGE_SUFFIXES, images_in
from edgeseg.errors import BadInput, DatasetError
from edgeseg.runtime.sources.base import Source
from edgeseg.runtime.values import Grab, Unreadable
from edgeseg.types import Pixels


class FolderSource(Source):
    """Pictures one after the other. Pixels as stored: an EXIF orientation is not applied, because labels have none.

    A frame has its file's name without the suffix; with it where others (a.jpg, a.png) would have the same name.
    """

    live = False

    def __init__(self, paths: list[Path], *, name: str, fps: float | None, clock: Callable[[], int]) -> None:
        self.name, self.fps = name, fps
        self._paths, self._clock, self._next = paths, clock, 0
        self._shared = {stem for stem, count in Counter(path.stem for path in paths).items() if count > 1}

    def read(self, into: Pixels | None) -> Grab | Unreadable | None:
        if self._next >= len(self._paths):
            return None
        position, path = self._next, self._paths[self._next]
        self._next += 1
        try:
            pixels = read_frame(path)
        except DatasetError as error:
            return Unreadable(position, str(error))
        now = self._clock()
        if into is not None and into.shape == pixels.shape:
            np.copyto(into, pixels)  # OpenCV decodes pictures into memory of its own
            pixels = into
        return Grab(pixels, now, position, path.name if path.stem in self._shared else path.stem)

    def close(self) -> None:
        self._paths = []


def open_pictures(path: Path, *, name: str, fps: float | None, clock: Callable[[], int]) -> FolderSource:
    """The pictures directly in a folder, numbers in names in their natural order; or the one that `path` is.

    BadInput where the folder holds none.
    """
    paths = [path] if path.is_file() else sorted(images_in(path), key=natural)
    if not paths:
        raise BadInput(f"The folder {path} has no pictures ({', '.join(IMAGE_SUFFIXES)}). Name a folder that has some.")
    return FolderSource(paths, name=name, fps=fps, clock=clock)


def natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts frame2 before frame10; of names with the same numbers (frame2, frame02) by letters.

    >>> [p.name for p in sorted(map(Path, ["b10.png", "b9.png", "b.png", "a11.png"]), key=natural)]
    ['a11.png', 'b.png', 'b9.png', 'b10.png']
    """
    parts = re.split(r"([0-9]+)", path.stem)  # text and numbers in turn
    return [(int(part), "") if k % 2 else (0, part) for k, part in enumerate(parts)], path.name
