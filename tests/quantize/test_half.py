"""Half precision: what becomes float16 and what does not, against the FP32 graph and against arithmetic done slowly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeseg.backends.onnxruntime import probe
from edgeseg.errors import ModelError
from edgeseg.export import fuse
from edgeseg.quantize import DIALECTS, ONNXRUNTIME_X86, TENSORRT, quantize
from edgeseg.quantize.half import Half, half
from edgeseg.quantize.half_opset import raised
from edgeseg.quantize.half_ranges import half_scales, largest_seen, partial_sums, to_half
from edgeseg.types import FRAME, OnnxModel
from tests import models
from tests.export.making import SPEC, graph_of, made, masks
from tests.quantize import making

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
Array = making.Array


def kinds(graph: bytes) -> dict[str, int]:
    """The type of every tensor, inferred strictly."""
    proto = making.parsed(graph)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True).graph
    found = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return found | {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}


def computes_in(result: Half, name: str) -> int:
    """The type of a node's first output."""
    (node,) = [n for n in making.parsed(result.model.graph).graph.node if n.name == name]
    return kinds(result.model.graph)[node.output[0]]


def casts(graph: bytes) -> list[onnx.NodeProto]:
    return [n for n in making.parsed(graph).graph.node if n.op_type == "Cast" and n.attribute[0].i in (FLOAT, HALF)]


def compared(model: OnnxModel, other: OnnxModel, count: int = 4, tensor: str = "logits") -> tuple[float, float]:
    """Agreement of the masks, 0 to 1, and signal to noise of the scores in dB."""
    equal, scores = [], ([], [])  # type: ignore[var-annotated]
    for frame in making.frames(count, model.spec.input.size):
        a, b = (making.tensors_of(m.graph, [tensor, "mask"], frame[None]) for m in (model, other))
        equal.append(np.mean(a["mask"] == b["mask"]))
        scores[0].append(a[tensor].astype(np.float64))
        scores[1].append(b[tensor].astype(np.float64))
    return float(np.mean(equal)), making.snr_db(np.stack(scores[0]), np.stack(scores[1]))


@pytest.mark.parametrize("name", models.ALL)
def test_networks_compute_in_half_precision(name: str) -> None:
    model = made(name, True).fused
    before = model.graph
    result = half(model)
    assert model.graph == before
    assert result.model.precision == "fp16"
    agreement, snr = compared(model, result.model)
    assert agreement >= 0.998
    assert snr > 50
    types = kinds(result.model.graph)
    for node in making.parsed(result.model.graph).graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            assert {types[t] for t in (*node.input, *node.output) if t} == {HALF}
    assert types["logits"] == HALF
    assert half(model).model.graph == result.model.graph
    assert half(result.model).model.graph == result.model.graph
    assert set(half(result.model).floats) == set(result.floats)


def test_one_cast_behind_the_preprocessing() -> None:
    result = half(making.unet())
    inside = [node for node in casts(result.model.graph) if FRAME not in node.input]
    assert [(list(node.input), list(node.output)) for node in inside] == [(["image"], ["edgeseg/half/image"])]
    types = kinds(result.model.graph)
    assert [types[t] for t in ("float", "nchw", "scaled", "image")] == [FLOAT] * 4
    assert {types[t] for t in ("conv1", "relu1", "pool", "up", "concat", "relu3", "logits")} == {HALF}
    assert types["up.scales"] == FLOAT  # ONNX has factors of a Resize in float32 only
    assert set(result.floats) == {"node_nchw", "node_scaled", "node_image"}
    assert all("preprocessing" in why for why in result.floats.values())


