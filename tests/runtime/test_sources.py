"""The words that name a source, and files, folders, streams and the street read for real."""

from __future__ import annotations

import errno
import http.server
import itertools
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgeseg.data import street
from edgeseg.errors import BadInput
from edgeseg.runtime.sources import Source, SourceBroken, Wanted, open_source, parse, video
from edgeseg.runtime.sources.rendered import StreetSource
from edgeseg.runtime.sources.schedule import Schedule
from edgeseg.runtime.sources.video import VideoSource
from edgeseg.runtime.sources.wanted import masked
from edgeseg.runtime.values import Grab, Unreadable
from tests.runtime.videos import FPS, SIZE, frame, number, write_picture, write_video


def opened(text: str | Path, *, fps: float | None = None, stall_s: float = 5.0) -> Source:
    return open_source(parse(str(text)), fps=fps, stall_s=stall_s, clock=time.perf_counter_ns)


def all_of(source: Source) -> list[Grab | Unreadable]:
    """Everything up to the end; pixels copied."""
    got: list[Grab | Unreadable] = []
    into = np.empty((*SIZE, 3), np.uint8)
    with source:
        while (item := source.read(into)) is not None:
            if isinstance(item, Grab):
                item = Grab(item.pixels.copy(), item.time_ns, item.position, item.name, item.label)
            got.append(item)
    return got


def numbers(got: list[Grab | Unreadable]) -> list[int | None]:
    return [number(item.pixels) if isinstance(item, Grab) else None for item in got]


# words


@pytest.mark.parametrize(
    ("text", "kind", "where", "live"),
    [
        ("0", "camera", "0", True),
        ("/dev/video12", "camera", "/dev/video12", True),
        ("camera:/dev/v4l/by-id/x?fps=10", "camera", "/dev/v4l/by-id/x", True),
        ("rtsp://10.0.0.5/live", "network", "rtsp://10.0.0.5/live", True),
        ("https://x.y/a.m3u8", "network", "https://x.y/a.m3u8", True),
        ("srt://10.0.0.5:9000", "network", "srt://10.0.0.5:9000", True),
        ("gst: videotestsrc ! identity", "gst", "videotestsrc ! identity", True),
        ("csi:1", "csi", "1", True),
        ("drive.mp4", "file", "drive.mp4", False),
        ("d:drive.mp4", "file", "d:drive.mp4", False),  # on a drive of Windows
    ],
)
def test_the_words_of_a_source(text: str, kind: str, where: str, live: bool) -> None:
    wanted = parse(text)
    assert (wanted.kind, wanted.where, wanted.live) == (kind, where, live)


def test_options_of_a_source() -> None:
    assert parse("camera:2?size=1280x720&fps=30&fourcc=MJPG") == Wanted(
        "camera:2?size=1280x720&fps=30&fourcc=MJPG", "camera", "2", (720, 1280), 30.0, "MJPG"
    )
    assert parse("street:64x48@30?seed=3&frames=9") == Wanted(
        "street:64x48@30?seed=3&frames=9", "street", "", (48, 64), 30.0, seed=3, frames=9
    )
    assert parse("street:64x48").fps is None
    assert parse("csi:0?flip=2&fps=29.97").flip == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("gst:", "pipeline is missing"),
        ("rtsp://", "address is missing"),
        ("strret:640x480@15", "no kind of source"),
        ("street:640@15", "WIDTHxHEIGHT"),
        ("street:640x480@0", "frames per second"),
        ("street:640x480@nan", "frames per second"),
        ("street:8x8@15", "at least 16"),
        ("street:640x480@15?frames=0", "frames is a whole number"),
        ("street:64x48?fourcc=MJPG", "'fourcc' is not one of frames, seed"),
        ("camera:0?size=0x720", "WIDTHxHEIGHT"),
        ("camera:0?size=1x2&size=3x4", "twice"),
        ("camera:0?size", "name=value"),
        ("camera:0?fourcc=H264X", "four letters"),
        ("camera:front", "number of the camera"),
        ("csi:0?flip=9", "flip is a whole number from 0 to 7"),
    ],
)
def test_wrong_words_are_told_with_the_forms(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=re.escape(why)) as caught:
        parse(text)
    assert "street:480x360@15" in str(caught.value)


