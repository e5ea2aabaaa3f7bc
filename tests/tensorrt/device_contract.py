"""What a TensorRT backend must do on a device: collected by name only, by two who bring the device.

tests/gpu runs it on a real GPU with the real library. test_device.py runs it in child processes where the library is
the double of one release and the driver is the stand-in; EDGESEG_TRT_BACKEND names the backend.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeseg import cache, quantize
from edgeseg.backends import Engine, get, open_engine
from edgeseg.backends.listen import heard_by
from edgeseg.backends.onnxruntime import inference_session
from edgeseg.backends.tensorrt import TensorRT
from edgeseg.backends.tensorrt.inspection import layers_of, told, with_times
from edgeseg.backends.tensorrt.library import strongly_typed
from edgeseg.errors import BadInput, ModelError
from edgeseg.quantize.half import half
from edgeseg.types import FRAME, MASK, Frames, Masks, OnnxModel, Precision
from tests.quantize import making

NAME = os.environ.get("EDGESEG_TRT_BACKEND", "tensorrt")
SPEC = """name = "net"
[input]
size = [48, 64]
"""
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


class Ears:
    """Keeps what a backend says."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, text: str) -> None:
        self.steps.append(text)


@pytest.fixture(scope="module")
def backend() -> TensorRT:
    found = get(NAME)
    assert isinstance(found, TensorRT)
    found.version()  # raises MissingOnMachine: whoever collects this file has seen to it
    return found


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("EDGESEG_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def expected(model: OnnxModel, frames: Frames) -> Masks:
    """The masks by ONNX Runtime, as the graph is written: its optimiser breaks half-precision Q/DQ."""
    session = inference_session(model.graph, "off")
    return np.concatenate([session.run([MASK], {FRAME: frame[None]})[0] for frame in frames])


def written(backend: TensorRT, precision: Precision) -> OnnxModel:
    """The tiny U-Net as a build writes it for this backend."""
    fp32 = making.unet()
    if precision == "fp32":
        return fp32
    if precision == "fp16":
        return half(fp32).model
    int8 = quantize.quantize(fp32, making.table_of(fp32), quantize.DIALECTS["tensorrt"])
    return half(int8).model if backend.half_graphs("int8") else int8


def engine_of(backend: TensorRT, model: OnnxModel, precision: Precision = "fp32", **settings: Any) -> Engine:
    files = backend.convert(model.graph)
    arithmetic = "f32" if precision == "fp32" else "f16"
    told: dict[str, str | int | float | bool] = {"decision": "graph", "arithmetic": arithmetic, **settings}
    return Engine(f"{NAME}-{precision}", NAME, precision, next(iter(files)), files, told)


def dynamic(model: OnnxModel) -> OnnxModel:
    proto = onnx.load_from_string(model.graph)
    for value in (*proto.graph.input, *proto.graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, ("n", "h", "w"), strict=False):
            dim.dim_param = name
    return replace(model, graph=proto.SerializeToString())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_masks_are_those_of_onnx_runtime(backend: TensorRT, precision: Precision) -> None:
    model, frames = written(backend, precision), making.frames(4)
    with open_engine(engine_of(backend, model, precision)) as session:
        masks = np.concatenate([session.run(frame[None]) for frame in frames])
    assert session.batch == 1
    assert masks.dtype == np.uint8
    least = 0.999 if precision == "fp32" else 0.97
    assert float(np.mean(masks == expected(model, frames))) >= least
    assert len(np.unique(masks)) > 1


@pytest.mark.parametrize("settings", [{}, {"cuda_graph": False}, {"tf32": False}, {"workspace_mb": 256}])
def test_how_it_is_run_does_not_change_the_masks(backend: TensorRT, settings: dict[str, Any]) -> None:
    model, frames = making.unet(), making.frames(3)
    with open_engine(engine_of(backend, model, **settings)) as session:
        for _ in range(2):  # a captured graph must read each frame, not the one it was captured with
            masks = np.concatenate([session.run(frame[None]) for frame in frames])
            assert float(np.mean(masks == expected(model, frames))) >= 0.99


def test_masks_go_where_they_are_wanted_and_stay(backend: TensorRT) -> None:
    frames = making.frames(2)
    with open_engine(engine_of(backend, making.unet())) as session:
        first = session.run(frames[:1])
        kept = first.copy()
        out = np.full((1, *making.SIZE), 99, np.uint8)
        assert session.run(frames[1:], out) is out
        assert (first == kept).all(), "a later run wrote into an array that was given away"
        assert (out == session.run(frames[1:])).all()
        assert session.run(frames[1:]) is not out


def test_it_runs_in_another_thread_than_it_was_opened_in(backend: TensorRT) -> None:
    frame = making.frames(1)
    found: list[Masks] = []
    with open_engine(engine_of(backend, making.unet())) as session:
        here = session.run(frame)
        thread = threading.Thread(target=lambda: found.append(session.run(frame)))
        thread.start()
        thread.join()
        assert (found[0] == here).all()
        assert (session.run(frame) == here).all()


@pytest.mark.parametrize("shape", [(2, *making.SIZE, 3), (1, 8, 8, 3), (1, *making.SIZE, 4)])
def test_frames_of_another_shape_are_refused_and_nothing_breaks(backend: TensorRT, shape: tuple[int, ...]) -> None:
    frame = making.frames(1)
    with open_engine(engine_of(backend, making.unet())) as session:
        before = session.run(frame)
        with pytest.raises(BadInput, match="do not fit this engine"):
            session.run(np.zeros(shape, np.uint8))
        assert (session.run(frame) == before).all()


def test_a_dynamic_engine_takes_what_its_shapes_say(backend: TensorRT) -> None:
    model = dynamic(making.unet())
    height, width = making.SIZE
    shapes = f"1x{height}x{width}:2x{height}x{width}:4x{2 * height}x{2 * width}"
    small, large = making.frames(4), making.frames(2, (2 * height, 2 * width))
    with open_engine(engine_of(backend, model, shapes=shapes)) as session:
        assert session.batch == 0
        for frames in (small[:1], small, large, small[:3]):
            wanted = inference_session(model.graph, "off").run([MASK], {FRAME: frames})[0]
            assert float(np.mean(session.run(frames) == wanted)) >= 0.99
        with pytest.raises(BadInput, match="do not fit this engine"):
            session.run(np.zeros((5, height, width, 3), np.uint8))
        assert session.run(small).shape == (4, height, width)


def test_a_dynamic_graph_without_shapes_says_what_to_type(backend: TensorRT) -> None:
    with pytest.raises(BadInput, match="--trt shapes=LEAST:BEST:MOST"):
        open_engine(engine_of(backend, dynamic(making.unet())))


def test_an_engine_is_built_once_and_said_in_one_line(backend: TensorRT) -> None:
    engine, ears = engine_of(backend, making.unet(), sparse=True), Ears()  # a recipe that no other test has
    with heard_by(ears), open_engine(engine) as session:
        assert session.fresh
    assert [line for line in ears.lines if "building" in line] == ears.lines
    assert len(ears.lines) == 1
    assert "there is none for it yet" in ears.lines[0]
    again = Ears()
    for unseen in (True, False):
        with heard_by(again), open_engine(engine) as session:
            assert session.fresh is unseen, "that it is in the cache does not make it right"
            session.checked()
    assert again.lines == again.steps == []


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "empty"])
def test_a_damaged_engine_file_is_not_opened_but_built_again(backend: TensorRT, damage: str) -> None:
    engine = engine_of(backend, making.unet())
    stored = backend.stored(engine)
    path = cache.folder() / "engines" / stored.entry
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flip":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "empty":
        path.write_bytes(b"")
    else:  # whole by its checksum, but the engine of another graph
        other = backend.stored(engine_of(backend, making.everything()))
        path.write_bytes((cache.folder() / "engines" / other.entry).read_bytes())
    ears = Ears()
    with heard_by(ears), open_engine(engine) as session:
        assert session.fresh
        assert float(np.mean(session.run(making.frames(1)) == expected(making.unet(), making.frames(1)))) >= 0.99
    assert "gone or damaged" in ears.lines[0]