def test_exact_where_every_number_is_one_of_float16() -> None:
    net = making.Net(4)
    net.channels["frame"] = 3
    x = net.op("Transpose", [net.op("Cast", [FRAME], "f", to=FLOAT)], "x", 3, perm=[0, 3, 1, 2])
    x = net.op("Mul", [x, net.weight("factor", np.array(1 / 64, np.float32))], "scaled")
    for name, channels in (("one", 4), ("head", 3)):
        x = net.conv(x, name, channels)
        for part in (f"{name}.w", f"{name}.b"):
            net.weights[part] = np.rint(net.weights[part] * 2).clip(-1, 1)
    model = net.model(x)
    result = half(model)
    for frame in making.frames(3) // 32 * 32:
        names = ["one", "logits", "mask"]
        a, b = (making.tensors_of(m.graph, names, frame[None]) for m in (model, result.model))
        for name in names:
            np.testing.assert_array_equal(b[name].astype(np.float32), a[name])


@pytest.mark.parametrize("op", ["GreaterOrEqual", "Greater", "LessOrEqual", "Less"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_threshold_decides_every_half_precision_score_as_the_exact_one(op: str, swapped: bool) -> None:
    scores = np.arange(2**16, dtype=np.uint16).view(np.float16)
    scores = scores[np.isfinite(scores)]
    for level in (0.3, -0.84729785, 1.0, 2049.3, 1e-9, -1e-9, 65519.0, 0.0):
        constant = np.array(level, np.float32)
        net = making.Net(0)
        net.conv(net.image(), "score", 1)
        model = net.model("score")
        proto = making.parsed(model.graph)
        (node,) = [n for n in proto.graph.node if n.op_type == "GreaterOrEqual"]
        node.op_type = op
        if swapped:
            node.input[0], node.input[1] = node.input[1], node.input[0]
        for tensor in proto.graph.initializer:
            if tensor.name == "threshold":
                tensor.CopyFrom(onnx.numpy_helper.from_array(constant, "threshold"))
        result = half(replace(model, graph=proto.SerializeToString())).model
        written = next(n for n in making.parsed(result.graph).graph.node if n.op_type == op)
        assert kinds(result.graph)["logits"] == HALF
        rounded = making.constants(result.graph)[written.input[0 if swapped else 1]]
        assert rounded.dtype == np.float16
        ask = {"GreaterOrEqual": np.greater_equal, "Greater": np.greater, "LessOrEqual": np.less_equal, "Less": np.less}
        exact, given = ((scores.astype(np.float64), t.astype(np.float64)) for t in (constant, rounded))
        if swapped:
            exact, given = exact[::-1], given[::-1]
        np.testing.assert_array_equal(ask[op](*given), ask[op](*exact))


def net_with(*ops: tuple[str, list[str], dict[str, Any]], constants: dict[str, Array] | None = None) -> OnnxModel:
    """conv1 → relu1 → the given ops, the last of which gives what the head reads."""
    net = making.Net(5)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    for name, value in (constants or {}).items():
        net.weight(name, value)
    for index, (op, inputs, attributes) in enumerate(ops):
        x = net.op(op, inputs, f"op{index}", 8, **attributes)
    return net.model(net.conv(x, "head", 4, 1))


AXES = {"axes": np.array([2, 3], np.int64)}
NORM = {"s": np.ones(8, np.float32), "b": np.ones(8, np.float32)}
EPSILON = {"eps": np.array(1e-12, np.float32), "two": np.array(2, np.float32)}


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "constants", "word"),
    [
        ("GlobalAveragePool", ["relu1"], {}, {}, "sums over 768"),
        ("ReduceMean", ["relu1"], {"axes": [1, 2]}, {}, ""),  # 8 x 24 elements
        ("ReduceSum", ["relu1", "axes"], {}, AXES, "sums over 768"),
        ("InstanceNormalization", ["relu1", "s", "b"], {}, NORM, "squares"),
        ("ReduceL2", ["relu1"], {"axes": [2, 3]}, {}, "squares"),
        ("Exp", ["relu1"], {}, {}, "leave the range"),
        ("Pow", ["relu1", "two"], {}, EPSILON, "leave the range"),
        ("Softplus", ["relu1"], {}, {}, "11.1"),
        ("Sqrt", ["relu1"], {}, {}, "flushes"),
        ("Softmax", ["relu1"], {"axis": 1}, {}, ""),
        ("AveragePool", ["relu1"], {"kernel_shape": [3, 3], "pads": [1] * 4}, {}, ""),
        ("AveragePool", ["relu1"], {"kernel_shape": [17, 17], "pads": [8] * 4}, {}, "sums over 289"),
        ("Sigmoid", ["relu1"], {}, {}, ""),
        ("HardSwish", ["relu1"], {}, {}, ""),
        ("Celu", ["relu1"], {}, {}, "ONNX has no Celu in half precision"),
        ("Add", ["relu1", "eps"], {}, EPSILON, "become zero"),
        ("Mul", ["relu1", "k"], {}, {"k": np.array(1e6, np.float32)}, "beyond the 65504"),
        ("Add", ["relu1", "k"], {}, {"k": np.array(np.inf, np.float32)}, ""),
        ("Clip", ["relu1", "k", "m"], {}, {"k": np.array(0, np.float32), "m": np.array(3.4e38, np.float32)}, ""),
        ("Pad", ["relu1", "p", "m"], {}, {"p": np.zeros(8, np.int64), "m": np.array(-1e9, np.float32)}, ""),
    ],
)  # fmt: skip
def test_what_half_precision_cannot_be_trusted_with(
    op: str, inputs: list[str], attributes: dict[str, Any], constants: dict[str, Array], word: str
) -> None:
    model = net_with((op, inputs, attributes), ("Add", ["op0", "relu1"], {}), constants=constants)
    result = half(model)
    assert computes_in(result, "node_op0") == (FLOAT if word else HALF)
    assert computes_in(result, "node_op1") == HALF
    if word:
        assert word in result.floats["node_op0"]
    else:
        assert "node_op0" not in result.floats
    for frame in making.frames(1):  # it is a graph that runs
        making.tensors_of(result.model.graph, ["mask"], frame[None])