def test_passwords_are_never_shown() -> None:
    for text in (
        "rtsp://me:s3cret@10.0.0.5:554/a?token=s3cret&x=1",
        'gst:rtspsrc location=rtsp://me:s3c@ret@10.0.0.5/a user-id=me user-pw="s3cret s3cret" ! decodebin',
        "https://x.y/a?password=s3cret",
    ):
        shown = parse(text).shown
        assert "s3c" not in shown
        assert "***" in shown
        assert ("me" in shown) == ("me" in text)
    assert masked("rtsp://10.0.0.5/a@b:c") == "rtsp://10.0.0.5/a@b:c"
    with pytest.raises(BadInput) as caught:
        parse("ftp://me:s3cret@host/a")
    assert "s3cret" not in str(caught.value)


# video files


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_video_comes_whole_in_order_and_in_place(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, 40)
    into = np.empty((*SIZE, 3), np.uint8)
    with opened(path) as source:
        assert (source.live, source.fps, source.name) == (False, FPS, str(path))
        before = time.perf_counter_ns()
        for k in range(40):
            got = source.read(into)
            assert isinstance(got, Grab)
            assert got.pixels is into
            assert (number(into), got.position, got.name, got.label) == (k, k, f"{k:06d}", None)
            assert abs(int(into[10, 64, 0]) - 200) < 12  # blue first
            assert before <= got.time_ns <= (before := time.perf_counter_ns())
        assert source.read(into) is None
        assert source.read(into) is None
        assert source.complaint is None


def test_a_buffer_of_another_size_is_left_alone(tmp_path: Path) -> None:
    into = np.zeros((10, 10, 3), np.uint8)
    with opened(write_video(tmp_path / "a.avi", 3)) as source:
        got = source.read(into)
        assert isinstance(got, Grab)
        assert got.pixels.shape == (*SIZE, 3)
        assert not into.any()
        none = source.read(None)
        assert isinstance(none, Grab)
        assert number(none.pixels) == 1


def test_a_video_cut_in_the_middle_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = opened(path)
    got = numbers(all_of(source))
    assert 10 < len(got) < 50
    assert got[:-1] == list(range(len(got) - 1))  # of the last one FFmpeg gives what is there
    assert source.complaint is not None
    assert f"after {len(got)} of 60 frames" in source.complaint


