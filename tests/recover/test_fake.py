"""The network that learns is the INT8 graph: numbers, scales, gradients, and the way back into a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from calibration import Scheme, dequantize_array, quantize_array, weight_scales
from edgeseg.backends.onnxruntime import probe
from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.quantize import DIALECTS, ONNXRUNTIME_X86, TENSORRT, Dialect, corrected_biases, place, quantize
from edgeseg.quantize.edges import output_axis
from edgeseg.recover import (
    Convolution,
    every_bias,
    exactly,
    fake_quantize,
    network,
    quantized_weights,
    student,
    with_biases,
    with_weights,
)
from edgeseg.recover.interpreter import try_out
from edgeseg.recover.layers import power_of_two
from edgeseg.recover.student import _output_axis
from edgeseg.types import LOGITS, Frames, OnnxModel
from tests.quantize import hard, making

MAKING: dict[str, Callable[[], OnnxModel]] = {"unet": making.unet, "everything": making.everything, **hard.ALL}


def written(model: OnnxModel, dialect: Dialect, **how: object) -> OnnxModel:
    return quantize(model, making.table_of(model), replace(dialect, fake=False), **how)  # type: ignore[arg-type]


def by_onnx_runtime(graph: bytes, frames: Frames) -> making.Array:
    return np.concatenate([making.tensors_of(graph, [LOGITS], frame[None])[LOGITS] for frame in frames])


def by_torch(found: torch.fx.GraphModule, frames: Frames) -> making.Array:
    return np.concatenate([try_out(found, torch.from_numpy(frame[None])).numpy() for frame in frames])


def agree(given: making.Array, wanted: making.Array) -> None:
    """As the same graph computed in another order: the rare value that lies between two codes may fall either way,
    and changes what is behind it in its frame. Most frames have none."""
    assert np.mean(given.argmax(1) == wanted.argmax(1)) >= 0.999
    largest = np.abs(given - wanted).max(axis=(1, 2, 3)) / np.abs(wanted).max()
    assert np.median(largest) < 1e-5
    assert largest.max() < 0.05


@pytest.mark.parametrize("name", MAKING)
def test_the_student_is_the_int8_graph_in_every_dialect(name: str) -> None:
    model = MAKING[name]()
    table = making.table_of(model)
    frames = making.frames(12, model.spec.input.size, seed=5)
    teacher = network(model.graph)
    wanted = by_onnx_runtime(model.graph, frames)
    np.testing.assert_allclose(by_torch(teacher, frames), wanted, atol=2e-6 * float(np.abs(wanted).max()))
    given: dict[str, making.Array] = {}
    for dialect in DIALECTS.values():
        graph = quantize(model, table, replace(dialect, fake=False)).graph
        learner = student(model, graph, dialect.weight_bits, teacher=teacher, frames=frames[:1])
        given[dialect.name] = by_torch(learner, frames)
        np.testing.assert_array_equal(given[dialect.name], by_torch(network(graph), frames))  # both ways to read it
        agree(given[dialect.name], by_onnx_runtime(graph, frames))
    assert not np.array_equal(given["tensorrt"], given["onnxruntime-x86"])  # the dialects are not all one


def test_the_student_has_the_biases_that_the_writer_got() -> None:
    model = making.unet()
    table = making.table_of(model)
    frames = making.frames(4, seed=5)
    biases = corrected_biases(model, table, ONNXRUNTIME_X86, probe, [frame[None] for frame in frames])
    biases = {name: np.asarray(value + 0.3, np.float32) for name, value in biases.items()}
    graph = quantize(model, table, ONNXRUNTIME_X86, bias=biases).graph
    learner = student(model, graph, 8, bias=biases)
    agree(by_torch(learner, frames), by_onnx_runtime(graph, frames))
    without = by_torch(student(model, graph, 8), frames)
    assert np.abs(without - by_onnx_runtime(graph, frames)).max() > 0.1
    # and the FP32 graph that holds them is written as the one that was given them
    given = quantize(with_biases(model, biases), table, ONNXRUNTIME_X86).graph
    np.testing.assert_array_equal(by_onnx_runtime(given, frames), by_onnx_runtime(graph, frames))
    assert with_biases(model, {}) is model


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("name", ["everything", "separable", "residual"])
def test_what_was_learned_is_written_as_the_same_int8_graph(name: str, bits: int) -> None:
    model = MAKING[name]()
    table = making.table_of(model)
    frames = making.frames(6, model.spec.input.size, seed=6)
    for dialect in (replace(ONNXRUNTIME_X86, weight_bits=bits), replace(TENSORRT, weight_bits=bits)):
        placed = quantize(model, table, dialect, bias=every_bias(model)).graph
        learner = student(model, placed, bits)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
        before = by_torch(student(model, placed, bits), frames)
        given = by_torch(learner, frames)
        assert np.abs(given - before).max() > 0.1
        learned = with_weights(model, learner)
        assert learned.precision == "fp32"
        assert learned.spec is model.spec
        onnx.checker.check_model(onnx.load_from_string(learned.graph), full_check=True)
        graph = quantize(learned, table, dialect).graph
        np.testing.assert_array_equal(given, by_torch(network(graph), frames))
        agree(given, by_onnx_runtime(graph, frames))


def test_untouched_weights_come_back_bit_for_bit() -> None:
    model = hard.separable()
    learner = student(model, written(model, TENSORRT).graph, 8, teacher=network(model.graph), frames=making.frames(1))
    before, after = Graph(model.graph), Graph(with_weights(model, learner).graph)
    for old, new in zip(before.nodes, after.nodes, strict=True):
        assert (old.name, old.op_type, list(old.output)) == (new.name, new.op_type, list(new.output))
        for mine, theirs in zip(old.input, new.input, strict=True):
            if before.constant(mine) is not None:
                np.testing.assert_array_equal(before.constant(mine), after.constant(theirs))


def test_layers_that_share_weights_are_apart_afterwards() -> None:
    net = making.Net(3)
    first = net.relu(net.conv(net.image(), "one", 8), "one_act")
    second = net.relu(net.conv(first, "two", 8), "two_act")
    net.nodes.append(helper.make_node("Conv", [second, "two.w", "two.b"], ["three"], "node_three", pads=[1] * 4))
    net.channels["three"] = 8
    model = net.model(net.conv(net.relu("three", "three_act"), "head", 4, 1, gain=3.0))
    learner = student(model, written(model, ONNXRUNTIME_X86).graph, 8)
    layers = {layer.node: layer for layer in learner.modules() if isinstance(layer, Convolution)}
    with torch.no_grad():
        layers["node_three"].weight *= 2
    graph = Graph(with_weights(model, learner).graph)
    weights = {node.name: graph.constant(node.input[1]) for node in graph.nodes if node.op_type == "Conv"}
    np.testing.assert_array_equal(weights["node_three"], 2 * np.asarray(weights["node_two"]))


def test_fake_quantization_is_quantize_and_dequantize() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 4, 2000), np.arange(-20, 20) * 0.05 * 0.5]).astype(np.float32)  # with ties
    for scheme, zero in ((Scheme(False, False), 100), (Scheme(True, True), 0), (Scheme(True, False), -30)):
        codes = quantize_array(values, np.float32(0.05), zero, scheme)
        assert {scheme.lowest, scheme.highest} <= set(codes.tolist())  # both ends saturate
        given = fake_quantize(
            torch.from_numpy(values), torch.tensor(0.05), torch.tensor(float(zero)), lowest=scheme.lowest,
            highest=scheme.highest,
        )  # fmt: skip
        np.testing.assert_array_equal(given.numpy(), dequantize_array(codes, np.float32(0.05), zero))


def test_gradients_pass_where_nothing_saturates() -> None:
    x = torch.tensor([-3.0, -1.04, -0.3, 0.0, 0.49, 1.51, 9.0], requires_grad=True)
    fake_quantize(x, torch.tensor(0.5), torch.tensor(2.0), lowest=0, highest=5).backward(torch.arange(1.0, 8.0))  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 0]  # -1 to 1.5, and what rounds to it
    w = torch.tensor([-9.0, 0.2, 9.0], requires_grad=True)
    rounded = quantized_weights(w, torch.tensor(0.5), 7)
    assert rounded.tolist() == [-3.5, 0.0, 3.5]
    rounded.backward(torch.ones(3))  # type: ignore[no-untyped-call]
    assert w.grad is not None
    assert w.grad.tolist() == [1, 1, 1]


def test_scales_follow_the_weights() -> None:
    rng = np.random.default_rng(0)
    model = making.unet()
    learner = student(model, written(model, ONNXRUNTIME_X86).graph, 8)
    layer = next(m for m in learner.modules() if isinstance(m, Convolution) and m.integers is not None)
    x = torch.from_numpy(rng.normal(0, 1, (1, layer.weight.shape[1], 5, 5)).astype(np.float32))
    with torch.no_grad():
        layer(x)
        layer.weight *= 3
        layer(x)
    assert layer._found is not None
    mine = layer.values()[0].detach().numpy()
    wanted = weight_scales(mine, axis=0, bits=8, narrow=True, method="mse")
    np.testing.assert_array_equal(layer._found[2].numpy(), wanted)


def test_training_keeps_scales_for_a_while_and_judging_never() -> None:
    model = making.unet()
    learner = student(model, written(model, TENSORRT).graph, 8)
    layer = next(m for m in learner.modules() if isinstance(m, Convolution) and m.integers is not None)
    x = torch.zeros(1, layer.weight.shape[1], 5, 5)
    seen = []
    for _ in range(60):
        layer(x)
        assert layer._found is not None
        seen.append(float(layer._found[2][0]))
        with torch.no_grad():
            layer.weight *= 1.01
    assert 2 <= len(set(seen)) <= 4
    with torch.no_grad():
        layer(x)
    assert layer._found is not None
    assert float(layer._found[2][0]) > seen[-1]


def test_units_are_powers_of_two_that_lose_nothing() -> None:
    sizes = np.array([0.0, 1e-30, 3e-5, 0.7, 1.0, 900.0, 1e30])
    units = power_of_two(sizes)
    assert set(np.frexp(units)[0]) == {0.5}
    assert units[0] == 1
    values = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)
    for unit in power_of_two(sizes[2:6]):
        np.testing.assert_array_equal(values / unit * unit, values)
    assert np.all(units[2:6] / sizes[2:6] < 1.5)
    assert np.all(units[2:6] / sizes[2:6] > 0.66)


def test_output_axes_are_those_of_the_writer() -> None:
    for kind in ("Conv", "ConvTranspose"):
        for group, shape in ((1, (6, 4, 3, 3)), (6, (6, 1, 3, 3)), (3, (6, 2, 3, 3))):
            node = helper.make_node(kind, ["x", "w"], ["y"], group=group)
            assert _output_axis(kind == "ConvTranspose", group, shape) == output_axis(node, shape)


def test_what_is_kept_in_float_is_float() -> None:
    model = making.unet()
    graph = Graph(model.graph)
    held = place(graph, TENSORRT, keep_float=["node_conv3"])
    learner = student(model, written(model, TENSORRT, placement=held).graph, 8)
    layers = {layer.node: layer.integers for layer in learner.modules() if isinstance(layer, Convolution)}
    assert {name for name, integers in layers.items() if integers is not None} == set(held.convolutions)
    assert layers["node_conv3"] is None


def test_a_graph_of_another_model_is_refused() -> None:
    model = making.unet()
    with pytest.raises(ModelError, match="none of this model"):
        student(making.everything(), written(model, TENSORRT).graph, 8)


def test_a_class_map_says_nothing_to_learn_from() -> None:
    net = making.Net(0)
    net.conv(net.image(), "conv1", 3)
    net.op("ArgMax", ["conv1"], "map", axis=1, keepdims=0)
    net.op("Cast", ["map"], "floats", to=onnx.TensorProto.FLOAT)
    with pytest.raises(ModelError, match="no tensor 'logits'"):
        network(net.model(mask_of="floats").graph)


def test_pairs_of_two_scales_are_refused() -> None:
    proto = onnx.load_from_string(written(making.unet(), TENSORRT).graph)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "other"))
    node = next(n for n in proto.graph.node if n.op_type == "DequantizeLinear" and "weight" not in n.name)
    node.input[1] = "other"
    with pytest.raises(ModelError, match=node.name):
        network(proto.SerializeToString())


def test_exact_sums_are_those_of_integers() -> None:
    """A convolution of the student against int64 arithmetic on its codes."""
    model = making.unet()
    learner = student(model, written(model, TENSORRT).graph, 8)
    layer = next(m for m in learner.modules() if isinstance(m, Convolution) and m.node == "node_conv3")
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (1, 20, 6, 6))
    step = np.float32(0.0371)
    x = torch.from_numpy(codes.astype(np.float32) * step)
    with torch.no_grad(), exactly(learner):
        given = layer(x).numpy()
    assert not layer.exact
    weights, bias = (None if v is None else v.detach().numpy() for v in layer.values())
    assert weights is not None
    assert bias is not None
    scales = weight_scales(weights, axis=0, bits=8, narrow=True, method="mse").reshape(-1, 1, 1, 1)
    whole = np.clip(np.rint(weights / scales), -127, 127).astype(np.int64)
    padded = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    sums = np.zeros((1, 8, 6, 6), np.int64)
    for row in range(3):
        for column in range(3):
            part = padded[:, :, row : row + 6, column : column + 6]
            sums += np.einsum("kc,nchw->nkhw", whole[:, :, row, column], part)
    wanted = sums * float(step) * scales.astype(np.float64).reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
    np.testing.assert_allclose(given, wanted, rtol=3e-7, atol=1e-6 * float(np.abs(wanted).max()))