def test_a_layer_norm_in_parts_is_one_island() -> None:
    """(x - mean) / sqrt(var + eps): one cast in, one cast out, and float32 in between."""
    model = net_with(
        ("ReduceMean", ["relu1"], {"axes": [1, 2, 3]}),
        ("Sub", ["relu1", "op0"], {}),
        ("Pow", ["op1", "two"], {}),
        ("ReduceMean", ["op2"], {"axes": [1, 2, 3]}),
        ("Add", ["op3", "eps"], {}),
        ("Sqrt", ["op4"], {}),
        ("Div", ["op1", "op5"], {}),
        constants=EPSILON,
    )
    result = half(model)
    assert {f"node_op{index}" for index in range(7)} <= set(result.floats)
    assert [list(n.output) for n in casts(result.model.graph)[1:]] == [
        ["edgeseg/half/image"],
        ["edgeseg/float/relu1"],
        ["edgeseg/half/op6"],
    ]
    assert compared(model, result.model)[1] > 60


def test_positions_stay_float32() -> None:
    net = making.Net(6)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    flow = net.op("Tanh", [net.conv(x, "flow", 2, 1)], "bounded", 2)
    grid = net.op("Transpose", [flow], "grid", 2, perm=[0, 2, 3, 1])
    model = net.model(net.conv(net.op("GridSample", [x, grid], "warped", 8), "head", 4, 1))
    result = half(model)
    assert {"node_bounded", "node_grid", "node_warped"} <= set(result.floats)
    types = kinds(result.model.graph)
    assert (types["flow"], types["grid"], types["warped"], types["logits"]) == (HALF, FLOAT, FLOAT, HALF)
    assert compared(model, result.model)[1] > 40


def test_whole_numbers_stay_whole() -> None:
    net = making.Net(6)
    x = net.op("ArgMax", [net.conv(net.image(), "scores", 4)], "best", axis=1, keepdims=1)
    x = net.op("Cast", [x], "best_float", to=FLOAT)
    x = net.nearest(x, "large", 1.0)
    net.op("Squeeze", [x, net.weight("one", np.array([1], np.int64))], "flat")
    result = half(net.model(mask_of="flat"))
    types = kinds(result.model.graph)
    assert [types[t] for t in ("scores", "best_float", "large", "flat")] == [HALF, FLOAT, FLOAT, FLOAT]
    assert len(casts(result.model.graph)) == 3  # the frame, the network's input, the classes


