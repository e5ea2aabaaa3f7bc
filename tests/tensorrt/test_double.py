"""The double of TensorRT: it has what a release has and nothing else, and does what the real tensorrt_rtx does."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="the double reads ONNX graphs: pip install -e '.[build]'")
pytest.importorskip("onnxruntime", reason="engines of the double run in ONNX Runtime: pip install -e '.[run]'")

from edgeseg.backends.tensorrt.inspection import layers_of
from tests.tensorrt.double import graphs_of, make, recorded
from tests.tensorrt.double.sequences import config_for, outcomes, parsed, recorder
from tests.tensorrt.double.surface import Class, load

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).resolve().parent / "double" / "site"
EVERY = recorded()


def flags(trt: Any) -> int:
    """Explicit batch where it must be said, strong typing where it can be."""
    kinds = trt.NetworkDefinitionCreationFlag
    name = "STRONGLY_TYPED" if hasattr(kinds, "STRONGLY_TYPED") else "EXPLICIT_BATCH"
    return 1 << int(getattr(kinds, name))


def build(trt: Any, graph: bytes, *said: str, creation: int | None = None, **properties: Any) -> tuple[Any, str]:
    """An engine's bytes, or None, and the errors that were logged; with flags by name."""
    log, builder, network, _, went = parsed(trt, graph, flags(trt) if creation is None else creation)
    assert went, log.said
    config = config_for(trt, builder)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for name in said:
        config.set_flag(getattr(trt.BuilderFlag, name))
    for name, value in properties.items():
        setattr(config, name, value)
    made = builder.build_serialized_network(network, config)
    return made, "\n".join(text for severity, text in log.said if severity == "ERROR")


def run(trt: Any, serialized: Any, frames: NDArray[np.uint8], profiler: Any = None) -> NDArray[np.uint8]:
    engine = trt.Runtime(recorder(trt)).deserialize_cuda_engine(serialized)
    context = engine.create_execution_context()
    if profiler is not None:
        context.profiler = profiler
    masks = np.zeros(frames.shape[:3], np.uint8)
    assert context.set_input_shape("frame", frames.shape)
    assert tuple(context.get_tensor_shape("mask")) == masks.shape
    assert context.set_tensor_address("frame", frames.ctypes.data)
    assert context.set_tensor_address("mask", masks.ctypes.data)
    assert context.execute_async_v3(0)
    return masks


