"""Tensors and graphs that nobody expects: a correct result, or an error that names them; never a NaN, never silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from calibration import calibrate, load_recipe
from edgeseg.backends.onnxruntime import probe
from edgeseg.errors import ModelError
from edgeseg.quantize import DIALECTS, ONNXRUNTIME_X86, OPENVINO, TENSORRT, Dialect, Graph, place, quantize
from edgeseg.types import LOGITS, OnnxModel
from tests.quantize import making
from tests.quantize.test_numbers import emulated

EVERY = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))
RECIPES = ("minmax", "percentile", "entropy", "mse")


def three(change: Callable[[making.Net], None] = lambda net: None, **middle: Any) -> OnnxModel:
    """Three convolutions and a head; `change` spoils weights."""
    net = making.Net(21)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    x = net.relu(net.conv(x, "conv2", 8, **middle), "relu2")
    x = net.relu(net.conv(x, "conv3", 8), "relu3")
    scores = net.conv(x, "head", 4, 1, gain=3.0)
    change(net)
    return net.model(scores)


def scores(model: OnnxModel, dialect: Dialect | None = None) -> making.Array:
    graph = emulated(model.graph) if dialect is not None and dialect.fake else model.graph
    return making.tensors_of(graph, [LOGITS], making.frames(1, seed=5))[LOGITS]


def close(model: OnnxModel, dialect: Dialect, recipe: str = "minmax", least: float = 18.0) -> OnnxModel:
    """Quantize, demand finite positive scales and scores near those of FP32."""
    made = quantize(model, making.table_of(model, recipe=recipe), dialect)
    for name, value in making.constants(made.graph).items():
        if name.endswith("/scale"):
            assert np.isfinite(value).all(), name
            assert (value >= 2.0**-126).all(), name  # no engine flushes it to zero
        if name.endswith(("/low", "/high")):
            assert np.isfinite(value).all(), name
    exact, ours = scores(model), scores(made, dialect)
    assert np.isfinite(ours).all()
    assert making.snr_db(exact, ours) > least
    return made


@pytest.mark.parametrize("recipe", RECIPES)
@EVERY
def test_activations_that_are_all_zero(dialect: Dialect, recipe: str) -> None:
    def spoil(net: making.Net) -> None:
        net.weights["conv2.w"][:] = 0
        net.weights["conv2.b"][:] = -1

    close(three(spoil), dialect, recipe)


@EVERY
def test_channels_that_are_constant(dialect: Dialect) -> None:
    def spoil(net: making.Net) -> None:
        net.weights["conv2.w"][:4] = 0
        net.weights["conv2.b"][:4] = 0.5

    close(three(spoil), dialect)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("factor", [1e-30, 1e-15, 1e15, 1e30])
@EVERY
def test_ranges_of_any_size(dialect: Dialect, factor: float, recipe: str) -> None:
    """What conv2 gives is scaled, and conv3 scales it back: the network computes what it did."""

    def spoil(net: making.Net) -> None:
        net.weights["conv2.w"] *= np.float32(factor)
        net.weights["conv2.b"] *= np.float32(factor)
        net.weights["conv3.w"] *= np.float32(1 / factor)

    close(three(spoil), dialect, recipe, least=14.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["w", "b"])
@EVERY
def test_weights_that_are_not_finite_are_named(dialect: Dialect, what: str, value: float) -> None:
    table = making.table_of(three())  # what calibration of such a network gives is another matter

    def spoil(net: making.Net) -> None:
        net.weights[f"conv2.{what}"].ravel()[3] = value

    with pytest.raises(ModelError, match=r"conv2.*1 NaN or Inf"):
        quantize(three(spoil), table, dialect)


def test_a_bias_that_no_integer_holds_is_named() -> None:
    """Steps of 1e-30 at the input, 1e20 in the bias: weights of that scale are zero, but the scale exists no more."""

    def spoil(net: making.Net) -> None:
        net.weights["conv1.w"] *= np.float32(1e-35)
        net.weights["conv1.b"] *= np.float32(1e-35)
        net.weights["conv2.b"][:] = 1e20

    model = three(spoil)
    with pytest.raises(ModelError, match=r"bias of node_conv2.*float"):
        quantize(model, making.table_of(model), ONNXRUNTIME_X86)


@EVERY
def test_ranges_that_float32_scales_do_not_hold_are_named(dialect: Dialect) -> None:
    model = three()
    names = sorted(making.table_of(model).tensors)
    most = np.finfo(np.float32).max
    huge = {name: np.array([-most, most], np.float32) for name in names}
    table = calibrate([huge], load_recipe("minmax"), model=model.digest, data="x")
    with pytest.raises(ModelError, match="relu"):
        quantize(model, table, dialect)


@pytest.mark.parametrize("op", ["QuantizeLinear", "FakeQuantize", "QLinearConv", "DynamicQuantizeLinear"])
@EVERY
def test_a_quantized_graph_is_refused(dialect: Dialect, op: str) -> None:
    model = three()
    proto = making.parsed(model.graph)
    domain = {"FakeQuantize": "org.openvinotoolkit"}.get(op, "")
    proto.graph.node.insert(5, helper.make_node(op, ["relu1"], ["coded"], "strange", domain=domain))
    strange = OnnxModel(proto.SerializeToString(), model.spec)
    with pytest.raises(ModelError, match=rf"strange \({op}\) at tensor 'relu1'.*before it was quantized"):
        place(Graph(strange.graph), dialect)


def test_ones_own_output_is_refused() -> None:
    model = three()
    table = making.table_of(model)
    for dialect in (TENSORRT, OPENVINO, ONNXRUNTIME_X86):
        with pytest.raises(ModelError, match="quantized already"):
            quantize(quantize(model, table, dialect), table, dialect)


def test_weights_in_another_file_are_named() -> None:
    model = three()
    proto = making.parsed(model.graph)
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == "conv2.w")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.ClearField("raw_data")
    with pytest.raises(ModelError, match=r"'conv2\.w' lie in another file"):
        place(Graph(proto.SerializeToString()), TENSORRT)


@EVERY
def test_an_output_read_twice_by_one_node_and_by_others(dialect: Dialect) -> None:
    net = making.Net(22)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    y = net.conv(x, "conv2", 8)
    doubled = net.op("Add", [y, y], "doubled")
    mixed = net.op("Mul", [net.conv(doubled, "conv3", 8), y], "mixed")
    close(net.model(net.conv(mixed, "head", 4, 1)), dialect)


@EVERY
def test_no_bias_and_one_class(dialect: Dialect) -> None:
    net = making.Net(23)
    x = net.relu(net.conv(net.image(), "conv1", 8, bias=False), "relu1")
    x = net.relu(net.conv(x, "conv2", 8, bias=False), "relu2")
    close(net.model(net.conv(net.relu(net.conv(x, "conv3", 8, bias=False), "relu3"), "head", 1, 1)), dialect)


@EVERY
def test_maps_of_one_pixel(dialect: Dialect) -> None:
    net = making.Net(24, (1, 1))
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    x = net.relu(net.conv(x, "conv2", 8), "relu2")
    model = net.model(net.conv(net.relu(net.conv(x, "conv3", 8), "relu3"), "head", 4, 1))
    graph = Graph(model.graph)
    names = set().union(*(place(graph, d).observed for d in DIALECTS.values()))
    frame = np.full((1, 1, 1, 3), 200, np.uint8)
    table = calibrate(probe(model.graph, sorted(names), [frame]), load_recipe("mse"), model=model.digest, data="x")
    made = quantize(model, table, dialect)
    graph_ = emulated(made.graph) if dialect.fake else made.graph
    exact, ours = (making.tensors_of(g, [LOGITS], frame)[LOGITS] for g in (model.graph, graph_))
    assert making.snr_db(exact, ours) > 18


@EVERY
def test_convolutions_inside_a_branch_stay_float_and_are_named(dialect: Dialect) -> None:
    net = making.Net(25)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    x = net.relu(net.conv(x, "conv2", 8), "relu2")
    net.weight("inner.w", net.rng.normal(0, 0.2, (8, 8, 1, 1)).astype(np.float32))
    net.weight("always", np.array(True))
    info = [helper.make_tensor_value_info("branch_out", TensorProto.FLOAT, None)]
    branches = {
        f"{which}_branch": helper.make_graph(
            [helper.make_node("Conv", ["relu2", "inner.w"], ["branch_out"], f"inner_{which}")], which, [], info
        )
        for which in ("then", "else")
    }
    chosen = net.op("If", ["always"], "chosen", 8, **branches)
    model = net.model(net.conv(net.relu(net.conv(chosen, "conv3", 8), "relu3"), "head", 4, 1))
    floats = place(Graph(model.graph), dialect).floats
    assert "inside a branch" in floats["node_chosen/inner_then"]
    assert "node_chosen/inner_else" in floats
    close(model, dialect)


@EVERY
def test_one_kernel_in_two_convolutions_with_different_inputs(dialect: Dialect) -> None:
    net = making.Net(26)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    once = net.relu(net.conv(x, "shared", 8), "relu2")
    again = net.relu(net.op("Conv", [once, "shared.w", "shared.b"], "again", 8, pads=[1] * 4), "relu3")
    made = close(net.model(net.conv(again, "head", 4, 1)), dialect)
    constants = making.constants(made.graph)
    codes = [constants[f"edgeseg/{node}/weight/q"] for node in ("node_shared", "node_again")]
    np.testing.assert_array_equal(codes[0], codes[1])


@pytest.mark.parametrize("version", [17, 18, 19, 20, 21])
@EVERY
def test_every_opset(dialect: Dialect, version: int) -> None:
    model = three()
    proto = making.parsed(model.graph)
    proto.opset_import[0].version, proto.ir_version = version, 10
    made = close(replace(model, graph=proto.SerializeToString()), dialect)
    if not dialect.fake:
        onnx.checker.check_model(making.parsed(made.graph), full_check=True)


def test_half_precision_weights_stay_as_they_are_and_say_why() -> None:
    net = making.Net(27)
    x = net.op("Cast", [net.relu(net.conv(net.image(), "conv1", 8), "relu1")], "narrow", to=TensorProto.FLOAT16)
    weights = net.weight("half.w", net.rng.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float16))
    x = net.op("Cast", [net.op("Conv", [x, weights], "half", 8, pads=[1] * 4)], "wide", to=TensorProto.FLOAT)
    model = net.model(net.conv(net.relu(net.conv(x, "conv3", 8), "relu3"), "head", 4, 1))
    assert "not float32" in place(Graph(model.graph), TENSORRT).floats["node_half"]
    close(model, TENSORRT)
