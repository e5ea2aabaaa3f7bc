"""Pipelines as text everywhere; run for real, with a server of RTSP, where `gi` can be imported."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgeseg.errors import BadInput, MissingOnMachine
from edgeseg.runtime.capture import Capture, Retry
from edgeseg.runtime.sources import Source, SourceBroken, gstreamer, open_source, parse
from edgeseg.runtime.values import Grab
from tests.runtime.test_sources import open_now
from tests.runtime.videos import number, write_video

needs_gi = pytest.mark.skipif(gstreamer.gstreamer() is None, reason="GStreamer's binding gi cannot be imported here")


def opened(text: str, stall_s: float = 10.0) -> Source:
    return open_source(parse(text), fps=None, stall_s=stall_s, clock=time.perf_counter_ns)


def frames_of(source: Source) -> Iterator[Grab]:
    while (got := source.read(None)) is not None:
        assert isinstance(got, Grab)
        yield got


# text


def test_an_appsink_is_put_at_the_end_unless_there_is_one() -> None:
    tail = " ! videoconvert ! video/x-raw,format=BGR ! appsink name=frames sync=false"
    assert gstreamer.with_appsink("v4l2src") == "v4l2src" + tail
    assert gstreamer.with_appsink("v4l2src ! jpegdec !  ") == "v4l2src ! jpegdec" + tail
    assert gstreamer.with_appsink("filesrc location=my-appsink.mp4 ! decodebin").endswith(tail)
    for own in ("v4l2src ! appsink", "v4l2src !appsink drop=1", "appsink name=a v4l2src ! a."):
        assert gstreamer.with_appsink(own) == own


def test_the_pipeline_of_a_csi_camera() -> None:
    assert gstreamer.csi_pipeline(parse("csi:1?size=1280x720&fps=60&flip=2")) == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1280,height=720,format=NV12,framerate=60/1 ! "
        "nvvidconv flip-method=2 ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
        "appsink name=frames sync=false max-buffers=4 drop=true"
    )
    plain = gstreamer.csi_pipeline(parse("csi:0"))
    assert "sensor-id=0 ! video/x-raw(memory:NVMM),width=1920,height=1080,format=NV12,framerate=30/1 !" in plain
    assert "flip-method=0" in plain
    assert "framerate=15/1" in gstreamer.csi_pipeline(parse("csi:0"), 15.0)
    assert "framerate=29970/1000" in gstreamer.csi_pipeline(parse("csi:0?fps=29.97"), 15.0)


def test_the_hardware_decoders_are_used_where_they_are(tmp_path: Path) -> None:
    def on_jetson(name: str) -> bool:
        return name in ("nvv4l2decoder", "nvvidconv")

    path = tmp_path / "a drive.mp4"
    tail = " ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink name=frames"
    file = gstreamer.hardware_pipeline(parse(str(path)), elements=on_jetson)
    assert file is not None
    assert file.startswith(f"uridecodebin uri={path.as_uri()}{tail}")
    assert "a%20drive.mp4" in file
    rtsp = gstreamer.hardware_pipeline(parse('rtsp://me:a"b@10.0.0.5/live'), elements=on_jetson)
    assert rtsp is not None
    assert rtsp.startswith(r'rtspsrc location="rtsp://me:a\"b@10.0.0.5/live" protocols=tcp latency=100 ! decodebin')
    for text in ("http://x.y/a.mp4", "0", "street:64x64"):
        assert gstreamer.hardware_pipeline(parse(text), elements=on_jetson) is None
    assert gstreamer.hardware_pipeline(parse(str(path)), elements=lambda name: name == "nvvidconv") is None


def test_without_gstreamer_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.setattr(gstreamer, "gstreamer", lambda: None)
    if cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        pytest.skip("this OpenCV was built with GStreamer")
    for text in ("gst:videotestsrc", "csi:0"):
        with pytest.raises(MissingOnMachine, match=r"OpenCV of PyPI never has it.* apt install python3-gi"):
            opened(text)


# run


@needs_gi
@pytest.mark.parametrize("width", [320, 322, 323])
def test_a_pipeline_gives_its_frames_in_place(width: int) -> None:
    into = np.zeros((240, width, 3), np.uint8)
    source = opened(
        "gst:videotestsrc num-buffers=20 pattern=solid-color foreground-color=0xff102030 ! "
        f"video/x-raw,format=BGRx,width={width},height=240,framerate=25/1"
    )
    with source:
        assert not source.live
        for k in range(20):
            got = source.read(into)
            assert isinstance(got, Grab)
            assert got.pixels is into
            assert (got.position, got.name) == (k, f"{k:06d}")
            assert np.abs(into.astype(int) - (0x30, 0x20, 0x10)).max() <= 2  # blue, green, red, to the last column
            into[:] = 0
        assert source.fps == 25.0
        assert source.read(into) is None
        assert source.complaint is None


@needs_gi
def test_a_file_through_gstreamer_comes_whole_in_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 60, size=(64, 126))  # rows that are padded: 126 * 3 is no multiple of 4
    with opened(f"gst:filesrc location={path} ! decodebin") as source:
        time.sleep(0.2)  # it waits for us: none is lost, and no more than a few are kept
        assert [number(got.pixels) for got in frames_of(source)] == list(range(60))


@needs_gi
@pytest.mark.parametrize(("live", "drop"), [("true", True), ("false", False)])
def test_what_waits_for_us_is_bounded(live: str, drop: bool) -> None:
    for sink in ("", " ! videoconvert ! video/x-raw,format=BGR ! appsink"):
        with opened(f"gst:videotestsrc is-live={live}{sink}") as source:
            assert isinstance(source, gstreamer.GstSource)
            assert source.live == drop
            assert (source._sink.get_property("max-buffers"), source._sink.get_property("drop")) == (4, drop)


@needs_gi
def test_a_live_pipeline_that_ends_is_broken() -> None:
    source = opened("gst:videotestsrc is-live=true num-buffers=5 ! video/x-raw,framerate=100/1")
    with source:
        begin = time.perf_counter_ns()
        got = list(itertools.islice(frames_of(source), 5))
        assert all(begin - 10**9 < a.time_ns <= b.time_ns for a, b in itertools.pairwise(got))
        with pytest.raises(SourceBroken, match="ended after 5 frames"):
            source.read(None)


@needs_gi
def test_a_live_pipeline_that_stalls_is_broken() -> None:
    begin = time.monotonic()
    with pytest.raises(SourceBroken, match=r"gave nothing for 0\.3 s, after 0 frames"):
        opened("gst:videotestsrc is-live=true ! valve drop=true", stall_s=0.3)
    assert time.monotonic() - begin >= 0.29
    with opened("gst:videotestsrc is-live=true ! valve name=v", stall_s=0.3) as source:
        assert isinstance(source, gstreamer.GstSource)
        source._pipeline.get_by_name("v").set_property("drop", True)
        with pytest.raises(SourceBroken, match=r"gave nothing for 0\.3 s, after \d+ frames"):
            list(frames_of(source))


@needs_gi
@pytest.mark.parametrize("live", ["true", "false"])
def test_the_rate_is_known_before_the_first_frame_is_read(live: str) -> None:
    # a recording is opened at it, and a deadline is made of it: a guess would play it too slowly
    with opened(f"gst:videotestsrc is-live={live} ! video/x-raw,framerate=50/1") as source:
        assert source.fps == 50.0


@needs_gi
def test_an_error_before_the_first_frame_is_told_by_the_read() -> None:
    with (
        opened("gst:videotestsrc is-live=true ! identity error-after=1", stall_s=5.0) as source,
        pytest.raises(SourceBroken, match=r"ended after 0 frames: .*iterations"),
    ):
        source.read(None)


@needs_gi
@pytest.mark.parametrize(
    ("pipeline", "kind", "why"),
    [
        ("nosuchelement", MissingOnMachine, 'no element "nosuchelement"'),
        ("videotestsrc ! ! x", BadInput, "syntax error"),
        ("videotestsrc foo=1", BadInput, 'no property "foo"'),
        ("filesrc location=nothere.mp4 ! decodebin", BadInput, "nothere.mp4"),
        ("videotestsrc ! tee name=t ! appsink t. ! appsink", BadInput, "2 appsinks"),
    ],
)
def test_pipelines_that_are_none(pipeline: str, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why):
        opened(f"gst:{pipeline}")


@needs_gi
def test_an_appsink_of_the_users_that_gives_another_format() -> None:
    with (
        opened("gst:videotestsrc ! video/x-raw,format=GRAY8 ! appsink") as source,
        pytest.raises(BadInput, match=r"format=.*GRAY8.* and BGR is wanted: put 'videoconvert"),
    ):
        source.read(None)


@needs_gi
def test_fifty_pipelines_leave_no_thread_and_no_handle() -> None:
    def once() -> None:
        with opened("gst:videotestsrc num-buffers=2 ! video/x-raw,width=64,height=64") as source:
            assert len(list(frames_of(source))) == 2

    for _ in range(5):  # GStreamer keeps a few threads for ever
        once()
    handles, threads = open_now("fd"), open_now("task")
    for _ in range(50):
        once()
    assert open_now("fd") <= handles
    assert open_now("task") <= threads + 2  # of its pool, which comes and goes


# RTSP

SERVER = """
import sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
if Gst.ElementFactory.find("x264enc") is None:
    sys.exit("no x264enc")
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch("( videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=30/1 ! "
                   "x264enc tune=zerolatency key-int-max=10 ! rtph264pay name=pay0 pt=96 )")
