"""Graphs that are not a plain chain of convolutions with constant weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration import UnknownTensor
from edgeseg.backends.openvino import core
from edgeseg.errors import ModelError
from edgeseg.quantize import DIALECTS, ONNXRUNTIME_X86, OPENVINO, TENSORRT, Dialect, Graph, place, quantize
from edgeseg.types import OnnxModel
from tests.quantize import making

EVERY = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))


def runs(model: OnnxModel) -> making.Array:
    """The mask, to see that the graph is one; graphs with FakeQuantize are only read."""
    if any(node.op_type == "FakeQuantize" for node in making.parsed(model.graph).graph.node):
        return np.zeros(0, np.uint8)
    onnx.checker.check_model(making.parsed(model.graph), full_check=True)
    return making.tensors_of(model.graph, ["mask"], making.frames(1), "all")["mask"]


@EVERY
def test_computed_weights_stay_float_and_say_why(dialect: Dialect) -> None:
    net = making.Net()
    image = net.image()
    kernel = net.weight("w", net.rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32))
    net.op("Mul", [kernel, net.weight("two", np.array(2, np.float32))], "doubled")
    x = net.relu(net.op("Conv", [image, "doubled"], "dynamic", 4, pads=[1, 1, 1, 1]), "relu1")
    y = net.relu(net.conv(x, "conv2", 4), "relu2")
    model = net.model(net.conv(y, "head", 3, 1))
    placement = place(Graph(model.graph), dialect)
    assert "node_dynamic" not in placement.convolutions
    assert "computed" in placement.floats["node_dynamic"]
    made = quantize(model, making.table_of(model), dialect)
    runs(made)
    (conv,) = (n for n in making.parsed(made.graph).graph.node if n.name == "node_dynamic")
    assert list(conv.input) == ["image", "doubled"]


@EVERY
def test_nothing_to_quantize_is_an_error(dialect: Dialect) -> None:
    net = making.Net()
    kernel = net.weight("w", net.rng.normal(0, 0.3, (3, 3, 2, 2)).astype(np.float32))
    small = net.halved(net.image(), "pool")
    model = net.model(net.op("ConvTranspose", [small, kernel], "up", 3, strides=[2, 2]))
    with pytest.raises(ModelError, match=r"no convolution that can run in INT8.*node_up.*--fp32"):
        quantize(model, making.table_of(making.unet()), dialect)


def test_only_the_scores_is_nothing_to_quantize_in_closed_dialects() -> None:
    net = making.Net()
    model = net.model(net.conv(net.relu(net.conv(net.image(), "conv1", 8), "relu1"), "head", 3))
    with pytest.raises(ModelError, match=r"node_conv1: reads the image.*node_head: gives the scores.*--fp32"):
        quantize(model, making.table_of(model), ONNXRUNTIME_X86)
    assert quantize(model, making.table_of(model), TENSORRT).precision == "int8"


@EVERY
def test_a_table_that_lacks_a_tensor_is_refused(dialect: Dialect) -> None:
    model = making.unet()
    table = making.table_of(model)
    less = replace(table, tensors={k: v for k, v in table.tensors.items() if k != "relu1"})
    with pytest.raises(UnknownTensor, match="'relu1'"):
        quantize(model, less, dialect)


@EVERY
def test_two_heads_on_one_feature(dialect: Dialect) -> None:
    """One feature, two readers: one quantizer, which both read."""
    net = making.Net()
    body = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    left, right = net.conv(body, "left", 4), net.conv(body, "right", 4)
    model = net.model(net.conv(net.relu(net.op("Add", [left, right], "sum"), "relu2"), "head", 3, 1))
    made = quantize(model, making.table_of(model), dialect)
    readers = {n.name: n.input[0] for n in making.parsed(made.graph).graph.node if n.op_type == "Conv"}
    assert readers["node_left"] == readers["node_right"] == "edgeseg/relu1/dq"
    runs(made)


@EVERY
def test_the_image_is_quantized_on_request_only(dialect: Dialect) -> None:
    model = making.unet()
    graph, table = Graph(model.graph), making.table_of(model)
    usual, asked = place(graph, dialect), place(graph, dialect, also=["node_conv1"])
    assert "reads the image" in usual.floats["node_conv1"]
    assert "by request" in asked.reasons["node_conv1"]
    for placement, reads in ((usual, "image"), (asked, "edgeseg/image/dq")):
        made = quantize(model, table, dialect, placement=placement)
        (first,) = (n for n in making.parsed(made.graph).graph.node if n.name == "node_conv1")
        assert first.input[0] == reads


@EVERY
def test_a_move_that_leads_to_no_convolution_gets_no_quantizer(dialect: Dialect) -> None:
    net = making.Net()
    body = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    small = net.halved(body, "pool")  # read by float nodes only
    back = net.op("Sigmoid", [net.nearest(small, "up")], "gate")
    mixed = net.op("Mul", [back, net.relu(net.conv(body, "conv2", 8), "relu2")], "mixed")
    model = net.model(net.conv(mixed, "head", 3, 1))
    made = quantize(model, making.table_of(model), dialect)
    graph = making.parsed(made.graph).graph
    read = {name for node in graph.node for name in node.input} | {"mask"}
    assert [node.name for node in graph.node if not set(node.output) & read] == []
    runs(made)


@EVERY
def test_a_concatenation_with_a_constant(dialect: Dialect) -> None:
    """Coordinates as an extra channel: a part of a convolution's input that no frame changes."""
    net = making.Net()
    body = net.relu(net.conv(net.image(), "conv1", 4), "relu1")
    rows = np.broadcast_to(np.linspace(-1, 1, making.SIZE[0], dtype=np.float32)[:, None], making.SIZE)
    coordinates = net.weight("coordinates", np.ascontiguousarray(rows)[None, None])
    net.channels["joined"] = 5
    joined = net.op("Concat", [body, coordinates], "joined", 5, axis=1)
    model = net.model(net.conv(net.relu(net.conv(joined, "conv2", 6), "relu2"), "head", 3, 1))
    made = quantize(model, making.table_of(model), dialect)
    assert "node_conv2" in place(Graph(model.graph), dialect).convolutions
    runs(made)


