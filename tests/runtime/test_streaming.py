"""The whole of `edgeseg stream` on a built bundle: real files, the rendered street, real sinks, many faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.request
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper

import edgeseg
from edgeseg.backends import onnxruntime
from edgeseg.backends.base import Session
from edgeseg.bundle import FP32, Bundle, Variant, write_bundle
from edgeseg.cli import main
from edgeseg.console import Console
from edgeseg.data.street import CLASSES, render
from edgeseg.errors import BadInput
from edgeseg.export import fuse
from edgeseg.measure.timeline import Timeline
from edgeseg.runtime.capture import Retry
from edgeseg.runtime.options import Options
from edgeseg.runtime.sinks.base import SinkFailed
from edgeseg.runtime.sources.base import Source, SourceBroken
from edgeseg.runtime.sources.wanted import Wanted
from edgeseg.runtime.streaming import _signals, run
from edgeseg.runtime.tally import Tally
from edgeseg.runtime.values import STAGES, Grab, Shot, Unreadable
from edgeseg.types import InputSpec, ModelSpec, OutputSpec, Pixels
from tests.export.making import graph_of
from tests.runtime.scripted import Engine, picture

SIZE = (60, 80)


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    """No thread and no file handle is left behind."""
    _handles()  # what importing opens is no leak
    threads, handles = set(threading.enumerate()), _handles()
    yield
    assert set(threading.enumerate()) == threads
    left = {path: target for path, target in _handles().items() if target not in handles.values()}
    assert not {
        target for target in left.values() if target.startswith(("/", "socket", "pipe")) and "/dev" not in target
    }


def _handles() -> dict[str, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except OSError:
            continue  # the one that listed the folder
    return found


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of rendered frames and, beside it, one with their labels, and a data set of both."""
    root = tmp_path_factory.mktemp("frames")
    for name in ("images", "labels"):
        (root / name).mkdir()
    for index in range(12):
        pixels, mask = render(SIZE, 101, 5 * index)
        cv2.imwrite(str(root / "images" / f"s_{index:03d}.png"), pixels)
        cv2.imwrite(str(root / "labels" / f"s_{index:03d}.png"), mask)
    names = ", ".join(f'"{name}"' for name in CLASSES)
    (root / "dataset.toml").write_text(
        f'name = "frames"\nclasses = [{names}]\nignore_index = 255\n'
        '[splits.val]\nimages = "images"\nlabels = "labels"\n',
        encoding="utf-8",
    )
    return root


def accounted(document: dict[str, Any]) -> bool:
    frames = document["frames"]
    own = all(s["captured"] == s["processed"] + s["dropped"] + s["failed"] for s in document["sources"])
    return own and frames["captured"] == frames["processed"] + frames["dropped"] + frames["failed"]


def test_a_labelled_folder_scores_as_eval_does(built: Path, frames: Path) -> None:
    document = edgeseg.stream(built, str(frames / "images"), labels=frames / "labels", agreement=0)
    expected = edgeseg.evaluate(built, frames / "dataset.toml", split="val")
    assert document["frames"] == {"captured": 12, "processed": 12, "dropped": 0, "failed": 0}
    assert document["miou"] == expected["miou"]
    assert document["iou"] == expected["iou"]
    assert document["labels"]["frames"] == 12
    assert document["policy"] == "every"
    assert document["ended"] == "the sources ended"
    assert document["latency_ms"]["count"] == 12
    assert document["latency_ms"]["p50"] > 0
    assert document["latency_ms"]["p90"] is None
    assert "64" in document["latency_ms"]["reasons"]["p90"]
    assert document["deadline"]["of"] == 0  # what is taken as fast as it goes has no clock
    assert document["timed"] is False
    assert document["streaming_miou"] is None
    assert document["timeline"][0]["machine"]["rss_mb"] > 10


