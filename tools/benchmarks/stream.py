"""How much of an engine's speed a stream keeps: the whole of `edgeseg stream` beside the engine's bare loop.

Every way runs the same frames of the same file, for several rounds in turns. Throughput is frames a second between the
first mask and the last, so that opening files is nobody's loss.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.backends import Engine, open_engine
from edgeseg.backends.base import Session
from edgeseg.backends.null import NullSession
from edgeseg.bundle import Bundle, Variant
from edgeseg.console import Console
from edgeseg.data.street import CLASSES, PALETTE, render
from edgeseg.measure.latency import samples_needed
from edgeseg.measure.machine import peak_rss_mb
from edgeseg.palette import colour_table
from edgeseg.runtime.options import Options
from edgeseg.runtime.sources import Source, Wanted, parse
from edgeseg.runtime.streaming import run
from edgeseg.runtime.values import Grab
from edgeseg.types import FRAME, MASK, InputSpec, ModelSpec, OutputSpec, Pixels

FRAME_SIZE = (360, 480)  # of the file
NETWORK_SIZE = (180, 240)
COUNT = 300  # frames of the file


def measure(rounds: int, engines_ms: Sequence[float], frames: int) -> list[dict[str, Any]]:
    """Throughput by engine and way. Engines: the null engine with 20 ms, and CPU engines of about `engines_ms`."""
    found = []
    with tempfile.TemporaryDirectory(prefix="edgeseg-bench-") as folder:
        film = _film(Path(folder) / "street.mp4", min(COUNT, frames))
        engines: list[tuple[str, Callable[[], Session]]] = [("waits 20 ms", lambda: NullSession(20.0))]
        for ms in engines_ms:
            graph, took = _busy_graph(ms)
            engines.append((f"CPU, {took:.0f} ms", lambda graph=graph: _open(graph)))  # type: ignore[misc]
        for name, open_one in engines:
            with open_one() as session:
                found += [{"engine": name, **row} for row in _compare(session, film, rounds, frames)]
    return found


def _compare(session: Session, film: Path, rounds: int, frames: int) -> Iterator[dict[str, Any]]:
    """Each way between two bare loops of the engine, which its throughput is a share of: the machine drifts."""
    ways: dict[str, Callable[[], float]] = {
        "edgeseg stream": lambda: _stream(session, film, frames),
        "OpenCV loop, best parts": lambda: _loop(session, film, frames, naive=False),
        "OpenCV loop, naive": lambda: _loop(session, film, frames, naive=True),
    }
    fps: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}
    bare: list[float] = []
    order = list(ways)
    for _ in range(rounds):
        before = _bare(session, frames)
        for name in order:
            own = ways[name]()
            after = _bare(session, frames)
            fps[name].append(own)
            shares[name].append(2 * own / (before + after))
            bare.append(after)
            before = after
        order.append(order.pop(0))
    yield _row("engine alone", bare, [1.0])
    for name in ways:
        yield _row(name, fps[name], shares[name])


def _row(way: str, fps: Sequence[float], shares: Sequence[float]) -> dict[str, Any]:
    low, middle, high = np.quantile(shares, (0.25, 0.5, 0.75)).tolist()
    return {
        "way": way,
        "fps": statistics.median(fps),
        "share": middle,
        "share_low": low,
        "share_high": high,
        "rounds": {"fps": list(fps), "share": list(shares)},
    }


def from_memory(rounds: int, frames: int) -> dict[str, Any]:
    """Frames a second of the pipeline itself: the engine takes no time, frames of 480x360 are decoded already."""
    pictures = [render(FRAME_SIZE, 7, 5 * k)[0] for k in range(16)]
    fps = []
    for _ in range(rounds):
        with NullSession(0.0) as session:
            fps.append(_stream(session, None, frames, pictures, size=FRAME_SIZE))
    return {"fps": statistics.median(fps), "fps_low": min(fps), "fps_high": max(fps)}


def ages(rate: float, delays_ms: Sequence[float]) -> list[dict[str, Any]]:
    """Policy latest: how old masks are, beside one frame time and the engine's own latency; long enough for a p99."""
    pictures = [render(FRAME_SIZE, 7, 5 * k)[0] for k in range(16)]
    rows = []
    for delay in delays_ms:
        documents: list[dict[str, Any]] = []
        frames = round(1.1 * samples_needed(0.99) * max(1.0, delay * rate / 1000))
        with NullSession(delay) as session:
            _stream(
                session,
                None,
                frames,
                pictures,
                options=Options(policy="latest", fps=rate, agreement=0.0),
                documents=documents,
            )
        document = documents[0]
        infer, age = document["stages_ms"]["infer"], document["latency_ms"]
        period = 1000.0 / rate
        rows.append(
            {
                "rate": rate,
                "engine_ms": delay,
                "age_p50": age["p50"],
                "age_p99": age["p99"],
                "age_max": age["max"],
                "limit_p99": None if infer["p99"] is None else period + infer["p99"],
                "frames": document["frames"],
            }
        )
    return rows


