"""The overlay as live video to elsewhere: to an RTSP server, over UDP, RTP or SRT, or into a user's own pipeline.

GStreamer does it, in a process of its own (`gst-launch-1.0`) that reads frames from a pipe: it needs no Python binding,
takes the hardware's encoder where there is one, and may crash or hang without the stream. Frames travel as raw video in
Matroska, which costs a header of 60 bytes and keeps the times of capture (raw bytes would be stamped on arrival, and
not at all before the pipeline plays).
"""

from __future__ import annotations

import collections
import os
import select
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from edgeseg.errors import BadInput, MissingOnMachine, need
from edgeseg.runtime.sinks.base import Sink, SinkFailed, View
from edgeseg.runtime.sources.wanted import masked
from edgeseg.runtime.values import Shot
from edgeseg.types import Pixels

_STALL_S = 10.0  # how long the pipeline may take no bytes
_CLOSING_S = 4.0  # an encoder and a muxer still have frames to write
_NVMM = "'video/x-raw(memory:NVMM),format=NV12'"
# The first that is there encodes: Jetson's, a desktop GPU's, and two in software.
ENCODERS = {
    "nvv4l2h264enc": f"videoconvert ! video/x-raw,format=BGRx ! nvvidconv ! {_NVMM} ! "
    "nvv4l2h264enc insert-sps-pps=true idrinterval=30 maxperf-enable=true",
    "nvh264enc": "videoconvert ! video/x-raw,format=NV12 ! nvh264enc zerolatency=true gop-size=30",
    "x264enc": "videoconvert ! video/x-raw,format=I420 ! "
    "x264enc tune=zerolatency speed-preset=superfast key-int-max=30",
    "openh264enc": "videoconvert ! video/x-raw,format=I420 ! openh264enc gop-size=30",
}
_TRANSPORT = {  # the elements needed beyond the encoder and h264parse, and the end of the pipeline
    "udp": (("mpegtsmux", "udpsink"), "mpegtsmux alignment=7 ! udpsink host={host} port={port} sync=false"),
    "rtp": (
        ("rtph264pay", "udpsink"),
        "rtph264pay pt=96 config-interval=-1 ! udpsink host={host} port={port} sync=false",
    ),
    "srt": (("mpegtsmux", "srtsink"), "mpegtsmux alignment=7 ! srtsink uri={url} wait-for-connection=false sync=false"),
    "rtsp": (("rtspclientsink",), "rtspclientsink location={url} protocols=tcp"),
}
# The network may be slower than the engine: then the oldest frames are dropped in the queue.
HEAD = shlex.split(
    "fdsrc fd=0 ! matroskademux ! queue leaky=downstream max-size-buffers=4 max-size-bytes=0 max-size-time=0 !"
)
_INSTALL = (
    "On Debian, Ubuntu and JetPack: sudo apt install gstreamer1.0-tools gstreamer1.0-plugins-base "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-rtsp. "
    "A page for browsers needs none of it: --serve 127.0.0.1:8080"
)


def tail_of(url: str, has: Callable[[str], bool]) -> list[str]:
    """The arguments of gst-launch that bring raw BGR video to `url`; `has` tells whether an element is there.

    `udp://host:port` is MPEG-TS (VLC, ffplay and OpenCV open it), `rtp://host:port` is RTP with payload type 96,
    `srt://host:port`, `rtsp://…` publishes at a server, `gst:ELEMENTS` is the user's own.
    Raises BadInput for another, MissingOnMachine where an element is missing.
    """
    if url.startswith("gst:"):
        try:
            words = shlex.split(url[len("gst:") :])
        except ValueError as error:
            raise BadInput(f"cannot read the pipeline {url!r}: {error}") from error
        if not words:
            raise BadInput("gst: wants elements behind it, such as gst:'videoconvert ! autovideosink'")
        return words
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadInput(f"cannot send to {masked(url)}: {error}") from error
    if parts.scheme in ("http", "https"):
        raise BadInput(f"cannot send to {masked(url)}: over HTTP the stream is fetched, from --serve HOST:PORT")
    if parts.scheme not in _TRANSPORT:
        raise BadInput(
            f"cannot send to {masked(url)}: rtsp://…, udp://host:port, rtp://host:port, srt://host:port "
            "or gst:… was wanted"
        )
    if not host or (port is None and parts.scheme != "rtsp"):
        raise BadInput(f"cannot send to {masked(url)}: it wants a host and a port, as {parts.scheme}://10.0.0.5:5000")
    if set(url) & set(" \t\r\n\"'\\"):
        raise BadInput(f"cannot send to {masked(url)}: write blanks, quotes and backslashes as %20, %22, %27 and %5C")
    elements, transport = _TRANSPORT[parts.scheme]
    missing = [name for name in ("h264parse", *elements) if not has(name)]
    encoder = next((text for name, text in ENCODERS.items() if has(name)), None)
    if encoder is None:
        missing.append(f"an H.264 encoder ({', '.join(ENCODERS)})")
    if missing or encoder is None:
        raise MissingOnMachine(f"Sending to {parts.scheme}:// needs of GStreamer: {', '.join(missing)}. {_INSTALL}")
    end = transport.format(host=host, port=port, url=url)
    return shlex.split(f"{encoder} ! h264parse config-interval=-1 ! {end}")


