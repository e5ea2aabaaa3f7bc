"""Each runtime behind the seam: the same masks, whoever decides; clear refusals; results that stay as they are."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeseg import backends
from edgeseg.backends import Engine, open_engine
from edgeseg.backends.null import NullSession
from edgeseg.backends.onnxruntime import probe
from edgeseg.errors import BadInput, MissingOnMachine, ModelError
from edgeseg.trials.candidates import candidates
from edgeseg.types import Frames, OnnxModel
from tests.quantize import making


def cannot_run(name: str) -> str:
    """Why a backend cannot run here; empty where it can."""
    try:
        backends.get(name).version()
    except MissingOnMachine as error:
        return str(error)
    return ""


BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(cannot_run(name)), reason=cannot_run(name) or "it can"))
    for name in backends.NAMES
]


def one_channel() -> OnnxModel:
    net = making.Net(2)
    x = net.relu(net.conv(net.image(), "conv1", 6), "relu1")
    return net.model(net.conv(x, "head", 1), threshold=0.7)


def class_map() -> OnnxModel:
    """A network that decides itself: no scores under the name that everybody knows."""
    net = making.Net(2)
    x = net.conv(net.image(), "head", 3)
    net.op("ArgMax", [x], "best", axis=1, keepdims=0)
    return net.model(mask_of="best")


MODELS: dict[str, Callable[[], OnnxModel]] = {
    "unet": making.unet,
    "everything": making.everything,
    "one_channel": one_channel,
    "class_map": class_map,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_every_candidate_gives_the_masks_of_the_plain_graph(name: str, backend: str) -> None:
    model = MODELS[name]()
    frames = making.frames(3)
    expected = np.concatenate([making.tensors_of(model.graph, ["mask"], f[None])["mask"] for f in frames])
    assert len(np.unique(expected)) > 1
    for engine in candidates(model, backend, "fp32"):
        with open_engine(engine) as session:
            masks = np.concatenate([session.run(frame[None]) for frame in frames])
        assert masks.dtype == np.uint8
        assert masks.shape == (3, *making.SIZE)
        assert np.mean(masks == expected) > 0.999, engine.name  # other kernels may round a tie the other way


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decision", ["graph", "host"])
def test_results_belong_to_the_caller(decision: str, backend: str) -> None:
    engine = next(e for e in candidates(making.unet(), backend, "fp32") if e.settings["decision"] == decision)
    one, two = making.frames(2)
    with open_engine(engine) as session:
        first = session.run(one[None])
        kept = first.copy()
        second = session.run(two[None])
        assert (kept != second).any()  # or the test says nothing
        np.testing.assert_array_equal(first, kept)
        assert not np.shares_memory(first, second)
        first[:] = 255  # writable, and no input of the next run
        np.testing.assert_array_equal(session.run(one[None]), kept)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_masks_are_written_where_they_are_wanted(name: str, backend: str) -> None:
    for engine in candidates(MODELS[name](), backend, "fp32"):
        frames = making.frames(3)
        out = np.full((1, *making.SIZE), 255, np.uint8)
        with open_engine(engine) as session:
            for frame in frames:
                expected = session.run(frame[None])
                assert session.run(frame[None], out) is out
                np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_into_given_memory_allocates_none_of_a_frames_size(backend: str) -> None:
    for engine in candidates(making.unet(), backend, "fp32"):
        frame, out = making.frames(1), np.empty((1, *making.SIZE), np.uint8)
        with open_engine(engine) as session:
            session.run(frame, out)
            tracemalloc.start()
            session.run(frame, out)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        scores = 4 * 4 * out.size  # float32 of four classes
        assert peak < max(scores, 3 * out.size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_says_how_many_frames_it_takes_at_once(backend: str) -> None:
    engine = candidates(making.unet(), backend, "fp32")[0]
    with open_engine(engine) as session:
        assert session.batch == 1


def test_the_null_engine_takes_its_time_and_looks_at_its_frames() -> None:
    frames = making.frames(2)
    with NullSession(delay_ms=20) as session:
        start = time.perf_counter_ns()
        masks = session.run(frames)
        assert time.perf_counter_ns() - start >= 20e6
    np.testing.assert_array_equal(masks, frames[..., 1] // 64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_need_not_be_contiguous(backend: str) -> None:
    engine = candidates(making.unet(), backend, "fp32")[0]
    frame = making.frames(1)
    with open_engine(engine) as session:
        swapped = frame[..., ::-1]
        assert not swapped.flags.c_contiguous
        np.testing.assert_array_equal(session.run(swapped), session.run(np.ascontiguousarray(swapped)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_corrupt_graph_is_a_model_error(backend: str) -> None:
    engine = candidates(making.unet(), backend, "fp32")[0]
    for broken in (b"", b"nothing like a graph", engine.files[engine.graph][:200]):
        with pytest.raises(ModelError, match="refuses the graph"):
            open_engine(replace(engine, files={**engine.files, engine.graph: broken}))


def test_openvino_says_that_it_cannot_read_an_onnx_graph() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    with pytest.raises(ModelError, match="cannot read the graph"):
        backends.get("openvino").convert(b"nothing like a graph")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_missing_runtime_is_named_with_the_command_that_installs_it(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, backend, None)  # what Python keeps for a module that must not be found
    extra = {"onnxruntime": "run", "openvino": "openvino"}[backend]
    for use in (
        lambda: backends.get(backend).version(),
        lambda: open_engine(Engine("e", backend, "fp32", "g", {"g": b""})),
    ):
        with pytest.raises(MissingOnMachine, match=rf"pip install 'edgeseg\[{extra}\]'"):
            use()


def test_an_unknown_backend() -> None:
    with pytest.raises(BadInput, match="onnxruntime, openvino"):
        backends.get("os")


@pytest.mark.parametrize("name", BACKENDS)
def test_the_first_settings_are_valid_and_a_backend_states_its_version(name: str) -> None:
    backend = backends.get(name)
    assert backend.name == name
    assert backend.version()[0].isdigit()
    assert len(backend.settings("fp32")) >= 1
    assert all(isinstance(v, str | int | float | bool) for s in backend.settings("int8") for v in s.values())


def test_a_folder_of_type_stubs_is_no_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert "tensorrt" not in backends.installed()


def test_probe_shows_the_tensors_that_were_asked_for() -> None:
    model = making.unet()
    frames = making.frames(3)
    names = ["relu2", "frame", "conv1", "mask"]
    seen = list(probe(model.graph, names, (frame[None] for frame in frames)))
    assert len(seen) == 3
    for frame, values in zip(frames, seen, strict=True):
        assert set(values) == set(names)
        np.testing.assert_array_equal(values["frame"], frame[None])
        for name, exact in making.tensors_of(model.graph, ["relu2", "conv1", "mask"], frame[None]).items():
            np.testing.assert_allclose(values[name], exact, atol=1e-4)
    assert seen[0]["conv1"].min() < 0  # the tensor itself, not what a fused ReLU made of it


def test_probe_of_the_frame_alone_and_of_nothing() -> None:
    model, frames = making.unet(), making.frames(2)
    for names, keys in ((["frame"], {"frame"}), ([], set())):
        seen = list(probe(model.graph, names, (frame[None] for frame in frames)))
        assert [set(values) for values in seen] == [keys, keys]


def test_probe_holds_one_frame_at_a_time() -> None:
    alive: list[weakref.ref[making.Array]] = []
    taken = 0

    def source() -> Iterator[Frames]:
        nonlocal taken
        for frame in making.frames(8):
            taken += 1
            yield frame[None]

    for number, values in enumerate(probe(making.unet().graph, ["conv1"], source()), start=1):
        assert taken == number  # no frame is read ahead
        alive.append(weakref.ref(values["conv1"]))
        del values
        assert sum(ref() is not None for ref in alive) <= 1


def test_probe_of_a_tensor_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="no tensors nowhere"):
        next(probe(making.unet().graph, ["relu1", "nowhere"], iter([making.frames(1)])))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimization", "bogus"),
        ("threads", "many"),
        ("threads", -3),
        ("threads", True),
        ("threshold", "high"),
        ("threshold", float("nan")),
        ("decision", "maybe"),
        ("arithmetic", "f8"),
        ("plugin", "/lib/evil.so"),
    ],
)
def test_settings_that_no_backend_knows_are_refused(key: str, value: str | int | float) -> None:
    engine = Engine("x", "onnxruntime", "fp32", "graph.onnx", {"graph.onnx": b""}, {key: value})
    with pytest.raises(BadInput, match=key):
        open_engine(engine)


_SIGNALLED = """
import signal, threading
from edgeseg.backends import open_engine, openvino
from edgeseg.trials.candidates import candidates
from tests.quantize import making

engine = candidates(making.unet(), "openvino", "fp32")[0]
openvino.halves()
first, second = open_engine(engine), open_engine(engine)
first.close()
del first
second.close()
helper = threading.Thread(target=globals().pop, args=("second",))
helper.start()
helper.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif(bool(cannot_run("openvino")), reason=cannot_run("openvino") or "it can")
def test_signals_still_arrive_after_openvino_engines_were_closed() -> None:
    """Every plugin brings the signal stack of its thread, and takes it away again: there must be one for good."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _SIGNALLED], capture_output=True, text=True, timeout=120, cwd=root)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr[-2000:]
