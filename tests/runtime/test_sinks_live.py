"""Sinks that run in a process of their own: the window, and video to elsewhere. With real processes and pipes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeseg.data import street
from edgeseg.errors import BadInput, MissingOnMachine
from edgeseg.runtime.overlay import Painter
from edgeseg.runtime.sinks.base import SinkFailed
from edgeseg.runtime.sinks.network import ENCODERS, Restream, has_element, tail_of
from edgeseg.runtime.sinks.window import Window
from tests.runtime.shots import descriptors, put_until_it_ends, shot_of, shown

cv2 = pytest.importorskip("cv2")
POSIX = pytest.mark.skipif(os.name != "posix", reason="descriptors and signals of POSIX")
GSTREAMER = pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="there is no gst-launch-1.0")


@pytest.fixture
def painter() -> Painter:
    return Painter(street.PALETTE, street.CLASSES)


# Window: the child with a stand-in for OpenCV's windows, and with the real ones where there are some

STAND_IN = """
import os, pathlib, numpy
WINDOW_NORMAL = WINDOW_KEEPRATIO = WND_PROP_VISIBLE = 0
class error(Exception): pass
folder, plan, count = pathlib.Path(os.environ["STAND_IN"]), os.environ["PLAN"], 0
def namedWindow(title, flags):
    if plan == "abort": print("no such display", file=__import__("sys").stderr); os.abort()
    if plan == "hang": __import__("time").sleep(60)
    if plan == "headless": raise error("The function is not implemented")
def resizeWindow(title, width, height): pass
def imshow(title, picture):
    global count
    count += 1
    numpy.save(folder / f"{count}.part.npy", picture)
    (folder / f"{count}.part.npy").rename(folder / f"{count}.npy")
    if plan == "die" and count == 2: os._exit(1)
def waitKey(delay): return ord("q") if plan == "key" and count == 2 else -1
def getWindowProperty(title, which): return 0.0 if plan == "close" and count == 2 else 1.0
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the window's process, which takes the place of a display, puts what it was to show."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "cv2.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.setenv("DISPLAY", ":1234")
    return folder


