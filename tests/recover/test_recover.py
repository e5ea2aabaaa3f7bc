"""Quantization-aware distillation from end to end: it learns, what it gives is what is deployed, and no worse."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from calibration import ScaleTable
from edgeseg.backends.onnxruntime import inference_session, probe
from edgeseg.distill.values import Progress
from edgeseg.errors import BadInput, ModelError
from edgeseg.pipeline.recover import SAME, Recovered, deployed, enough, learning, recover, same_labels
from edgeseg.quantize import ONNXRUNTIME_X86, OPENVINO, TENSORRT, Dialect, Graph, corrected_biases, place, quantize
from edgeseg.recover import interpreter, network
from edgeseg.types import FRAME, MASK, Frames, OnnxModel
from tests.quantize import making

COARSE = replace(ONNXRUNTIME_X86, weight_bits=3)  # what rounding alone cannot save
LEARN, HELD, OUTSIDE = making.frames(24, seed=1), making.frames(6, seed=2), making.frames(12, seed=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return making.unet()


@pytest.fixture(scope="module")
def table(model: OnnxModel) -> ScaleTable:
    return making.table_of(model, recipe="mse")


@pytest.fixture(scope="module")
def found(model: OnnxModel, table: ScaleTable) -> Recovered:
    return run(model, table, COARSE, 120)


def run(model: OnnxModel, table: ScaleTable, dialect: Dialect, steps: int | None, **how: Any) -> Recovered:
    given: dict[str, Any] = {"frames": list(LEARN), "held_out": list(HELD), "minutes": 5.0} | how
    return recover(model, table, dialect, steps=steps, **given)


def masks(graph: OnnxModel, frames: Frames) -> making.Array:
    session = inference_session(graph.graph, "off", threads=1)
    return np.concatenate([session.run([MASK], {FRAME: frame[None]})[0] for frame in frames])


def pixels(graph: OnnxModel, other: OnnxModel, frames: Frames) -> float:
    return float(np.mean(masks(graph, frames) == masks(other, frames)))


def test_it_learns_what_it_says_on_frames_that_it_saw_and_on_others(
    found: Recovered, model: OnnxModel, table: ScaleTable
) -> None:
    assert found.kept
    assert found.steps == 120
    assert found.stopped == "finished"
    assert found.after.agreement > found.before.agreement
    assert found.after.kl < found.before.kl
    rounded, learned = quantize(model, table, COARSE), quantize(found.model, table, COARSE)
    # what was judged in torch is what ONNX Runtime computes
    assert found.same >= 0.999
    assert pixels(rounded, model, HELD) == pytest.approx(found.before.pixels, abs=1e-3)
    assert pixels(learned, model, HELD) == pytest.approx(found.after.pixels, abs=1e-3)
    lost, left = 1 - pixels(rounded, model, OUTSIDE), 1 - pixels(learned, model, OUTSIDE)
    assert lost > 0.02
    assert left < 0.7 * lost


def test_the_int8_graph_has_the_same_nodes(found: Recovered, model: OnnxModel, table: ScaleTable) -> None:
    before, after = (Graph(quantize(one, table, COARSE).graph) for one in (model, found.model))
    assert [(n.name, n.op_type, list(n.input), list(n.output)) for n in before.nodes if "Conv" not in n.op_type] == [
        (n.name, n.op_type, list(n.input), list(n.output)) for n in after.nodes if "Conv" not in n.op_type
    ]
    assert [n.name for n in before.nodes] == [n.name for n in after.nodes]
    scales = [
        tensor.name for tensor in before.model.graph.initializer if tensor.name.endswith(("/scale", "/zero_point"))
    ]
    pairs = [name for name in scales if "/weight/" not in name and "/bias/" not in name]
    assert pairs
    for name in pairs:
        np.testing.assert_array_equal(before.constant(name), after.constant(name))


def test_steps_and_a_seed_decide_everything(model: OnnxModel, table: ScaleTable) -> None:
    one, again, other = (run(model, table, COARSE, 8, seed=seed) for seed in (3, 3, 4))
    assert one.model.graph == again.model.graph
    assert one.after == again.after
    assert one.history[-1].loss != other.history[-1].loss


@pytest.mark.parametrize("dialect", [TENSORRT, OPENVINO], ids=lambda dialect: dialect.name)
def test_other_dialects(model: OnnxModel, table: ScaleTable, dialect: Dialect) -> None:
    coarse = replace(dialect, weight_bits=3)
    found = run(model, table, coarse, 40)
    assert found.kept
    assert found.same >= 0.999
    learned = deployed(found.model, table, coarse)
    assert pixels(learned, model, HELD) == pytest.approx(found.after.pixels, abs=1e-3)
    assert found.after.pixels > found.before.pixels
    if dialect.fake:  # and what is deployed in truth is written too
        assert b"FakeQuantize" in quantize(found.model, table, coarse).graph


def test_what_got_worse_is_not_kept(model: OnnxModel, table: ScaleTable) -> None:
    frames = [frame[None] for frame in LEARN[:4]]
    biases = corrected_biases(model, table, ONNXRUNTIME_X86, probe, frames)
    wild = replace(learning(5.0, steps=6), learning_rate=3.0, average=0.0)
    found = run(model, table, ONNXRUNTIME_X86, 6, options=wild, biases=biases)
    assert not found.kept
    assert found.after.agreement <= found.before.agreement
    before = quantize(model, table, ONNXRUNTIME_X86, bias=biases)
    np.testing.assert_array_equal(masks(quantize(found.model, table, ONNXRUNTIME_X86), HELD), masks(before, HELD))
    weights = {name: value for name, value in making.constants(found.model.graph).items() if name.endswith(".w")}
    for name, value in weights.items():
        np.testing.assert_array_equal(value, making.constants(model.graph)[name])
    assert weights


def test_what_is_deployed_otherwise_than_judged_is_not_kept(
    model: OnnxModel, table: ScaleTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeseg import recover as stage

    def damaged(model: OnnxModel, learned: Any) -> OnnxModel:
        with torch.no_grad():
            for parameter in learned.parameters():
                parameter.mul_(0.5)
        return with_weights(model, learned)

    with_weights = stage.with_weights

    def loses(model: OnnxModel, learned: Any) -> OnnxModel:
        import copy

        return damaged(model, copy.deepcopy(learned))

    monkeypatch.setattr(stage, "with_weights", loses)
    found = run(model, table, COARSE, 20)
    assert not found.kept
    assert found.same < 0.999
    assert "is not kept" in found.notes[-1]
    assert found.model is model


def test_without_time_nothing_is_changed(model: OnnxModel, table: ScaleTable) -> None:
    found = run(model, table, COARSE, None, minutes=1e-6)
    assert (found.kept, found.steps, found.stopped) == (False, 0, "no time")
    assert found.model is model
    assert found.after == found.before


def test_convolutions_kept_in_float_learn_too(model: OnnxModel, table: ScaleTable) -> None:
    held = place(Graph(model.graph), COARSE, keep_float=["node_conv2"])
    found = run(model, table, COARSE, 20, placement=held)
    assert found.same >= 0.999
    old, new = Graph(model.graph), Graph(found.model.graph)
    for before, after in zip(old.nodes, new.nodes, strict=True):
        if before.op_type == "Conv":
            mine, theirs = old.constant(before.input[1]), new.constant(after.input[1])
            assert mine is not None
            assert theirs is not None
            assert not np.array_equal(mine, theirs)
    learned = deployed(found.model, table, COARSE, held)
    assert pixels(learned, model, HELD) == pytest.approx(found.after.pixels, abs=1e-3)


def test_ctrl_c_keeps_the_best_and_the_file_goes_on(model: OnnxModel, table: ScaleTable, tmp_path: Path) -> None:
    path = tmp_path / "run"

    def press(progress: Progress) -> None:
        if progress.step == 24:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = run(model, table, COARSE, 36, on_progress=press, checkpoint=path)
    assert (stopped.stopped, stopped.steps) == ("interrupted", 24)
    assert stopped.kept
    assert stopped.after.agreement > stopped.before.agreement
    finished = run(model, table, COARSE, 36, checkpoint=path)
    assert (finished.stopped, finished.steps) == ("finished", 36)
    assert [(p.step, p.loss) for p in finished.history][: len(stopped.history)] == [
        (p.step, p.loss) for p in stopped.history
    ]
    with pytest.raises(BadInput, match="of another run"):
        run(model, table, ONNXRUNTIME_X86, 36, checkpoint=path)


def test_fewer_bits_learn_in_larger_steps() -> None:
    assert learning(1.0, bits=4).learning_rate == 16 * learning(1.0).learning_rate


def test_rounding_that_decides_is_measured_by_onnx_runtime_itself(
    model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two ways to compute a graph differ in 2 % of all pixels, so may a third; by one way it may not."""
    from edgeseg.pipeline import recover as module

    assert enough(0.99, model, list(HELD)) == SAME
    usual = module._masks

    def other(graph: OnnxModel, frames: Any, optimization: str) -> making.Array:
        found = usual(graph, frames, "off").copy()
        if optimization == "all":
            found.ravel()[::50] += 1
        return found

    monkeypatch.setattr(module, "_masks", other)
    assert enough(0.99, model, list(HELD)) == pytest.approx(0.98, abs=1e-3)
    assert enough(0.9995, model, list(HELD)) == SAME