def expected(graph: bytes, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import onnxruntime

    return np.asarray(onnxruntime.InferenceSession(graph).run(None, {"frame": frames})[0])


def some_frames(shape: tuple[int, ...] = (1, 16, 24, 3)) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("version", EVERY)
def test_it_has_every_recorded_member_and_no_other(version: str) -> None:
    surface, trt = load(version), make(version)
    elsewhere: dict[str, set[str]] = {}
    for other in EVERY:
        for name, entry in load(other).classes.items():
            elsewhere.setdefault(name, set()).update(_members(entry))
    for name, members in elsewhere.items():
        outer, _, inner = name.partition(".")
        if name not in surface.classes:
            assert inner or not hasattr(trt, name) or name in surface.other
            continue
        kind = getattr(getattr(trt, outer), inner) if inner else getattr(trt, outer)
        own = _members(surface.classes[name])
        missing = {member for member in own if not hasattr(kind, member)}
        surplus = {member for member in (members | {"nope"}) - own if hasattr(kind, member)}
        inherited = {m for base in surface.classes[name].bases for m in _members(surface.classes[base])}
        assert (missing, surplus - inherited - {"__init__", "__eq__"}) == (set(), set()), name
        if surface.classes[name].enum is not None:
            assert {key: int(value) for key, value in kind.__members__.items()} == surface.classes[name].enum
    assert trt.__version__ == surface.version


def _members(entry: Class) -> set[str]:
    return {*(entry.enum or {}), *entry.methods, *entry.properties}


@pytest.fixture(scope="module")
def real() -> Any:
    """The outcomes of every step on the real library."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt-rtx-cu13")
    command = [sys.executable, "-m", "tests.tensorrt.double.sequences", "tensorrt_rtx"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("outcomes:")]
    if not lines and "cannot open shared object" in done.stderr:
        pytest.skip(f"tensorrt_rtx cannot be loaded here: {done.stderr.strip().splitlines()[-1]}")
    assert lines, done.stderr
    return json.loads(lines[0].removeprefix("outcomes:"))


@pytest.fixture(scope="module")
def double() -> Any:
    return json.loads(json.dumps(outcomes(make("rtx-1.7.1"))))


def test_it_does_what_the_real_tensorrt_rtx_does(real: Any, double: Any) -> None:
    assert len(real) > 150
    assert {name: (real[name], double[name]) for name in real if real[name] != double[name]} == {}


def test_the_real_outcomes_are_of_both_kinds(real: Any) -> None:
    """A comparison in which nothing fails, or nothing works, would show nothing."""
    told = [value for name, value in real.items() if isinstance(value, str)]
    assert sum(value.startswith("raises TypeError") for value in told) > 20
    assert sum(value.startswith("raises AttributeError") for value in told) > 10
    graphs = [value for value in real.values() if isinstance(value, dict)]
    assert sum(graph["parsed"] for graph in graphs) > 10
    assert sum(not graph["parsed"] for graph in graphs) > 5
    assert sum(graph.get("built") is False for graph in graphs) > 4


@pytest.mark.parametrize("version", EVERY)
@pytest.mark.parametrize("quantize", [False, True], ids=["fp32", "q/dq"])
def test_engines_give_what_onnx_runtime_gives(version: str, quantize: bool) -> None:
    trt = make(version)
    graph = graphs_of.segmenter(quantize=quantize)
    made, errors = build(trt, graph, *(["INT8"] if quantize and version.startswith("8") else []))
    assert made is not None, errors
    frames = some_frames()
    wanted = expected(graph, frames)
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(run(trt, made, frames), wanted)


def test_open_lengths_are_kept_to_the_profile() -> None:
    trt = make("10.3")
    graph = graphs_of.segmenter(("n", "h", "w", 3))
    log, builder, network, _, _ = parsed(trt, graph, flags(trt))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("frame", (1, 8, 8, 3), (1, 16, 24, 3), (2, 32, 32, 3))
    config.add_optimization_profile(profile)
    engine = trt.Runtime(log).deserialize_cuda_engine(builder.build_serialized_network(network, config))
    assert tuple(engine.get_tensor_shape("frame")) == (-1, -1, -1, 3)
    assert [tuple(shape) for shape in engine.get_tensor_profile_shape("frame", 0)][2] == (2, 32, 32, 3)
    context = engine.create_execution_context()
    assert not context.execute_async_v3(0)  # no shape yet
    assert not context.set_input_shape("frame", (3, 16, 16, 3))
    assert not context.set_input_shape("mask", (1, 16, 16))
    assert context.set_input_shape("frame", (2, 8, 16, 3))
    assert not context.execute_async_v3(0)  # no address yet
    assert "Address is not set" in log.said[-1][1]
    frames = some_frames((2, 8, 16, 3))
    np.testing.assert_array_equal(run(trt, engine.serialize(), frames), expected(graph, frames))


@pytest.mark.parametrize("version", ["8.5", "8.6"])
def test_8_wants_explicit_batch_and_allowing_flags(version: str) -> None:
    trt = make(version)
    *_, parser, went = parsed(trt, graphs_of.convolution(), 0)
    assert not went
    assert "explicit batch" in parser.get_error(0).desc()
    assert not hasattr(parser.get_error(0), "node_name")
    made, errors = build(trt, graphs_of.quantized())
    assert made is None
    assert "int8 is not configured in the builder" in errors
    assert build(trt, graphs_of.quantized(), "INT8")[0] is not None
    made, errors = build(trt, graphs_of.segmenter(half=True))
    assert made is None
    assert "fp16 is not configured in the builder" in errors
    assert build(trt, graphs_of.segmenter(half=True), "FP16")[0] is not None


def test_8_narrows_integers_of_64_bits() -> None:
    trt = make("8.6")
    *_, network, _, went = parsed(trt, graphs_of.segmenter(), flags(trt))
    assert went
    types = {network.get_layer(i).get_output(0).name: network.get_layer(i).get_output(0).dtype for i in range(7)}
    assert types["labels"] == trt.int32


def test_10_takes_flags_only_where_types_are_weak() -> None:
    trt = make("10.3")
    made, errors = build(trt, graphs_of.segmenter(), "FP16")
    assert made is None
    assert "!config.getFlag(BuilderFlag::kFP16)" in errors
    weak = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    assert build(trt, graphs_of.segmenter(), "FP16", creation=weak)[0] is not None
    assert "int8 is not configured" in build(trt, graphs_of.quantized(), creation=weak)[1]
    assert build(trt, graphs_of.quantized())[0] is not None


@pytest.mark.parametrize(
    ("version", "graph", "text"),
    [
        ("8.5", graphs_of.convolution(18), "opset 18"),
        ("10.3", graphs_of.convolution(21), "opset 21"),
        ("8.6", graphs_of.unknown(), "Plugin not found"),
        ("11.1", graphs_of.unknown(), "Plugin not found"),
        ("10.3", graphs_of.quantized(2), "zero point"),
        ("8.6", graphs_of.quantized(bias=True), "Int32"),
        ("10.3", graphs_of.quantized(scale=np.float16), "opset 19"),
        ("8.6", graphs_of.quantized(kind=np.uint8), "symmetric"),
        ("8.6", graphs_of.bytes_early(), "UInt8"),
        ("10.13", graphs_of.bytes_between(), "UINT8"),
    ],
)
def test_what_no_release_reads_is_refused(version: str, graph: bytes, text: str) -> None:
    trt = make(version)
    *_, network, parser, went = parsed(trt, graph, flags(trt))
    assert not went
    assert network.num_layers == 0
    assert text in parser.get_error(0).desc()


def test_dla_needs_a_dla(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = make("10.3")
    told = {"default_device_type": trt.DeviceType.DLA, "DLA_core": 0}
    assert "DLA" in build(trt, graphs_of.segmenter(), **told)[1]
    monkeypatch.setenv("EDGESEG_TRT_DOUBLE_DLA", "2")
    assert trt.Builder(recorder(trt)).num_DLA_cores == 2
    assert "falling back to GPU is not enabled" in build(trt, graphs_of.segmenter(), **told)[1]
    made, _ = build(trt, graphs_of.segmenter(), "GPU_FALLBACK", **told)
    runtime = trt.Runtime(recorder(trt))
    assert runtime.deserialize_cuda_engine(made) is None
    runtime.DLA_core = 1
    assert runtime.deserialize_cuda_engine(made) is not None


def test_engines_open_in_their_own_release_or_where_they_were_made_to() -> None:
    old, new = make("10.3"), make("10.13")
    plain, portable = build(old, graphs_of.segmenter())[0], build(old, graphs_of.segmenter(), "VERSION_COMPATIBLE")[0]
    log = recorder(new)
    runtime = new.Runtime(log)
    assert runtime.deserialize_cuda_engine(plain) is None
    assert "Version tag does not match" in log.said[-1][1]
    assert runtime.deserialize_cuda_engine(portable) is None  # it brings code
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine(portable) is not None
    newer = build(new, graphs_of.segmenter(), "VERSION_COMPATIBLE")[0]
    assert old.Runtime(recorder(old)).deserialize_cuda_engine(newer) is None
    damaged = bytearray(bytes(plain))
    damaged[-5] ^= 1
    assert old.Runtime(recorder(old)).deserialize_cuda_engine(damaged) is None


def test_timing_caches_grow_combine_and_know_their_release() -> None:
    trt, other = make("10.3"), make("10.7")
    _, builder, network, _, _ = parsed(trt, graphs_of.segmenter(), flags(trt))
    config = builder.create_builder_config()
    cache = config.create_timing_cache(b"")
    empty = bytes(cache.serialize())
    assert config.set_timing_cache(cache, False)
    builder.build_serialized_network(network, config)
    grown = bytes(config.get_timing_cache().serialize())
    assert len(grown) > len(empty)
    second = config.create_timing_cache(empty)
    assert second.combine(config.create_timing_cache(grown), False)
    assert bytes(second.serialize()) == grown
    assert config.create_timing_cache(b"damaged" * 9) is None
    foreign = other.Builder(recorder(other)).create_builder_config()
    assert not foreign.set_timing_cache(foreign.create_timing_cache(grown), False)
    assert foreign.set_timing_cache(foreign.create_timing_cache(grown), True)


@pytest.mark.parametrize("version", EVERY)
def test_the_inspector_tells_precisions_in_each_release_s_words(version: str) -> None:
    trt = make(version)
    weak = version.startswith("8")
    made, errors = build(trt, graphs_of.segmenter(quantize=True), *(["INT8"] if weak else []))
    assert made is not None, errors
    engine = trt.Runtime(recorder(trt)).deserialize_cuda_engine(made)
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = {node: layer for layer in layers_of(text) for node in layer.nodes}
    assert (layers["conv1"].precision, layers["conv1"].convolution) == ("int8", True)
    assert (layers["conv2"].precision, layers["conv2"].convolution) == ("fp32", True)
    assert layers["x/quantize"].reformat
    assert "relu1" in layers["conv1"].nodes
    assert engine.num_layers == len(json.loads(text)["Layers"])


def test_half_precision_shows_in_the_inspector() -> None:
    weak, strong = make("8.6"), make("11.4")
    for trt, said in ((weak, ["FP16"]), (strong, [])):
        made, errors = build(trt, graphs_of.segmenter(half=trt is strong), *said)
        assert made is not None, errors
        engine = trt.Runtime(recorder(trt)).deserialize_cuda_engine(made)
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        assert {layer.precision for layer in layers_of(text) if layer.convolution} == {"fp16"}


def test_the_profiler_hears_of_every_layer() -> None:
    trt = make("8.6")
    heard: dict[str, float] = {}

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            heard[layer_name] = ms

    made, _ = build(trt, graphs_of.segmenter())
    run(trt, made, some_frames(), Profiler())
    assert "conv1 + relu1" in heard
    assert all(ms > 0 for ms in heard.values())


def test_tensorrt_rtx_keeps_its_runtime_cache() -> None:
    trt = make("rtx-1.7")
    made, _ = build(trt, graphs_of.segmenter())
    engine = trt.Runtime(recorder(trt)).deserialize_cuda_engine(made)
    config = engine.create_runtime_config()
    cache = config.create_runtime_cache()
    config.set_runtime_cache(cache)
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    before = bytes(cache.serialize())
    context = engine.create_execution_context(config)
    frames, masks = some_frames(), np.zeros((1, 16, 24), np.uint8)
    context.set_tensor_address("frame", frames.ctypes.data)
    context.set_tensor_address("mask", masks.ctypes.data)
    assert context.execute_async_v3(0)
    assert len(bytes(cache.serialize())) > len(before)
    assert not config.create_runtime_cache().deserialize(b"something else")


def test_a_node_without_an_implementation_fails_while_it_is_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = make("10.3")
    monkeypatch.setenv("EDGESEG_TRT_DOUBLE_UNBUILDABLE", "conv1")
    made, errors = build(trt, graphs_of.segmenter(quantize=True))
    assert made is None
    assert "Could not find any implementation for node conv1." in errors
    assert build(trt, graphs_of.segmenter(half=True))[0] is None
    assert build(trt, graphs_of.segmenter())[0] is not None
    monkeypatch.setenv("EDGESEG_TRT_DOUBLE_UNBUILDABLE", "conv1!")
    assert build(trt, graphs_of.segmenter())[0] is None


def test_asked_for_faults_show(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = make("10.3")
    made, _ = build(trt, graphs_of.segmenter())
    right = run(trt, made, some_frames())
    monkeypatch.setenv("EDGESEG_TRT_DOUBLE_WRONG", "1")
    assert (run(trt, made, some_frames()) == right + 1).all()
    monkeypatch.setenv("EDGESEG_TRT_DOUBLE_ERROR", "Error Code 2: OutOfMemory (no more memory)")
    assert "OutOfMemory" in build(trt, graphs_of.segmenter())[1]


def in_child(version: str, module: str, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, "PYTHONPATH": str(SITE), "EDGESEG_TRT_DOUBLE": version, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**told, "MODULE": module})


def test_a_child_process_imports_it_under_the_real_name(tmp_path: Path) -> None:
    code = (
        "import tensorrt; print(tensorrt.__version__, hasattr(tensorrt, 'IProgressMonitor'), hasattr(tensorrt, 'os'))"
    )
    assert in_child("8.6.1", "tensorrt", code).stdout.split() == ["8.6.1", "False", "False"]
    assert "ModuleNotFoundError" in in_child("rtx-1.7", "tensorrt", code).stderr
    found = in_child("rtx-1.7", "tensorrt_rtx", "import tensorrt_rtx; print(tensorrt_rtx.__version__)")
    assert found.stdout.split() == ["1.7.1.116"]


@pytest.mark.parametrize("where", ["build", "parse"])
def test_a_crash_ends_the_child(where: str) -> None:
    code = (
        "import tensorrt as t; l = t.Logger(); b = t.Builder(l); n = b.create_network(1); "
        "t.OnnxParser(n, l).parse(b''); b.build_serialized_network(n, b.create_builder_config()); print('alive')"
    )
    assert "alive" in in_child("8.6.1", "tensorrt", code).stdout
    assert in_child("8.6.1", "tensorrt", code, EDGESEG_TRT_DOUBLE_CRASH=where).returncode == -signal.SIGSEGV
