"""Adaptive rounding: the patches are those that a convolution reads, and the integers serve its output better."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from edgeseg.backends.onnxruntime import probe
from edgeseg.quantize import ONNXRUNTIME_X86, TENSORRT, Dialect, Graph, place, quantize, rounding
from edgeseg.quantize.integers import adapt, compensated, descended, error, squares
from edgeseg.quantize.rounding import Moments, adapted
from edgeseg.quantize.weights import rounded
from edgeseg.quantize.write import weight_name
from edgeseg.types import LOGITS, Frames, OnnxModel
from tests.quantize import making

FOUR_BITS = replace(TENSORRT, weight_bits=4)  # where rounding matters enough to be seen in a tiny network


def batches(count: int, seed: int = 0) -> list[Frames]:
    return [frame[None] for frame in making.frames(count, seed=seed)]


def correlated(rng: np.random.Generator, size: int) -> making.Array:
    mixed = rng.normal(size=(400, size)) @ rng.normal(size=(size, size)) + 1
    moments: making.Array = mixed.T @ mixed / len(mixed)
    return moments


@pytest.mark.parametrize(
    ("group", "strides", "dilations", "pads", "kernel"),
    [
        (1, (1, 1), (1, 1), (1, 1, 1, 1), (3, 3)),
        (1, (2, 1), (1, 2), (0, 2, 1, 0), (3, 2)),
        (2, (1, 2), (2, 1), (2, 0, 2, 3), (2, 5)),
        (4, (1, 1), (1, 1), (1, 1, 1, 1), (3, 3)),
        (1, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    ],
)
def test_weights_times_patches_are_what_the_convolution_gives(
    group: int, strides: tuple[int, int], dilations: tuple[int, int], pads: tuple[int, ...], kernel: tuple[int, int]
) -> None:
    net = making.Net(2)
    x = net.conv(net.image(), "x", 4)
    weights = net.rng.normal(0, 1, (8, 4 // group, *kernel)).astype(np.float32)
    given = [x, net.weight("w", weights)]
    net.op("Conv", given, "y", 8, strides=strides, dilations=dilations, pads=pads, group=group)
    scores = net.nearest(net.conv("y", "head", 3, 1), "scores", 9.0)
    sizes = net.weight("sizes", np.array([1, 3, *net.size]))
    net.nodes[-1].input[:] = ["head", "", "", sizes]
    model = net.model(scores)
    values = making.tensors_of(model.graph, ["x", "y"], making.frames(1))
    (node,) = (node for node in Graph(model.graph).nodes if node.name == "node_y")
    window = rounding._window(node, weights)
    assert window is not None
    read = rounding.patches(values["x"], window, 10**6)
    rows = weights.reshape(group, 8 // group, -1)
    made = np.matmul(rows, read.transpose(0, 2, 1)).reshape(1, 8, *values["y"].shape[2:])
    np.testing.assert_allclose(made, values["y"], rtol=1e-4, atol=1e-4)
    some = rounding.patches(values["x"], window, 20)
    assert some.shape == (group, 20, rows.shape[2])
    for patch in some[0]:
        assert (read[0] == patch).all(axis=1).any()


def test_moments_are_those_of_all_patches_at_once() -> None:
    data = np.random.default_rng(0).normal(2, 1, (2, 300, 5)).astype(np.float32)
    moments = Moments(2, 5)
    for part in np.split(data, [10, 150], axis=1):
        moments.update(part)
    for group in range(2):
        np.testing.assert_allclose(moments.compute(True)[group], np.cov(data[group].T, bias=True), atol=1e-5)
        np.testing.assert_allclose(moments.compute(False)[group], data[group].T @ data[group] / 300, rtol=1e-5)
    assert not Moments(1, 3).compute(True).any()


def test_against_every_choice_of_integers() -> None:
    """Brute force over two integers on either side: close to the best, where nearest is far from it."""
    rng = np.random.default_rng(1)
    found, nearest, best = [], [], []
    for _ in range(30):
        exact, moments = rng.uniform(-6, 6, (1, 1, 2, 2)), correlated(rng, 4)[None]
        ones = np.ones(1, np.float32)
        choices = itertools.product(*([np.floor(w) + step for step in (-1, 0, 1, 2)] for w in exact.ravel()))
        best.append(min(error(np.array(c).reshape(exact.shape) - exact, moments, 1, ones) for c in choices))
        found.append(error(adapt(exact, moments, 1, 7) - exact, moments, 1, ones))
        nearest.append(error(np.rint(exact) - exact, moments, 1, ones))
    assert np.sum(found) < 1.3 * np.sum(best)
    assert np.sum(nearest) > 1.5 * np.sum(found)


def test_inputs_that_have_nothing_to_do_with_each_other_get_nearest_integers() -> None:
    rng = np.random.default_rng(2)
    exact = rng.uniform(-9, 9, (6, 2, 3, 3))
    moments = np.diag(rng.uniform(0.1, 5, 18))[None]
    np.testing.assert_array_equal(adapt(exact, moments, 1, 7), np.clip(np.rint(exact), -7, 7))


def test_no_channel_gets_worse_and_no_integer_leaves_its_range() -> None:
    rng = np.random.default_rng(3)
    exact = rng.uniform(-8, 8, (8, 3, 3, 3))
    for groups, size in ((1, 27), (4, 27)):
        moments = np.stack([correlated(rng, size) for _ in range(groups)])
        found = adapt(exact, moments, groups, 7)
        assert found.dtype == np.int8
        assert np.abs(found).max() <= 7
        damped = moments + 1e-2 * np.eye(size) * np.einsum("gdd->g", moments)[:, None, None] / size
        before, after = (
            np.einsum("gkd,gde,gke->gk", u, damped, u)
            for u in ((c - exact).reshape(groups, -1, size) for c in (np.clip(np.rint(exact), -7, 7), found))
        )
        assert (after <= before * (1 + 1e-6)).all()
        assert after.sum() < 0.5 * before.sum()


def test_compensation_is_that_of_gptq() -> None:
    """The paper's own form: Cholesky factor of the inverse, what is left of a row changed after every column."""
    rng = np.random.default_rng(5)
    goal = rng.uniform(-9, 9, (2, 5, 150))
    moments = np.stack([correlated(rng, 150) + 5 * np.eye(150) for _ in range(2)])
    expected = np.empty_like(goal)
    for group in range(2):
        order = np.argsort(-np.diag(moments[group]), kind="stable")
        factor = np.linalg.cholesky(np.linalg.inv(moments[group][np.ix_(order, order)])).T
        left = goal[group][:, order].copy()
        for column in range(150):
            expected[group][:, order[column]] = np.clip(np.rint(left[:, column]), -7, 7)
            missed = (left[:, column] - expected[group][:, order[column]]) / factor[column, column]
            left[:, column:] -= np.outer(missed, factor[column, column:])
    np.testing.assert_array_equal(compensated(goal, moments, 7), expected)