def test_values_seen_keep_a_node_in_float32() -> None:
    net = making.Net(7)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    x = net.relu(net.conv(x, "loud", 8, gain=1e5), "loud_relu")
    net.weights["loud.w"] = net.weights["loud.w"].clip(-5e4, 5e4)  # these float16 can hold
    model = net.model(net.conv(net.conv(x, "quiet", 8, gain=1e-4), "head", 4, 1))
    frames = [frame[None] for frame in making.frames(4)]
    largest = largest_seen(model, probe, frames)
    assert largest["loud"] > 65504 / 4
    result = half(model, largest=largest)
    assert {"node_loud", "node_loud_relu", "node_quiet"} <= set(result.floats)
    assert f"{largest['loud']:.3g}" in result.floats["node_loud"]
    assert computes_in(result, "node_conv1") == computes_in(result, "node_head") == HALF
    assert compared(model, result.model)[1] > 50
    (without,) = making.tensors_of(half(model).model.graph, ["loud_relu"], frames[0]).values()
    assert np.isinf(without).any()  # this is why


def test_sums_on_the_way_count() -> None:
    """What cancels in the end may overflow before: large inputs, large weights, small results."""
    net = making.Net(8)
    x = net.conv(net.image(), "conv1", 8)
    model = net.model(net.conv(x, "head", 4))
    result = half(model, largest={"conv1": 14000.0, "logits": 1.0})
    weights = making.constants(model.graph)["head.w"]
    reached = max(4 * 14000 * float(np.sqrt(sum(float(w) ** 2 for w in kernel.ravel()))) for kernel in weights)
    assert partial_sums(weights, 0, 14000.0) == pytest.approx(reached)
    assert reached > 65504
    assert f"sums may reach {reached:.3g}" in result.floats["node_head"]
    assert "node_head" not in half(model, largest={"conv1": 10.0, "logits": 1.0}).floats


@pytest.mark.parametrize(("factor", "word"), [(1e6, "beyond"), (1e-7, "become zero"), (1e-2, ""), (0.0, "")])
def test_weights_that_float16_cannot_hold(factor: float, word: str) -> None:
    net = making.Net(9)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    x = net.conv(x, "weak", 8)
    net.weights["weak.w"] = (net.weights["weak.w"] * factor).astype(np.float32)
    result = half(net.model(net.conv(x, "head", 4, 1)))
    assert (word in result.floats["node_weak"]) if word else ("node_weak" not in result.floats)


def test_a_dead_channel_does_not_keep_its_convolution_in_float32() -> None:
    net = making.Net(9)
    x = net.conv(net.image(), "conv1", 8)
    net.weights["conv1.w"][2:5] *= 1e-12
    assert "node_conv1" not in half(net.model(net.conv(x, "head", 4, 1))).floats


def test_by_request_and_unknown_names() -> None:
    model = making.unet()
    result = half(model, keep_float=["node_conv2"])
    assert "request" in result.floats["node_conv2"]
    assert computes_in(result, "node_conv2") == FLOAT
    assert "conv2.w" in making.constants(result.model.graph)
    with pytest.raises(ModelError, match="node_conv9"):
        half(model, keep_float=["node_conv9"])


def test_branches_stay_float32_and_read_what_they_read() -> None:
    net = making.Net()
    net.relu(net.conv(net.image(), "conv1", 4), "relu1")
    net.weight("inner", np.array(0.5, np.float32))
    net.weight("always", np.array(True))
    info = [helper.make_tensor_value_info("branch_out", FLOAT, None)]
    branches = {
        f"{which}_branch": helper.make_graph(
            [helper.make_node(op, ["relu1", "inner"], ["branch_out"])], which, [], info
        )
        for which, op in (("then", "Add"), ("else", "Mul"))
    }
    chosen = net.op("If", ["always"], "chosen", 4, **branches)
    model = net.model(net.conv(net.relu(net.conv(chosen, "conv2", 4), "relu2"), "head", 3, 1))
    result = half(model)
    types = kinds(result.model.graph)
    assert (types["relu1"], types["chosen"], types["conv2"]) == (HALF, FLOAT, HALF)
    assert "If" in result.floats["node_chosen"]
    assert compared(model, result.model)[0] > 0.99


