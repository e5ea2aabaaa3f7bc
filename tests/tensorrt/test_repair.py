"""What a builder refuses runs in the next wider type, and in nothing else: the graph computes the same otherwise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgeseg import quantize
from edgeseg.backends.tensorrt.build import build
from edgeseg.backends.tensorrt.graph import for_tensorrt
from edgeseg.backends.tensorrt.options import Options
from edgeseg.backends.tensorrt.pairs import paired
from edgeseg.backends.tensorrt.repair import Repair, repaired
from edgeseg.graph import Graph
from edgeseg.quantize.half import half
from edgeseg.types import LOGITS, MASK, OnnxModel
from tests.quantize import making

FRAMES = making.frames(3)
CONVOLUTIONS = ("node_conv1", "node_conv2", "node_conv3")


@functools.cache
def net() -> OnnxModel:
    return making.unet()


@functools.cache
def chain() -> OnnxModel:
    """One convolution after another: whether one is quantized says nothing about where the others' pairs stand."""
    made = making.Net(6)
    x = made.image()
    for name in CONVOLUTIONS:
        x = made.relu(made.conv(x, name.removeprefix("node_"), 8), f"relu_{name}")
    return made.model(made.conv(x, "head", 4, 1, gain=3.0))


@functools.cache
def int8(*keep_float: str, of: Callable[[], OnnxModel] = net) -> OnnxModel:
    placement = quantize.place(Graph(of().graph), quantize.TENSORRT, keep_float=keep_float, also=["node_conv1"])
    return quantize.quantize(of(), making.table_of(of()), quantize.TENSORRT, placement=placement)


def answers(graph: bytes) -> dict[str, Any]:
    """Scores and masks, node by node as they are written."""
    each = [making.tensors_of(graph, [LOGITS, MASK], frame[None]) for frame in FRAMES]
    return {name: np.concatenate([answer[name] for answer in each]) for name in (LOGITS, MASK)}


