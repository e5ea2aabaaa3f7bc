"""A stream as a video file: the overlay, the class map in colours, both side by side, or the bare frames.

OpenCV's writer says nothing when a write fails, so what it hides is looked for: the free space before each frame, the
growing file while it runs, and at the end whether the file opens and how many frames are in it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeseg.errors import BadInput, MissingOnMachine, need
from edgeseg.runtime.sinks.base import Sink, SinkFailed, View
from edgeseg.runtime.values import Shot
from edgeseg.types import Pixels

What = Literal["overlay", "mask", "both", "frame"]

# By the suffix, the codecs to try in turn. PyPI's OpenCV has no H.264 encoder. Milliseconds a frame of 480 x 360 on one
# core, measured: mp4v 2, MJPG 3, VP8 20, VP9 36.
CODECS: dict[str, tuple[str, ...]] = {
    ".mp4": ("mp4v", "avc1"),
    ".mkv": ("mp4v", "MJPG"),
    ".avi": ("MJPG", "mp4v"),
    ".webm": ("VP80", "VP90"),
}
_RESERVE = 2 << 20  # bytes: what the writer still holds back (OpenCV 5 buffers up to 1.3 MB), and the file's head
_PER_FRAME = 32  # bytes in the index at the file's end
_LOOK = 32  # frames from one look at the file to the next
_LONGEST_HOLD_S = 10.0
_NO_GROWTH = 10_000  # frames: a still picture takes 83 bytes of mp4v, and 256 KiB may be held back


def free_space(folder: Path) -> int:
    """Bytes that this user may still write in the file system of `folder`."""
    return shutil.disk_usage(folder).free


class Recording(Sink):
    """Writes the frames of one stream to `path`, whose suffix says the container. An existing file is overwritten.

    The first frame fixes the size, made even as codecs want it (a last odd row or column is left out); later frames of
    another size are resized and counted. Frames are written at `fps` a second. With `keep_time` the recording runs as
    fast as what was recorded: where frames were dropped or the source was gone, the last picture stays, as it did for
    who watched (up to ten seconds of it; `held` counts them); without, one frame follows the other.

    Raises BadInput for an unknown suffix, a folder that is not there, or a rate that makes no sense. `put` raises
    SinkFailed while there is still room to end the file properly; an .mp4 of a process that was killed cannot be
    played, an .mkv or .avi can up to about its last second. `close` does not raise: what it finds is in `told`.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        fps: float,
        what: What = "overlay",
        stream: int = 0,
        keep_time: bool = False,
        free: Callable[[Path], int] = free_space,
    ) -> None:
        self._path = Path(path)
        self.name = f"recording to {self._path}"
        known = ", ".join(CODECS)
        if self._path.suffix.lower() not in CODECS:
            raise BadInput(f"cannot record to {self._path}: its name should end in one of {known}")
        if not self._path.parent.is_dir():
            raise BadInput(f"cannot record to {self._path}: there is no folder {self._path.parent}; make it first")
        if self._path.is_dir() or not os.access(self._path.parent, os.W_OK):
            raise BadInput(f"cannot record to {self._path}: it is a folder, or its folder may not be written to")
        if not (math.isfinite(fps) and fps > 0):
            raise BadInput(f"cannot record at {fps} frames a second: a number above 0 was wanted")
        if what not in ("overlay", "mask", "both", "frame"):
            raise BadInput(f"'{what}' cannot be recorded; overlay, mask, both or frame can")
        self._cv2 = need("cv2", extra="run", why="recording")
        self._fps, self._what, self._stream, self._free = float(fps), what, stream, free
        self._writer: Any = None
        self._codec = ""
        self._size = (0, 0)  # of the recorded picture: height, width
        self._pair: Pixels | None = None
        self._fitted: Pixels | None = None
        self._put = self._held = self._resized = self._seen_at = self._seen_bytes = 0
        self._keep_time = keep_time
        self._first_ns = 0  # when the recording began, by the captures' clock
        self._last: Pixels | None = None  # the last picture, where it may have to stay
        self._written: int | None = None
        self._problem: str | None = None

    @property
    def written(self) -> int | None:
        """How many frames the finished file says it has; None before `close` and for a file that cannot be opened."""
        return self._written

    @property
    def resized(self) -> int:
        """How many frames had another size than the first."""
        return self._resized

    def put(self, shot: Shot, view: View) -> bool:
        if shot.stream != self._stream:
            return True
        picture = self._picture(shot, view)
        if self._writer is None:
            self._open(picture)
        height, width = self._size
        if picture.shape[0] & ~1 != height or picture.shape[1] & ~1 != width:
            picture = self._fit(picture)
        picture = picture[:height, :width]
        if self._keep_time:
            self._hold(shot.captured_ns, picture)
        self._write(picture)
        return True

    def _write(self, picture: Pixels) -> None:
        self._check_space()
        try:
            self._writer.write(picture)
        except self._cv2.error as error:
            raise self._failed(f"the codec failed: {error}") from error
        self._put += 1
        if self._put % _LOOK == 0:
            self._check_file()

    def _hold(self, captured_ns: int, picture: Pixels) -> None:
        """Write the last picture until the time has come for this one, and keep this one."""
        if self._last is None:
            self._first_ns, self._last = captured_ns, np.empty_like(picture)
        else:
            late = round((captured_ns - self._first_ns) * self._fps / 1e9) - self._put
            longest = round(_LONGEST_HOLD_S * self._fps)
            for _ in range(min(late, longest)):
                self._write(self._last)
                self._held += 1
            if late > longest:  # the rest of the gap is left out: go on from here
                self._first_ns = captured_ns - round(self._put * 1e9 / self._fps)
        np.copyto(self._last, picture)

    def close(self) -> None:
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        writer.release()
        reader = self._cv2.VideoCapture(str(self._path))
        try:
            if reader.isOpened() and reader.read()[0]:
                # Matroska stores a duration and no number of frames: this is then the quotient, rounded.
                self._written = int(reader.get(self._cv2.CAP_PROP_FRAME_COUNT))
        finally:
            reader.release()
        if self._written is None:
            self._problem = self._problem or "the finished file cannot be opened"
        elif self._written < self._put:
            self._problem = self._problem or f"the file has {self._written} of {self._put} frames"

    def told(self) -> dict[str, Any]:
        """The file, its codec and size, how many frames were put into it and are in it, and what went wrong."""
        return {
            "path": str(self._path),
            "codec": self._codec,
            "size": list(self._size),
            "frames": self._put,
            "written": self._written,
            "held": self._held,
            "resized": self._resized,
            "problem": self._problem,
        }

    def _picture(self, shot: Shot, view: View) -> Pixels:
        if self._what == "frame":
            return shot.pixels
        if self._what != "both":
            return view.overlay() if self._what == "overlay" else view.coloured()
        left, right = view.overlay(), view.coloured()
        height, width = left.shape[:2]
        if self._pair is None or self._pair.shape[:2] != (height, 2 * width):
            self._pair = np.empty((height, 2 * width, 3), np.uint8)
        self._pair[:, :width], self._pair[:, width:] = left, right
        return self._pair

    def _open(self, picture: Pixels) -> None:
        cv2 = self._cv2
        height, width = self._size = (picture.shape[0] & ~1, picture.shape[1] & ~1)
        if not height or not width:
            raise BadInput(f"a frame of {picture.shape[0]} x {picture.shape[1]} pixels is too small to be recorded")
        self._check_space()
        tried = CODECS[self._path.suffix.lower()]
        for self._codec in tried:
            writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter_fourcc(*self._codec), self._fps, (width, height))
            if writer.isOpened():
                self._writer = writer
                return
        try:
            self._path.open("ab").close()
        except OSError as error:
            raise self._failed(str(error.strerror or error)) from error
        raise MissingOnMachine(
            f"This OpenCV can write none of {', '.join(tried)} into {self._path.name} ({width} x {height} pixels). "
            f"Try another of {', '.join(CODECS)}: .avi works everywhere."
        )

    def _fit(self, picture: Pixels) -> Pixels:
        """The picture at the recorded size; colours of classes must not mix, so the class map is resized nearest."""
        height, width = self._size
        if self._fitted is None:
            self._fitted = np.empty((height, width, 3), np.uint8)
        how = self._cv2.INTER_NEAREST if self._what == "mask" else self._cv2.INTER_LINEAR
        self._cv2.resize(picture, (width, height), dst=self._fitted, interpolation=how)
        self._resized += 1
        return self._fitted

    def _check_space(self) -> None:
        """Stop while what the writer holds back, one more frame and the index still fit."""
        wanted = _RESERVE + 3 * self._size[0] * self._size[1] + _PER_FRAME * self._put
        free = self._free(self._path.parent)
        if free < wanted:
            raise self._failed(
                f"disk full: {free >> 10} KiB are left, {wanted >> 10} KiB are kept to end the file well"
            )

    def _check_file(self) -> None:
        try:
            size = self._path.stat().st_size
        except OSError as error:
            raise self._failed(f"the file is gone: {error.strerror or error}") from error
        if size != self._seen_bytes:
            self._seen_at, self._seen_bytes = self._put, size
        elif self._put - self._seen_at >= _NO_GROWTH:
            raise self._failed(f"the file has not grown for {_NO_GROWTH} frames; is a quota used up?")

    def _failed(self, why: str) -> SinkFailed:
        self._problem = why
        return SinkFailed(f"{self.name} ended after {self._put} frames: {why}")
