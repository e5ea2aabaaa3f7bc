"""Each dialect as text, and what its engine demands of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from edgeseg.quantize import DIALECTS, OPENVINO, TENSORRT, Dialect, Graph, place, quantize
from edgeseg.types import OnnxModel
from tests.quantize import making

MODELS: dict[str, Callable[[], OnnxModel]] = {"unet": making.unet, "everything": making.everything}
PAIRS = [dialect.name for dialect in DIALECTS.values() if not dialect.fake]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_whole_graph_is_as_it_was(dialect: str, golden: Callable[[str, str], None]) -> None:
    model = making.everything()
    made = quantize(model, making.table_of(model), DIALECTS[dialect])
    golden(f"{dialect}.txt", making.dump(made.graph))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_graph_is_sound(dialect: str, name: str) -> None:
    model = MODELS[name]()
    before = bytes(model.graph)
    made = quantize(model, making.table_of(model), DIALECTS[dialect])
    assert model.graph == before
    assert (made.precision, made.spec) == ("int8", model.spec)
    graph = making.parsed(made.graph).graph
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:  # topological order, every tensor made once
        assert set(node.input) <= known, node.name
        assert not set(node.output) & known, node.name
        known |= set(node.output)
    read = {tensor for node in graph.node for tensor in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    outputs = {value.name for value in graph.output}
    assert [node.name for node in graph.node if not set(node.output) & (read | outputs)] == []  # nothing is dead
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert len({tensor.name for tensor in graph.initializer}) == len(graph.initializer)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dialect", PAIRS)
def test_onnx_accepts_it(dialect: str, name: str) -> None:
    model = MODELS[name]()
    proto = making.parsed(quantize(model, making.table_of(model), DIALECTS[dialect]).graph)
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize("dialect", PAIRS)
def test_activations_have_one_scale_a_tensor_and_it_is_a_scalar(dialect: str) -> None:
    """A scale of shape (1,) would be one for each index of axis 1, of which there are more: engines differ there."""
    model = making.unet()
    made = quantize(model, making.table_of(model), DIALECTS[dialect]).graph
    constants = making.constants(made)
    quantizers = [node for node in making.parsed(made).graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    for node in quantizers:
        assert [constants[name].shape for name in node.input[1:]] == [(), ()], node.name


def test_tensorrt_is_symmetric_without_integer_bias() -> None:
    model = making.everything()
    made = quantize(model, making.table_of(model), TENSORRT).graph
    constants = making.constants(made)
    for node in making.parsed(made).graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = constants[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
    assert not any(value.dtype == np.int32 for value in constants.values())
    weights = [n for n in making.parsed(made).graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert len(weights) == 8
    for node in weights:
        assert [a.i for a in node.attribute if a.name == "axis"] == [0]
        assert constants[node.input[1]].shape == constants[node.input[0]].shape[:1]
        assert constants[node.input[0]].min() >= -127


@pytest.mark.parametrize(
    ("dialect", "kind", "limit"),
    [("onnxruntime-x86", np.uint8, 127), ("onnxruntime-x86-no-vnni", np.uint8, 63), ("onnxruntime-arm", np.int8, 127)],
)
def test_onnx_runtime_has_its_integers(dialect: str, kind: type, limit: int) -> None:
    model = making.everything()
    made = quantize(model, making.table_of(model), DIALECTS[dialect]).graph
    constants, nodes = making.constants(made), making.parsed(made).graph.node
    assert {constants[n.input[2]].dtype.type for n in nodes if n.op_type == "QuantizeLinear"} == {kind}
    biases = [n for n in nodes if n.op_type == "DequantizeLinear" and n.input[0].endswith("bias/q")]
    assert len(biases) == 6  # all INT8 convolutions but conv4, which has none
    assert all(constants[n.input[0]].dtype == np.int32 for n in biases)
    weights = [constants[n.input[0]] for n in nodes if n.op_type == "DequantizeLinear" and "weight" in n.input[0]]
    assert len(weights) == 7
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) == limit


def test_integer_bias_has_the_scale_of_input_times_weights() -> None:
    model = making.everything()
    made = quantize(model, making.table_of(model), DIALECTS["onnxruntime-x86"]).graph
    constants, graph = making.constants(made), Graph(made)
    float_bias = making.constants(model.graph)
    checked = 0
    for node in graph.nodes:
        if node.op_type != "Conv" or len(node.input) < 3 or not node.input[2].endswith("/dq"):
            continue
        x, w, b = (graph.producer(tensor) for tensor in node.input)
        assert x is not None
        assert w is not None
        assert b is not None
        expected = float(constants[x.input[1]]) * constants[w.input[1]].astype(np.float64)
        np.testing.assert_allclose(constants[b.input[1]], expected, rtol=1e-6)
        back = constants[b.input[0]] * constants[b.input[1]].astype(np.float64)
        wanted = float_bias[f"{node.output[0]}.b"]
        assert np.all(np.abs(back - wanted) <= 0.5001 * constants[b.input[1]])
        checked += 1
    assert checked == 6


def test_openvino_has_fake_quantize_of_its_own_domain() -> None:
    model = making.everything()
    made = quantize(model, making.table_of(model), OPENVINO).graph
    proto, constants = making.parsed(made), making.constants(made)
    assert ("org.openvinotoolkit", 1) in {(o.domain, o.version) for o in proto.opset_import}
    assert not any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    fakes = [node for node in proto.graph.node if node.op_type == "FakeQuantize"]
    assert {node.domain for node in fakes} == {"org.openvinotoolkit"}
    assert {a.i for node in fakes for a in node.attribute if a.name == "levels"} == {256}
    assert all(list(node.input[1:3]) == list(node.input[3:5]) for node in fakes)
    for node in fakes:  # zero has a level of its own, or padding would not be exact
        low, high = float(constants[node.input[1]].item()), float(constants[node.input[2]].item())
        step = (high - low) / 255
        assert low <= 0 <= high
        assert abs(low / step - round(low / step)) < 1e-3


@pytest.mark.parametrize("dialect", [OPENVINO, TENSORRT])
def test_inputs_of_a_concatenation_share_their_range(dialect: Dialect) -> None:
    model = making.unet()
    made = quantize(model, making.table_of(model), dialect).graph
    graph, constants = Graph(made), making.constants(made)
    (concat,) = (node for node in graph.nodes if node.op_type == "Concat")
    found = []
    for tensor in concat.input:
        node = graph.producer(tensor)
        while node is not None and node.op_type in ("Resize", "DequantizeLinear"):
            node = graph.producer(node.input[0])
        assert node is not None
        assert node.op_type in ("FakeQuantize", "QuantizeLinear")
        found.append([float(constants[name].item()) for name in node.input[1:3]])
    assert len(found) == 2
    assert found[0] == found[1]
    # and it is the wider of the two: neither part is clipped
    seen = [making.table_of(model).seen(name) for name in ("relu1", "relu2")]
    top = max(s.maximum for s in seen)
    reach = found[0][1] if dialect is OPENVINO else found[0][0] * 127
    assert reach == pytest.approx(top, rel=1e-5)
    assert min(s.maximum for s in seen) < 0.9 * top  # or the test says nothing


def test_moves_keep_the_scale_of_what_they_move() -> None:
    model = making.unet()
    made = quantize(model, making.table_of(model), DIALECTS["onnxruntime-x86"]).graph
    constants = making.constants(made)
    for moved, source in (("pool", "relu1"), ("up", "relu2")):
        for part in ("scale", "zero_point"):
            assert constants[f"edgeseg/{moved}/{part}"] == constants[f"edgeseg/{source}/{part}"]
    # relu2 goes nowhere but into the concatenation and takes its scale at once; relu1 also goes elsewhere
    assert constants["edgeseg/relu2/scale"] == constants["edgeseg/concat/scale"]
    assert constants["edgeseg/relu1/scale"] <= constants["edgeseg/concat/scale"]


def test_every_reason_for_float_is_said() -> None:
    graph = Graph(making.everything().graph)
    closed, open_ = place(graph, DIALECTS["onnxruntime-x86"]), place(graph, TENSORRT)
    assert set(closed.floats) == {"node_conv1", "node_up2", "node_head"}
    assert "scores" in closed.floats["node_head"]
    assert set(open_.floats) == {"node_conv1", "node_up2"}
    kept = place(graph, TENSORRT, keep_float=["node_gate"])
    assert kept.floats["node_gate"] == "runs in float by request"
    assert "node_gate" not in kept.convolutions
    every = {node.name for node in graph.nodes if node.op_type in ("Conv", "ConvTranspose")}
    for placement in (closed, open_, kept):
        assert set(placement.convolutions) | set(placement.floats) == every
        assert not set(placement.convolutions) & set(placement.floats)