def node_of(graph: bytes, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto
    (found,) = (node for node in making.parsed(graph).graph.node if node.name == name)
    return found


def makers(graph: bytes, name: str) -> list[str]:
    """Operators that give the node its computed inputs."""
    view = Graph(graph)
    return [maker.op_type for tensor in node_of(graph, name).input if (maker := view.producer(tensor)) is not None]


def once(graph: bytes, *names: str) -> tuple[bytes, Repair]:
    found = repaired(graph, names)
    assert found is not None
    onnx.checker.check_model(making.parsed(found[0]), full_check=True)
    return found


def rounded(graph: bytes, name: str) -> bytes:
    """The graph with the weights of one convolution as its INT8 ones are, in float."""
    kept, quantized = Graph(graph), Graph(int8(of=chain).graph)
    (place,) = (node.input[1] for node in kept.nodes if node.name == name)
    (pair,) = (quantized.producer(node.input[1]) for node in quantized.nodes if node.name == name)
    assert pair is not None
    whole, scale = quantized.constant(pair.input[0]), quantized.constant(pair.input[1])
    assert whole is not None
    assert scale is not None
    kept.replace_constant(place, whole.astype(np.float32) * scale.reshape(-1, 1, 1, 1))
    return kept.finish([])


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_without_its_pairs_a_convolution_is_as_if_it_had_never_been_quantized(name: str) -> None:
    graph, repair = once(int8(of=chain).graph, name)
    assert repair == Repair(name, "runs without INT8: this TensorRT has no kernel for it")
    found, wanted = answers(graph), answers(rounded(int8(name, of=chain).graph, name))
    np.testing.assert_array_equal(found[MASK], wanted[MASK])
    np.testing.assert_allclose(found[LOGITS], wanted[LOGITS], rtol=1e-5, atol=1e-5)
    assert float(np.abs(found[LOGITS] - answers(int8(of=chain).graph)[LOGITS]).max()) > 1e-4, "nothing was changed"


def test_all_of_them_give_the_float_network_with_rounded_weights() -> None:
    graph = int8(of=chain).graph
    names = [node.name for node in making.parsed(graph).graph.node if node.op_type == "Conv"]
    wanted = chain().graph
    for name in names:
        graph, repair = once(graph, name)
        assert repair.node == name
        wanted = rounded(wanted, name)
    assert "QuantizeLinear" not in {node.op_type for node in making.parsed(graph).graph.node}, "dead nodes are left"
    np.testing.assert_array_equal(answers(graph)[MASK], answers(wanted)[MASK])
    np.testing.assert_allclose(answers(graph)[LOGITS], answers(wanted)[LOGITS], rtol=1e-5, atol=1e-5)
    assert repaired(graph, names) is None


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_pairs_that_others_read_stay(name: str) -> None:
    before = {"node_conv1": ["Add"], "node_conv2": ["MaxPool"], "node_conv3": ["Concat"]}
    graph, _ = once(int8().graph, name)
    assert makers(graph, name) == before[name]
    for other in CONVOLUTIONS:
        if other != name:
            assert makers(graph, other) == makers(int8().graph, other)
    read = {tensor for node in making.parsed(graph).graph.node for tensor in node.input}
    assert all(node.output[0] in {*read, MASK} for node in making.parsed(graph).graph.node)


def test_weights_behind_two_nodes_as_tensorrt_8_wants_them() -> None:
    graph, repair = once(paired(int8().graph), "node_conv2")
    assert repair.node == "node_conv2"
    straight, _ = once(int8().graph, "node_conv2")
    np.testing.assert_array_equal(answers(graph)[MASK], answers(straight)[MASK])
    assert "DequantizeLinear" not in makers(graph, "node_conv2")


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_node_in_half_precision_is_put_between_casts(name: str) -> None:
    model = half(net()).model
    graph, repair = once(model.graph, name)
    assert repair == Repair(name, "runs in FP32: this TensorRT has no FP16 kernel for it")
    assert makers(graph, name) == ["Cast"]
    values = making.constants(graph)
    assert all(values[tensor].dtype == np.float32 for tensor in node_of(graph, name).input[1:])
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(making.parsed(graph)).graph.value_info
    }
    assert types[node_of(graph, name).output[0]] == TensorProto.FLOAT
    assert types[node_of(model.graph, name).output[0]] == TensorProto.FLOAT16, "whoever reads it sees no difference"
    assert float(np.mean(answers(graph)[MASK] == answers(model.graph)[MASK])) > 0.99


def test_in_int8_and_half_a_node_is_freed_of_int8_first_and_of_half_then() -> None:
    graph = half(int8()).model.graph
    first, one = once(graph, "node_conv2")
    second, two = once(first, "node_conv2")
    assert ("INT8" in one.how, "FP32" in two.how) == (True, True)
    assert repaired(second, ["node_conv2"]) is None
    assert "Cast" not in makers(first, "node_conv2")
    assert makers(second, "node_conv2") == ["Cast"]
    for changed in (first, second):
        assert float(np.mean(answers(changed)[MASK] == answers(graph)[MASK])) > 0.97


def test_an_island_of_fp32_behind_a_pair_of_fp16_gets_a_cast() -> None:
    """Its DequantizeLinear gives FP32 and the QuantizeLinear before takes FP16: what it now reads is cast."""
    mixed = making.Net(11)
    x = mixed.relu(mixed.conv(mixed.image(), "conv1", 8), "relu1")
    a, b = mixed.conv(x, "tiny", 8, gain=1e-5), mixed.conv(x, "plain", 8)
    model = mixed.model(mixed.conv(mixed.op("Add", [a, b], "sum"), "head", 4, 1))
    whole = quantize.quantize(model, making.table_of(model), quantize.TENSORRT)
    found = half(whole)
    assert "node_tiny" in found.floats
    graph, repair = once(found.model.graph, "node_tiny")
    assert repair.node == "node_tiny"
    assert makers(graph, "node_tiny") == ["Cast"]
    assert float(np.mean(answers(graph)[MASK] == answers(found.model.graph)[MASK])) > 0.97