def test_damage_in_the_middle_is_an_unreadable_frame_and_not_the_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 60)
    data = bytearray(path.read_bytes())
    tables = data.find(b"\xff\xc4", len(data) // 2)  # of a picture in the middle
    data[tables + 4 : tables + 24] = b"\xee" * 20
    path.write_bytes(data)
    source = opened(path)
    got = all_of(source)
    lost = [item for item in got if isinstance(item, Unreadable)]
    assert len(got) == 60
    assert [item.position for item in got] == list(range(60))
    assert len(lost) == 1
    assert f"frame {lost[0].position}" in lost[0].why
    assert [n for n in numbers(got) if n is not None] == [k for k in range(60) if k != lost[0].position]
    assert source.complaint is None


class Scripted:
    """A VideoCapture by script, for what no file does on demand: '.' a frame, 'x' none, '?' not to be decoded."""

    def __init__(self, script: str, *, frames: float = 0.0, rate: float = 25.0, at_ms: float = 0.0) -> None:
        import cv2

        self.script, self.now, self.released = iter(script), "", False
        self.values = {cv2.CAP_PROP_FPS: rate, cv2.CAP_PROP_FRAME_COUNT: frames, cv2.CAP_PROP_POS_MSEC: at_ms}

    def get(self, what: int) -> float:
        return self.values[what]

    def grab(self) -> bool:
        self.now = next(self.script, "x")
        return self.now != "x"

    def retrieve(self, into: object) -> tuple[bool, object]:
        import cv2

        if self.now == "!":
            raise cv2.error("no memory")
        shape = (2, 2) if self.now == "g" else (2, 2, 3)
        return self.now != "?", np.zeros(shape, np.uint8)

    def release(self) -> None:
        self.released = True


def scripted(script: str, *, live: bool = False, driver_time: bool = False, now: int = 5, **more: float) -> VideoSource:
    capture = Scripted(script, **more)
    return VideoSource(capture, name="it", live=live, clock=lambda: now, stall_s=5.0, driver_time=driver_time)


def test_what_can_be_grabbed_and_not_decoded_is_unreadable() -> None:
    got = all_of(scripted(".?.!g."))
    assert [type(item).__name__[0] for item in got] == list("GUGUUG")
    assert [item.position for item in got] == list(range(6))
    assert "(2, 2)" in got[4].why  # type: ignore[union-attr]


def test_a_live_source_that_stops_is_broken_and_one_that_stumbles_is_not() -> None:
    source = scripted(".xx.", live=True)
    assert [type(source.read(None)) for _ in range(4)] == [Grab, Unreadable, Unreadable, Grab]
    with pytest.raises(SourceBroken, match="it ended after 4 frames"):
        source.read(None)


def test_rates_that_cannot_be_are_not_believed() -> None:
    assert [scripted("", rate=rate).fps for rate in (0.0, -1.0, math.nan, 90000.0, 29.97)] == [None] * 4 + [29.97]


def test_the_drivers_time_is_used_where_it_is_plausible() -> None:
    def stamp(at_ms: float, now: int) -> int:
        got = scripted(".", live=True, driver_time=True, now=now, at_ms=at_ms).read(None)
        assert isinstance(got, Grab)
        return got.time_ns

    second = 1_000_000_000
    assert stamp(9_980.0, 10 * second) == 9_980_000_000
    assert stamp(0.0, 10 * second) == 10 * second  # not told
    assert stamp(10_001.0, 10 * second) == 10 * second  # in the future: another clock
    assert stamp(math.nan, second) == second


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    for name, data in (("a.mp4", b"hello" * 1000), ("b.mp4", b""), ("c.txt", b"hello")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadInput, match=f"{name} .* is no video or picture"):
            opened(tmp_path / name)
    with pytest.raises(BadInput, match=r"no file or folder .*d\.mp4"):
        opened(tmp_path / "d.mp4")
    cut = write_video(tmp_path / "e.mp4")
    cut.write_bytes(cut.read_bytes()[:-2000])  # an mp4 has its index at the end
    with pytest.raises(BadInput, match="cut off"):
        opened(cut)


def test_a_video_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")

    def refused(*_: object) -> object:  # not chmod: root may read everything
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(type(path), "open", refused)
    with pytest.raises(BadInput, match=r"a\.mp4 cannot be read: Permission denied"):
        opened(path)


def test_a_file_with_a_colon_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "http:x.avi").write_bytes(write_video(tmp_path / "a.avi", 3).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert numbers(all_of(opened("http:x.avi"))) == [0, 1, 2]


def open_now(what: str) -> int:
    """How many handles ("fd") or threads ("task") this process has."""
    return len(list(Path("/proc/self", what).iterdir()))


def test_fifty_openings_leave_no_thread_and_no_handle(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list a process's handles in /proc/self/fd")
    path = write_video(tmp_path / "a.avi", 3)
    all_of(opened(path))  # what OpenCV keeps for ever, it has now
    handles, threads = open_now("fd"), open_now("task")
    for _ in range(50):
        assert len(all_of(opened(path))) == 3
    assert open_now("fd") == handles
    assert open_now("task") <= threads


# folders


def test_a_folder_in_natural_order_with_its_damage_and_its_sizes(tmp_path: Path) -> None:
    write_picture(tmp_path / "f10.png", frame(10))
    write_picture(tmp_path / "f9.png", frame(9))
    write_picture(tmp_path / "f2.bmp", frame(2, (32, 64)))
    whole = write_picture(tmp_path / "f11.jpg", frame(11)).read_bytes()
    (tmp_path / "f12.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "f13.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no picture")
    into = np.empty((*SIZE, 3), np.uint8)
    with opened(tmp_path, fps=5.0) as source:
        assert (source.live, source.fps) == (False, 5.0)
        got = [source.read(into) for _ in range(6)]
        assert source.read(into) is None
    names = [item.name if isinstance(item, Grab) else item.why for item in got if item]
    assert names[:4] == ["f2", "f9", "f10", "f11"]
    assert "f12.jpg is cut short" in names[4]
    assert "f13.png is empty" in names[5]
    small, large = got[0], got[3]
    assert isinstance(small, Grab)
    assert isinstance(large, Grab)
    assert small.pixels.shape == (32, 64, 3)
    assert number(small.pixels) == 2
    assert large.pixels is into
    assert number(into) == 11


def test_two_pictures_that_differ_in_the_suffix_alone_keep_their_names_apart(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        write_picture(tmp_path / name, frame(3))
    with opened(tmp_path) as source:  # their masks would overwrite each other
        assert [got.name for got in all_of(source) if isinstance(got, Grab)] == ["a.jpg", "a.png", "b"]


def test_a_single_picture_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no pictures"):
        opened(tmp_path)
    path = write_picture(tmp_path / "a.png", frame(7))
    assert numbers(all_of(opened(path))) == [7]


# the street


def test_the_street_comes_with_its_truth_at_its_pace() -> None:
    now = itertools.count(0, 1_000_000)  # a clock that every look at it moves by a millisecond
    slept: list[float] = []
    source = StreetSource((32, 48), name="s", fps=20.0, seed=5, frames=4, clock=lambda: next(now), sleep=slept.append)
    into = np.empty((32, 48, 3), np.uint8)
    for k in range(4):
        got = source.read(into)
        assert got is not None
        pixels, label = street.render((32, 48), 5, k)
        assert got.pixels is into
        assert np.array_equal(into, pixels)
        assert got.label is not None
        assert np.array_equal(got.label, label)
    assert source.read(into) is None
    assert len(slept) == 3
    assert all(0 < s <= 0.05 for s in slept)


def test_the_street_by_its_words() -> None:
    got = all_of(opened("street:128x64@200?seed=3&frames=3"))
    assert [item.name for item in got if isinstance(item, Grab)] == ["000000", "000001", "000002"]
    assert [b.time_ns - a.time_ns >= 4_900_000 for a, b in itertools.pairwise(got)] == [True, True]  # type: ignore[union-attr]
    assert [opened("street:64x64", fps=f).fps for f in (None, 9.0)] == [15.0, 9.0]


def test_the_schedule_is_kept_and_never_hurried_after() -> None:
    schedule = Schedule(10.0)
    ms = 1_000_000
    assert schedule.left_ns(0) == 0
    schedule.give(0)
    assert schedule.left_ns(30 * ms) == 70 * ms
    schedule.give(101 * ms)
    assert schedule.left_ns(150 * ms) == 50 * ms  # from the start, not from the last frame: no drift
    schedule.give(290 * ms)  # late, by less than a period
    assert schedule.left_ns(291 * ms) == 9 * ms
    schedule.give(500 * ms)  # late by more: it starts again
    assert schedule.left_ns(500 * ms) == 100 * ms
    schedule.give(600 * ms)
    assert schedule.left_ns(-(10**12)) == 100 * ms  # the clock jumped back: a period and no more
    assert schedule.left_ns(-(10**12) + 60 * ms) == 40 * ms


# cameras and streams


def test_a_camera_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(BadInput, match=r"no /dev/video250 on this machine"):
        opened("250")


class _Files(http.server.SimpleHTTPRequestHandler):
    folder: Path
    limit: int | None = None  # bytes after which the connection dies; a length is then not declared

    def do_GET(self) -> None:
        data = (self.folder / self.path.lstrip("/")).read_bytes()
        self.send_response(200)
        if self.limit is None and not self.path.endswith(".mjpg"):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: self.limit])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path, limit: int | None = None, port: int = 0) -> Iterator[int]:
    handler = type("Handler", (_Files,), {"folder": folder, "limit": limit})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = False  # joined at the end
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def jpegs(path: Path, count: int) -> Path:
    """Motion JPEG as a camera sends it: pictures one behind the other, no length declared."""
    import cv2

    path.write_bytes(b"".join(cv2.imencode(".jpg", frame(k % 256))[1].tobytes() for k in range(count)))
    return path


def test_a_recording_behind_http_is_not_live(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 30)
    with served(tmp_path) as port:
        source = opened(f"http://127.0.0.1:{port}/a.avi")
        assert not source.live
        assert numbers(all_of(source)) == list(range(30))
        assert source.complaint is None


def test_a_live_stream_behind_http_breaks_at_its_end(tmp_path: Path) -> None:
    jpegs(tmp_path / "a.mjpg", 1000)  # FFmpeg looks at some hundred before it opens one
    with served(tmp_path) as port, opened(f"http://me:s3cret@127.0.0.1:{port}/a.mjpg") as source:
        assert source.live
        for k in range(1000):
            got = source.read(None)
            assert isinstance(got, Grab)
            assert number(got.pixels) == k % 256
        with pytest.raises(SourceBroken, match="ended after 1000 frames") as caught:
            source.read(None)
    assert "s3cret" not in str(caught.value)


def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with pytest.raises(SourceBroken, match="does not answer"):
            opened(f"http://127.0.0.1:{taken.getsockname()[1]}/a.mjpg")


def test_a_server_that_says_nothing_is_a_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_OPENING_S", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(SourceBroken, match="does not answer within"):
            opened(f"http://127.0.0.1:{mute.getsockname()[1]}/a.mjpg", stall_s=0.3)