def test_the_masks_are_those_of_the_bundle_opened_by_hand(built: Path, frames: Path, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def keep(shot: Shot, view: Any) -> None:
        seen[shot.name] = view.mask().copy()

    edgeseg.stream(built, str(frames / "images"), masks=tmp_path / "masks", on_frame=keep, agreement=0)
    with edgeseg.open(built) as segment:
        for path in sorted((frames / "images").iterdir()):
            expected = segment(np.asarray(cv2.imread(str(path)), np.uint8))
            np.testing.assert_array_equal(seen[path.stem], expected)
            written = cv2.imread(str(tmp_path / "masks" / path.name), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(written, expected)


def test_the_street_brings_its_truth(built: Path) -> None:
    document = edgeseg.stream(built, "street:80x60@200?frames=20", policy="every", agreement=1.0)
    assert document["frames"]["processed"] == 20
    assert document["labels"]["frames"] == 20
    assert document["labels"]["streaming_frames"] + document["labels"]["before_first"] == 20
    assert 0 < document["miou"] <= 1
    assert document["watch"]["asked"] == 20
    assert 0 < document["quality"]["agreement"] <= 1
    assert abs(sum(document["class_shares"].values()) - 1) < 1e-9
    assert document["quality"]["flicker"] is not None


def test_the_truth_of_other_classes_is_no_truth(monkeypatch: Any) -> None:
    document = whole(
        Engine(),
        lambda wanted: Rough(40, time.perf_counter_ns),
        Options(agreement=0, frames=20),
        wanted=Wanted("street", "street", ""),
        monkeypatch=monkeypatch,
    )
    assert document["miou"] is None
    assert document["labels"] is None
    assert "the street's classes are not the model's" in document["warnings"][0]


def test_the_float_engine_agrees_with_itself(built: Path, frames: Path) -> None:
    document = edgeseg.stream(
        built, str(frames / "images"), variant="onnxruntime-fp32", agreement=1.0, fps=20, policy="every"
    )
    assert document["watch"]["frames"] >= 1
    assert document["quality"]["agreement"] > 0.999


def test_a_video_at_the_cameras_pace(built: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 50.0, (80, 60))
    for index in range(30):
        writer.write(render(SIZE, 3, index)[0])
    writer.release()
    start = time.perf_counter()
    document = edgeseg.stream(
        built, str(film), policy="latest", record=tmp_path / "out.avi", lines=str(tmp_path / "l.jsonl"), agreement=0
    )
    assert time.perf_counter() - start > 29 / 50  # the file's own rate, though nobody asked for it
    assert document["frames"]["captured"] == 30
    assert accounted(document)
    assert document["deadline"]["ms"] == 20
    assert document["deadline"]["of"] == 30
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == document["frames"]["processed"]
    assert [line["index"] for line in lines] == sorted(line["index"] for line in lines)
    recorded = cv2.VideoCapture(str(tmp_path / "out.avi"))
    assert recorded.isOpened()
    assert recorded.read()[0]
    recorded.release()
    assert {sink["name"].split()[0] for sink in document["sinks"]} == {"recording", "JSON"}


def test_the_page_and_the_metrics_tell_how_it_goes(built: Path) -> None:
    pytest.importorskip("aiohttp", reason="the extra 'serve' is not installed")
    console = Telling()
    states: list[dict[str, Any]] = []
    metrics: list[str] = []

    def look(shot: Shot, view: Any) -> None:
        if shot.index in (5, 60):
            with urllib.request.urlopen(f"{console.address}/state.json", timeout=20) as answer:
                states.append(json.load(answer))
            with urllib.request.urlopen(f"{console.address}/metrics", timeout=20) as answer:
                metrics.append(answer.read().decode())

    document = edgeseg.stream(
        built,
        "street:80x60@100?frames=80",
        policy="every",
        serve="127.0.0.1:0",
        agreement=0.2,
        on_frame=look,
        console=console,
    )
    early, late = states
    assert early["schema"] == "edgeseg.stream.live/1"
    assert 5 <= early["frames"]["processed"] < late["frames"]["processed"] < 80
    assert early["ended"] is False
    assert late["stages_ms"]["age"]["p50"] > 0
    assert late["classes"] == list(CLASSES)
    assert abs(sum(late["shares"].values()) - 1) < 1e-6
    assert late["quality"]["miou"] is not None
    assert late["sources"][0]["state"] == "live"
    assert late["calibration_shares"] is not None
    processed = f'outcome="processed",source="{document["sources"][0]["name"]}",stream="0"'
    assert f"edgeseg_frames_total{{{processed}}} {float(late['frames']['processed'])}" in metrics[1]


class Telling(Console):
    """A console that remembers the address of the page."""

    address = ""

    def say(self, text: str) -> None:
        if text.startswith("serving"):
            self.address = text.split()[1].rstrip("/")


def test_no_memory_of_a_frames_size_is_allocated_once_warm(built: Path, tmp_path: Path) -> None:
    """From a file to its painted frame and a recording of it, with everything measured on the way."""
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 50.0, (640, 480))
    for index in range(8):
        writer.write(np.full((480, 640, 3), 20 * index, np.uint8))
    writer.release()
    peaks: list[int] = []

    def look(shot: Shot, view: Any) -> None:
        if shot.index == 40:
            tracemalloc.start()
        if shot.index == 79:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    edgeseg.stream(
        built, str(film), loop=True, frames=80, record=tmp_path / "out.avi", agreement=0, policy="every", on_frame=look
    )
    assert peaks[0] < 480 * 640  # less than one class map of the frame's size


def test_several_sources_share_an_engine(built: Path, frames: Path, tmp_path: Path) -> None:
    document = edgeseg.stream(
        built,
        [str(frames / "images"), "street:80x60@100?frames=7"],
        policy="every",
        masks=tmp_path / "m",
        record=tmp_path / "r.avi",
        agreement=0,
    )
    assert [source["processed"] for source in document["sources"]] == [12, 7]
    assert document["labels"]["frames"] == 7  # the street knows its truth
    assert len(list((tmp_path / "m" / "0").iterdir())) == 12
    assert len(list((tmp_path / "m" / "1").iterdir())) == 7
    assert (tmp_path / "r-0.avi").is_file()
    assert (tmp_path / "r-1.avi").is_file()


def test_a_dynamic_engine_takes_the_frames_of_several_sources_at_once(
    frames: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    weights = {"w": np.random.default_rng(7).standard_normal((4, 3, 3, 3), dtype=np.float32)}
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    spec = ModelSpec("dynamic", InputSpec((24, 32)), OutputSpec(classes=("a", "b", "c", "d")))
    model = fuse(graph_of([conv], weights=weights), spec, dynamic=True)
    variant = Variant("onnxruntime-fp32", "onnxruntime", "fp32", (FP32,))
    path = write_bundle(Bundle(spec, (variant,), variant.name, {FP32: model.graph}), tmp_path / "d.edgeseg")
    sizes: list[int] = []
    plain = onnxruntime._Session.run

    def counted(self: Any, batch: Any, out: Any = None) -> Any:
        sizes.append(len(batch))
        time.sleep(0.005)  # so that the others' next frames are there when it looks for them
        return plain(self, batch, out)

    monkeypatch.setattr(onnxruntime._Session, "run", counted)
    seen: dict[str, Any] = {}

    def keep(shot: Shot, view: Any) -> None:
        seen[f"{shot.stream}/{shot.name}"] = shot.mask.copy()

    document = edgeseg.stream(path, [str(frames / "images")] * 3, on_frame=keep, agreement=1.0)
    assert document["frames"]["processed"] == 36
    assert max(sizes) == 3
    with edgeseg.open(path, check=False) as segment:
        for picture_path in (frames / "images").iterdir():
            expected = segment.native(np.asarray(cv2.imread(str(picture_path)), np.uint8))
            for stream in range(3):
                np.testing.assert_array_equal(seen[f"{stream}/{picture_path.stem}"], expected)


def test_signal_handlers_are_put_back(built: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    edgeseg.stream(built, "street:80x60@200?frames=2", agreement=0)
    assert [signal.getsignal(number) for number in numbers] == before


def test_ends_when_told(built: Path) -> None:
    assert edgeseg.stream(built, "street:80x60@200", frames=5, agreement=0)["ended"] == "after 5 frames"
    assert edgeseg.stream(built, "street:80x60@200", seconds=0.3, agreement=0)["ended"] == "after 0.3 s"
    document = edgeseg.stream(built, "street:80x60@200", on_frame=lambda shot, view: shot.index < 3, agreement=0)
    assert document["ended"] == "on_frame said so"
    stop = threading.Event()
    document = edgeseg.stream(built, "street:80x60@200", on_frame=lambda shot, view: stop.set(), stop=stop, agreement=0)
    assert document["ended"] == "stopped"
    assert document["failure"] is None
    assert accounted(document)


def test_why_it_ended_where_a_source_is_out_of_order_or_short(monkeypatch: Any) -> None:
    def dead(wanted: Wanted) -> Source:
        raise SourceBroken("nobody answers")

    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    document = whole(Engine(), dead, Options(agreement=0), stop=stop, first_s=60.0, monkeypatch=monkeypatch)
    assert document["ended"] == "stopped"

    left = iter([3, 60])

    def short(wanted: Wanted) -> Source:
        source = Rough(next(left), time.perf_counter_ns)
        read = source.read
        source.live = False
        source.read = lambda into: read(into) if source._left else None  # type: ignore[method-assign]
        return source

    document = whole(Engine(), short, Options(agreement=0, frames=9), streams=2, monkeypatch=monkeypatch)
    assert [source["captured"] for source in document["sources"]] == [3, 9]
    assert document["ended"] == "after 9 frames"


def test_no_time_limit_at_all_is_none(built: Path, monkeypatch: Any) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    assert edgeseg.stream(built, "street:80x60@200?frames=3", seconds=float("inf"), agreement=0)["frames"]["captured"]
    assert not raised


def test_the_first_signal_breaks_nothing_off_that_is_being_finished() -> None:
    stop = threading.Event()
    with _signals(stop):
        stop.set()  # the sources ended
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = threading.Event()
        with _signals(stop):
            signal.raise_signal(signal.SIGHUP)
        assert not stop.is_set()  # as nohup wants it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with _signals(stop):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
        assert stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_sink_that_cannot_be_closed_does_not_take_the_document_with_it(
    built: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from edgeseg.runtime.sinks import masks

    def close(self: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(masks.MaskFiles, "close", close)
    document = edgeseg.stream(built, "street:80x60@200?frames=3", masks=tmp_path, agreement=0, policy="every")
    assert document["failure"] == {"message": "no space left on device", "exit_code": 2}
    assert document["frames"]["processed"] == 3


def test_frames_without_a_deadline_have_not_missed_it() -> None:
    rates: list[int | None] = [None]
    shot, late = (Shot(0, np.zeros((1, 2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), index=k) for k in range(2))
    late.ready_ns = 11
    tally = Tally(1, Timeline((*STAGES, "age")), lambda: 0, lambda stream: rates[0])
    tally.dropped(shot)
    assert tally.deadline() == {"ms": None, "missed": 0, "of": 0}
    rates[0] = 10
    for one in (shot, late):
        tally.processed(one, 0)
    tally.failed(shot, "broken")
    rates[0] = None  # opened again, the camera tells none
    tally.failed(shot, "broken")
    assert tally.deadline() == {"ms": 1e-5, "missed": 2, "of": 3}


def test_what_on_frame_raises_is_passed_on(built: Path) -> None:
    def wrong(shot: Shot, view: Any) -> None:
        raise ZeroDivisionError("the user's own")

    with pytest.raises(ZeroDivisionError, match="own"):
        edgeseg.stream(built, "street:80x60@200", on_frame=wrong, agreement=0)


def test_a_disk_that_fills_up_ends_it_with_a_document(built: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from edgeseg.runtime.sinks import masks

    wrote = 0

    class Full(masks.MaskFiles):
        def put(self, shot: Shot, view: Any) -> bool:
            nonlocal wrote
            wrote += 1
            if wrote > 4:
                raise SinkFailed("disk full: make room")
            return super().put(shot, view)

    monkeypatch.setattr("edgeseg.runtime.outputs.MaskFiles", Full)
    document = edgeseg.stream(
        built, "street:80x60@200", masks=tmp_path / "m", record=tmp_path / "r.avi", agreement=0, policy="every"
    )
    assert document["failure"] == {"message": "disk full: make room", "exit_code": 2}
    assert document["ended"] == "a failure"
    assert document["frames"]["processed"] == 4
    assert accounted(document)
    recorded = cv2.VideoCapture(str(tmp_path / "r.avi"))
    assert int(recorded.get(cv2.CAP_PROP_FRAME_COUNT)) >= 4
    recorded.release()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"policy": "newest"}, "latest"),
        ({"fps": 0}, "fps"),
        ({"agreement": 2}, "agreement"),
        ({"record": Path("x.gif")}, "x.gif"),
        ({"serve": "nowhere at all"}, "nowhere"),
        ({"token": "t"}, "serve"),
    ],
)
def test_bad_words_are_told_before_anything_runs(built: Path, words: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        edgeseg.stream(built, "street:80x60@200?frames=2", **words)


def test_a_recording_is_not_written_over_its_source(built: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 50.0, (80, 60))
    writer.write(render(SIZE, 3, 0)[0])
    writer.release()
    before = film.read_bytes()
    (tmp_path / "link.avi").symlink_to(film)
    for path in (film, tmp_path / "link.avi"):
        with pytest.raises(BadInput, match="it is the source"):
            edgeseg.stream(built, str(film), record=path, agreement=0)
    assert film.read_bytes() == before
    with pytest.raises(BadInput, match="start a stream for each"):
        edgeseg.stream(built, [str(film), str(film)], send="udp://127.0.0.1:9", agreement=0)


def test_masks_are_not_written_over_pictures_or_labels(built: Path, frames: Path) -> None:
    before = [path.read_bytes() for path in sorted(frames.glob("*/*.png"))]
    for folder in (frames / "images", frames / "labels" / ".." / "labels"):
        with pytest.raises(BadInput, match="Name another folder"):
            edgeseg.stream(built, str(frames / "images"), labels=frames / "labels", masks=folder, agreement=0)
    assert [path.read_bytes() for path in sorted(frames.glob("*/*.png"))] == before


def test_a_damaged_picture_is_not_taken_for_a_frame_of_a_video(built: Path, frames: Path, tmp_path: Path) -> None:
    """It has a file's name, so the number that labels end in, here that of two, says nothing about it."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for index in range(6):
            data = (frames / kind / f"s_{index:03d}.png").read_bytes()
            (tmp_path / kind / f"{'ab'[index // 3]}_{index % 3}.png").write_bytes(data)
    (tmp_path / "images" / "a_1.png").write_bytes(b"no picture")
    document = edgeseg.stream(built, str(tmp_path / "images"), labels=str(tmp_path / "labels"), agreement=0)
    assert document["failure"] is None
    assert document["frames"] == {"captured": 6, "processed": 5, "dropped": 0, "failed": 1}
    assert document["labels"]["frames"] == 5


def test_a_source_that_is_not_there(built: Path) -> None:
    with pytest.raises(BadInput, match="no file or folder"):
        edgeseg.stream(built, "nowhere.mp4")
    with pytest.raises(BadInput, match="needs a source"):
        edgeseg.stream(built, [])


def test_the_command_prints_and_writes(built: Path, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    words = ["stream", str(built), "--source", str(frames / "images"), "--labels", str(frames / "labels")]
    result = CliRunner().invoke(main, [*words, "--json", str(out), "--agreement", "0", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "12 captured = 12 processed + 0 dropped + 0 failed" in result.output
    assert "mIoU of the processed frames" in result.output
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["schema"] == "edgeseg.stream/1"
    assert set(document["frames"]) == {"captured", "processed", "dropped", "failed"}
    page = tmp_path / "r.html"
    reported = CliRunner().invoke(main, ["report", str(out), "-o", str(page)])
    assert reported.exit_code == 0, reported.output
    assert "camera to mask" in page.read_text(encoding="utf-8")


def test_lines_on_stdout_are_nothing_but_lines(built: Path, frames: Path) -> None:
    words = ["stream", str(built), "--source", str(frames / "images"), "--lines", "-", "--agreement", "0"]
    done = subprocess.run([sys.executable, "-m", "edgeseg", *words], capture_output=True, text=True, check=True)
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == list(range(12))
    assert "12 captured" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(built: Path, tmp_path: Path, number: signal.Signals) -> None:
    out, film, lines = tmp_path / "s.json", tmp_path / "film.mp4", tmp_path / "l.jsonl"
    words = ["stream", str(built), "--source", "street:80x60@50", "--record", str(film), "--json", str(out)]
    child = subprocess.Popen(
        [sys.executable, "-m", "edgeseg", *words, "--lines", str(lines), "--quiet"], stdout=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if lines.is_file() and len(lines.read_bytes().splitlines()) > 5:
            break
        time.sleep(0.05)
    child.send_signal(number)
    printed, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["ended"] == "stopped"
    assert accounted(document)
    assert document["frames"]["processed"] > 5
    assert f"{document['frames']['captured']} captured" in printed
    recorded = cv2.VideoCapture(str(film))
    assert recorded.read()[0]
    recorded.release()


class Rough(Source):
    """A live source of numbered frames that dies every `life` frames, cuts frames short and changes their size."""

    name, live, fps = "rough", True, 500.0
    opened = 0
    position = 0

    def __init__(self, life: int, clock: Any) -> None:
        Rough.opened += 1
        self._left, self._clock = life, clock

    def read(self, into: Pixels | None) -> Grab | Unreadable | None:
        if self._left == 0:
            raise SourceBroken("the camera died")
        self._left -= 1
        position = Rough.position = Rough.position + 1
        if position % 97 == 0:
            return Unreadable(position, "cut short")
        time.sleep(0.0005)
        pixels = picture(position, (24, 32) if position % 100 < 50 else (36, 40))
        return Grab(pixels, self._clock(), position, f"{position:06d}")

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("policy", ["latest", "every"])
def test_faults_of_every_kind_and_no_frame_unaccounted(policy: str, tmp_path: Path, monkeypatch: Any) -> None:
    """The source dies 50 times, frames are cut or change size, the engine raises, a sink hangs, the clock jumps."""
    Rough.opened = Rough.position = 0
    jumps = [0]

    def clock() -> int:
        now = time.perf_counter_ns()
        if now % 997 == 0:
            jumps[0] += 1
        return now + (10**12 if jumps[0] % 2 else 0)

    def engine(call: int) -> None:
        if call % 100 == 99:
            raise RuntimeError("once in a while")

    hung = False

    def sink(shot: Shot, view: Any) -> None:
        nonlocal hung
        view.overlay()
        if shot.index > 1000 and not hung:
            hung = True
            time.sleep(2.0)

    document = whole(
        Engine(engine),
        lambda wanted: Rough(60, clock),
        Options(policy=policy, agreement=0, retries=5, frames=51 * 60, record=tmp_path / "r.avi"),
        on_frame=sink,
        clock=clock,
        monkeypatch=monkeypatch,
    )
    assert document["failure"] is None
    assert Rough.opened == 51
    assert document["sources"][0]["outages"] == 50
    assert document["frames"]["captured"] == 51 * 60
    assert accounted(document)
    assert document["failures"]["cut short"] == 51 * 60 // 97
    assert document["failures"]["the engine failed: once in a while"] >= 5
    assert hung
    assert (document["frames"]["dropped"] > 0) == (policy == "latest")
    assert document["sources"][0]["size_changes"] >= 50
    json.dumps(document, allow_nan=False)


def whole(
    session: Session,
    opener: Any,
    options: Options,
    *,
    on_frame: Any = None,
    clock: Any = time.perf_counter_ns,
    wanted: Wanted = Wanted("rough", "network", ""),  # noqa: B008 - frozen
    streams: int = 1,
    stop: threading.Event | None = None,
    first_s: float = 0.0,  # nobody waits here for a source
    console: Console | None = None,
    retry_s: float = 0.0,
    monkeypatch: Any,
) -> dict[str, Any]:
    """The whole stream around an engine and a source of the test's own."""
    monkeypatch.setattr("edgeseg.runtime.streaming.Retry", partial(Retry, first_s=first_s))
    spec = ModelSpec("rough", InputSpec((24, 32)), OutputSpec(classes=tuple(f"c{k}" for k in range(256))))
    variant = Variant("rough", "onnxruntime", "fp32", ("none",))
    bundle = Bundle(spec, (variant,), "rough", {"none": b""})
    with ExitStack() as stack:
        return run(
            bundle,
            variant,
            session,
            [wanted] * streams,
            options,
            stack,
            on_frame=on_frame,
            stop=stop or threading.Event(),
            console=console or Console(),
            clock=clock,
            opener=opener,
        )


def test_an_engine_that_is_gone_ends_it_with_a_document(monkeypatch: Any) -> None:
    def engine(call: int) -> None:
        raise RuntimeError("gone")

    document = whole(
        Engine(engine), lambda wanted: Rough(10**9, time.perf_counter_ns), Options(agreement=0), monkeypatch=monkeypatch
    )
    assert document["failure"]["exit_code"] == 2
    assert "100 times in a row" in document["failure"]["message"]
    assert document["latency_ms"]["p50"] is None
    assert accounted(document)


def test_a_source_that_never_comes_back_ends_it_with_a_document(monkeypatch: Any) -> None:
    def opener(wanted: Wanted) -> Source:
        raise SourceBroken("nobody answers")

    document = whole(Engine(), opener, Options(agreement=0, retries=1, stall_s=0.5), monkeypatch=monkeypatch)
    assert "nobody answers" in document["failure"]["message"]
    assert document["frames"]["captured"] == 0


def test_nothing_processed_is_nothing_measured(built: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "s.json"
    words = ["stream", str(built), "--source", str(tmp_path / "broken.png"), "--json", str(out), "--agreement", "0"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 4
    assert "no frame was processed, so nothing was measured: " in result.output
    assert "broken.png" in result.output
    assert json.loads(out.read_text(encoding="utf-8"))["frames"]["failed"] == 1


def test_labels_that_cannot_be_compared_are_told(built: Path, frames: Path, tmp_path: Path) -> None:
    for path in (frames / "labels").iterdir():
        cv2.imwrite(str(tmp_path / path.name), np.full(SIZE, 77, np.uint8))
    document = edgeseg.stream(built, str(frames / "images"), labels=tmp_path, agreement=0)
    assert document["miou"] is None
    assert "12 labels could not be compared, such as: " in document["warnings"][0]
    assert "77" in document["warnings"][0]


def test_an_outage_is_told_while_it_lasts(monkeypatch: Any) -> None:
    class Hears(Console):
        heard = ""

        def say(self, text: str) -> None:
            self.heard += text

    console = Hears()

    def opener(wanted: Wanted) -> Source:
        if "nobody answers" in console.heard:
            return Rough(3, time.perf_counter_ns)
        raise SourceBroken("nobody answers")

    document = whole(
        Engine(), opener, Options(agreement=0, frames=2), console=console, retry_s=0.2, monkeypatch=monkeypatch
    )
    assert console.heard.count("nobody answers") == 1
    assert document["sources"][0]["outages"] == 1
    assert document["frames"]["captured"] == 2


def test_the_environment_has_no_say_where_nobody_serves(built: Path, frames: Path) -> None:
    words = ["stream", str(built), "--source", str(frames / "images"), "--agreement", "0", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "edgeseg", *words],
        env={**os.environ, "EDGESEG_TOKEN": "secret"},
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0