def soak(frames: int) -> dict[str, Any]:
    """Resident memory, threads and file handles after frame 1,000 and at the end of a long stream."""
    pictures = [render(FRAME_SIZE, 7, 5 * k)[0] for k in range(16)]
    marks: list[dict[str, float]] = []
    before = {"threads": threading.active_count(), "handles": _handles()}

    def look(index: int) -> None:
        if index in (1000, frames // 2, frames - 1):
            marks.append({"frame": index, "rss_mb": _rss_mb(), "threads": threading.active_count()})

    with tempfile.TemporaryDirectory(prefix="edgeseg-soak-") as folder:
        options = Options(policy="every", agreement=0.0, frames=frames, lines=str(Path(folder) / "lines.jsonl"))
        start = time.perf_counter()
        documents: list[dict[str, Any]] = []
        with NullSession(0.0) as session:
            _stream(session, None, frames, pictures, options=options, on_index=look, documents=documents)
    after = {"threads": threading.active_count(), "handles": _handles()}
    return {
        "marks": marks,
        "before": before,
        "after": after,
        "frames": documents[0]["frames"],
        "seconds": time.perf_counter() - start,
        "peak_rss_mb": peak_rss_mb(),
        "document_rows": len(documents[0]["timeline"]),
    }


class Memory(Source):
    """Decoded pictures, over and over: copied into the shot as a decoder would write them."""

    name, live, fps = "memory", False, None

    def __init__(self, pictures: Sequence[Pixels], count: int) -> None:
        self._pictures, self._count, self._next = pictures, count, 0

    def read(self, into: Pixels | None) -> Grab | None:
        if self._next >= self._count:
            return None
        position, self._next = self._next, self._next + 1
        picture = self._pictures[position % len(self._pictures)]
        if into is None or into.shape != picture.shape:
            into = np.empty_like(picture)
        np.copyto(into, picture)
        return Grab(into, time.perf_counter_ns(), position, f"{position:06d}")

    def close(self) -> None:
        """Nothing is held."""


def bundle_of(size: tuple[int, int]) -> tuple[Bundle, Variant]:
    """A bundle for engines that come from elsewhere: what a stream needs to know besides the engine."""
    spec = ModelSpec("bench", InputSpec(size), OutputSpec(classes=CLASSES))
    variant = Variant("bench", "onnxruntime", "fp32", ("none",))
    return Bundle(spec, (variant,), "bench", {"none": b""}, verdict={"palette": [list(c) for c in PALETTE]}), variant


def _stream(
    session: Session,
    film: Path | None,
    frames: int,
    pictures: Sequence[Pixels] = (),
    *,
    size: tuple[int, int] = NETWORK_SIZE,
    options: Options | None = None,
    on_index: Callable[[int], None] | None = None,
    documents: list[dict[str, Any]] | None = None,
) -> float:
    """Frames a second of the whole stream, every frame painted."""
    bundle, variant = bundle_of(size)
    times: list[int] = [0, 0]
    seen = 0

    def painted(shot: Any, view: Any) -> None:
        nonlocal seen
        view.overlay()
        times[min(seen, 1)] = time.perf_counter_ns()
        seen += 1
        if on_index is not None:
            on_index(shot.index)

    def opener(wanted: Wanted) -> Source:
        return Memory(pictures, frames)

    source = parse(str(film)) if film is not None else Wanted("memory", "file", "")
    with ExitStack() as stack:
        document = run(
            bundle,
            variant,
            session,
            [source],
            options or Options(policy="every", agreement=0.0, frames=frames, loop=True),
            stack,
            on_frame=painted,
            stop=threading.Event(),
            console=Console(),
            clock=time.perf_counter_ns,
            opener=opener if film is None else None,
        )
    if document["failure"] is not None:
        raise RuntimeError(document["failure"]["message"])
    if documents is not None:
        documents.append(document)
    return (seen - 1) * 1e9 / (times[1] - times[0])


def _bare(session: Session, frames: int) -> float:
    picture = np.ascontiguousarray(render(NETWORK_SIZE, 7, 0)[0])[None]
    out = np.empty((1, *NETWORK_SIZE), np.uint8)
    session.run(picture, out)
    start = time.perf_counter_ns()
    for _ in range(frames - 1):
        session.run(picture, out)
    return (frames - 1) * 1e9 / (time.perf_counter_ns() - start)


def _loop(session: Session, film: Path, frames: int, *, naive: bool) -> float:
    """One frame after the other in one thread, as most examples do; with OpenCV's fast parts, or with NumPy's."""
    import cv2

    table = colour_table(PALETTE)
    height, width = NETWORK_SIZE
    start = seen = 0
    capture = cv2.VideoCapture(str(film))
    while seen < frames:
        good, picture = capture.read()
        if not good:
            capture.release()
            capture = cv2.VideoCapture(str(film))
            continue
        mask = session.run(cv2.resize(picture, (width, height))[None])[0]
        full = cv2.resize(mask, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)
        if naive:
            painted = np.zeros_like(picture)
            for index in range(len(PALETTE)):
                painted[full == index] = table[index]
            (0.5 * picture + 0.5 * painted).astype(np.uint8)
        else:
            cv2.addWeighted(picture, 0.5, cv2.applyColorMap(full, table[:, None]), 0.5, 0.0)
        if seen == 0:
            start = time.perf_counter_ns()
        seen += 1
    end = time.perf_counter_ns()
    capture.release()
    return (frames - 1) * 1e9 / (end - start)


def _film(path: Path, count: int) -> Path:
    import cv2

    height, width = FRAME_SIZE
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30.0, (width, height))
    for index in range(count):
        writer.write(render(FRAME_SIZE, 7, index)[0])
    writer.release()
    return path


