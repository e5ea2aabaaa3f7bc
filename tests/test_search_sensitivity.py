"""Sensitivity by running only the end of a network is what running it whole gives; dialects, caches, planted faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edgeseg.graph import Graph
from edgeseg.pipeline.search import sensitivity as module
from edgeseg.pipeline.search.neighbours import neighbours
from edgeseg.pipeline.search.sensitivity import Loss, Sensitivity, sensitivities
from edgeseg.pipeline.search.suffix import differing, emulated
from edgeseg.quantize import DIALECTS, OPENVINO, TENSORRT, Dialect, place, quantize
from edgeseg.types import LOGITS, MASK, Frames, OnnxModel
from tests.quantize import making


def batches(count: int = 3, seed: int = 5) -> list[Frames]:
    return [frame[None] for frame in making.frames(count, seed=seed)]


def int8(model: OnnxModel, dialect: Dialect) -> Callable[[frozenset[str]], OnnxModel]:
    table = making.table_of(model)
    return lambda kept: quantize(model, table, dialect, placement=place(Graph(model.graph), dialect, keep_float=kept))


def slow(model: OnnxModel, made: OnnxModel, frames: list[Frames]) -> tuple[float, float]:
    """Noise and agreement by running both graphs whole, frame after frame."""
    noise = signal = same = 0.0
    pixels = 0
    for frame in frames:
        exact = making.tensors_of(model.graph, [LOGITS, MASK], frame)
        found = making.tensors_of(emulated(made.graph), [LOGITS, MASK], frame)
        noise += float(np.square(exact[LOGITS].astype(np.float64) - found[LOGITS]).sum())
        signal += float(np.square(exact[LOGITS].astype(np.float64)).sum())
        same += float((exact[MASK] == found[MASK]).sum())
        pixels += exact[MASK].size
    return noise / signal, same / pixels


@pytest.mark.parametrize("name", ["onnxruntime-x86", "openvino", "tensorrt"])
def test_it_is_what_whole_networks_give(name: str) -> None:
    model, dialect = making.everything(), DIALECTS[name]
    nodes = place(Graph(model.graph), dialect).convolutions
    assert len(nodes) >= 6
    of = int8(model, dialect)
    found = sensitivities(model, nodes, of, batches())
    assert [row.node for row in found.rows] == list(nodes)
    assert found.frames == 3
    for kept, loss in [
        (frozenset(), found.everything),
        *((frozenset(nodes) - {row.node}, row.alone) for row in found.rows),
        *((frozenset({row.node}), row.without) for row in found.rows),
    ]:
        assert loss is not None
        noise, agreement = slow(model, of(kept), batches())
        assert loss.noise == pytest.approx(noise, rel=0.02, abs=1e-9)  # ties of rounding fall as kernels sum
        assert loss.agreement == pytest.approx(agreement, abs=0.003)
        assert noise > 0


def test_a_planted_fault_comes_first() -> None:
    model = making.unet()
    table = making.table_of(model)
    nodes = place(Graph(model.graph), TENSORRT).convolutions
    low = [node for node in nodes if node == "node_conv2"]
    assert low
    coarse = replace(TENSORRT, weight_bits=2)

    def of(kept: frozenset[str]) -> OnnxModel:
        placement = place(Graph(model.graph), TENSORRT, keep_float=kept)
        dialect = coarse if low[0] not in kept else TENSORRT
        if dialect is TENSORRT:
            return quantize(model, table, TENSORRT, placement=placement)
        fine = Graph(quantize(model, table, TENSORRT, placement=placement).graph)
        rough = Graph(quantize(model, table, coarse, placement=placement).graph)
        for part in ("q", "scale"):  # the weights of one convolution in two bits
            name = f"edgeseg/{low[0]}/weight/{part}"
            value = rough.constant(name)
            assert value is not None
            fine.replace_constant(name, value)
        return replace(model, graph=fine.finish([]), precision="int8")

    found = sensitivities(model, nodes, of, batches())
    worst = max(found.rows, key=lambda row: row.saved(found.everything))
    assert worst.node == low[0]
    assert min(found.rows, key=lambda row: row.alone.snr_db or math.inf).node == low[0]


def test_it_is_kept_and_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = making.unet()
    nodes = place(Graph(model.graph), OPENVINO).convolutions
    of = int8(model, OPENVINO)
    monkeypatch.setattr(module, "_TOGETHER", 1)
    calls = iter([False, True])
    part = sensitivities(model, nodes, of, batches(), ended=lambda: next(calls, True))
    assert 0 < len(part.rows) < len(nodes)
    assert all(row.without is None for row in part.rows)
    asked: list[frozenset[str]] = []

    def counted(kept: frozenset[str]) -> OnnxModel:
        asked.append(kept)
        return of(kept)

    whole = sensitivities(model, nodes, counted, batches())
    assert whole.rows[: len(part.rows)][0].alone == part.rows[0].alone
    assert len(asked) < 2 * len(nodes) + 1
    asked.clear()
    assert sensitivities(model, nodes, counted, batches()) == whole
    assert asked == [frozenset()]  # to know the network by
    assert sensitivities(model, nodes, counted, batches(seed=6)).rows != whole.rows
    assert sensitivities(model, nodes, counted, batches(), use_cache=False).everything.noise == pytest.approx(
        whole.everything.noise
    )
    with pytest.raises(ValueError, match="at least one frame"):
        sensitivities(model, nodes, of, [])


def test_only_what_comes_after_a_layer_runs_again() -> None:
    model = making.everything()
    nodes = place(Graph(model.graph), TENSORRT).convolutions
    of = int8(model, TENSORRT)
    last = nodes[-1]
    part = differing(model.graph, of(frozenset(nodes) - {last}).graph, [LOGITS, MASK])
    kinds = [node.op_type for node in part.model.graph.node]
    assert kinds.count("Conv") == 1
    assert part.outputs == (LOGITS, MASK)
    same = differing(model.graph, model.graph, [LOGITS, MASK])
    assert same.outputs == ()
    assert not same.model.graph.node


def test_a_constant_of_another_value_is_a_change() -> None:
    model = making.unet()
    other = Graph(model.graph)
    other.replace_constant("head.b", np.full(4, 9, np.float32))
    part = differing(model.graph, other.finish([]), [LOGITS, MASK])
    assert [node.op_type for node in part.model.graph.node] == ["Conv", "ArgMax", "Cast"]
    assert part.inputs == ("relu3",)


def test_fake_quantize_without_a_zero_is_refused() -> None:
    model = making.unet()
    made = Graph(int8(model, OPENVINO)(frozenset()).graph)
    fake = next(node for node in made.nodes if node.op_type == "FakeQuantize")
    made.replace_constant(fake.input[1], np.array(1.0, np.float32))
    made.replace_constant(fake.input[2], np.array(2.0, np.float32))
    with pytest.raises(ValueError, match="no uint8 grid"):
        emulated(made.finish([]))


def test_a_loss_in_decibels() -> None:
    assert Loss(0.001, 1).snr_db == pytest.approx(30)
    assert Loss(0.0, 1).snr_db is None
    row = Sensitivity("a", Loss(0.02, 1), Loss(0.05, 1))
    weight = 0.02 / 0.06
    assert row.saved(Loss(0.06, 1)) == pytest.approx((0.02 + weight * 0.01) / (1 + weight))
    assert Sensitivity("e", Loss(0.02, 1), None).saved(Loss(0.06, 1)) == 0.02
    assert row.saved(Loss(0.02, 1)) == pytest.approx(0.01)  # float made it worse: that saves nothing
    drowned = Sensitivity("b", Loss(0.001, 1), Loss(0.9, 1))  # what it seems to take away is the others' doing
    assert drowned.saved(Loss(1.0, 1)) < 0.0012
    assert Sensitivity("c", Loss(math.inf, 0), Loss(0.1, 1)).saved(Loss(math.inf, 0)) == math.inf
    assert Sensitivity("d", Loss(0.0, 1), Loss(0.0, 1)).saved(Loss(0.0, 1)) == 0


def test_neighbours_are_convolutions_without_another_in_between() -> None:
    model = making.unet()
    found = neighbours(Graph(model.graph), ["node_conv1", "node_conv2", "node_conv3"])
    assert found == {
        "node_conv1": {"node_conv2", "node_conv3"},
        "node_conv2": {"node_conv1", "node_conv3"},
        "node_conv3": {"node_conv1", "node_conv2"},
    }