def test_weights_in_constant_nodes_leave_with_them() -> None:
    """A float copy of weights that nobody reads would make the INT8 file larger than the FP32 one."""
    model = making.unet()
    proto = making.parsed(model.graph)
    moved = [t for t in proto.graph.initializer if t.name.endswith(".w")]
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in proto.graph.initializer if t not in moved]
    nodes = [helper.make_node("Constant", [], [t.name], f"constant_{t.name}", value=t) for t in moved]
    nodes += [onnx.NodeProto.FromString(n.SerializeToString()) for n in proto.graph.node]
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.initializer.extend(kept)
    proto.graph.node.extend(nodes)
    held = OnnxModel(proto.SerializeToString(), model.spec)
    made = making.parsed(quantize(held, making.table_of(model), TENSORRT).graph)
    assert [node.name for node in made.graph.node if node.op_type == "Constant"] == ["constant_conv1.w"]
    plain = quantize(model, making.table_of(model), TENSORRT)
    frame = making.frames(1)
    for name in ("logits",):
        np.testing.assert_array_equal(
            making.tensors_of(made.SerializeToString(), [name], frame)[name],
            making.tensors_of(plain.graph, [name], frame)[name],
        )


@EVERY
def test_convolutions_that_share_their_weights(dialect: Dialect) -> None:
    net = making.Net()
    body = net.relu(net.conv(net.image(), "conv1", 4), "relu1")
    once = net.relu(net.conv(body, "shared", 4), "relu2")
    twice = net.relu(net.op("Conv", [once, "shared.w", "shared.b"], "again", 4, pads=[1] * 4), "relu3")
    model = net.model(net.conv(twice, "head", 3, 1))
    made = quantize(model, making.table_of(model), dialect)
    runs(made)
    assert "shared.w" not in making.constants(made.graph)