def _open(graph: bytes) -> Session:
    return open_engine(Engine("busy", "onnxruntime", "fp32", "graph.onnx", {"graph.onnx": graph}))


def _busy_graph(ms: float) -> tuple[bytes, float]:
    """A stack of convolutions that keeps all cores busy for about `ms` a frame here, and what it took."""
    layers, took = 2, 0.0
    for _ in range(4):
        graph = _convolutions(layers)
        with _open(graph) as session:
            picture, out = np.zeros((1, *NETWORK_SIZE, 3), np.uint8), np.empty((1, *NETWORK_SIZE), np.uint8)
            times = []
            for _ in range(12):
                start = time.perf_counter_ns()
                session.run(picture, out)
                times.append(time.perf_counter_ns() - start)
        took = statistics.median(times[2:]) / 1e6
        if abs(took - ms) <= 0.1 * ms:
            break
        layers = max(1, round(layers * ms / took))
    return graph, took


def _convolutions(layers: int) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    chance = np.random.default_rng(0)
    channels = 32
    nodes = [
        helper.make_node("Cast", [FRAME], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    weights = []
    for layer in range(layers + 1):
        inputs, outputs = (3 if layer == 0 else channels), (len(CLASSES) if layer == layers else channels)
        weight = (chance.standard_normal((outputs, inputs, 3, 3)) * (2 / (9 * inputs)) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"y{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"]))
    nodes.append(helper.make_node("ArgMax", [f"y{layers}"], ["best"], axis=1, keepdims=0))
    nodes.append(helper.make_node("Cast", ["best"], [MASK], to=TensorProto.UINT8))
    height, width = NETWORK_SIZE
    graph = helper.make_graph(
        nodes,
        "busy",
        [helper.make_tensor_value_info(FRAME, TensorProto.UINT8, (1, height, width, 3))],
        [helper.make_tensor_value_info(MASK, TensorProto.UINT8, (1, height, width))],
        weights,
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


def _rss_mb() -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def _handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
