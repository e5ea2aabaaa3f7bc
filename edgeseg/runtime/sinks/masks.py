"""Class maps as PNG files of class indices, one for each frame, without loss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgeseg.errors import BadInput, need
from edgeseg.runtime.sinks.base import Sink, SinkFailed, View
from edgeseg.runtime.values import Shot

_LONGEST = 200  # bytes of a file's name without its suffix: file systems allow 255
_KEPT = frozenset("-_.() ")


class MaskFiles(Sink):
    """Writes the masks of one stream as `folder`/NAME.png: 8 bits grey, class indices, at the frame's size.

    NAME is the frame's name, with "_" for what file systems do not like (as "/"). A file of that name is overwritten;
    a file is whole or not there. Raises BadInput for a folder that cannot be made; `put` raises SinkFailed when a file
    cannot be written.
    """

    def __init__(self, folder: Path | str, *, stream: int = 0) -> None:
        self._folder, self._stream = Path(folder), stream
        self.name = f"masks to {self._folder}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise BadInput(f"cannot write masks to {self._folder}: a file is in its place; name a folder") from error
        except OSError as error:
            raise BadInput(f"cannot write masks to {self._folder}: {error.strerror or error}") from error
        if not os.access(self._folder, os.W_OK):
            raise BadInput(f"cannot write masks to {self._folder}: the folder may not be written to")
        self._cv2 = need("cv2", extra="run", why="writing masks")
        self._settings = (self._cv2.IMWRITE_PNG_COMPRESSION, 1)
        self._written = 0

    def put(self, shot: Shot, view: View) -> bool:
        if shot.stream != self._stream:
            return True
        name = file_name(shot.name) or f"{max(0, shot.index):06d}"
        # imwrite would not say why it failed, nor always that it did
        png = self._cv2.imencode(".png", view.mask(), self._settings)[1]
        path, part = self._folder / f"{name}.png", self._folder / f".{name}.png.part"
        try:
            with part.open("wb") as file:
                file.write(png.data)
            part.replace(path)
        except OSError as error:
            _forget(part)
            raise SinkFailed(
                f"{path} cannot be written ({error.strerror or error}); {self._written} masks were written before it"
            ) from error
        self._written += 1
        return True

    def close(self) -> None:
        """Nothing is open between two frames."""

    def told(self) -> dict[str, Any]:
        return {"path": str(self._folder), "written": self._written}


def file_name(name: str) -> str:
    """`name` as a file's: letters and digits of any script, and a few signs; not hidden, not too long; "" if nothing.

    >>> file_name("left/../0001 (2)"), file_name("..")
    ('left_.._0001 (2)', '')
    """
    kept = "".join(sign if sign.isalnum() or sign in _KEPT else "_" for sign in name).lstrip(". ").rstrip(". ")
    while len(kept.encode("utf-8", "replace")) > _LONGEST:
        kept = kept[:-1]
    return kept


def _forget(part: Path) -> None:
    """Remove what was begun, if it was; the reason it failed is told by whoever calls."""
    try:
        part.unlink(missing_ok=True)
    except OSError:
        return
