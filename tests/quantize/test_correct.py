"""Bias correction: every layer's mean is FP32's afterwards, and an INT8 network comes closer to FP32 by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeseg.backends.onnxruntime import probe
from edgeseg.graph import Graph
from edgeseg.quantize import DIALECTS, TENSORRT, Dialect, corrected_biases, place, quantize
from edgeseg.types import LOGITS, Frames, OnnxModel
from tests.quantize import making


def batches(count: int, seed: int = 0) -> list[Frames]:
    return [frame[None] for frame in making.frames(count, seed=seed)]


def corrected(model: OnnxModel, dialect: Dialect, count: int = 4) -> dict[str, making.Array]:
    return dict(corrected_biases(model, making.table_of(model), dialect, probe, batches(count)))


def means(model: OnnxModel, tensors: list[str], frames: list[Frames]) -> dict[str, making.Array]:
    """The mean of each channel, by the plainest sum there is."""
    total = dict.fromkeys(tensors, 0.0)
    for frame in frames:
        values = making.tensors_of(model.graph, tensors, frame)
        for tensor in tensors:
            total[tensor] = total[tensor] + values[tensor].astype(np.float64).sum((0, 2, 3))
    size = {tensor: value[0, 0].size for tensor, value in values.items()}
    return {tensor: np.asarray(total[tensor]) / (len(frames) * size[tensor]) for tensor in tensors}


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime-x86", "openvino"])
def test_afterwards_every_layer_has_the_mean_that_it_has_in_fp32(name: str) -> None:
    model, dialect = making.unet(), replace(DIALECTS[name], weight_bits=4)
    table, frames = making.table_of(model), batches(4)
    # Where the biases are rounded too, or the writer's nodes do not run in ONNX Runtime, look at plain Q/DQ.
    plain = replace(dialect, fake=False, integer_bias=False)
    placement = place(Graph(model.graph), dialect)
    given = corrected_biases(model, table, dialect, probe, frames)
    assert set(given) == set(placement.convolutions)
    outputs = [node.output[0] for node in Graph(model.graph).nodes if node.name in given]
    exact = means(model, outputs, frames)
    before = means(quantize(model, table, plain, placement=placement), outputs, frames)
    after = means(quantize(model, table, plain, placement=placement, bias=given), outputs, frames)
    for tensor in outputs:
        np.testing.assert_allclose(after[tensor], exact[tensor], atol=5e-3)  # rounding of activations depends on fusion
    assert max(np.abs(before[tensor] - exact[tensor]).max() for tensor in outputs) > 0.05


def test_a_network_of_few_bits_comes_closer_to_fp32() -> None:
    model = making.unet()
    table, dialect = making.table_of(model), replace(TENSORRT, weight_bits=4)
    plain = quantize(model, table, dialect)
    mended = quantize(model, table, dialect, bias=corrected(model, dialect))
    frame = making.frames(1, seed=9)
    exact, before, after = (making.tensors_of(m.graph, [LOGITS], frame)[LOGITS] for m in (model, plain, mended))
    assert np.square(after - exact).mean() < 0.9 * np.square(before - exact).mean()


def test_a_computed_bias_is_left_alone() -> None:
    net = making.Net()
    image = net.image()
    kernel = net.weight("w", net.rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32))
    brightness = net.op("ReduceMean", [image], "brightness", axes=[0, 2, 3], keepdims=0)
    bias = net.op("Concat", [brightness, net.weight("last", np.array([2], np.float32))], "bias", axis=0)
    x = net.relu(net.op("Conv", [image, kernel, bias], "conv1", 4, pads=[1] * 4), "relu1")
    model = net.model(net.conv(net.relu(net.conv(x, "conv2", 4, bias=False), "relu2"), "head", 3, 1))
    given = corrected(model, TENSORRT)
    assert "node_conv1" not in given
    assert given["node_conv2"].shape == (4,)  # a convolution without a bias gets one
    made = quantize(model, making.table_of(model), TENSORRT, bias=given)
    (conv,) = (node for node in making.parsed(made.graph).graph.node if node.name == "node_conv1")
    assert conv.input[2] == "bias"


def test_without_frames_there_is_nothing_to_correct_by() -> None:
    model = making.unet()
    with pytest.raises(ValueError, match="at least one frame"):
        corrected_biases(model, making.table_of(model), TENSORRT, probe, [])