def test_shapes_computed_in_float_are_left_alone() -> None:
    """A dynamic graph: sizes come from the frame, some through a multiplication in float32."""
    net = making.Net(3)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    shape = net.op("Shape", [x], "shape")
    factor = net.weight("factor4", np.array([1, 1, 2, 2], np.float32))
    sizes = net.op("Mul", [net.op("Cast", [shape], "shape_float", to=FLOAT), factor], "sizes_float")
    sizes = net.op("Cast", [sizes], "sizes", to=TensorProto.INT64)
    x = net.op("Resize", [x, "", "", sizes], "large", 8, mode="nearest")
    result = half(net.model(net.conv(net.halved(x, "small"), "head", 4, 1)))
    types = kinds(result.model.graph)
    assert (types["sizes_float"], types["large"], types["logits"]) == (FLOAT, HALF, HALF)
    assert "node_sizes_float" not in result.floats


def test_graphs_that_are_partly_half_already() -> None:
    """A network exported after .half(): its own casts go where they are not needed."""
    conv = {"w": np.random.default_rng(1).normal(0, 1, (5, 3, 3, 3)).astype(np.float16)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4, name="a"),
        helper.make_node("Cast", ["c"], ["c32"], to=FLOAT, name="b"),
        helper.make_node("Relu", ["c32"], ["y"], name="r"),
    ]
    model = fuse(graph_of(nodes, weights=conv, kind=HALF), SPEC)
    result = half(model)
    assert len(casts(result.model.graph)) <= len(casts(model.graph))
    assert computes_in(result, "r") == HALF
    frames = models.frames(2)
    assert np.mean([masks(model, f[None]) == masks(result.model, f[None]) for f in frames]) > 0.995


def test_a_float_output_keeps_its_type() -> None:
    model = making.unet()
    proto = making.parsed(model.graph)
    proto.graph.output.append(helper.make_tensor_value_info("logits", FLOAT, (1, 4, 24, 32)))
    result = half(replace(model, graph=proto.SerializeToString()))
    assert kinds(result.model.graph)["logits"] == FLOAT
    names = ["logits", "mask"]
    a, b = (making.tensors_of(g, names, making.frames(1)) for g in (model.graph, result.model.graph))
    assert making.snr_db(a["logits"], b["logits"]) > 50


# INT8 with the rest in half precision


@pytest.mark.parametrize("make", [making.unet, making.everything])
def test_int8_with_the_rest_in_half_precision(make: Any) -> None:
    model = make()
    int8 = quantize(model, making.table_of(model), TENSORRT)
    result = half(int8)
    assert result.model.precision == "int8"
    types = kinds(result.model.graph)
    proto = making.parsed(result.model.graph)
    assert proto.opset_import[0].version == 19
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert types[node.input[1]] == HALF
        if node.op_type == "Conv":
            assert {types[t] for t in (*node.input, *node.output)} == {HALF}
    old, new = making.constants(int8.graph), making.constants(result.model.graph)
    assert all(np.array_equal(old[name], new[name]) for name in old if name.endswith("weight/q"))
    # As far from FP32 as INT8 itself is: codes next to a half flip.
    _, before = compared(model, int8)
    _, after = compared(model, result.model)
    assert after > before - 1.5
    assert half(result.model).model.graph == result.model.graph


def test_rounding_a_scale_moves_no_weight_by_half_a_step() -> None:
    rng = np.random.default_rng(0)
    scales = np.exp(rng.uniform(np.log(2.0**-14), np.log(10), 400)).astype(np.float32)
    integers = rng.integers(-127, 128, (400, 30)).astype(np.int8)
    made, halves, why = half_scales(integers, scales)
    assert why is None
    assert np.array_equal(made, integers)
    moved = np.abs(made * halves.astype(np.float64)[:, None] - integers * scales.astype(np.float64)[:, None])
    assert (moved / scales[:, None]).max() < 0.07


