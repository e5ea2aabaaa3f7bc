"""GStreamer pipelines: through `gi` and an appsink, else through an OpenCV that was built with GStreamer.

Texts of pipelines are made here as well: for CSI cameras, and for the hardware decoders of a Jetson.
"""

from __future__ import annotations

import importlib
import math
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import BadInput, MissingOnMachine, need
from edgeseg.runtime.sources.base import Source, SourceBroken
from edgeseg.runtime.sources.video import VideoSource
from edgeseg.runtime.sources.wanted import Wanted, masked
from edgeseg.runtime.values import Grab, Unreadable
from edgeseg.types import Pixels

_BGR = "videoconvert ! video/x-raw,format=BGR"
_APPSINK = "appsink name=frames sync=false"
_FROM_NVMM = f"nvvidconv ! video/x-raw,format=BGRx ! {_BGR}"  # nvvidconv has no BGR
_SLICE_NS = 100_000_000  # how long one look at the appsink lasts: errors come on another way
_CAPS_NS = 10_000_000  # from one look for the first frame's caps to the next
_WAITING = 4  # frames of a live source that wait for us before the oldest is dropped

HOW_TO_GET_GI = (
    "A GStreamer source needs GStreamer with its Python binding 'gi', or an OpenCV built with GStreamer, and here is "
    "neither: the OpenCV of PyPI never has it. On Debian, Ubuntu and JetPack: sudo apt install python3-gi "
    "gir1.2-gstreamer-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad, and a virtual "
    "environment that sees it: python3 -m venv --system-site-packages"
)