@pytest.mark.parametrize(
    "said",
    [
        "node_conv2 + node_relu2",
        "node_relu2 + node_conv2",
        "node_conv2 || node_up",
        "PWN(node_conv2, node_relu2)",
        "{ForeignNode[node_conv2...node_relu2]}",
        "fused_node_conv2_clone_0",
    ],
)
def test_names_of_fused_layers(said: str) -> None:
    _, repair = once(int8().graph, said)
    assert repair.node == "node_conv2"


def test_a_name_that_begins_another_is_not_meant() -> None:
    twelve = making.Net(2)
    x = twelve.relu(twelve.conv(twelve.image(), "conv1", 8), "relu1")
    x = twelve.relu(twelve.conv(x, "conv12", 8), "relu12")
    model = twelve.model(twelve.conv(x, "head", 4, 1))
    graph = quantize.quantize(model, making.table_of(model), quantize.TENSORRT).graph
    for said in ("node_conv12 + node_relu12", "PWN(node_conv12)", "my_node_conv12_copy"):
        _, repair = once(graph, said)
        assert repair.node == "node_conv12"


def test_the_first_that_can_be_repaired_is() -> None:
    _, repair = once(int8().graph, "nobody", "node_relu1", "node_conv3", "node_conv2")
    assert repair.node == "node_conv3"


@pytest.mark.parametrize("names", [[], [""], ["nobody"], ["node_relu1"], ["node_argmax"]])
def test_nothing_to_repair(names: list[str]) -> None:
    assert repaired(int8().graph, names) is None
    assert repaired(net().graph, [*names, *CONVOLUTIONS]) is None, "a float network has nothing to give up"


def test_the_pairs_themselves_and_comparisons_are_left() -> None:
    """Their outputs are no float16: casts behind them would make another graph."""
    graph = half(int8()).model.graph
    pairs = [n.name for n in making.parsed(graph).graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    assert repaired(graph, pairs) is None
    one = making.Net(4)
    narrow = half(one.model(one.conv(one.image(), "score", 1), threshold=0.3)).model.graph
    assert repaired(narrow, ["node_chosen"]) is None


def test_shared_weights_are_written_once() -> None:
    makes: tuple[Callable[[OnnxModel], OnnxModel], ...] = (
        lambda model: half(model).model,
        lambda model: quantize.quantize(model, making.table_of(model), quantize.TENSORRT),
    )
    for make in makes:
        shared = making.Net(3)
        x = shared.relu(shared.conv(shared.image(), "conv1", 8), "relu1")
        x = shared.relu(shared.conv(x, "one", 8), "relu2")
        y = shared.op("Conv", [x, "one.w", "one.b"], "two", 8, pads=[1] * 4)
        graph = make(shared.model(shared.conv(shared.relu(y, "relu3"), "head", 4, 1))).graph
        for name in ("node_one", "node_two"):
            graph, repair = once(graph, name)
            assert repair.node == name
        names = [tensor.name for tensor in making.parsed(graph).graph.initializer]
        assert len(names) == len(set(names))


def test_the_real_builder_takes_what_was_repaired() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13, which builds without a GPU")
    for model in (int8(), half(int8()).model, half(net()).model):
        graph = for_tensorrt(model.graph)
        for _ in range(2):
            found = repaired(graph, ["node_conv2 + node_relu2"])
            if found is None:
                break
            graph = found[0]
            assert build(trt, graph, "int8", Options(), capability=(8, 6)).engine
        assert graph != model.graph


def test_the_graph_given_stays_as_it_was() -> None:
    before = int8().graph
    kept = bytes(before)
    once(before, "node_conv2")
    assert before == kept