def test_dead_channels_get_the_smallest_normal_scale() -> None:
    integers = np.full((3, 4), 100, np.int8)
    made, halves, why = half_scales(integers, np.array([0.1, 1e-9, 5e-5], np.float32))
    assert why is None
    assert halves.tolist()[1:] == [2.0**-14] * 2
    assert made[:, 0].tolist() == [100, 0, 82]
    assert half_scales(integers, np.array([1e-6, 1e-6, 2e-6], np.float32))[2] is not None
    assert half_scales(integers, np.array([1e6, 1, 1], np.float32))[2] is not None


def test_a_convolution_of_tiny_weights_stays_float32_with_its_quantizers() -> None:
    net = making.Net(11)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    a, b = net.conv(x, "tiny", 8, gain=1e-5), net.conv(x, "plain", 8)
    model = net.model(net.conv(net.op("Add", [a, b], "sum"), "head", 4, 1))
    result = half(quantize(model, making.table_of(model), TENSORRT))
    assert "steps" in result.floats["node_tiny"]
    types = kinds(result.model.graph)
    for node in making.parsed(result.model.graph).graph.node:
        if node.name == "node_tiny":  # its integers are read anew, not cast
            assert {types[t] for t in (*node.input, *node.output)} == {FLOAT}
            makers = {o: n.op_type for n in making.parsed(result.model.graph).graph.node for o in n.output}
            assert [makers[t] for t in node.input[:2]] == ["DequantizeLinear"] * 2
        if node.name == "node_plain":
            assert {types[t] for t in (*node.input, *node.output)} == {HALF}


def test_a_tiny_activation_keeps_what_reads_it_in_float32() -> None:
    net = making.Net(12)
    x = net.relu(net.conv(net.image(), "conv1", 8, bias=False, gain=1e-3), "relu1")
    low = net.conv(net.halved(x, "pool"), "conv2", 8)
    model = net.model(net.conv(net.nearest(low, "up"), "head", 4, 1))
    int8 = quantize(model, making.table_of(model), TENSORRT)
    result = half(int8)
    assert {"node_pool", "node_conv2"} <= set(result.floats)
    assert "node_head" not in result.floats


def test_other_dialects_are_refused() -> None:
    model = making.unet()
    for dialect in (ONNXRUNTIME_X86, DIALECTS["openvino"]):
        with pytest.raises(ModelError, match="tensorrt"):
            half(quantize(model, making.table_of(model), dialect))


def opset(version: int, nodes: Sequence[onnx.NodeProto], constants: dict[str, Array]) -> onnx.ModelProto:
    return making.parsed(
        graph_of(list(nodes), weights=constants, shape=(1, 4, 8, 8), opset=version, outputs=(nodes[-1].output[0],))
    )