@EVERY
def test_tensors_of_three_dimensions_in_front_of_a_convolution(dialect: Dialect) -> None:
    """As transformers have them: (N, HW, C) → transposed, reshaped → convolution. The quantizer stands on 3-D."""
    net = making.Net()
    height, width = making.SIZE
    body = net.relu(net.conv(net.image(), "conv1", 4), "relu1")
    flat = net.op("Reshape", [body, net.weight("flat_shape", np.array([1, 4, -1], np.int64))], "flat")
    tokens = net.op("Transpose", [flat], "tokens", perm=[0, 2, 1])
    mixed = net.op("Add", [tokens, net.weight("offset", np.array([0.1, 0, -0.1, 0.2], np.float32))], "mixed")
    back = net.op("Transpose", [mixed], "back", perm=[0, 2, 1])
    shape = net.weight("image_shape", np.array([1, 4, height, width], np.int64))
    again = net.op("Reshape", [back, shape], "again", 4)
    model = net.model(net.conv(net.relu(net.conv(again, "conv2", 4), "relu2"), "head", 3, 1))
    made = quantize(model, making.table_of(model), dialect)
    runs(made)
    if dialect is OPENVINO:
        pytest.importorskip("openvino", reason="openvino is not installed")
        compiled = core().compile_model(core().read_model(made.graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        frame = making.frames(1)
        exact = making.tensors_of(model.graph, ["mask"], frame)["mask"]
        assert np.mean(compiled({"frame": frame})[0] == exact) > 0.9


def test_names_that_are_missing_or_doubled_are_no_obstacle() -> None:
    """Foreign graphs need not name their nodes."""
    model = making.unet()
    proto = making.parsed(model.graph)
    for node in proto.graph.node:
        node.name = ""
    unnamed = OnnxModel(proto.SerializeToString(), model.spec)
    made = quantize(unnamed, making.table_of(model), TENSORRT)
    named = quantize(model, making.table_of(model), TENSORRT)
    np.testing.assert_array_equal(runs(made), runs(named))
    assert sum("weight/q" in name for name in making.constants(made.graph)) == 3


def test_what_a_branch_reads_is_kept() -> None:
    """An If holds graphs of its own, which read tensors of the outer one."""
    net = making.Net()
    net.relu(net.conv(net.image(), "conv1", 4), "relu1")
    net.weight("inner", np.array(0.5, np.float32))
    net.weight("always", np.array(True))
    info = [helper.make_tensor_value_info("branch_out", TensorProto.FLOAT, None)]
    branches = {
        f"{which}_branch": helper.make_graph(
            [helper.make_node(kind, ["relu1", "inner"], ["branch_out"])], which, [], info
        )
        for which, kind in (("then", "Add"), ("else", "Mul"))
    }
    chosen = net.op("If", ["always"], "chosen", 4, **branches)
    model = net.model(net.conv(net.relu(net.conv(chosen, "conv2", 4), "relu2"), "head", 3, 1))
    made = quantize(model, making.table_of(model), TENSORRT)
    assert "inner" in making.constants(made.graph)
    making.tensors_of(made.graph, ["mask"], making.frames(1))


def test_a_graph_can_be_asked() -> None:
    graph = Graph(making.unet().graph)
    made = graph.producer("relu1")
    assert made is not None
    assert made.op_type == "Relu"
    assert graph.producer("frame") is None
    assert [node.name for node in graph.consumers("relu1")] == ["node_pool", "node_concat"]
    assert graph.consumers("mask") == []
    assert graph.outputs == {"mask"}
    weights = graph.constant("conv1.w")
    assert weights is not None
    assert weights.shape == (8, 3, 3, 3)
    assert graph.constant("relu1") is None
    assert numpy_helper.to_array(graph.model.graph.initializer[0]).shape == ()
