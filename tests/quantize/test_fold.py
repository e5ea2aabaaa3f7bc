"""Folding: fewer nodes, the same scores, and a reason for each normalisation that stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from edgeseg.quantize import Graph
from edgeseg.quantize.fold import Folded, folded
from edgeseg.types import LOGITS, OnnxModel
from tests.quantize import making
from tests.quantize.making import Net

Build = Callable[[Net], str]


def chance(net: Net, name: str, *shape: int, low: float = -1.5, high: float = 1.5) -> str:
    return net.weight(name, net.rng.uniform(low, high, shape).astype(np.float32))


def norm(net: Net, x: str, name: str = "norm", positive: bool = False, centred: bool = False) -> str:
    """Batch norm with statistics far from (0, 1); `centred`: one that only scales."""
    count = net.channels[x]
    given = [chance(net, f"{name}.scale", count, low=0.3 if positive else -1.5)]
    given += [net.weight(f"{name}.beta", np.zeros(count, np.float32)) if centred else chance(net, f"{name}.b", count)]
    given += [net.weight(f"{name}.mean", np.zeros(count, np.float32)) if centred else chance(net, f"{name}.m", count)]
    return net.op("BatchNormalization", [x, *given, chance(net, f"{name}.v", count, low=0.2)], name, epsilon=1e-3)


def done(build: Build) -> tuple[OnnxModel, Folded]:
    net = Net(4)
    model = net.model(net.conv(net.relu(build(net), "relu_last"), "head", 4, 1))
    return model, folded(model)


def scores(model: OnnxModel) -> making.Array:
    return making.tensors_of(model.graph, [LOGITS], making.frames(1, seed=3))[LOGITS]


def same(one: OnnxModel, other: OnnxModel) -> bool:
    expected = scores(one)
    return bool(np.allclose(scores(other), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()))


def unpadded(net: Net, x: str, name: str, channels: int = 6) -> str:
    kernel = net.weight(f"{name}.w", net.rng.normal(0, 0.3, (channels, net.channels[x], 1, 1)).astype(np.float32))
    return net.op("Conv", [x, kernel], name, channels)


def branches(net: Net) -> str:
    """A norm of a grouped convolution beside a transposed one, and another behind pooling and resizing."""
    image = net.image()
    stem = net.relu(net.conv(image, "stem", 8), "relu")
    grouped = net.conv(stem, "grouped", 6, group=2, bias=False)
    kernel = net.weight("up.w", net.rng.normal(0, 0.3, (8, 3, 2, 2)).astype(np.float32))
    up = net.op("ConvTranspose", [net.halved(stem, "small"), kernel], "up", 6, strides=[2, 2], group=2)
    pooled = net.op("AveragePool", [net.conv(image, "other", 5)], "pool", kernel_shape=[2, 2], strides=[2, 2])
    both = net.op("Concat", [grouped, up, net.nearest(pooled, "nearest")], "concat", 17, axis=1)
    return norm(net, both)


def summed(net: Net) -> str:
    image = net.image()
    return norm(net, net.op("Sub", [net.conv(image, "left", 6), net.conv(image, "right", 6, bias=False)], "difference"))


def before_pooling(net: Net) -> str:
    return net.nearest(norm(net, net.halved(net.conv(net.image(), "first", 6), "pool"), positive=True), "up")


def arithmetic(net: Net) -> str:
    x = net.op("Mul", [chance(net, "m", 6, 1, 1), net.conv(net.image(), "first", 6)], "times", 6)
    x = net.op("Div", [x, chance(net, "d", 1, 6, 1, 1, low=0.5)], "divided")
    x = net.op("Sub", [chance(net, "s", 1), x], "from_constant", 6)
    return net.op("Add", [x, chance(net, "a", 6, 1, 1)], "plus")


def after(net: Net) -> str:
    """ReLU stands before the norm: it goes into both convolutions behind, which pad nothing."""
    x = norm(net, net.relu(net.conv(net.image(), "first", 6), "relu"))
    both = net.op("Concat", ["image", net.nearest(net.halved(x, "p"), "n")], "concat", 9, axis=1)
    return net.op("Add", [unpadded(net, both, "left"), unpadded(net, x, "right")], "sum")


def after_positive(net: Net) -> str:
    x = norm(net, net.relu(net.conv(net.image(), "first", 6), "relu"), positive=True)
    return net.nearest(unpadded(net, net.halved(x, "pool"), "second"), "up")


def scaled_into_padding(net: Net) -> str:
    return net.conv(norm(net, net.relu(net.conv(net.image(), "first", 6), "relu"), centred=True), "second", 8, group=2)


FOLDING: dict[str, tuple[Build, set[str]]] = {
    "branches": (branches, {"node_grouped", "node_up", "node_other"}),
    "sum": (summed, {"node_left", "node_right"}),
    "max-pooling": (before_pooling, {"node_first"}),
    "arithmetic": (arithmetic, {"node_first"}),
    "after, max-pooling": (after_positive, {"node_second"}),
    "after, padded, no shift": (scaled_into_padding, {"node_second"}),
}


@pytest.mark.parametrize("name", FOLDING)
def test_the_normalisation_is_gone_and_the_scores_are_the_same(name: str) -> None:
    build, into = FOLDING[name]
    model, found = done(build)
    assert not found.left
    assert {node for fold in found.done for node in fold.into} == into
    assert same(model, found.model)
    gone = {fold.node for fold in found.done}
    assert gone
    assert gone.isdisjoint(node.name for node in Graph(found.model.graph).nodes)
    onnx.checker.check_model(making.parsed(found.model.graph), full_check=True)


def test_into_every_reader_behind_a_concatenation() -> None:
    """Negative factors stop at max-pooling, so this one has average pooling in its place."""

    def build(net: Net) -> str:
        x = norm(net, net.relu(net.conv(net.image(), "first", 6), "relu"))
        small = net.op("AveragePool", [x], "p", kernel_shape=[2, 2], strides=[2, 2])
        both = net.op("Concat", ["image", net.nearest(small, "n")], "concat", 9, axis=1)
        return net.op("Add", [unpadded(net, both, "left"), unpadded(net, x, "right")], "sum")

    model, found = done(build)
    assert {node for fold in found.done for node in fold.into} == {"node_left", "node_right"}
    assert same(model, found.model)


def read_twice(net: Net) -> str:
    x = net.conv(net.image(), "first", 6)
    return net.op("Add", [net.relu(norm(net, x), "relu"), net.conv(x, "second", 6)], "sum")


def shifted_into_padding(net: Net) -> str:
    return net.conv(norm(net, net.relu(net.conv(net.image(), "first", 6), "relu")), "second", 6)


def between_activations(net: Net) -> str:
    x = net.relu(net.conv(net.image(), "first", 6), "relu")
    slope = net.weight("slope", np.full((6, 1, 1), 0.2, np.float32))
    return net.op("PRelu", [norm(net, x), slope], "prelu")


def negative_at_pooling(net: Net) -> str:
    return net.nearest(norm(net, net.halved(net.conv(net.image(), "first", 6), "pool")), "up")


def twice_in_a_concatenation(net: Net) -> str:
    x = net.conv(net.image(), "first", 6)
    return norm(net, net.op("Concat", [x, x], "concat", 12, axis=1))


def with_a_frame(net: Net) -> str:
    x = net.conv(net.image(), "first", 6)
    return norm(net, net.op("Concat", [x, "image"], "concat", 9, axis=1))


STAYING: dict[str, tuple[Build, str]] = {
    "read twice": (read_twice, "'first' is read elsewhere too"),
    "padding": (shifted_into_padding, "zeros around its input"),
    "between activations": (between_activations, "Relu 'node_relu' lies between"),
    "negative": (negative_at_pooling, "MaxPool 'node_pool' lies between"),
    "twice": (twice_in_a_concatenation, "read elsewhere too"),
    "frame": (with_a_frame, "'image' is read elsewhere too"),
    "one reader of two": (after, "MaxPool 'node_p' lies between"),
}


@pytest.mark.parametrize("name", STAYING)
def test_what_cannot_be_folded_exactly_stays_and_says_why(name: str) -> None:
    build, why = STAYING[name]
    model, found = done(build)
    assert not found.done
    assert why in found.left["node_norm"]
    assert found.model.graph == model.graph


def test_preprocessing_is_no_normalisation() -> None:
    """The frame's factor and shift stand before an unpadded convolution, which could take them."""
    net = Net(4)
    model = net.model(net.conv(net.relu(unpadded(net, net.image(), "first"), "relu"), "head", 4, 1))
    found = folded(model)
    assert (found.done, found.left) == ((), {})


