"""What is worth measuring: names, dialects, and the graph cut at the scores."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeseg import backends
from edgeseg.backends.decide import decide
from edgeseg.backends.onnxruntime import inference_session
from edgeseg.quantize import DIALECTS, quantize
from edgeseg.trials.candidates import candidates, cut_decision, dialect_of
from edgeseg.trials.race import best_settings, race
from edgeseg.types import FRAME, LOGITS
from tests.backends.test_sessions import BACKENDS, class_map, one_channel
from tests.quantize import making


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_names_are_unique_and_settings_are_said(backend: str, precision: str) -> None:
    model = making.unet()
    if precision == "int8":
        dialect = DIALECTS[dialect_of(backend, frozenset({"avx512_vnni"}), "x86_64")]
        model = quantize(model, making.table_of(model), dialect)
    engines = candidates(model, backend, precision)  # type: ignore[arg-type]
    names = [engine.name for engine in engines]
    decisions = backends.get(backend).decisions
    assert len(set(names)) == len(names) >= len(decisions)
    assert {engine.settings["decision"] for engine in engines} == set(decisions)
    assert all(engine.graph in engine.files and engine.precision == precision for engine in engines)


def test_a_network_that_gives_a_class_map_leaves_the_host_nothing_to_decide() -> None:
    model = class_map()
    assert cut_decision(model.graph) is None
    assert {e.settings["decision"] for e in candidates(model, "onnxruntime", "fp32")} == {"graph"}


@pytest.mark.parametrize("make", [making.unet, one_channel])
def test_the_cut_graph_and_the_host_give_the_same_mask(make: object) -> None:
    model = make()  # type: ignore[operator]
    cut = cut_decision(model.graph)
    assert cut is not None
    proto = onnx.load_from_string(cut)
    onnx.checker.check_model(proto)
    left = {node.op_type for node in proto.graph.node}
    assert not left & {"ArgMax", "GreaterOrEqual", "Squeeze"}
    names = {tensor.name for tensor in proto.graph.initializer}
    assert not names & {"threshold", "one"}
    assert "head.w" in names
    assert [output.name for output in proto.graph.output] == [LOGITS]
    session = inference_session(cut, threads=1)
    for frame in making.frames(3):
        scores = session.run([LOGITS], {FRAME: frame[None]})[0]
        expected = making.tensors_of(model.graph, ["mask"], frame[None], "all")["mask"]
        np.testing.assert_array_equal(decide(scores, model.spec.output.score_threshold), expected)


def test_cutting_leaves_the_model_alone() -> None:
    model = making.unet()
    before = bytes(model.graph)
    cut_decision(model.graph)
    assert model.graph == before


@pytest.mark.parametrize(
    ("backend", "isa", "machine", "expected"),
    [
        ("openvino", (), "x86_64", "openvino"),
        ("openvino", (), "aarch64", "openvino"),
        ("onnxruntime", ("avx2",), "x86_64", "onnxruntime-x86-no-vnni"),
        ("onnxruntime", ("avx512f", "avx512_vnni"), "x86_64", "onnxruntime-x86"),
        ("onnxruntime", ("avx_vnni",), "AMD64", "onnxruntime-x86"),
        ("onnxruntime", (), "aarch64", "onnxruntime-arm"),
        ("onnxruntime", ("neon",), "arm64", "onnxruntime-arm"),
    ],
)
def test_dialects(backend: str, isa: tuple[str, ...], machine: str, expected: str) -> None:
    assert dialect_of(backend, frozenset(isa), machine) == expected
    assert expected in DIALECTS


def test_engines_race_on_the_same_frames() -> None:
    engines = candidates(making.unet(), "onnxruntime", "fp32")
    frames = [frame[None] for frame in making.frames(2)]
    times = race(engines, frames, rounds=5, warmup=1)
    assert {name: len(samples) for name, samples in times.items()} == {engine.name: 5 for engine in engines}
    assert all(sample > 0 for samples in times.values() for sample in samples)
    best, median = best_settings(engines, frames, rounds=4)
    assert best in engines
    assert median > 0
    assert best_settings(engines[:1], frames, rounds=4)[0] is engines[0]