class GstSource(Source):
    """A running pipeline with an appsink that gives BGR.

    Whether it is live is what GStreamer says of it (a pipeline that cannot be paused with a frame). The time of a live
    frame is that of its time stamp on the pipeline's clock, where that is plausible.
    """

    def __init__(self, gst: Any, pipeline: Any, sink: Any, *, name: str, stall_s: float, clock: Callable[[], int]):
        self.name, self.fps = name, None
        self._gst, self._pipeline, self._sink = gst, pipeline, sink
        self._stall_s, self._clock, self._position = stall_s, clock, 0
        self._bus = pipeline.get_bus()
        self._broken: str | None = None  # an error that came while the rate was waited for
        self.live = False
        self._start()
        self._learn_rate()

    def _start(self) -> None:
        gst, limit = self._gst, int(self._stall_s * 1e9)
        change = self._pipeline.set_state(gst.State.PAUSED)
        if change == gst.StateChangeReturn.ASYNC:
            change = self._pipeline.get_state(limit)[0]
        self.live = change == gst.StateChangeReturn.NO_PREROLL
        if self._sink.get_property("max-buffers") == 0:  # no limit: memory would be the limit
            self._sink.set_property("max-buffers", _WAITING)
            self._sink.set_property("drop", self.live)
        if change != gst.StateChangeReturn.FAILURE and change != gst.StateChangeReturn.ASYNC:
            change = self._pipeline.set_state(gst.State.PLAYING)
        if change == gst.StateChangeReturn.ASYNC and not self.live:
            raise SourceBroken(f"{self.name} gave nothing within {self._stall_s:g} s")
        if change == gst.StateChangeReturn.FAILURE:
            raise self._refused()

    def _learn_rate(self) -> None:
        """Wait for the caps of the first frame: a recording and a deadline want the rate when it is open.

        SourceBroken if none comes within the stall time; of an error or an end before, `read` tells.
        """
        pad, begin = self._sink.get_static_pad("sink"), time.monotonic()  # not the stream's clock, which may jump
        while (caps := pad.get_current_caps()) is None and not self._sink.get_property("eos"):
            if time.monotonic() - begin >= self._stall_s:
                raise SourceBroken(f"{self.name} gave nothing for {self._stall_s:g} s, after 0 frames")
            if (trouble := self._trouble(_CAPS_NS)) is not None:
                self._broken = trouble
                return
        if caps is not None:
            self.fps = _rate(caps.get_structure(0))

    def read(self, into: Pixels | None) -> Grab | Unreadable | None:
        sample = self._pull()
        if sample is None:
            return None
        position, now = self._position, self._clock()
        self._position += 1
        buffer, form = sample.get_buffer(), sample.get_caps().get_structure(0)
        width, height = form.get_value("width"), form.get_value("height")
        if form.get_value("format") != "BGR":
            raise BadInput(
                f"{self.name} gives {form.to_string()[:80]} and BGR is wanted: put '{_BGR}' before its appsink."
            )
        if self.fps is None:
            self.fps = _rate(form)
        mapped, info = buffer.map(self._gst.MapFlags.READ)
        if not mapped:
            return Unreadable(position, f"frame {position} of {self.name} could not be mapped into memory")
        try:
            stride = (3 * width + 3) // 4 * 4  # rows of packed BGR begin at multiples of four bytes
            flat = np.frombuffer(info.data, np.uint8)
            if flat.size < stride * height:
                return Unreadable(position, f"frame {position} of {self.name} has {flat.size} bytes for its size")
            rows = flat[: stride * height].reshape(height, stride)[:, : 3 * width].reshape(height, width, 3)
            pixels = into if into is not None and into.shape == rows.shape else np.empty(rows.shape, np.uint8)
            np.copyto(pixels, rows)
            del flat, rows  # they point into memory that is given back now
        finally:
            buffer.unmap(info)
        return Grab(pixels, now - self._age_ns(sample, buffer), position, f"{position:06d}")

    def close(self) -> None:
        self._pipeline.set_state(self._gst.State.NULL)

    def _pull(self) -> Any:
        for _ in range(max(1, math.ceil(self._stall_s * 1e9 / _SLICE_NS))):
            sample = self._sink.emit("try-pull-sample", _SLICE_NS)
            if sample is not None:
                return sample
            trouble = self._trouble()
            if trouble is None and not self._sink.get_property("eos"):
                continue
            why = f"ended after {self._position} frames" + (f": {trouble}" if trouble else "")
            if self.live:
                raise SourceBroken(f"{self.name} {why}")
            if trouble:
                self.complaint = f"{self.name} {why}"
            return None
        raise SourceBroken(f"{self.name} gave nothing for {self._stall_s:g} s, after {self._position} frames")

    def _age_ns(self, sample: Any, buffer: Any) -> int:
        ticking = self._pipeline.get_clock() if self.live else None
        if ticking is None or buffer.pts == self._gst.CLOCK_TIME_NONE:
            return 0
        running = sample.get_segment().to_running_time(self._gst.Format.TIME, buffer.pts)
        age = int(ticking.get_time() - self._pipeline.get_base_time() - running)
        return age if 0 <= age <= 1_000_000_000 else 0

    def _trouble(self, wait_ns: int = 0) -> str | None:
        if self._broken:
            return self._broken
        message = self._bus.timed_pop_filtered(wait_ns, self._gst.MessageType.ERROR)
        return None if message is None else masked(str(message.parse_error()[0].message))

    def _refused(self) -> Exception:
        """Why it did not start: what may be better later (a server, a busy device) is SourceBroken, else BadInput."""
        message = self._bus.timed_pop_filtered(0, self._gst.MessageType.ERROR)
        if message is None:
            return SourceBroken(f"{self.name} does not start and does not say why")
        error, detail = message.parse_error()
        why = masked(f"{error.message} ({(detail or '').strip().splitlines()[-1] if detail else ''})")
        missing = error.matches(self._gst.ResourceError.quark(), self._gst.ResourceError.NOT_FOUND)
        if error.domain == "gst-resource-error-quark" and not missing:
            return SourceBroken(f"{self.name} does not start: {why}")
        return BadInput(f"{self.name} does not start: {why}. Try the pipeline with gst-launch-1.0 first.")


def open_pipeline(text: str, *, name: str, stall_s: float, clock: Callable[[], int]) -> Source:
    """Start a pipeline. Where it names no appsink, a conversion to BGR and one are put at its end.

    BadInput for a pipeline that is none, MissingOnMachine for a missing element or no GStreamer, SourceBroken for what
    may be there later.
    """
    text = with_appsink(text)
    gst = gstreamer()
    if gst is None:
        return _through_opencv(text, name=name, stall_s=stall_s, clock=clock)
    try:
        pipeline = gst.parse_launch(text)
    except Exception as error:  # GLib.Error; its class is made by gi at run time
        message = masked(str(getattr(error, "message", error)))
        if "no element" in message:
            raise MissingOnMachine(
                f"{name}: {message}. Install the plugin that has it (apt search gstreamer1.0-plugins) or drop it."
            ) from None
        raise BadInput(f"{name} is no pipeline: {message}. Try it with gst-launch-1.0 first.") from None
    sinks = _appsinks(gst, pipeline)
    if len(sinks) != 1:
        raise BadInput(f"{name} has {len(sinks)} appsinks; leave it out or give one.")
    try:
        return GstSource(gst, pipeline, sinks[0], name=name, stall_s=stall_s, clock=clock)
    except BaseException:
        pipeline.set_state(gst.State.NULL)
        raise