def test_scores_keep_their_name() -> None:
    net = Net(4)
    model = net.model(norm(net, net.conv(net.relu(net.conv(net.image(), "first", 6), "relu"), "head", 4, 1)))
    found = folded(model)
    assert [fold.into for fold in found.done] == [("node_head",)]
    assert same(model, found.model)
    producer = Graph(found.model.graph).producer(LOGITS)
    assert producer is not None
    assert producer.name == "node_head"


def test_weights_that_others_share_stay_theirs() -> None:
    def build(net: Net) -> str:
        image = net.image()
        kernel = net.weight("shared", net.rng.normal(0, 0.3, (6, 3, 3, 3)).astype(np.float32))
        one = net.op("Conv", [image, kernel], "one", 6, pads=[1] * 4)
        two = net.op("Conv", [image, kernel], "two", 6, pads=[1] * 4)
        return net.op("Add", [net.relu(norm(net, one), "relu1"), net.relu(two, "relu2")], "sum")

    model, found = done(build)
    assert [fold.into for fold in found.done] == [("node_one",)]
    assert same(model, found.model)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_constants_that_weights_cannot_hold_are_named(value: float) -> None:
    net = Net(4)
    x = norm(net, net.conv(net.image(), "first", 6))
    net.weights["norm.scale"][2] = value
    found = folded(net.model(net.conv(net.relu(x, "relu"), "head", 4, 1)))
    assert not found.done
    assert "not finite, or beyond" in found.left["node_norm"]


def test_a_wrong_fold_would_be_seen() -> None:
    model, found = done(branches)
    graph = Graph(found.model.graph)
    (node,) = (node for node in graph.nodes if node.name == "node_up")
    bias = graph.constant(node.input[2])
    assert bias is not None
    graph.replace_constant(node.input[2], bias[::-1].copy())
    assert not same(model, OnnxModel(graph.finish([]), model.spec))