def test_a_window_shows_frames_of_changing_sizes(
    stand_in: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAN", "run")
    handles, threads = descriptors(), threading.active_count()
    wanted = []
    with Window("a title") as sink:
        for number, size in enumerate([(96, 128), (48, 64), (192, 30)]):
            assert sink._answered.wait(30)
            sink.put(*shown(painter, shot_of(number, size)))
            wanted.append(painter.overlay().copy())
        sink.put(*shown(painter, shot_of(0, stream=1)))  # another stream's
        assert sink._answered.wait(30)
    for number, picture in enumerate(wanted, start=1):
        assert np.array_equal(np.load(stand_in / f"{number}.npy"), picture)
    assert sink.told() == {"shown": 3, "skipped": 0}
    assert sink._child.returncode == 0
    assert (descriptors(), threading.active_count()) == (handles, threads)


@pytest.mark.parametrize("plan", ["key", "close"])
def test_closing_the_window_ends_the_stream(
    plan: str, stand_in: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAN", plan)
    with Window("a title") as sink:
        assert put_until_it_ends(sink, painter) >= 2
        assert not sink.put(*shown(painter, shot_of()))


def test_a_display_that_dies_is_told_and_nothing_is_left(
    stand_in: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAN", "die")
    handles, threads = descriptors(), threading.active_count()
    with Window("a title") as sink, pytest.raises(SinkFailed, match="display went away"):
        put_until_it_ends(sink, painter)
    assert (descriptors(), threading.active_count()) == (handles, threads)


@POSIX
def test_a_window_that_hangs_does_not_stop_the_stream(
    stand_in: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAN", "run")
    with Window("a title") as sink:
        assert sink.put(*shown(painter, shot_of()))
        os.kill(sink._child.pid, signal.SIGSTOP)
        for number in range(200):
            assert sink.put(*shown(painter, shot_of(number % 3)))
        assert sink.told()["skipped"] >= 190
        os.kill(sink._child.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("headless", "pip uninstall opencv-python-headless && pip install opencv-python"),
        ("abort", "the display ':1234' cannot be used: no such display"),
        ("hang", "was not there after 1 s"),
    ],
)
def test_a_window_that_cannot_be_opened(plan: str, words: str, stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN", plan)
    handles, threads = descriptors(), threading.active_count()
    with pytest.raises(MissingOnMachine) as failure:
        Window("a title", opening_s=1.0 if plan == "hang" else 30.0)
    assert words in str(failure.value)
    assert "--serve" in str(failure.value)
    assert (descriptors(), threading.active_count()) == (handles, threads)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a display needs no variable")
def test_no_display_is_said_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(MissingOnMachine, match="neither DISPLAY nor WAYLAND_DISPLAY"):
        Window("a title")


@pytest.fixture
def xvfb(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    if shutil.which("Xvfb") is None:
        pytest.skip("there is no Xvfb")
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x480x24"], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    os.close(write)
    with os.fdopen(read) as answer:
        number = answer.readline().strip()
    monkeypatch.setenv("DISPLAY", f":{number}")
    yield server
    server.kill()
    server.wait()


def test_a_real_window_and_the_death_of_its_display(xvfb: subprocess.Popen[bytes], painter: Painter) -> None:
    try:
        sink = Window("a title")
    except MissingOnMachine as error:
        if "pip install opencv-python" not in str(error):
            raise
        pytest.skip("this OpenCV has no windows")
    with sink:
        for number in range(10):
            assert sink._answered.wait(30)
            assert sink.put(*shown(painter, shot_of(number % 3)))
        xvfb.kill()
        with pytest.raises(SinkFailed, match="display went away"):
            put_until_it_ends(sink, painter)


# Sending


def test_pipelines_for_every_transport() -> None:
    def text(url: str, *there: str) -> str:
        return " ".join(tail_of(url, lambda name: name in there or name not in ENCODERS))

    udp = text("udp://10.0.0.5:5000", "x264enc")
    assert "x264enc tune=zerolatency" in udp
    assert udp.endswith("mpegtsmux alignment=7 ! udpsink host=10.0.0.5 port=5000 sync=false")
    assert "nvvidconv ! video/x-raw(memory:NVMM),format=NV12 ! nvv4l2h264enc" in text("udp://h:1", *ENCODERS)
    assert "nvh264enc" in text("udp://h:1", "x264enc", "nvh264enc")
    assert text("rtp://[::1]:5004", "x264enc").endswith("udpsink host=::1 port=5004 sync=false")
    assert "srtsink uri=srt://h:9000" in text("srt://h:9000", "x264enc")
    assert "rtspclientsink location=rtsp://me:secret@h/live" in text("rtsp://me:secret@h/live", "x264enc")
    caps = tail_of("gst:videoconvert ! 'video/x-raw, format=I420' ! fakesink", lambda name: False)
    assert caps == ["videoconvert", "!", "video/x-raw, format=I420", "!", "fakesink"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://0.0.0.0:80/", "--serve"),
        ("ftp://h:1", "rtsp://…"),
        ("somewhere", "rtsp://…"),
        ("udp://10.0.0.5", "a host and a port"),
        ("udp://:5000", "a host and a port"),
        ("udp://h:99999", "cannot send"),
        ("rtsp://h/a b", "%20"),
        ("gst:", "wants elements"),
        ("gst:fakesink 'x", "cannot read"),
    ],
)
def test_addresses_that_make_no_sense(url: str, words: str) -> None:
    with pytest.raises(BadInput) as failure:
        tail_of(url, lambda name: True)
    assert words in str(failure.value)


def test_missing_parts_are_named_and_passwords_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingOnMachine, match=r"mpegtsmux, an H.264 encoder .*sudo apt install"):
        tail_of("udp://h:1", lambda name: name not in ("mpegtsmux", *ENCODERS))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingOnMachine, match=r"no gst-launch-1\.0") as failure:
        Restream("rtsp://me:secret@h/live")
    assert "secret" not in str(failure.value)
    assert not has_element("fakesink")


@GSTREAMER
def test_frames_arrive_as_they_were_sent_and_with_their_times(tmp_path: Path, painter: Painter) -> None:
    """Through a real pipeline without loss, whose report on each buffer holds its time stamp."""
    if not has_element("pngenc"):
        pytest.skip("GStreamer has no pngenc here")
    handles, threads = descriptors(), threading.active_count()
    tail = f"gst:videoconvert ! queue ! pngenc ! multifilesink location={tmp_path}/%d.png"
    wanted, number = [], 0
    with Restream(tail) as sink:
        for size in [(97, 131), (97, 131), (96, 128)]:
            shot, view = shown(painter, shot_of(number, size))
            assert sink.put(shot, view)
            wanted.append(view.overlay()[:96, :128].copy())
            number += 1
            until = time.monotonic() + 20  # the queue drops what is not fetched, and that is not meant here
            while not (tmp_path / f"{number - 2}.png").exists() and number > 1 and time.monotonic() < until:
                time.sleep(0.01)
    for index, picture in enumerate(wanted):
        assert np.array_equal(cv2.imread(str(tmp_path / f"{index}.png")), picture)
    assert sink.told() == {"sent": 3, "size": [96, 128]}
    assert (descriptors(), threading.active_count()) == (handles, threads)


@GSTREAMER
def test_stamps_are_the_times_of_capture(tmp_path: Path, painter: Painter) -> None:
    """PTS in the Matroska that comes out, which OpenCV reads: 40 ms apart, and one after a jump back of the clock."""
    if not has_element("matroskamux"):
        pytest.skip("GStreamer has no matroskamux here")
    path = tmp_path / "out.mkv"
    tail = f"gst:videoconvert ! video/x-raw,format=I420 ! jpegenc ! matroskamux ! filesink location={path}"
    with Restream(tail) as sink:
        for number, jump in ((0, 0), (1, 0), (2, 0), (3, -(10**9))):
            shot, view = shown(painter, shot_of(number))
            shot.captured_ns += jump
            assert sink.put(shot, view)
    reader = cv2.VideoCapture(str(path))
    stamps = []
    while reader.read()[0]:
        stamps.append(reader.get(cv2.CAP_PROP_POS_MSEC))
    assert np.subtract(stamps, stamps[0]).tolist() == pytest.approx([0, 40, 80, 81], abs=1.5)


@GSTREAMER
def test_a_pipeline_that_cannot_run_says_why(painter: Painter) -> None:
    with Restream("gst:thereisnosuchelement") as sink, pytest.raises(SinkFailed, match="thereisnosuchelement"):
        put_until_it_ends(sink, painter)


@GSTREAMER
@POSIX
def test_a_pipeline_that_hangs_is_ended(painter: Painter) -> None:
    with Restream("gst:fakesink", stall_s=0.3, closing_s=0.3) as sink:
        sink.put(*shown(painter, shot_of()))
        assert sink._child is not None
        os.kill(sink._child.pid, signal.SIGSTOP)
        with pytest.raises(SinkFailed, match="stalled"):
            put_until_it_ends(sink, painter, pause_s=0)
    assert sink._child.returncode == -signal.SIGKILL


@GSTREAMER
def test_video_over_udp_is_received(painter: Painter) -> None:
    """By OpenCV, on the loopback interface."""
    if not any(map(has_element, ENCODERS)) or not all(map(has_element, ("mpegtsmux", "h264parse", "udpsink"))):
        pytest.skip("GStreamer has no H.264 encoder or no MPEG-TS here")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop, failures = threading.Event(), []

    def send() -> None:
        try:
            with Restream(f"udp://127.0.0.1:{port}") as sink:
                number = 0
                while not stop.wait(0.02):
                    shot, view = shown(painter, shot_of(0))
                    shot.captured_ns += 40_000_000 * number
                    number += 1
                    sink.put(shot, view)
        except Exception as error:
            failures.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        reader = cv2.VideoCapture(f"udp://127.0.0.1:{port}?timeout=10000000", cv2.CAP_FFMPEG)
        there, frame = reader.read()
        reader.release()
    finally:
        stop.set()
        sender.join()
    assert failures == []
    if not there:
        pytest.skip("this OpenCV has no FFmpeg with UDP")
    painter.show(shot_of(0))
    assert np.abs(frame.astype(float) - painter.overlay()).mean() < 15