def test_no_single_move_is_left_that_would_help() -> None:
    rng = np.random.default_rng(6)
    goal = rng.uniform(-8, 8, (3, 6, 40))
    moments = np.stack([correlated(rng, 40) for _ in range(3)])
    found = descended(goal, np.clip(np.rint(goal), -7, 7), moments, 7)
    least = squares(found - goal, moments)
    for column, step in itertools.product(range(40), (-1, 1)):
        moved = found.copy()
        moved[:, :, column] = np.clip(moved[:, :, column] + step, -7, 7)
        assert (squares(moved - goal, moments) >= least * (1 - 1e-3)).all()


def test_dead_inputs_keep_nearest_integers() -> None:
    exact = np.random.default_rng(4).uniform(-9, 9, (4, 1, 3, 3))
    np.testing.assert_array_equal(adapt(exact, np.zeros((4, 9, 9)), 4, 127), np.rint(exact))


def snr(model: OnnxModel, made: OnnxModel) -> float:
    exact, other = (
        np.stack([making.tensors_of(m.graph, [LOGITS], f)[LOGITS] for f in batches(3, seed=9)]) for m in (model, made)
    )
    centre = exact.mean((0, 1, 3, 4), keepdims=True)
    return making.snr_db(exact - centre, other - centre)


@pytest.mark.parametrize(
    ("dialect", "stages"),
    [(FOUR_BITS, 1), (replace(ONNXRUNTIME_X86, weight_bits=4), 100)],
    ids=["tensorrt", "onnxruntime, layer after layer"],
)
def test_a_network_of_few_bits_comes_closer_to_fp32(dialect: Dialect, stages: int) -> None:
    model = making.unet()
    table = making.table_of(model)
    found = adapted(model, table, dialect, probe, batches(4), centred=False, stages=stages)
    assert found.integers
    assert set(found.integers) | set(found.left) == set(place(Graph(model.graph), dialect).convolutions)
    assert found.gained.keys() == found.integers.keys()
    assert min(found.gained.values()) > 0
    made = quantize(model, table, dialect, rounding=found.integers)
    assert snr(model, made) > snr(model, quantize(model, table, dialect)) + 1
    again = adapted(model, table, dialect, probe, batches(4), centred=False, stages=stages)
    assert all((again.integers[node] == found.integers[node]).all() for node in found.integers)


