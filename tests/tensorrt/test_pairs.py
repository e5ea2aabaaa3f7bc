"""INT8 weights as TensorRT 8 takes them: other constants, the same network to the last bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeseg.backends.onnxruntime import probe
from edgeseg.backends.tensorrt.pairs import paired
from edgeseg.graph import Graph
from edgeseg.quantize import TENSORRT, quantize
from edgeseg.types import LOGITS
from tests.quantize import making


@pytest.mark.parametrize("network", [making.unet, making.everything])
def test_pairs_are_exact(network: object) -> None:
    model = network()  # type: ignore[operator]
    int8 = quantize(model, making.table_of(model), TENSORRT).graph
    pairs = paired(int8)
    onnx.checker.check_model(onnx.load_from_string(pairs), full_check=True)
    before, after = Graph(int8), Graph(pairs)
    alone = [n for n in before.nodes if n.op_type == "DequantizeLinear" and before.constant(n.input[0]) is not None]
    assert alone
    dequantized = [n for n in after.nodes if n.op_type == "DequantizeLinear"]
    assert all(after.constant(node.input[0]) is None for node in dequantized)
    by_name = {node.name: node for node in after.nodes}
    for node in alone:
        quantizer = after.producer(by_name[node.name].input[0])
        assert quantizer is not None
        values, scale = after.constant(quantizer.input[0]), after.constant(quantizer.input[1])
        integers = before.constant(node.input[0])
        assert values is not None
        assert scale is not None
        assert integers is not None
        shape = (-1, *[1] * (values.ndim - 1))
        assert np.array_equal(np.clip(np.rint(values / scale.reshape(shape)), -128, 127), integers)
    frames = [frame[None] for frame in making.frames(2)]
    for one, other in zip(probe(int8, [LOGITS], frames), probe(pairs, [LOGITS], frames), strict=True):
        assert np.allclose(one[LOGITS], other[LOGITS], atol=1e-5)


def test_a_float_graph_comes_back_as_it_came() -> None:
    graph = making.unet().graph
    assert paired(graph) == graph
