"""Video through OpenCV: files, streams that FFmpeg reads, cameras. The only file that knows VideoCapture."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeseg.errors import BadInput, need
from edgeseg.runtime.sources.base import Source, SourceBroken
from edgeseg.runtime.sources.wanted import Wanted
from edgeseg.runtime.values import Grab, Unreadable
from edgeseg.types import Pixels

_TRIES = 16  # how many more frames are tried when one cannot be read, before the stream is taken to be over

_OPENING_S = 5.0  # to open a stream takes at least a key frame, which a camera sends every few seconds


class VideoSource(Source):
    """An open VideoCapture.

    A frame is grabbed, the time is taken, and only then is it made into pixels. If no frame can be grabbed, it may be
    the end or a damaged one: the next few are tried, and if one of them is whole, those before it were unreadable.
    A stream whose size changes on the way keeps its first size: OpenCV scales. A file's rotation is applied.
    """

    def __init__(
        self,
        capture: Any,
        *,
        name: str,
        live: bool,
        clock: Callable[[], int],
        stall_s: float,
        driver_time: bool = False,
    ) -> None:
        cv2 = need("cv2", extra="run", why="reading video")
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.name, self.live = name, live
        self.fps = rate if math.isfinite(rate) and 0 < rate <= 1000 else None  # RTSP may tell its 90 kHz
        self.frames = int(count) if not live and math.isfinite(count) and count > 0 else None  # as the file declares
        self._capture, self._clock, self._stall_s, self._driver_time = capture, clock, stall_s, driver_time
        self._at_ms, self._failures = cv2.CAP_PROP_POS_MSEC, cv2.error
        self._position = 0
        self._lost = 0  # frames that could not be grabbed, before the one that is held
        self._held = False
        self._grabbed_ns = 0
        self._reached_ms = 0.0  # where the last frame lies in the file

    def read(self, into: Pixels | None) -> Grab | Unreadable | None:
        if not self._held and not self._advance():
            self._judge_end()
            return None
        position = self._position
        self._position += 1
        if self._lost:
            self._lost -= 1
            return Unreadable(position, f"frame {position} of {self.name} is damaged: OpenCV could not decode it")
        self._held = False
        try:
            fine, pixels = self._capture.retrieve(into)
        except self._failures as error:
            return Unreadable(position, f"frame {position} of {self.name} could not be converted: {error}")
        if not fine or pixels is None or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != "uint8":
            got = "" if pixels is None else f" (it has the shape {pixels.shape} and type {pixels.dtype})"
            return Unreadable(position, f"frame {position} of {self.name} did not become a BGR picture{got}")
        return Grab(pixels, self._grabbed_ns, position, f"{position:06d}")

    def close(self) -> None:
        self._capture.release()

    def _advance(self) -> bool:
        begin = time.monotonic()  # not the stream's clock, which may jump
        for lost in range(1 + _TRIES):
            if self._capture.grab():
                self._held, self._lost, self._grabbed_ns = True, lost, self._grab_time_ns()
                return True
            at_end = self.frames is not None and self._position >= self.frames
            if at_end or time.monotonic() - begin >= 0.9 * self._stall_s:
                break
        if self.live:
            waited = time.monotonic() - begin
            gave = f"after {self._position} frames" if self._position else "before its first frame"
            stalled = waited >= 0.9 * self._stall_s
            what = f"gave nothing for {waited:.1f} s, {gave}" if stalled else f"ended {gave}"
            raise SourceBroken(f"{self.name} {what}")
        return False

    def _grab_time_ns(self) -> int:
        now, told_ms = self._clock(), self._capture.get(self._at_ms)
        self._reached_ms = told_ms
        if self._driver_time and math.isfinite(told_ms):
            driver_ns = int(told_ms * 1e6)  # V4L2 stamps with CLOCK_MONOTONIC, which is what perf_counter reads
            if 0 <= now - driver_ns <= 1e9:
                return driver_ns
        return now

    def _judge_end(self) -> None:
        """Whether the end came early: by the count and by the time, as either alone may be an estimate."""
        if self.frames is None or self.complaint is not None:
            return
        missing = self.frames - self._position
        missing_s = self.frames / self.fps - self._reached_ms / 1000 if self.fps else math.inf
        margin = 2 + 0.02 * self.frames
        if missing > margin and (self.fps is None or missing_s * self.fps > margin):
            self.complaint = (
                f"{self.name} ended after {self._position} of {self.frames} frames: it is damaged or cut off"
            )


def open_file(path: Path, *, name: str, stall_s: float, clock: Callable[[], int]) -> VideoSource:
    """A video file; BadInput if it is not one that OpenCV can read."""
    try:
        path.open("rb").close()
    except OSError as error:  # OpenCV would not say why
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from error
    cv2 = _prepared(stall_s)
    # Absolute: FFmpeg takes what stands before a colon for a protocol.
    capture = _first_open(str(path.absolute()), (cv2.CAP_FFMPEG, cv2.CAP_ANY), ({}, {}))
    if capture is None:
        size = path.stat().st_size
        raise BadInput(
            f"{path} ({size} bytes) is no video or picture that OpenCV can read here; it may be cut off or in an "
            "unknown format. If it plays elsewhere: ffmpeg -i FILE -c:v libx264 out.mp4"
        )
    return VideoSource(capture, name=name, live=False, clock=clock, stall_s=stall_s)


def open_network(wanted: Wanted, *, stall_s: float, clock: Callable[[], int]) -> VideoSource:
    """A stream that FFmpeg reads; SourceBroken if it does not answer in time or is no video.

    Over HTTP, what declares its length is a recording: not live, and at its end it is over. RTSP goes over TCP, which
    is what OpenCV prefers unless OPENCV_FFMPEG_CAPTURE_OPTIONS says otherwise.
    """
    cv2 = _prepared(stall_s)
    opening_s = max(stall_s, _OPENING_S)
    limits = {
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: round(1000 * opening_s),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC: max(1, round(1000 * stall_s)),
    }
    capture = _first_open(wanted.where, (cv2.CAP_FFMPEG, cv2.CAP_ANY), (limits, {}))
    if capture is None:
        raise SourceBroken(f"{wanted.shown} does not answer within {opening_s:g} s, refuses, or is no video")
    recording = wanted.where.startswith("http") and capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
    return VideoSource(capture, name=wanted.shown, live=not recording, clock=clock, stall_s=stall_s)


def open_camera(wanted: Wanted, *, fps: float | None, stall_s: float, clock: Callable[[], int]) -> VideoSource:
    """A camera: V4L2 on Linux, else what OpenCV finds. The size and the rate asked for are wishes to its driver.

    BadInput where there is no such device, SourceBroken where it does not open (in use, or no permission).
    """
    linux = sys.platform.startswith("linux")
    numbered = wanted.where.isdigit()
    device = Path(f"/dev/video{wanted.where}" if numbered else wanted.where)
    if linux and not device.exists():
        there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "no camera"
        raise BadInput(f"There is no {device} on this machine, it has {there}. Plug the camera in or name another.")
    cv2 = _prepared(stall_s)
    capture = cv2.VideoCapture(int(wanted.where) if numbered else wanted.where, cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
    if not capture.isOpened():
        capture.release()
        raise SourceBroken(f"{device} does not open: another program uses it, or you are not in the group 'video'")
    if wanted.fourcc:  # first: it decides which sizes and rates there are
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*wanted.fourcc))
    if wanted.size:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, wanted.size[1])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, wanted.size[0])
    rate = wanted.fps or fps
    if rate:
        capture.set(cv2.CAP_PROP_FPS, rate)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # an old frame is worth nothing
    return VideoSource(capture, name=wanted.shown, live=True, clock=clock, stall_s=stall_s, driver_time=linux)


def _first_open(what: str, backends: tuple[int, ...], settings: tuple[dict[int, int], ...]) -> Any:
    """The first capture that opens, a hardware decoder asked for first; None if none does.

    A backend refuses to open at all where it does not know a setting, so each is also tried without.
    """
    cv2 = need("cv2", extra="run", why="reading video")
    for backend, plain in zip(backends, settings, strict=True):
        if backend != cv2.CAP_ANY and not cv2.videoio_registry.hasBackend(backend):
            continue
        begin = time.monotonic()
        for extra in ({cv2.CAP_PROP_HW_ACCELERATION: cv2.VIDEO_ACCELERATION_ANY}, {}):
            asked = {**plain, **extra}
            capture = cv2.VideoCapture(what, backend, [int(n) for pair in asked.items() for n in pair])
            if capture.isOpened():
                return capture
            capture.release()
            limit_ms = plain.get(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC)
            if limit_ms and (time.monotonic() - begin) * 1000 >= 0.5 * limit_ms:
                return None  # it was the time that ran out: asking otherwise would only take it once more
        if plain:
            return None  # a backend that keeps the limits was there
    return None


def _prepared(stall_s: float) -> Any:
    """OpenCV, told by its own variables, where the user did not set them, to be quiet and to wait no longer.

    It reads them once, at the first capture of the process.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET: what is damaged is reported by us
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, math.ceil(stall_s))))
    cv2 = need("cv2", extra="run", why="reading video")
    if "OPENCV_LOG_LEVEL" not in os.environ and hasattr(cv2, "utils"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # not that a backend could not open a file
    return cv2
