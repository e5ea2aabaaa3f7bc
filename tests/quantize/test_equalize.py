"""Equalization: the network stays what it is, bit for bit with powers of two as factors, and fits eight bits better."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeseg.backends.onnxruntime import probe
from edgeseg.errors import ModelError
from edgeseg.export import fuse, to_onnx
from edgeseg.intake import load
from edgeseg.quantize import TENSORRT, Graph, quantize
from edgeseg.quantize.channels import Channels
from edgeseg.quantize.equalize import LARGEST, ChannelRanges, channel_ranges, equalized
from edgeseg.spec import spec_for
from edgeseg.types import LOGITS, Onnx, OnnxModel
from tests.export.making import made
from tests.quantize import making
from tests.quantize.making import Net

SHARED = Path(os.environ.get("EDGESEG_SHARED", Path(__file__).parents[3] / "shared"))
TRAINED = SHARED / "models" / "unet_camvid.pt2"
Middle = Callable[[Net, str], str]


def scores(model: OnnxModel, seed: int = 5) -> making.Array:
    return making.tensors_of(model.graph, [LOGITS], making.frames(1, model.spec.input.size, seed))[LOGITS]


def ranges(model: OnnxModel) -> ChannelRanges:
    return channel_ranges(model, probe, (frame[None] for frame in making.frames(3, model.spec.input.size)), TENSORRT)


def uneven(net: Net, name: str, sign: int = 1) -> None:
    """Factors from 1/16 to 16 between the channels of a convolution, or the other way round."""
    factors = np.exp2(sign * np.linspace(-4, 4, len(net.weights[f"{name}.w"]))).astype(np.float32)
    net.weights[f"{name}.w"] *= factors[:, None, None, None]


def around(middle: Middle) -> OnnxModel:
    """Two convolutions and something between them, with channels of very different ranges."""
    net = Net(3)
    first = net.conv(net.image(), "first", 8)
    uneven(net, "first")
    second = net.conv(middle(net, first), "second", 6)
    return net.model(net.conv(net.relu(second, "relu_last"), "head", 4, 1))


def constant(net: Net, name: str, *shape: int) -> str:
    return net.weight(name, net.rng.normal(0, 1, shape).astype(np.float32))


def norm(net: Net, x: str) -> str:
    given = [constant(net, "scale", 8), constant(net, "beta", 8), constant(net, "mean", 8)]
    variance = net.weight("variance", np.linspace(0.5, 2, 8).astype(np.float32))
    return net.op("BatchNormalization", [x, *given, variance], "norm")


def residual(net: Net, x: str) -> str:
    body = net.conv(net.relu(net.conv(x, "inner", 12), "relu_inner"), "outer", 8)
    return net.op("Add", [body, x], "sum")


def concatenated(net: Net, x: str) -> str:
    other = net.relu(net.conv(x, "branch", 4), "relu_branch")
    return net.op("Concat", [other, net.relu(x, "relu_x"), "image"], "concat", 15, axis=1)


def separated(net: Net, x: str) -> str:
    depthwise = net.conv(net.relu(x, "relu_dw"), "depthwise", 8, group=8)
    uneven(net, "depthwise")
    return net.relu(net.conv(net.relu(depthwise, "relu_pw"), "pointwise", 12, 1), "relu_out")


def transposed(net: Net, x: str) -> str:
    small = net.op("AveragePool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    kernel = constant(net, "up.w", 8, 3, 2, 2)
    return net.op("ConvTranspose", [small, kernel], "up", 6, strides=[2, 2], group=2)


def split(net: Net, x: str) -> str:
    net.nodes.append(
        helper.make_node("Split", [x, net.weight("sizes", np.array([3, 5]))], ["a", "b"], "node_split", axis=1)
    )
    net.channels |= {"a": 3, "b": 5}
    return net.op("Concat", [net.relu("b", "relu_b"), "a"], "concat", 8, axis=1)


def sliced(net: Net, x: str) -> str:
    at = [net.weight(name, np.array(value)) for name, value in (("from", [0]), ("to", [20]), ("axes", [2]))]
    pads = net.weight("pads", np.array([0, 0, 4, 0, 0, 0, 0, 0]))
    return net.op("Pad", [net.op("Slice", [x, *at], "slice"), pads], "pad")


def resized_by_shape(net: Net, x: str) -> str:
    """As exporters write it: up to the size of another tensor, which is asked for its shape only."""
    small = net.halved(x, "pool")
    return net.op("Resize", [small, "", "", net.op("Shape", [x], "shape")], "up", 8, mode="nearest")


PASSING: dict[str, Middle] = {
    "relu": lambda net, x: net.relu(x, "y"),
    "leaky": lambda net, x: net.op("LeakyRelu", [x], "y", alpha=0.1),
    "prelu": lambda net, x: net.op("PRelu", [x, constant(net, "slope", 8, 1, 1)], "y"),
    "nearest": lambda net, x: net.nearest(net.halved(x, "pool"), "y"),
    "bilinear": lambda net, x: net.op(
        "Resize",
        [net.halved(x, "pool"), "", net.weight("by", np.array([1, 1, 2, 2], np.float32))],
        "y",
        mode="linear",
    ),
    "average": lambda net, x: net.op(
        "AveragePool", [x], "y", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1, strides=[1, 1]
    ),
    "shift": lambda net, x: net.op("Add", [constant(net, "c", 8, 1, 1), x], "y", 8),
    "scalar": lambda net, x: net.op("Sub", [x, constant(net, "c")], "y"),
    "factor": lambda net, x: net.op("Mul", [x, constant(net, "c", 1, 8, 1, 1)], "y"),
    "norm": norm,
    "residual": residual,
    "concat": concatenated,
    "separable": separated,
    "transposed": transposed,
    "split": split,
    "shape": resized_by_shape,
    "slice": sliced,
}
BLOCKING: dict[str, tuple[Middle, str]] = {
    "relu6": (
        lambda net, x: net.op("Clip", [x, constant(net, "low"), net.weight("six", np.array(6, np.float32))], "y"),
        "Clip",
    ),
    "sigmoid": (lambda net, x: net.op("Sigmoid", [x], "y"), "Sigmoid"),
    "hardswish": (lambda net, x: net.op("HardSwish", [x], "y"), "HardSwish"),
    "product": (lambda net, x: net.op("Mul", [x, net.conv("image", "other", 8)], "y"), "both sides"),
    "shuffle": (lambda net, x: net.halved(net.op("DepthToSpace", [x], "large", 2, blocksize=2), "y"), "DepthToSpace"),
    "frame": (lambda net, x: net.op("Add", [x, net.op("ReduceMean", ["image"], "m", axes=[1])], "y", 8), "not made by"),
}


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("aware", [False, True], ids=["weights", "activations"])
def test_what_commutes_lets_factors_through_bit_for_bit(name: str, aware: bool) -> None:
    model = around(PASSING[name])
    seen = ranges(model) if aware else None
    for bitwise in (True, False):
        found = equalized(model, seen=seen, bitwise=bitwise)
        # Weighed by activations, what only a float layer reads needs no factors; others take part.
        assert any((aware or pair.first == "node_first") and pair.largest > 1.5 for pair in found.pairs), found.skipped
        before, after = scores(model), scores(found.model)
        if bitwise:
            np.testing.assert_array_equal(after, before)
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


@pytest.mark.parametrize("name", BLOCKING)
def test_what_does_not_commute_is_named_and_left(name: str) -> None:
    middle, why = BLOCKING[name]
    model = around(middle)
    for seen in (None, ranges(model)):
        found = equalized(model, seen=seen)
        assert why in found.skipped["node_first"]
        assert all(pair.first != "node_first" for pair in found.pairs)
        np.testing.assert_allclose(scores(found.model), scores(model), rtol=1e-4, atol=1e-5)


def test_a_wrong_factor_would_be_seen() -> None:
    model = equalized(around(PASSING["relu"]), bitwise=True).model
    graph = Graph(model.graph)
    (node,) = (node for node in graph.nodes if node.name == "node_second")
    weights = graph.constant(node.input[1])
    assert weights is not None
    weights = weights.copy()
    weights[:, 3] *= 2
    graph.replace_constant(node.input[1], weights)
    spoiled = OnnxModel(graph.finish([]), model.spec)
    assert np.abs(scores(spoiled) - scores(model)).max() > 1e-2


@pytest.mark.parametrize("make", [making.unet, making.everything])
def test_the_networks_of_these_tests_stay_as_they_are(make: Callable[[], OnnxModel]) -> None:
    model = make()
    found = equalized(model, seen=ranges(model), bitwise=True)
    assert found.pairs
    np.testing.assert_array_equal(scores(found.model), scores(model))


@pytest.mark.parametrize("name", ["depthwise", "concatenated"])
def test_exported_networks_stay_as_they_are(name: str) -> None:
    model = made(name, quick=True).fused
    found = equalized(model, seen=ranges(model))
    assert found.pairs
    before, after = scores(model), scores(found.model)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * np.abs(before).max())
    np.testing.assert_array_equal(after.argmax(1), before.argmax(1))
    np.testing.assert_array_equal(scores(equalized(model, bitwise=True).model), before)


@pytest.mark.skipif(not TRAINED.is_file(), reason="needs the trained model of EDGESEG_SHARED")
def test_a_trained_network_stays_as_it_is() -> None:
    spec = spec_for(TRAINED)
    source = load(TRAINED, spec)
    assert not isinstance(source, Onnx)
    model = fuse(to_onnx(source, spec, quick=True).graph, spec)
    found = equalized(model, seen=ranges(model))
    assert len(found.pairs) > 10
    before, after = scores(model), scores(found.model)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * np.abs(before).max())
    np.testing.assert_array_equal(after.argmax(1), before.argmax(1))
    np.testing.assert_array_equal(scores(equalized(model, bitwise=True).model), before)


def rows_and_columns(model: OnnxModel, first: str, second: str) -> tuple[making.Array, making.Array]:
    graph = Graph(model.graph)
    one, two = (
        graph.constant(node.input[1]) for name in (first, second) for node in graph.nodes if node.name == f"node_{name}"
    )
    assert one is not None
    assert two is not None
    return np.abs(one).max((1, 2, 3)), np.abs(two).max((0, 2, 3))


def test_rows_come_to_be_as_large_as_the_columns_that_read_them() -> None:
    model = around(PASSING["relu"])
    before, after = (rows_and_columns(m, "first", "second") for m in (model, equalized(model).model))
    assert np.ptp(np.log2(before[0] / before[1])) > 6
    assert np.ptp(np.log2(after[0] / after[1])) < 0.1


def test_a_depthwise_convolution_takes_the_factors_that_make_all_ranges_equal() -> None:
    model = around(lambda net, x: net.relu(net.conv(net.relu(x, "y"), "depthwise", 8, group=8), "z"))
    found = equalized(model, seen=ranges(model))
    before, after = ranges(model).largest["y"], ranges(found.model).largest["y"]
    assert np.ptp(np.log2(before)) > 6
    assert np.ptp(np.log2(after)) < 0.1


def test_int8_comes_closer_where_ranges_lie_apart() -> None:
    """What a convolution makes uneven a depthwise one evens out again: as after training with batch norm."""

    def middle(net: Net, x: str) -> str:
        depthwise = net.conv(net.relu(x, "y"), "depthwise", 8, group=8)
        uneven(net, "depthwise", -1)
        net.weights["first.b"] *= np.exp2(np.linspace(-4, 4, 8)).astype(np.float32)
        return net.relu(depthwise, "z")

    model = around(middle)
    better = equalized(model, seen=ranges(model)).model
    exact = scores(model)
    before, after = (
        making.snr_db(exact, scores(quantize(m, making.table_of(m, recipe="mse"), TENSORRT))) for m in (model, better)
    )
    assert after > before + 3


def test_dead_channels_and_extreme_weights() -> None:
    net = Net(3)
    first = net.relu(net.conv(net.image(), "first", 8), "relu")
    net.weights["first.w"][0] = 0  # makes nothing
    net.weights["first.b"][0] = 0
    net.weights["first.w"][1] *= 1e-30
    net.weights["first.w"][2] *= 1e6
    second = net.conv(first, "second", 6)
    net.weights["second.w"][:, 3] = 0  # nobody reads it
    model = net.model(net.conv(net.relu(second, "relu_last"), "head", 4, 1))
    for seen in (None, ranges(model)):
        found = equalized(model, seen=seen)
        assert max(pair.largest for pair in found.pairs) <= LARGEST * (1 + 1e-9)
        before, after = scores(model), scores(found.model)
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * np.abs(before).max())
        for value in making.constants(found.model.graph).values():
            assert np.isfinite(value).all()


def test_weights_that_two_convolutions_share() -> None:
    net = Net(3)
    image = net.image()
    shared = net.weight("shared", net.rng.normal(0, 0.3, (3, 3, 3, 3)).astype(np.float32))
    shared_ = [net.op("Conv", [image, shared], "one", 3, pads=[1] * 4)]
    shared_.append(net.op("Conv", [net.relu(shared_[0], "relu1"), shared], "two", 3, pads=[1] * 4))
    model = net.model(net.conv(net.relu(shared_[1], "relu2"), "head", 4, 1))
    found = equalized(model, bitwise=True)
    np.testing.assert_array_equal(scores(found.model), scores(model))


def test_a_tensor_that_a_branch_of_an_if_reads_is_left() -> None:
    net = Net(3)
    x = net.relu(net.conv(net.image(), "first", 8), "relu")
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    inside = helper.make_graph([helper.make_node("Identity", ["relu"], ["out"])], "branch", [], [value])
    net.weight("yes", np.array(True))
    net.op("If", ["yes"], "picked", 8, then_branch=inside, else_branch=inside)
    second = net.conv(net.op("Add", ["picked", x], "sum"), "second", 6)
    model = net.model(net.conv(net.relu(second, "relu_last"), "head", 4, 1))
    found = equalized(model)
    assert "node_first" in found.skipped
    np.testing.assert_allclose(scores(found.model), scores(model), rtol=1e-4, atol=1e-4)


def test_it_gives_the_same_twice_and_settles() -> None:
    model = around(PASSING["residual"])
    one, two = equalized(model), equalized(model)
    assert one.model.graph == two.model.graph
    again = equalized(one.model)
    assert max((pair.largest for pair in again.pairs), default=1.0) < 1.1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_and_ranges_that_are_not_finite_are_named(value: float) -> None:
    model = making.unet()
    graph = Graph(model.graph)
    weights = making.constants(model.graph)["conv2.w"].copy()
    weights[0, 0, 0, 0] = value
    graph.replace_constant("conv2.w", weights)
    with pytest.raises(ModelError, match=r"conv2\.w"):
        equalized(OnnxModel(graph.finish([]), model.spec))
    seen = ranges(model)
    with pytest.raises(ModelError, match="relu1"):
        equalized(model, seen=ChannelRanges({"relu1": np.full(8, value, np.float32)}, seen.groups))


def test_classes_of_a_sum_are_one_and_of_a_concatenation_side_by_side() -> None:
    def classes(model: OnnxModel) -> tuple[Channels, Sequence[str]]:
        channels = Channels(Graph(model.graph))
        return channels, sorted(channels.of)

    channels, _ = classes(around(residual))
    np.testing.assert_array_equal(channels.of["outer"], channels.of["first"])
    assert not np.intersect1d(channels.of["inner"], channels.of["first"]).size
    channels, _ = classes(around(concatenated))
    np.testing.assert_array_equal(channels.of["concat"][:4], channels.of["branch"])
    np.testing.assert_array_equal(channels.of["concat"][4:12], channels.of["first"])
    assert all(one in channels.pinned for one in channels.of["concat"][12:].tolist())


def test_a_part_that_cannot_be_scaled_stops_the_others_from_vanishing_beside_it() -> None:
    """As in a network that hands a smaller image on: what fills one tensor is a part of another, beside the image."""
    net = making.Net(1)
    x = net.relu(net.conv(net.image(), "first", 8), "relu")
    alone = net.relu(net.conv(x, "alone", 8, group=8), "relu_alone")
    uneven_image = net.op(
        "Mul", ["image", net.weight("dim", np.array([1, 0.3, 0.1], np.float32).reshape(1, 3, 1, 1))], "dimmed", 3
    )
    both = net.relu(net.op("Concat", [x, uneven_image], "concat", 11, axis=1), "both")
    beside = net.relu(net.conv(both, "beside", 11, group=11), "relu_beside")
    model = net.model(net.conv(net.op("Concat", [alone, beside], "all", 19, axis=1), "head", 3, 1))
    found = equalized(model, seen=ranges(model))
    assert found.pairs
    assert max(pair.largest for pair in found.pairs) < 20


def test_strength_is_the_power_of_the_factors() -> None:
    net = making.Net(2)
    y = net.relu(net.conv(net.relu(net.conv(net.image(), "one", 6), "relu_one"), "two", 6), "relu_two")
    model = net.model(net.conv(y, "head", 3, 1))
    seen = ranges(model)
    whole, half, none = (equalized(model, seen=seen, strength=strength).pairs for strength in (1.0, 0.5, 0.0))
    assert not none
    for one, other in zip(whole, half, strict=True):
        assert other.largest == pytest.approx(one.largest**0.5)