factory.set_shared(True)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@contextmanager
def rtsp_server(port: int = 0) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            if not line:
                pytest.skip(f"there is no server of RTSP here: {process.stderr.read().strip().splitlines()[-1:]}")
            yield int(line)
        finally:
            process.kill()  # not a farewell but a dead server


@needs_gi
@pytest.mark.parametrize(
    "text",
    ["rtsp://127.0.0.1:{}/live", "gst:rtspsrc location=rtsp://127.0.0.1:{}/live protocols=tcp latency=50 ! decodebin"],
    ids=["ffmpeg", "rtspsrc"],
)
def test_rtsp_from_a_server_that_dies_and_comes_back(text: str) -> None:
    with ExitStack() as servers:
        port = servers.enter_context(rtsp_server())
        failed: list[str | None] = []

        def wait(seconds: float) -> bool:
            time.sleep(seconds)
            failed.append(capture.outages.last)
            if len(failed) == 3:
                servers.enter_context(rtsp_server(port))
            return False

        opener: Callable[[], Source] = lambda: opened(text.format(port))  # noqa: E731
        capture = Capture(opener, retry=Retry(first_s=0.1, longest_s=0.2), wait=wait)
        with capture:
            capture.open()
            assert capture.live
            for k in itertools.count():
                if k == 20:
                    servers.close()
                got = capture.next(None)
                assert isinstance(got, Grab)
                assert got.pixels.shape == (240, 320, 3)
                assert got.pixels.std() > 20  # a test picture, and not a grey one
                if len(failed) >= 3 and got.position == 10:
                    break
        assert capture.outages.count == 1
        assert "ended after" in str(failed[0])
        assert capture.outages.seconds > 0.3