def test_raising_the_opset_changes_nothing() -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1),
        helper.make_node("ReduceMean", ["a"], ["m"], axes=[2, 3], keepdims=1),
        helper.make_node(
            "Resize", ["b", "", "s"], ["r"], mode="linear", coordinate_transformation_mode="align_corners"
        ),
        helper.make_node("Pad", ["r", "p"], ["q"], mode="reflect"),
        helper.make_node("Add", ["q", "m"], ["y"]),
    ]
    constants: dict[str, Array] = {
        "s": np.array([1, 1, 2, 2], np.float32),
        "p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    }
    old = opset(13, nodes, constants)
    new = raised(old, 19)
    onnx.shape_inference.infer_shapes(new, check_type=True, strict_mode=True)
    assert new.opset_import[0].version == 19
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    from edgeseg.export.graph import run

    np.testing.assert_array_equal(run(old, x)["y"], run(new, x)["y"])
    assert raised(new, 19) is new
    strange = opset(15, [helper.make_node("RoiAlign", ["x", "r", "i"], ["y"])], {})
    with pytest.raises(ModelError, match="RoiAlign"):
        raised(strange, 19)
    with pytest.raises(ModelError, match="opset 12"):
        raised(opset(12, [helper.make_node("Relu", ["x"], ["y"])], {}), 19)


@pytest.mark.parametrize("version", [17, 18, 19, 20, 21])
def test_every_opset(version: int) -> None:
    model = making.unet()
    proto = making.parsed(model.graph)
    proto.opset_import[0].version = version
    proto.ir_version = 10
    model = replace(model, graph=proto.SerializeToString())
    result = half(model)
    assert making.parsed(result.model.graph).opset_import[0].version == version
    int8 = half(quantize(model, making.table_of(model), TENSORRT)).model
    assert making.parsed(int8.graph).opset_import[0].version == max(version, 19)
    kinds(int8.graph)
    assert compared(model, result.model)[1] > 60


def test_the_largest_values_of_every_tensor() -> None:
    model = making.everything()
    frames = making.frames(5)
    seen = largest_seen(model, probe, [frame[None] for frame in frames])
    names = ["image", "conv1", "concat", "weighted", "logits"]
    slow = dict.fromkeys(names, 0.0)
    for frame in frames:
        for name, value in making.tensors_of(model.graph, names, frame[None]).items():
            slow[name] = max(slow[name], float(np.abs(value).max()))
    assert {name: seen[name] for name in names} == pytest.approx(slow, rel=1e-5)
    assert "classes" not in seen
    with pytest.raises(ValueError, match="at least one frame"):
        largest_seen(model, probe, [])


def test_probing_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeseg.quantize import half_ranges

    model, frames = making.unet(), [frame[None] for frame in making.frames(2)]
    whole = largest_seen(model, probe, frames)
    asked: list[int] = []

    def counting(graph: bytes, tensors: Sequence[str], batches: Any) -> Any:
        asked.append(len(tensors))
        return probe(graph, tensors, batches)

    monkeypatch.setattr(half_ranges, "_GROUP_BYTES", 40_000)
    assert largest_seen(model, counting, frames) == pytest.approx(whole, rel=1e-5)
    assert len(asked) > 2
    assert sum(asked) == len(whole)


def test_not_finite_counts_as_beyond() -> None:
    def broken(graph: bytes, tensors: Sequence[str], frames: Any) -> Any:
        yield {name: np.array([1.0, np.nan], np.float32) for name in tensors}

    model = making.unet()
    seen = largest_seen(model, broken, [making.frames(1)])
    assert set(seen.values()) == {np.inf}
    assert computes_in(half(model, largest=seen), "node_conv1") == FLOAT


def test_rounding_in_a_direction() -> None:
    values = np.array([0.1, -0.1, 65519.0, 65520.0, 1e-9, np.inf, -np.inf, 2.0])
    up, down = to_half(values, "up").astype(np.float64), to_half(values, "down").astype(np.float64)
    assert (up >= values).all()
    assert (down <= values).all()
    assert up[-1] == down[-1] == 2.0
    assert to_half(np.array([1e9, -1e9, np.inf]), "saturate").tolist() == [65504.0, -65504.0, np.inf]
    assert np.isnan(to_half(np.array([np.nan]), "saturate")).all()


@pytest.mark.parametrize("name", ["low_resolution", "pyramid", "unet"])
def test_dynamic_sizes(name: str) -> None:
    model = fuse(made(name, True).exported.graph, SPEC)
    dynamic = fuse_dynamic(name)
    if dynamic is None:
        pytest.skip("this network holds on to one size")
    result = half(dynamic)
    assert kinds(result.model.graph)["logits"] == HALF
    for frames in (models.frames(1), models.frames(2, (112, 128))):
        exact, given = masks(dynamic, frames), masks(result.model, frames)
        assert given.shape == frames.shape[:3]
        assert np.mean(exact == given) > 0.995
    assert np.mean(masks(model, models.frames(1)) == masks(result.model, models.frames(1))) > 0.995


def fuse_dynamic(name: str) -> OnnxModel | None:
    from edgeseg.export import to_onnx

    model = made(name, True).model
    try:
        return fuse(to_onnx(model, SPEC, dynamic=True, quick=True).graph, SPEC, dynamic=True)
    except ModelError:
        return None
