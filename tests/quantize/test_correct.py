"""Bias correction: against the mean shift as plain sums give it, and that it makes an INT8 network more like FP32."""

from __future__ import annotations

import numpy as np

from edgeseg.backends.onnxruntime import probe
from edgeseg.quantize import TENSORRT, corrected_biases, quantize, shift_graph
from edgeseg.types import LOGITS, OnnxModel
from tests.quantize import making


def corrected(model: OnnxModel, bits: int = 8, count: int = 4) -> dict[str, making.Array]:
    graph, shifts = shift_graph(model.graph, bits)
    probed = probe(graph, list(shifts.values()), (frame[None] for frame in making.frames(count)))
    return dict(corrected_biases(model.graph, shifts, probed))


def test_the_shift_is_the_mean_of_what_rounding_changes() -> None:
    model = making.unet()
    given = corrected(model, bits=4)
    constants = making.constants(quantize(model, making.table_of(model), TENSORRT).graph)
    weights = making.constants(model.graph)
    from edgeseg.quantize.weights import rounded

    integers, scales = rounded(weights["conv1.w"], 4)
    rounded_weights = integers * scales[:, None, None, None]
    assert np.abs(rounded_weights - weights["conv1.w"]).max() > 0.01  # four bits do change something
    shift = np.zeros(8)
    for frame in making.frames(4):
        image = making.tensors_of(model.graph, ["image"], frame[None])["image"][0]
        padded = np.pad(image.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
        height, width = image.shape[1:]
        for dy in range(3):
            for dx in range(3):
                mean = padded[:, dy : dy + height, dx : dx + width].mean((1, 2))
                shift += (weights["conv1.w"][:, :, dy, dx] - rounded_weights[:, :, dy, dx]) @ mean / 4
    np.testing.assert_allclose(given["node_conv1"], weights["conv1.b"] + shift, atol=1e-5)
    assert constants["edgeseg/node_conv1/weight/q"].shape == (8, 3, 3, 3)


def test_a_network_of_few_bits_comes_closer_to_fp32() -> None:
    from dataclasses import replace

    model = making.unet()
    table, dialect = making.table_of(model), replace(TENSORRT, weight_bits=4)
    plain = quantize(model, table, dialect)
    mended = quantize(model, table, dialect, bias=corrected(model, bits=4))
    frame = making.frames(1, seed=9)
    exact, before, after = (
        making.tensors_of(m.graph, [LOGITS], frame)[LOGITS].mean((0, 2, 3)) for m in (model, plain, mended)
    )
    assert np.abs(after - exact).mean() < 0.7 * np.abs(before - exact).mean()


def test_a_computed_bias_is_left_alone() -> None:
    net = making.Net()
    image = net.image()
    kernel = net.weight("w", net.rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32))
    means = net.op("ReduceMean", [image], "brightness", axes=[0, 2, 3], keepdims=0)
    bias = net.op("Concat", [means, net.weight("last", np.array([2], np.float32))], "bias", axis=0)
    x = net.relu(net.op("Conv", [image, kernel, bias], "conv1", 4, pads=[1] * 4), "relu1")
    model = net.model(net.conv(net.relu(net.conv(x, "conv2", 4), "relu2"), "head", 3, 1))
    given = corrected(model)
    assert "node_conv1" not in given
    made = quantize(model, making.table_of(model), TENSORRT, bias=given)
    (conv,) = (node for node in making.parsed(made.graph).graph.node if node.name == "node_conv1")
    assert conv.input[2] == "bias"