def test_what_the_engine_is_made_of_is_read_back_and_timed(backend: TensorRT) -> None:
    stored = backend.stored(engine_of(backend, written(backend, "int8"), "int8"))
    layers = with_times(layers_of(stored.information), stored.times)
    assert told(layers)
    assert any(layer.ms is not None and layer.ms >= 0 for layer in layers)


def test_a_graph_that_the_parser_does_not_know_is_an_error_that_names_the_node(backend: TensorRT) -> None:
    proto = onnx.load_from_string(making.unet().graph)
    node = next(node for node in proto.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "NobodyKnowsThis", "example.org"
    proto.opset_import.append(onnx.helper.make_opsetid("example.org", 1))
    model = replace(making.unet(), graph=proto.SerializeToString())
    with pytest.raises(ModelError) as refused:
        open_engine(engine_of(backend, model))
    assert "cannot read the graph" in str(refused.value)
    assert "NobodyKnowsThis" in str(refused.value) or node.name in str(refused.value)


def test_timings_are_kept_for_the_next_build(backend: TensorRT) -> None:
    if backend.library.builds_without_gpu:
        pytest.skip("TensorRT-RTX builds ahead of time and times nothing")
    backend.stored(engine_of(backend, making.unet()))
    assert any((cache.folder() / "timings").iterdir())


def test_closing_twice_is_fine_and_opening_again_works(backend: TensorRT) -> None:
    engine = engine_of(backend, making.unet())
    frame = making.frames(1)
    first = open_engine(engine)
    masks = first.run(frame)
    first.close()
    first.close()
    for _ in range(3):
        with open_engine(engine) as session:
            assert (session.run(frame) == masks).all()


def test_a_bundle_travels(backend: TensorRT, tmp_path: Path) -> None:
    """Built on the CPU from a model file; built again from that bundle here, without data; opened with each engine."""
    import cv2

    import edgeseg

    (tmp_path / "net.onnx").write_bytes(making.plain_network())
    (tmp_path / "net.toml").write_text(SPEC, encoding="utf-8")
    (tmp_path / "frames").mkdir()
    for index, frame in enumerate(making.frames(12, (48, 64))):
        cv2.imwrite(str(tmp_path / "frames" / f"{index:02}.png"), frame)
    there = edgeseg.build(
        tmp_path / "net.onnx",
        data=tmp_path / "frames",
        precision="int8",
        backend="onnxruntime",
        quick=True,
        out=tmp_path / "there.edgeseg",
    )
    assert there.path is not None
    here = edgeseg.build(
        there.path, precision="int8", backend=NAME, quick=True, max_miou_drop=5, out=tmp_path / "h.edgeseg"
    )
    assert here.path is not None
    names = [engine["name"] for engine in here.report["engines"]]
    assert f"{NAME}-fp32" in names
    assert f"{NAME}-int8" in names
    assert here.report["metric"] == "agreement with FP32"
    assert here.report["evaluation"]["split"] == "the bundle's references"
    assert here.report["calibration"] == there.report["calibration"]
    for engine in here.report["engines"]:
        assert engine["built"]["summary"]
        with edgeseg.open(here.path, variant=engine["name"], check=True) as segment:
            assert segment(making.frames(1, (48, 64))[0]).shape == (48, 64)


def test_precision_is_in_the_graph_where_the_library_is_strongly_typed(backend: TensorRT) -> None:
    assert backend.half_graphs("int8") == strongly_typed(backend.library.load())
    assert backend.half_graphs("fp16")