def test_a_single_channel_with_a_threshold() -> None:
    net = making.Net(5)
    first = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    second = net.relu(net.conv(first, "conv2", 8), "relu2")
    model = net.model(net.conv(second, "head", 1, 1, gain=3.0), threshold=0.7)
    table = making.table_of(model)
    found = run(model, table, replace(TENSORRT, weight_bits=3), 20)
    assert found.same >= 0.999
    assert 0 < masks(model, HELD).mean() < 1
    rounded = quantize(model, table, replace(TENSORRT, weight_bits=3))
    assert pixels(rounded, model, HELD) == pytest.approx(found.before.pixels, abs=1e-3)


def test_a_wrong_translation_is_found_before_anything_is_trained(
    model: OnnxModel, table: ScaleTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(interpreter.OPERATORS, "Relu", lambda x: x)
    assert same_labels(network(model.graph), model, list(HELD)) < 0.999
    with pytest.raises(ModelError, match="FP32 graph in torch, where"):
        run(model, table, COARSE, 2, on_progress=pytest.fail)


def test_an_unknown_operator_is_named_before_anything_is_trained(model: OnnxModel, table: ScaleTable) -> None:
    proto = onnx.load_from_string(model.graph)
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    relu.op_type = "Celu"
    with pytest.raises(ModelError, match=f"operator Celu of node {relu.name}"):
        run(replace(model, graph=proto.SerializeToString()), table, COARSE, 2, on_progress=pytest.fail)


def test_frames_are_checked(model: OnnxModel, table: ScaleTable) -> None:
    wrong: list[dict[str, Any]] = [{"frames": []}, {"held_out": []}, {"frames": [LEARN[0][:8]]}]
    for how in [*wrong, {"frames": [LEARN[0].astype(np.float32)]}]:
        with pytest.raises(BadInput):
            run(model, table, COARSE, 2, **how)


def test_the_rate_is_a_part_of_the_weights_size() -> None:
    """A channel 1024 times as large, made small again behind the convolution, learns the same."""
    found = []
    for size in (1.0, 1024.0):
        net = making.Net(0)
        first = net.conv(net.image(), "conv1", 8)
        factor = np.ones((8, 1, 1), np.float32)
        factor[2] = size
        net.weights["conv1.w"] *= factor[..., None]
        net.weights["conv1.b"] *= factor.ravel()
        back = net.op("Mul", [first, net.weight("back", 1 / factor)], "restored")
        second = net.relu(net.conv(net.relu(back, "relu1"), "conv2", 8), "relu2")
        model = net.model(net.conv(second, "head", 4, 1, gain=3.0))
        options = replace(learning(5.0, steps=4, bits=3), feature_weight=0.0)
        found.append(run(model, making.table_of(model), replace(TENSORRT, weight_bits=3), 4, options=options))
    one, other = found
    assert one.history[-1].loss == pytest.approx(other.history[-1].loss, rel=1e-3)
    assert one.history[0].loss != one.history[-1].loss
