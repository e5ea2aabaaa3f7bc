"""Sinks that write files: what was written is read back, and what can go wrong is made to."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeseg.data import street
from edgeseg.data.prepare import to_size
from edgeseg.errors import BadInput
from edgeseg.runtime.overlay import Painter
from edgeseg.runtime.sinks import record
from edgeseg.runtime.sinks.base import SinkFailed
from edgeseg.runtime.sinks.lines import JsonLines
from edgeseg.runtime.sinks.masks import MaskFiles, file_name
from edgeseg.runtime.sinks.record import CODECS, Recording, What
from edgeseg.types import Pixels
from tests.runtime.shots import put_until_it_ends, shot_of, shown

cv2 = pytest.importorskip("cv2")
POSIX = pytest.mark.skipif(os.name != "posix", reason="descriptors and signals of POSIX")
GSTREAMER = pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="there is no gst-launch-1.0")


@pytest.fixture
def painter() -> Painter:
    return Painter(street.PALETTE, street.CLASSES)


def frames_of(path: Path) -> list[Pixels]:
    reader = cv2.VideoCapture(str(path))
    frames: list[Pixels] = []
    while True:
        there, frame = reader.read()
        if not there:
            reader.release()
            return frames
        frames.append(frame)


# Recording


def test_a_recording_keeps_the_time_of_what_was_recorded(tmp_path: Path, painter: Painter) -> None:
    """At 25 a second, frames 40 ms apart: 3 and 4 were dropped, and then the source was gone for a minute."""
    sink = Recording(tmp_path / "out.avi", fps=25.0, keep_time=True)
    numbers = [0, 1, 2, 5, 6]
    with sink:
        for number in numbers:
            sink.put(*shown(painter, shot_of(number)))
        late = shot_of(7)
        late.captured_ns += 60 * 10**9
        sink.put(*shown(painter, late))
        after = shot_of(8)
        after.captured_ns += 60 * 10**9
        sink.put(*shown(painter, after))
    held = 2 + 250  # ten seconds of the minute
    assert sink.told()["held"] == held
    assert sink.told()["frames"] == sink.written == len(numbers) + 2 + held
    found = frames_of(tmp_path / "out.avi")
    assert np.array_equal(found[2], found[3])
    assert np.array_equal(found[2], found[4])
    assert not np.array_equal(found[4], found[5])


def test_a_recording_of_a_jittering_camera_loses_no_time(tmp_path: Path, painter: Painter) -> None:
    sink = Recording(tmp_path / "out.avi", fps=25.0, keep_time=True)
    with sink:
        for number in range(60):
            shot = shot_of(number % 9)
            shot.captured_ns = 10**9 + 44_000_000 * number + (number % 3) * 6_000_000  # slower than it says
            sink.put(*shown(painter, shot))
    assert abs(sink.told()["frames"] - 60 * 44 / 40) <= 1


@pytest.mark.parametrize("suffix", CODECS)
def test_a_recording_is_read_back_as_it_was_seen(suffix: str, tmp_path: Path, painter: Painter) -> None:
    path = tmp_path / f"out{suffix}"
    painted = []
    with Recording(path, fps=15.0) as sink:
        for number in range(12):
            assert sink.put(*shown(painter, shot_of(number)))
            painted.append(painter.overlay().copy())
    found = frames_of(path)
    assert len(found) == len(painted) == sink.written == 12
    for frame, overlay in zip(found, painted, strict=True):
        assert np.abs(frame.astype(float) - overlay).mean() < 12  # lossy, and with colours at half the resolution
    apart = np.abs(found[0].astype(float) - painted[11]).mean()
    assert apart > np.abs(found[0].astype(float) - painted[0]).mean()
    reader = cv2.VideoCapture(str(path))
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(15.0, rel=0.01)
    told = sink.told()
    assert (told["frames"], told["written"], told["size"], told["problem"]) == (12, 12, [96, 128], None)
    json.dumps(told)


@pytest.mark.parametrize("what", ["overlay", "mask", "both", "frame"])
def test_what_is_recorded(what: What, tmp_path: Path, painter: Painter) -> None:
    with Recording(tmp_path / "out.avi", fps=25, what=what) as sink:
        shot, view = shown(painter, shot_of())
        sink.put(shot, view)
    wanted = {"overlay": view.overlay(), "mask": view.coloured(), "frame": shot.pixels}
    wanted["both"] = np.hstack([view.overlay(), view.coloured()])
    (found,) = frames_of(tmp_path / "out.avi")
    assert found.shape == wanted[what].shape
    errors = {
        key: np.abs(found.astype(float) - picture).mean()
        for key, picture in wanted.items()
        if picture.shape == found.shape
    }
    assert min(errors, key=errors.__getitem__) == what


def test_odd_sizes_and_sizes_that_change(tmp_path: Path, painter: Painter) -> None:
    path = tmp_path / "out.mp4"
    with Recording(path, fps=25) as sink:
        for number, size in enumerate([(97, 129), (97, 129), (48, 64), (96, 128), (200, 31)]):
            assert sink.put(*shown(painter, shot_of(number, size)))
    found = frames_of(path)
    assert [frame.shape for frame in found] == [(96, 128, 3)] * 5
    assert sink.resized == 2  # 96 x 128 is what is recorded of 97 x 129
    assert np.abs(found[0].astype(float) - found[2]).mean() < 60


def test_shots_of_other_streams_are_ignored(tmp_path: Path, painter: Painter) -> None:
    path = tmp_path / "out.avi"
    with Recording(path, fps=25, stream=1) as sink:
        assert sink.put(*shown(painter, shot_of(0, stream=0)))
    assert not path.exists()
    assert (sink.written, sink.told()["frames"]) == (None, 0)


def test_an_existing_file_is_overwritten(tmp_path: Path, painter: Painter) -> None:
    path = tmp_path / "out.avi"
    for count in (5, 2):
        with Recording(path, fps=25) as sink:
            for number in range(count):
                sink.put(*shown(painter, shot_of(number)))
    assert len(frames_of(path)) == sink.written == 2


def test_a_recording_that_cannot_be_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.mp4, \.mkv, \.avi, \.webm"):
        Recording(tmp_path / "out.gif", fps=25)
    with pytest.raises(BadInput, match="no folder"):
        Recording(tmp_path / "missing" / "out.mp4", fps=25)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        Recording(tmp_path / "folder.mp4", fps=25)
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="frames a second"):
            Recording(tmp_path / "out.mp4", fps=fps)
    with pytest.raises(BadInput, match="cannot be recorded"):
        Recording(tmp_path / "out.mp4", fps=25, what="sound")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == [tmp_path / "folder.mp4"]


@pytest.mark.parametrize("suffix", CODECS)
def test_a_full_disk_leaves_a_file_that_plays(suffix: str, tmp_path: Path, painter: Painter) -> None:
    path = tmp_path / f"out{suffix}"
    left = [100 << 20] * 7 + [1 << 20]  # asked before the file is made, and before each frame
    with Recording(path, fps=25, free=lambda folder: left.pop(0)) as sink:
        with pytest.raises(SinkFailed, match="disk full: 1024 KiB") as failure:
            put_until_it_ends(sink, painter, pause_s=0)
        assert failure.value.exit_code == 2
    assert len(frames_of(path)) == sink.written == 6
    assert "disk full" in sink.told()["problem"]


def test_a_disk_that_is_full_from_the_start(tmp_path: Path, painter: Painter) -> None:
    with (
        Recording(tmp_path / "out.mp4", fps=25, free=lambda folder: 0) as sink,
        pytest.raises(SinkFailed, match="full"),
    ):
        sink.put(*shown(painter, shot_of()))
    assert not list(tmp_path.iterdir())


def test_a_file_that_goes_away_or_does_not_grow_is_noticed(
    tmp_path: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_LOOK", 2)
    monkeypatch.setattr(record, "_NO_GROWTH", 6)
    with Recording(tmp_path / "a.mp4", fps=25) as sink, pytest.raises(SinkFailed, match="not grown"):
        put_until_it_ends(sink, painter, pause_s=0)  # 6 frames are fewer bytes than the writer holds back
    with Recording(tmp_path / "b.avi", fps=25) as sink:
        sink.put(*shown(painter, shot_of()))
        (tmp_path / "b.avi").unlink()
        with pytest.raises(SinkFailed, match="gone"):
            put_until_it_ends(sink, painter, pause_s=0)
    assert "gone" in sink.told()["problem"]


def test_a_file_that_lost_frames_is_told(tmp_path: Path, painter: Painter) -> None:
    sink = Recording(tmp_path / "out.avi", fps=25)
    for number in range(3):
        sink.put(*shown(painter, shot_of(number)))
    sink._put += 2  # as if two writes had failed without a word
    sink.close()
    assert sink.told()["problem"] == "the file has 3 of 5 frames"


# Masks


def test_masks_are_written_bit_for_bit(tmp_path: Path, painter: Painter) -> None:
    folder = tmp_path / "a" / "b"
    with MaskFiles(folder) as sink:
        for number in range(3):
            assert sink.put(*shown(painter, shot_of(number)))
            stored = cv2.imread(str(folder / f"{number:06d}.png"), cv2.IMREAD_UNCHANGED)
            assert stored.dtype == np.uint8
            assert np.array_equal(stored, to_size(shot_of(number).mask, (96, 128)))
        assert sink.put(*shown(painter, shot_of(9, stream=1)))
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    assert sink.told()["written"] == 3


def test_every_class_survives(tmp_path: Path, painter: Painter) -> None:
    shot = shot_of()
    shot.mask[:] = np.resize(np.arange(256), shot.mask.shape).astype(np.uint8)
    shot.pixels = np.zeros((48, 64, 3), np.uint8)
    with MaskFiles(tmp_path) as sink:
        sink.put(*shown(painter, shot))
    assert np.array_equal(cv2.imread(str(tmp_path / "000000.png"), cv2.IMREAD_UNCHANGED), shot.mask)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("left/0001", "left_0001"),
        ("..", ""),
        ("", ""),
        ("a:b*c\0d", "a_b_c_d"),
        ("straße 语义 (2).v1", "straße 语义 (2).v1"),
        (".hidden", "hidden"),
    ],
)
def test_names_stay_in_the_folder(name: str, file: str, tmp_path: Path, painter: Painter) -> None:
    assert file_name(name) == file
    shot, view = shown(painter, shot_of(5))
    shot.name = name
    with MaskFiles(tmp_path / "out") as sink:
        sink.put(shot, view)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")] == [
        f"out/{file or '000005'}.png"
    ]


def test_long_names_are_cut(tmp_path: Path, painter: Painter) -> None:
    shot, view = shown(painter, shot_of())
    shot.name = "语" * 200
    with MaskFiles(tmp_path) as sink:
        sink.put(shot, view)
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_a_mask_that_cannot_be_written_is_named(
    tmp_path: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with MaskFiles(tmp_path) as sink:
        sink.put(*shown(painter, shot_of(0)))
        before = (tmp_path / "000000.png").read_bytes()
        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(SinkFailed, match=r"000000\.png cannot be written \(No space left on device\); 1 mask"):
            sink.put(*shown(painter, shot_of(0)))
    assert [path.name for path in tmp_path.iterdir()] == ["000000.png"]  # nothing half is left
    assert (tmp_path / "000000.png").read_bytes() == before


def test_a_folder_that_goes_away_or_cannot_be_made(tmp_path: Path, painter: Painter) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for taken in (tmp_path / "file" / "masks", tmp_path / "file"):
        with pytest.raises(BadInput, match=r"cannot write masks to .*: a file is in its place; name a folder"):
            MaskFiles(taken)
    with MaskFiles(tmp_path / "masks") as sink:
        (tmp_path / "masks").rmdir()
        with pytest.raises(SinkFailed, match="cannot be written"):
            sink.put(*shown(painter, shot_of()))


# JSON lines


def test_lines_say_what_each_frame_was(tmp_path: Path, painter: Painter) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old\n", encoding="utf-8")
    wall = 1_767_225_600_000_000_000  # 2026-01-01
    with JsonLines(path, names=street.CLASSES, clock=lambda: 3_000_000_000, wall=lambda: wall) as sink:
        for number in range(3):
            assert sink.put(*shown(painter, shot_of(number, stream=number % 2)))
            assert path.read_text(encoding="utf-8").count("\n") == number + 1  # at once
    first, second, _ = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert (first["stream"], first["index"], first["name"]) == (0, 0, "000000")
    assert (first["t"], second["t"], second["stream"]) == (0.0, 0.04, 1)
    assert first["time"] == "2025-12-31T23:59:58.000Z"  # captured 2 s ago
    assert first["ms"] == {"capture": 1.0, "prepare": 0.5, "infer": 2.5}
    assert first["age_ms"] == 7.0
    shares = {name: share for name, share in zip(street.CLASSES, shot_of().shares, strict=True) if share > 0}
    assert first["shares"] == pytest.approx(shares, abs=1e-6)
    assert sink.told() == {"path": str(path), "lines": 3}


def test_classes_without_a_name_and_names_of_every_kind(tmp_path: Path, painter: Painter) -> None:
    shot, view = shown(painter, shot_of())
    shot.shares, shot.name = (0.5, 0.0, 0.5), 'a"b\nc ß'
    with JsonLines(tmp_path / "l", names=["straße"]) as sink:
        sink.put(shot, view)
    entry = json.loads((tmp_path / "l").read_text(encoding="utf-8"))
    assert (entry["shares"], entry["name"]) == ({"straße": 0.5, "class 2": 0.5}, 'a"b\nc ß')


@POSIX
def test_a_reader_that_goes_away_ends_the_stream(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with JsonLines("-", names=street.CLASSES) as sink:
            shot, view = shown(painter, shot_of())
            assert sink.put(shot, view)
            assert json.loads(os.read(read, 65_536))["index"] == 0
            os.close(read)
            assert not sink.put(shot, view)
            assert not sink.put(shot, view)
        monkeypatch.undo()
    assert sink.told() == {"path": "-", "lines": 1}


@POSIX
def test_a_program_that_only_wants_the_head_gets_no_trace() -> None:
    """In a process of its own: nothing is left in a buffer that the interpreter would complain about at its exit."""
    code = (
        "from tests.runtime.test_sinks import *\n"
        "p = Painter(street.PALETTE, street.CLASSES)\n"
        "with JsonLines('-', names=street.CLASSES) as sink:\n"
        "    while sink.put(*shown(p, shot_of())): pass\n"
    )
    head = f'"{sys.executable}" -c "$CODE" | head -n 1'
    done = subprocess.run(
        ["sh", "-c", head],
        env={**os.environ, "CODE": code, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert json.loads(done.stdout)["index"] == 0
    assert done.stderr == ""


def test_a_stdout_that_is_no_file(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    with JsonLines("-", names=street.CLASSES) as sink:
        assert sink.put(*shown(painter, shot_of()))
    monkeypatch.undo()
    assert json.loads(text.getvalue())["name"] == "000000"


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLines(path, names=street.CLASSES)
    shot, view = shown(painter, shot_of())
    sink.put(shot, view)

    class Filling(io.FileIO):
        """A file on a disk that has room for ten more bytes."""

        room = 10

        def write(self, data: bytes, /) -> int:  # type: ignore[override]
            if not self.room:
                raise OSError(28, "No space left on device")
            self.room = 0
            return super().write(data[:10])

    sink._file.close()
    sink._file = Filling(path, "ab")
    with sink, pytest.raises(SinkFailed, match="after 1 lines: No space left"):
        sink.put(shot, view)
    assert json.loads(path.read_text(encoding="utf-8"))["index"] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_device(painter: Painter) -> None:
    with JsonLines("/dev/full", names=street.CLASSES) as sink, pytest.raises(SinkFailed, match="No space left"):
        sink.put(*shown(painter, shot_of()))


def test_lines_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot write"):
        JsonLines(tmp_path, names=())
    with pytest.raises(BadInput, match=r"there is no folder .*nothere; make it first"):
        JsonLines(tmp_path / "nothere" / "a.jsonl", names=())