def matroska_start(height: int, width: int) -> bytes:
    """The beginning of an endless Matroska stream with one track of raw BGR video (RFC 9559)."""
    video = _element("B0", _number(width)) + _element("BA", _number(height)) + _element("2EB524", b"BGR\x18")
    track = b"".join(
        (
            _element("D7", _number(1)),  # track number
            _element("73C5", _number(1)),  # its unique number
            _element("83", _number(1)),  # video
            _element("9C", _number(0)),  # no lacing
            _element(
                "23E383", _number(33_333_333)
            ),  # nominal ns a frame: encoders plan with it, and stamps override it
            _element("86", b"V_UNCOMPRESSED"),
            _element("E0", video),
        )
    )
    form = _element("4282", b"matroska") + _element("4287", _number(4)) + _element("4285", _number(2))
    milliseconds = _element("2AD7B1", _number(1_000_000))
    segment = bytes.fromhex("18538067 01FFFFFFFFFFFFFF")  # of unknown size
    start = _element("1A45DFA3", form) + segment + _element("1549A966", milliseconds)
    return start + _element("1654AE6B", _element("AE", track))


def matroska_frame(time_ms: int, size: int) -> bytes:
    """What comes before the `size` bytes of a frame: a cluster with one block."""
    stamp = _element("E7", _number(time_ms))
    block = b"\xa3" + _size(4 + size) + b"\x81\x00\x00\x80"  # of track 1, at the cluster's time, a key frame
    return bytes.fromhex("1F43B675") + _size(len(stamp) + len(block) + size) + stamp + block


def _element(number: str, content: bytes) -> bytes:
    return bytes.fromhex(number) + _size(len(content)) + content


def _size(size: int) -> bytes:
    return (1 << 56 | size).to_bytes(8, "big")


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")