def with_appsink(text: str) -> str:
    """`text`, ending in an appsink that gets BGR.

    >>> with_appsink("videotestsrc !")
    'videotestsrc ! videoconvert ! video/x-raw,format=BGR ! appsink name=frames sync=false'
    """
    if re.search(r"(^|[!\s])appsink(\s|$)", text):
        return text
    return f"{text.rstrip().removesuffix('!').rstrip()} ! {_BGR} ! {_APPSINK}"


def csi_pipeline(wanted: Wanted, fps: float | None = None) -> str:
    """The camera at a Jetson's CSI connector, through its image processor. 1920x1080 at 30 unless told."""
    height, width = wanted.size or (1080, 1920)
    rate = wanted.fps or fps or 30.0
    over = (round(rate), 1) if rate == round(rate) else (round(rate * 1000), 1000)
    return (
        f"nvarguscamerasrc sensor-id={wanted.where} ! video/x-raw(memory:NVMM),width={width},height={height},"
        f"format=NV12,framerate={over[0]}/{over[1]} ! nvvidconv flip-method={wanted.flip} ! "
        f"video/x-raw,format=BGRx ! {_BGR} ! {_APPSINK} max-buffers={_WAITING} drop=true"
    )


def hardware_pipeline(wanted: Wanted, *, elements: Callable[[str], bool] | None = None) -> str | None:
    """A pipeline that decodes a file or an RTSP stream in a Jetson's hardware; None where there is none.

    `elements` tells whether GStreamer has one; by default it is asked, on an Arm machine.
    """
    if elements is None:
        gst = gstreamer() if platform.machine() == "aarch64" else None
        if gst is None:
            return None
        elements = gst.ElementFactory.find
    if not (elements("nvv4l2decoder") and elements("nvvidconv")):
        return None
    if wanted.kind == "file":
        uri = Path(wanted.where).resolve().as_uri()
        return f"uridecodebin uri={uri} ! {_FROM_NVMM} ! {_APPSINK}"
    if wanted.kind == "network" and wanted.where.startswith(("rtsp://", "rtsps://")):
        address = wanted.where.replace("\\", "\\\\").replace('"', '\\"')
        return f'rtspsrc location="{address}" protocols=tcp latency=100 ! decodebin ! {_FROM_NVMM} ! {_APPSINK}'
    return None


def gstreamer() -> Any:
    """`gi.repository.Gst`, ready to use; None where it cannot be imported."""
    try:
        importlib.import_module("gi").require_version("Gst", "1.0")
        gst = importlib.import_module("gi.repository.Gst")
    except (ImportError, ValueError):  # ValueError: gi is here and the description of Gst is not
        return None
    gst.init(None)
    return gst


def _through_opencv(text: str, *, name: str, stall_s: float, clock: Callable[[], int]) -> Source:
    cv2 = need("cv2", extra="run", why="reading video")
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise MissingOnMachine(HOW_TO_GET_GI)
    capture = cv2.VideoCapture(text, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        capture.release()
        raise SourceBroken(f"{name} does not start; OpenCV does not say why, gst-launch-1.0 does")
    return VideoSource(capture, name=name, live=True, clock=clock, stall_s=stall_s)


def _appsinks(gst: Any, pipeline: Any) -> list[Any]:
    if not isinstance(pipeline, gst.Bin):
        return []
    found: list[Any] = []
    walk = pipeline.iterate_all_by_element_factory_name("appsink")
    while True:
        result, element = walk.next()
        if result != gst.IteratorResult.OK:
            return found
        found.append(element)


def _rate(form: Any) -> float | None:
    known, over, under = form.get_fraction("framerate")
    return over / under if known and over > 0 and under > 0 and over / under <= 1000 else None
