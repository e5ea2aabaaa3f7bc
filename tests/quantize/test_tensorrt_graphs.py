"""What TensorRT takes: rewritten graphs compute the same, and the real builder of TensorRT-RTX accepts them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeseg.backends.onnxruntime import inference_session
from edgeseg.backends.tensorrt.graph import for_tensorrt
from edgeseg.export import fuse
from edgeseg.export.graph import opened
from edgeseg.quantize import TENSORRT, quantize
from edgeseg.quantize.half import half
from edgeseg.types import InputSpec, ModelSpec, OnnxModel, OutputSpec
from tests import models
from tests.export.making import SPEC, made
from tests.quantize import making

Array = NDArray[Any]
node = helper.make_node
FLOAT, HALF, UINT8, INT64, INT32 = 1, 10, 2, 7, 6
SHAPE = (1, 12, 10, 4)
FRAME = np.random.default_rng(3).integers(0, 256, SHAPE, np.uint8)
CAST = node("Cast", ["frame"], ["f"], to=FLOAT)
TO_MASK = node("Cast", ["y"], ["mask"], to=UINT8)


@functools.cache
def _rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13, which builds without a GPU")


def refused(graph: bytes) -> str:
    """What the real parser or builder has against a graph, strongly typed, for capability 8.9; "" if nothing."""
    trt = _rtx()

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.value <= 1:
                self.lines.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        return "\n".join(parser.get_error(index).desc() for index in range(parser.num_errors)) or "refused"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return "" if builder.build_serialized_network(network, config) is not None else "\n".join(log.lines) or "refused"


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, Array] | None = None, opset: int = 17) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frame", UINT8, SHAPE)],
        [helper.make_empty_tensor_value_info("mask")],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    (output,) = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.output
    if not output.type.tensor_type.HasField("shape"):  # MaxUnpool: onnx does not infer it
        output = helper.make_tensor_value_info("mask", UINT8, (1, 4, 12, 10))
    proto.graph.output[0].CopyFrom(output)
    return bytes(proto.SerializeToString())


def value(graph: bytes, name: str = "mask") -> Array:
    return making.tensors_of(graph, [name], FRAME)[name]


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def image(kind: int = FLOAT) -> list[onnx.NodeProto]:
    """ "x": real (1, 4, 12, 10)."""
    return [node("Cast", ["frame"], ["f"], to=kind), node("Transpose", ["f"], ["x"], perm=[0, 3, 1, 2])]


MOVES: dict[str, tuple[list[onnx.NodeProto], dict[str, Array]]] = {
    "transposed first": (
        [node("Transpose", ["frame"], ["t"], perm=[0, 3, 1, 2]), node("Cast", ["t"], ["y"], to=FLOAT), TO_MASK],
        {},
    ),
    "recoloured first": (
        [node("Gather", ["frame", "order"], ["t"], axis=3), node("Cast", ["t"], ["y"], to=FLOAT), TO_MASK],
        {"order": ints(2, 1, 0)},
    ),
    "enlarged first": (
        [node("Resize", ["frame", "", "s"], ["t"], mode="nearest"), node("Cast", ["t"], ["y"], to=FLOAT), TO_MASK],
        {"s": np.array([1, 2, 2, 1], np.float32)},
    ),
    "joined with a constant": (
        [node("Concat", ["frame", "plane"], ["t"], axis=3), node("Cast", ["t"], ["y"], to=FLOAT), TO_MASK],
        {"plane": np.full((1, 12, 10, 1), 9, np.uint8)},
    ),
    "bytes to the end": ([node("Transpose", ["frame"], ["mask"], perm=[0, 3, 1, 2])], {}),
    "mask unsqueezed": (
        [CAST, node("Cast", ["f"], ["u"], to=UINT8), node("Unsqueeze", ["u", "one"], ["mask"])],
        {"one": ints(1)},
    ),
    "mask read again": (
        [
            *(CAST, node("ArgMax", ["f"], ["a"], axis=3, keepdims=0), node("Cast", ["a"], ["u"], to=UINT8)),
            *(node("Identity", ["u"], ["v"]), node("Unsqueeze", ["v", "one"], ["mask"])),
        ],
        {"one": ints(1)},
    ),
    "fractions cut off": (
        [
            *(CAST, node("Mul", ["f", "third"], ["g"]), node("Cast", ["g"], ["u"], to=UINT8)),
            *(node("Transpose", ["u"], ["t"], perm=[0, 2, 1, 3]), node("Cast", ["t"], ["h"], to=FLOAT)),
            *(node("Mul", ["h", "three"], ["y"]), TO_MASK),
        ],
        {"third": np.array(1 / 3, np.float32), "three": np.array(3, np.float32)},
    ),
}


@pytest.mark.parametrize("which", MOVES)
def test_bytes_are_cast_before_anything_else(which: str) -> None:
    nodes, constants = MOVES[which]
    graph = graph_of(nodes, constants)
    rewritten = for_tensorrt(graph)
    onnx.checker.check_model(making.parsed(rewritten), full_check=True)
    np.testing.assert_array_equal(value(rewritten), value(graph))
    assert value(rewritten).dtype == np.uint8
    assert for_tensorrt(rewritten) == rewritten
    typed = onnx.shape_inference.infer_shapes(making.parsed(rewritten)).graph
    assert not [v.name for v in typed.value_info if v.type.tensor_type.elem_type == UINT8]
    assert refused(graph)  # this is why
    assert not refused(rewritten)


@pytest.mark.parametrize(("kind", "op"), [(INT64, "ArgMax"), (TensorProto.BOOL, "Greater")])
def test_masks_leave_as_floats(kind: int, op: str) -> None:
    """TensorRT casts only float32 and float16 to uint8."""
    made = node("ArgMax", ["f"], ["y"], axis=3) if op == "ArgMax" else node("Greater", ["f", "level"], ["y"])
    graph = graph_of([CAST, made, TO_MASK], {"level": np.array(99, np.float32)})
    rewritten = for_tensorrt(graph)
    np.testing.assert_array_equal(value(rewritten), value(graph))
    last = making.parsed(rewritten).graph.node[-1]
    before = making.parsed(rewritten).graph.node[-2]
    assert (before.op_type, before.attribute[0].i, list(last.input)) == ("Cast", FLOAT, list(before.output))
    assert for_tensorrt(rewritten) == rewritten
    assert not refused(rewritten)


def test_what_is_fine_is_not_touched() -> None:
    for name in ("unet", "transposed", "pyramid"):
        graph = made(name, True).fused.graph
        assert for_tensorrt(graph) == graph


def test_bytes_that_are_computed_with_are_left_to_the_parser() -> None:
    graph = graph_of([node("Add", ["frame", "frame"], ["t"]), node("Cast", ["t"], ["y"], to=FLOAT), TO_MASK])
    assert for_tensorrt(graph) == graph


@pytest.mark.parametrize("kernel", [(2, 2), (3, 2), (5, 5), (1, 1)])
@pytest.mark.parametrize("kind", [FLOAT, HALF])
def test_indices_of_max_pooling(kernel: tuple[int, int], kind: int) -> None:
    """SegNet. The frame is dim, so that windows hold equals: the first of them counts. 12x10 is no multiple of 5."""
    rectified = [node("Div", ["x", "step"], ["d"]), node("Floor", ["d"], ["r"])]
    pool = node("MaxPool", ["r"], ["p", "i"], kernel_shape=kernel, strides=kernel)
    constants = {"step": np.array(64, np.float32 if kind == FLOAT else np.float16), "out": ints(1, 4, 12, 10)}
    inputs = ["p", "i", "out"]
    unpool = node("MaxUnpool", inputs, ["y"], kernel_shape=kernel, strides=kernel)
    graph = graph_of([*image(kind), *rectified, pool, unpool, TO_MASK], constants)
    rewritten = for_tensorrt(graph)
    onnx.checker.check_model(making.parsed(rewritten), full_check=True)
    # ONNX Runtime pools with indices in float32 only: compare with that.
    reference = graph_of([*image(), *rectified, pool, unpool, TO_MASK], {**constants, "step": np.array(64, np.float32)})
    np.testing.assert_array_equal(value(rewritten), value(reference))
    np.testing.assert_array_equal(value(rewritten, "i"), value(reference, "i"))
    assert len(np.unique(value(reference, "i"))) == value(reference, "i").size
    assert not {"MaxUnpool"} & {n.op_type for n in making.parsed(rewritten).graph.node}
    assert for_tensorrt(rewritten) == rewritten
    assert refused(graph)
    assert not refused(rewritten)


def test_overlapping_windows_are_left_to_the_parser() -> None:
    pool = node("MaxPool", ["x"], ["y", "i"], kernel_shape=[3, 3], strides=[2, 2])
    graph = graph_of([*image(), pool, TO_MASK])
    assert for_tensorrt(graph) == graph


def test_segnet_from_torch() -> None:
    torch = pytest.importorskip("torch")
    from edgeseg.export import to_onnx
    from edgeseg.types import Torch

    class SegNet(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = models.Block(3, 8)
            self.pool, self.unpool = torch.nn.MaxPool2d(2, 2, return_indices=True), torch.nn.MaxUnpool2d(2, 2)
            self.head = torch.nn.Conv2d(8, 5, 3, padding=1)

        def forward(self, x: Any) -> Any:
            full = self.first(x)
            small, places = self.pool(full)
            return self.head(self.unpool(small, places, output_size=full.shape[-2:]))

    model = fuse(to_onnx(Torch(models.seeded(SegNet), "state_dict"), SPEC, quick=True).graph, SPEC)
    rewritten = for_tensorrt(model.graph)
    frames = models.frames(1)
    np.testing.assert_array_equal(opened(rewritten)(frames)["mask"], opened(model.graph)(frames)["mask"])
    assert not refused(rewritten)
    assert not refused(for_tensorrt(half(model).model.graph))


def test_dilated_and_strided_transposed_convolution() -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, (4, 3, 3, 2)).astype(np.float32)
    attributes: dict[str, Any] = {
        "strides": [2, 2],
        "dilations": [2, 3],
        "pads": [1, 0, 1, 2],
        "output_padding": [1, 0],
    }
    graph = graph_of([*image(), node("ConvTranspose", ["x", "w"], ["y"], **attributes), TO_MASK], {"w": weights})
    rewritten = for_tensorrt(graph)
    np.testing.assert_allclose(value(rewritten, "y"), value(graph, "y"), rtol=1e-5, atol=1e-4)
    assert for_tensorrt(rewritten) == rewritten
    assert refused(graph)
    assert not refused(rewritten)


@pytest.mark.parametrize(
    ("attributes", "scale", "accepted"),
    [
        ({"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, 2.0, True),
        ({"mode": "nearest", "coordinate_transformation_mode": "half_pixel_symmetric"}, 1.5, True),
        ({"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, 1.27, False),
        ({"mode": "linear", "antialias": 1}, 2.0, True),
        ({"mode": "linear", "antialias": 1}, 0.5, False),
    ],
)
def test_resize(attributes: dict[str, Any], scale: float, accepted: bool) -> None:
    resize = node("Resize", ["x", "", "s"], ["y"], **attributes)
    constants = {"s": np.array([1, 1, scale, scale], np.float32)}
    graph = graph_of([*image(), resize, TO_MASK], constants, opset=19)
    rewritten = for_tensorrt(graph)
    np.testing.assert_allclose(value(rewritten, "y"), value(graph, "y"), atol=1e-3)
    assert for_tensorrt(rewritten) == rewritten
    assert (rewritten != graph) is accepted
    assert refused(graph)
    assert bool(refused(rewritten)) is not accepted


@pytest.mark.parametrize("name", models.ALL)
def test_the_builder_takes_every_network_in_every_precision(name: str) -> None:
    model = made(name, True).fused
    table = making.table_of(model)
    int8 = quantize(model, table, TENSORRT)
    for which, graph in {
        "fp32": model.graph,
        "fp16": half(model).model.graph,
        "int8": int8.graph,
        "int8+fp16": half(int8).model.graph,
    }.items():
        assert not refused(for_tensorrt(graph)), which


@pytest.mark.parametrize("make", [making.unet, making.everything])
def test_the_builder_takes_handmade_networks(make: Callable[[], OnnxModel]) -> None:
    model = make()
    int8 = quantize(model, making.table_of(model), TENSORRT)
    for graph in (model.graph, half(model).model.graph, int8.graph, half(int8).model.graph):
        assert not refused(for_tensorrt(graph))


def test_the_builder_takes_one_channel_and_class_maps() -> None:
    spec = ModelSpec("tiny", InputSpec(making.SIZE), OutputSpec(classes=("no", "yes"), threshold=0.3))
    net = making.Net(2)
    model = net.model(net.conv(net.image(), "score", 1), threshold=0.3)
    assert model.spec.output.threshold == spec.output.threshold
    for graph in (model.graph, half(model).model.graph):
        assert not refused(for_tensorrt(graph))
    net = making.Net(3)
    net.op("ArgMax", [net.conv(net.image(), "scores", 4)], "map", axis=1, keepdims=0)
    model = net.model(mask_of="map")
    for graph in (model.graph, half(model).model.graph):
        assert not refused(for_tensorrt(graph))


def test_the_check_itself_can_fail() -> None:
    mixed = graph_of([*image(), node("Cast", ["x"], ["h"], to=HALF), node("Add", ["x", "h"], ["y"]), TO_MASK])
    assert "same" in refused(mixed)


def test_rewritten_graphs_open_in_onnx_runtime() -> None:
    nodes, constants = MOVES["transposed first"]
    session = inference_session(for_tensorrt(graph_of(nodes, constants)), threads=1)
    assert [(i.name, i.type) for i in session.get_inputs()] == [("frame", "tensor(uint8)")]


def test_the_builder_takes_islands_of_float32() -> None:
    """Float32 by request, by the length of a sum, by tiny scales: casts and second DequantizeLinears in place."""
    net = making.Net(11)
    x = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    mean = net.op("GlobalAveragePool", [x], "mean", 8)
    gate = net.op("Sigmoid", [net.conv(mean, "gate", 8, 1)], "gated", 8)
    a, b = net.conv(x, "tiny", 8, gain=1e-5), net.conv(net.op("Mul", [x, gate], "weighted", 8), "plain", 8)
    model = net.model(net.conv(net.op("Add", [a, b], "sum"), "head", 4, 1))
    int8 = quantize(model, making.table_of(model), TENSORRT)
    for result in (half(model, keep_float=["node_plain"]), half(int8, keep_float=["node_plain"]), half(int8)):
        assert "node_mean" in result.floats
        assert not refused(for_tensorrt(result.model.graph))
    assert {"node_tiny"} <= set(half(int8).floats)