class Restream(Sink):
    """Sends the overlay of one stream to `url` (see `tail_of`), from the first frame on, whose size stays.

    The size is rounded down to a multiple of 4 columns and 2 rows, as raw video and H.264 want it. Time stamps are
    those of the captures, in whole milliseconds from the first frame.

    Raises BadInput for an address that makes no sense and MissingOnMachine where GStreamer or a part of it is missing.
    `put` raises SinkFailed when the pipeline ends or takes nothing for ten seconds.
    """

    def __init__(self, url: str, *, stream: int = 0, stall_s: float = _STALL_S, closing_s: float = _CLOSING_S) -> None:
        self.name = f"sending to {masked(url)}"
        self._stream, self._stall_s, self._closing_s = stream, stall_s, closing_s
        launch = shutil.which("gst-launch-1.0")
        if launch is None:
            tail_of(url, lambda name: True)  # an address that makes no sense is said first
            raise MissingOnMachine(f"{self.name} needs GStreamer, and there is no gst-launch-1.0 here. {_INSTALL}")
        self._launch, self._tail = launch, tail_of(url, has_element)
        self._cv2 = need("cv2", extra="run", why="sending video")
        self._child: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None
        self._words: collections.deque[str] = collections.deque(maxlen=20)
        self._size = (0, 0)
        self._fitted: Pixels = np.empty((0, 0, 3), np.uint8)
        self._first_ns: int | None = None
        self._last_ms = -1
        self._sent = 0

    def put(self, shot: Shot, view: View) -> bool:
        if shot.stream != self._stream:
            return True
        picture = view.overlay()
        if self._child is None:
            self._start(picture)
        if picture.shape != self._fitted.shape:
            height, width = self._size
            if picture.shape[0] - height in range(2) and picture.shape[1] - width in range(4):
                np.copyto(self._fitted, picture[:height, :width])
            else:
                self._cv2.resize(picture, (width, height), dst=self._fitted, interpolation=self._cv2.INTER_LINEAR)
            picture = self._fitted
        if self._first_ns is None:
            self._first_ns = shot.captured_ns
        # Muxers refuse a stamp that does not grow, as when a source's clock jumps
        self._last_ms = max(self._last_ms + 1, (shot.captured_ns - self._first_ns) // 1_000_000)
        self._write(memoryview(matroska_frame(self._last_ms, picture.size)))
        self._write(picture.data.cast("B"))
        self._sent += 1
        return True

    def close(self) -> None:
        child = self._child
        if child is None:
            return
        if child.stdin is not None:
            child.stdin.close()  # the end of the stream, which muxers and servers are told
        # rtspclientsink does not tell when it is done, so it is asked to stop; and what hangs is ended.
        for ending in (signal.SIGINT, signal.SIGKILL):
            try:
                child.wait(self._closing_s)
                break
            except subprocess.TimeoutExpired:
                child.send_signal(ending)
        child.wait()
        if self._listener is not None:
            self._listener.join()
        if child.stderr is not None:
            child.stderr.close()

    def told(self) -> dict[str, Any]:
        return {"sent": self._sent, "size": list(self._size)}

    def _start(self, picture: Pixels) -> None:
        height, width = self._size = (picture.shape[0] & ~1, picture.shape[1] & ~3)
        if not height or not width:
            raise BadInput(f"a frame of {picture.shape[0]} x {picture.shape[1]} pixels is too small to be sent")
        self._fitted = np.empty((height, width, 3), np.uint8)
        self._child = subprocess.Popen(
            [self._launch, "-q", *HEAD, *self._tail],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us: the pipeline ends when its input does
            bufsize=0,
        )
        if self._child.stdin is not None:
            os.set_blocking(self._child.stdin.fileno(), False)
            _widen(self._child.stdin.fileno())
        self._listener = threading.Thread(target=self._listen, args=(self._child,), name="edgeseg-send", daemon=True)
        self._listener.start()
        self._write(memoryview(matroska_start(height, width)))

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        """In a thread: keep the last that the pipeline said, and let it say more."""
        for line in child.stderr or ():
            self._words.append(line[:500].decode(errors="replace").strip())

    def _write(self, data: memoryview) -> None:
        if self._child is None or self._child.stdin is None:
            return
        number = self._child.stdin.fileno()
        room = select.poll()
        room.register(number, select.POLLOUT)
        done, until = 0, time.monotonic() + self._stall_s
        while done < len(data):
            try:
                done += os.write(number, data[done:])
                continue
            except BlockingIOError:
                left = until - time.monotonic()
            except OSError as error:
                raise self._ended() from error
            if left <= 0:
                raise SinkFailed(f"{self.name} stalled: it took no whole frame for {self._stall_s:g} s")
            room.poll(min(left, 1.0) * 1000)

    def _ended(self) -> SinkFailed:
        if self._child is not None:
            try:
                self._child.wait(self._closing_s)
            except subprocess.TimeoutExpired:
                self._child.kill()
        if self._listener is not None:
            self._listener.join(self._closing_s)
        told = [line for line in self._words if "ERROR" in line.upper()] or list(self._words)
        why = told[0] if told else "GStreamer does not say why"
        return SinkFailed(f"{self.name} ended after {self._sent} frames: {why}")


def has_element(name: str) -> bool:
    """Whether this machine's GStreamer has an element."""
    inspect = shutil.which("gst-inspect-1.0")
    return inspect is not None and subprocess.run([inspect, "--exists", name], check=False).returncode == 0


def _widen(pipe: int) -> None:
    """Let the pipe hold 1 MiB, as far as the system allows it: fewer turns from process to process for a frame."""
    try:
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
    except (ImportError, AttributeError, OSError):
        return  # not Linux, or the user's pipes hold too much already: slower, and as good
