"""What the written graphs compute: against slow integers, against FP32, and in the engines they are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from calibration import affine
from edgeseg.backends.openvino import core
from edgeseg.quantize import (
    DIALECTS,
    ONNXRUNTIME_ARM,
    ONNXRUNTIME_X86,
    OPENVINO,
    TENSORRT,
    Dialect,
    Graph,
    place,
    quantize,
)
from edgeseg.types import LOGITS, OnnxModel
from tests.quantize import making, reference

SIGNED = {"onnxruntime-arm", "tensorrt"}


def first_convolution(dialect: str, frame: int, optimization: str) -> tuple[making.Array, making.Array]:
    """Codes behind the first convolution and its ReLU: as the runtime has them, as slow integers have them."""
    model = making.unet()
    placement = place(Graph(model.graph), DIALECTS[dialect], also=["node_conv1"])
    made = quantize(model, making.table_of(model), DIALECTS[dialect], placement=placement).graph
    constants = making.constants(made)
    batch = making.frames()[frame][None]
    low, high = (-128, 127) if dialect in SIGNED else (0, 255)
    scale = {name: float(constants[f"edgeseg/{name}/scale"]) for name in ("image", "relu1")}
    zero = {name: int(constants[f"edgeseg/{name}/zero_point"]) for name in ("image", "relu1")}
    got = making.tensors_of(made, ["image", "edgeseg/relu1/q"], batch, optimization)
    codes = reference.quantized(got["image"][0], scale["image"], zero["image"], low, high)
    weights, weight_scales = constants["edgeseg/node_conv1/weight/q"], constants["edgeseg/node_conv1/weight/scale"]
    if "edgeseg/node_conv1/bias/q" in constants:
        bias = constants["edgeseg/node_conv1/bias/q"]
    else:
        bias = np.rint(constants["edgeseg/node_conv1/bias"] / (scale["image"] * weight_scales.astype(np.float64)))
    sums = reference.convolved(codes, zero["image"], weights, bias)
    wanted = reference.requantized(sums, scale["image"], weight_scales, scale["relu1"], zero["relu1"], low, high)
    wanted = np.maximum(wanted, zero["relu1"])  # the ReLU
    return got["edgeseg/relu1/q"][0].astype(np.int64), wanted


@pytest.mark.parametrize("optimization", ["off", "all"])
@pytest.mark.parametrize("dialect", ["onnxruntime-x86", "onnxruntime-x86-no-vnni", "onnxruntime-arm", "tensorrt"])
def test_a_quantized_convolution_is_integers(dialect: str, optimization: str) -> None:
    got, wanted = first_convolution(dialect, 0, optimization)
    assert len(np.unique(got)) > 50  # there is something to compare
    assert np.abs(got - wanted).max() <= 1
    assert np.mean(got != wanted) < 2e-3  # ties of the last rounding only


def test_the_comparison_with_integers_can_fail() -> None:
    got, wanted = first_convolution("onnxruntime-x86", 0, "off")
    assert np.mean(got != wanted + 1) > 0.9
    other, _ = first_convolution("onnxruntime-x86", 1, "off")
    assert np.abs(other - wanted).max() > 1


@pytest.mark.parametrize("recipe", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("dialect", [name for name, d in DIALECTS.items() if not d.fake])
def test_a_network_loses_little(dialect: str, recipe: str) -> None:
    model = making.unet()
    made = quantize(model, making.table_of(model, recipe=recipe), DIALECTS[dialect])
    held_out = making.frames(2, seed=5)
    for frame in held_out:
        exact = making.tensors_of(model.graph, [LOGITS], frame[None])[LOGITS]
        ours = making.tensors_of(made.graph, [LOGITS], frame[None])[LOGITS]
        assert making.snr_db(exact, ours) > (22 if "no-vnni" in dialect else 25)


def test_wrong_ranges_lose_much() -> None:
    """The bound above is one that a scale of twice the right one, or half, does not keep."""
    model = making.unet()
    made = making.parsed(quantize(model, making.table_of(model), ONNXRUNTIME_X86).graph)
    for tensor in made.graph.initializer:
        if tensor.name in ("edgeseg/relu1/scale", "edgeseg/pool/scale"):
            halved = onnx.numpy_helper.to_array(tensor) / np.float32(4)
            tensor.CopyFrom(onnx.numpy_helper.from_array(halved, tensor.name))
    frame = making.frames(1, seed=5)
    exact = making.tensors_of(model.graph, [LOGITS], frame)[LOGITS]
    ours = making.tensors_of(made.SerializeToString(), [LOGITS], frame)[LOGITS]
    assert making.snr_db(exact, ours) < 15


def optimized(graph: bytes, level: str, path: Path, *, arm: bool = False) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    if arm:  # by default x86 turns int8 activations into uint8 where it can and leaves the rest in float
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


@pytest.mark.parametrize("dialect", [ONNXRUNTIME_X86, ONNXRUNTIME_ARM], ids=["x86", "arm"])
@pytest.mark.parametrize("level", ["all", "extended"])
@pytest.mark.parametrize("make", [making.unet, making.everything])
def test_onnx_runtime_runs_every_convolution_in_int8(
    make: Callable[[], OnnxModel], level: str, dialect: Dialect, tmp_path: Path
) -> None:
    model = make()
    placed = place(Graph(model.graph), dialect).convolutions
    made = quantize(model, making.table_of(model, recipe="mse"), dialect)
    found = optimized(made.graph, level, tmp_path / "optimized.onnx", arm=dialect is ONNXRUNTIME_ARM)
    assert found["QLinearConv"] == len(placed) > 1
    floats = sum(found[op] for op in ("Conv", "FusedConv", "NhwcFusedConv"))
    assert floats == 2  # that of the image and the head


def capped_net(cap: float) -> OnnxModel:
    """Convolutions with ReLU6 (or the like) behind them, with activations that reach the cap."""
    net = making.Net(3)
    lowest = net.weight("lowest", np.array(0, np.float32))
    highest = net.weight("highest", np.array(cap, np.float32))
    x = net.image()
    for index in range(3):
        x = net.op("Clip", [net.conv(x, f"conv{index}", 8, gain=4.0), lowest, highest], f"clip{index}")
    return net.model(net.conv(x, "head", 3, 1))


@pytest.mark.parametrize("cap", [6.0, 1.0, 3.7, 5.9, 0.3])
def test_a_saturated_clip_does_not_keep_a_convolution_in_float(cap: float, tmp_path: Path) -> None:
    model = capped_net(cap)
    table = making.table_of(model)
    assert table.seen("clip0").maximum == np.float32(cap)
    placement = place(Graph(model.graph), ONNXRUNTIME_X86, also=["node_conv0"])
    made = quantize(model, table, ONNXRUNTIME_X86, placement=placement).graph
    assert optimized(made, "extended", tmp_path / "optimized.onnx")["QLinearConv"] == 3


def test_a_channel_of_tiny_weights_keeps_its_bias() -> None:
    """A channel that batch norm has switched off: weights near nothing, and a bias that int32 steps cannot reach."""
    net = making.Net(4)
    x = net.conv(net.image(), "conv1", 4)
    net.weights["conv1.w"][1] *= 1e-10
    net.weights["conv1.b"][:] = (0.1, 0.7, -0.2, 0.3)
    model = net.model(net.conv(net.relu(x, "relu1"), "head", 3, 1))
    placement = place(Graph(model.graph), ONNXRUNTIME_X86, also=["node_conv1"])
    made = quantize(model, making.table_of(model), ONNXRUNTIME_X86, placement=placement)
    frame = making.frames(1)
    exact = making.tensors_of(model.graph, ["relu1"], frame)["relu1"][0, 1]
    ours = making.tensors_of(made.graph, ["edgeseg/relu1/dq"], frame)["edgeseg/relu1/dq"][0, 1]
    assert exact.min() == pytest.approx(0.7, abs=1e-4)
    step = float(making.constants(made.graph)["edgeseg/relu1/scale"])
    assert np.abs(exact - ours).max() <= step


def test_a_given_bias_replaces_the_networks() -> None:
    net = making.Net(5)
    x = net.relu(net.conv(net.image(), "conv1", 4), "relu1")
    y = net.relu(net.conv(x, "conv2", 4, bias=False), "relu2")
    model = net.model(net.conv(y, "head", 3, 1))
    table = making.table_of(model)
    given = {"node_conv1": np.full(4, 0.25, np.float32), "node_conv2": np.full(4, -0.5, np.float32)}
    for dialect in (ONNXRUNTIME_X86, TENSORRT):
        placement = place(Graph(model.graph), dialect, also=["node_conv1"])
        constants = making.constants(quantize(model, table, dialect, placement=placement, bias=given).graph)
        for name, bias in given.items():
            if dialect.integer_bias:
                back = constants[f"edgeseg/{name}/bias/q"] * constants[f"edgeseg/{name}/bias/scale"].astype(np.float64)
            else:
                back = constants[f"edgeseg/{name}/bias"]
            np.testing.assert_allclose(back, bias, rtol=1e-3)


def emulated(graph: bytes) -> bytes:
    """FakeQuantize of a constant range as a Q/DQ pair: what it means, in operators that ONNX Runtime has."""
    model = making.parsed(graph)
    constants = making.constants(graph)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "FakeQuantize":
            nodes.append(node)
            continue
        low, high = (np.float64(constants[name].item()) for name in node.input[1:3])
        scale = np.float32((high - low) / 255)
        zero = np.uint8(np.rint(-low / scale))
        made = [(f"{node.name}_s", scale), (f"{node.name}_z", zero)]
        model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), name) for name, v in made)
        names = [name for name, _ in made]
        code = f"{node.name}_code"
        nodes += [
            onnx.helper.make_node("QuantizeLinear", [node.input[0], *names], [code]),
            onnx.helper.make_node("DequantizeLinear", [code, *names], list(node.output)),
        ]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("make", [making.unet, making.everything])
def test_openvino_computes_what_its_dialect_says(make: Callable[[], OnnxModel]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    model = make()
    made = quantize(model, making.table_of(model), OPENVINO)
    proto = making.parsed(made.graph)
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, None))
    compiled = core().compile_model(
        core().read_model(proto.SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1},
    )
    for frame in making.frames(2, seed=5):
        theirs = compiled({"frame": frame[None]})[0]
        ours = making.tensors_of(emulated(made.graph), [LOGITS], frame[None])[LOGITS]
        exact = making.tensors_of(model.graph, [LOGITS], frame[None])[LOGITS]
        # a rounding that falls the other way is one step in one tensor: far below what quantizing itself costs
        assert making.snr_db(ours, theirs) > making.snr_db(exact, ours) + 6
        assert making.snr_db(exact, theirs) > 20


def test_ranges_come_from_the_tables_recipe() -> None:
    model = making.unet()
    table = making.table_of(model, recipe="minmax")
    constants = making.constants(quantize(model, table, TENSORRT).graph)
    seen = table.seen("relu3")
    scale, _ = affine(min(seen.minimum, 0), max(seen.maximum, 0), TENSORRT.activations)
    assert constants["edgeseg/relu3/scale"] == scale


def test_openvino_runs_every_convolution_in_int8() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    model = making.unet()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    found = {}
    for name, graph in (("int8", quantize(model, making.table_of(model), OPENVINO).graph), ("fp32", model.graph)):
        compiled = core().compile_model(core().read_model(graph), "CPU", settings)
        facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        found[name] = [str(f["runtimePrecision"].value) for f in facts if f["layerType"].value == "Convolution"]
    assert sorted(found["int8"]) == ["f32", "u8", "u8", "u8"]  # that of the image is float
    assert found["fp32"] == ["f32"] * 4


def test_a_moving_average_of_what_a_concatenation_joins_is_the_wider_of_both() -> None:
    """One scale for tensors of the same frames: not a third range between theirs, as of frames that follow."""
    net = making.Net(1)
    image = net.image()
    small = net.relu(net.conv(image, "small", 4), "small_relu")
    net.weights["small.w"] *= 0.05
    net.weights["small.b"] *= 0.05
    large = net.relu(net.conv(image, "large", 4), "large_relu")
    joined = net.op("Concat", [large, small], "joined", 8, axis=1)
    model = net.model(net.conv(joined, "head", 3, 1))
    table = making.table_of(model, recipe="moving-average")
    constants = making.constants(quantize(model, table, OPENVINO).graph)
    seen = [table.seen(tensor).extremes for tensor in ("large_relu", "small_relu")]
    widest = max(extremes.average[1] for extremes in seen if extremes is not None)
    highs = [float(value) for name, value in constants.items() if name.endswith("/high") and "relu" in name]
    assert highs
    assert all(high == pytest.approx(widest, rel=0.02) for high in highs)