def test_grouped_and_depthwise_layers_take_part() -> None:
    model = making.everything()
    found = adapted(model, making.table_of(model), FOUR_BITS, probe, batches(6), centred=False)
    assert "node_depthwise" in found.integers
    assert found.integers["node_depthwise"].shape == (8, 1, 3, 3)


def test_the_graph_holds_the_integers_given() -> None:
    model = making.unet()
    table = making.table_of(model)
    weights = making.constants(model.graph)["conv2.w"]
    given = rounded(weights, 8)[0] // 2
    made = making.constants(quantize(model, table, TENSORRT, rounding={"node_conv2": given}).graph)
    np.testing.assert_array_equal(made[weight_name("node_conv2")], given)
    plain = making.constants(quantize(model, table, TENSORRT).graph)
    np.testing.assert_array_equal(made[weight_name("node_conv3")], plain[weight_name("node_conv3")])
    np.testing.assert_array_equal(made["edgeseg/node_conv2/weight/scale"], plain["edgeseg/node_conv2/weight/scale"])


@pytest.mark.parametrize(
    "given", [np.zeros((1, 2, 3, 3), np.int8), np.zeros((12, 8, 3, 3), np.int16), np.full((12, 8, 3, 3), -128, np.int8)]
)
def test_integers_that_do_not_fit_are_refused(given: making.Array) -> None:
    model = making.unet()
    with pytest.raises(ValueError, match=r"node_conv2.*other weights or another dialect"):
        quantize(model, making.table_of(model), TENSORRT, rounding={"node_conv2": given})


def test_where_a_bias_raises_the_scale_integers_stay_nearest() -> None:
    net = making.Net()
    x = net.relu(net.conv(net.image(), "conv1", 4), "relu1")
    y = net.relu(net.conv(x, "conv2", 4), "relu2")
    net.weights["conv2.w"][2] *= 1e-12  # switched off, but for a bias
    model = net.model(net.conv(y, "head", 3, 1))
    given = np.full((4, 4, 3, 3), 100, np.int8)
    made = quantize(model, making.table_of(model), ONNXRUNTIME_X86, rounding={"node_conv2": given})
    integers = making.constants(made.graph)[weight_name("node_conv2")]
    assert not (integers[2] == 100).any()
    assert (integers[[0, 1, 3]] == 100).all()


def test_what_held_out_frames_do_not_confirm_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = making.unet()
    table = making.table_of(model)
    monkeypatch.setattr(rounding, "LEAST_GAIN", 1e3)
    found = adapted(model, table, FOUR_BITS, probe, batches(4))
    assert not found.integers
    assert all("held-out" in why for why in found.left.values())


def test_layers_that_are_too_large_or_too_late_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = making.unet()
    table = making.table_of(model)
    late = adapted(model, table, FOUR_BITS, probe, batches(2), seconds=0)
    assert not late.integers
    assert all("not reached within 0 s" in why for why in late.left.values())
    monkeypatch.setattr(rounding, "LARGEST", 100)
    large = adapted(model, table, FOUR_BITS, probe, batches(2))
    assert "180 inputs" in large.left["node_conv3"]
    monkeypatch.setattr(rounding, "MEMORY", 1)  # a stage for each layer
    assert adapted(model, table, FOUR_BITS, probe, batches(2)).integers.keys() <= set(large.integers) | set(large.left)


@pytest.mark.parametrize("count", [0, 1])
def test_frames_to_judge_by_are_needed(count: int) -> None:
    model = making.unet()
    with pytest.raises(ValueError, match="two frames"):
        adapted(model, making.table_of(model), TENSORRT, probe, batches(count) if count else [])
