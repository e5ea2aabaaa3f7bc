"""The complete graph: pre- and post-processing against the plain way of writing them, on graphs of every kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch.nn import functional as F

from edgeseg.errors import ModelError
from edgeseg.export import compare, first_divergence, from_onnx, fuse, onnx_reference
from edgeseg.export.graph import opset_of, run_all
from edgeseg.types import InputSpec, ModelSpec, Onnx, OutputSpec
from tests import models
from tests.export.making import agreement, graph_of, masks, ops, proto_of

SIZE = (12, 20)
FRAMES = models.frames(2, SIZE)
RNG = np.random.default_rng(7)
node = helper.make_node
CONV: dict[str, NDArray[Any]] = {"w": RNG.standard_normal((4, 3, 3, 3), dtype=np.float32)}


def spec(classes: int = 4, *, size: tuple[int, int] = SIZE, **output: Any) -> ModelSpec:
    names = tuple(f"class {i}" for i in range(classes))
    image = InputSpec(size, "rgb", "bgr", 255.0, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    return ModelSpec("foreign", image, OutputSpec(classes=names, **output))


def conv(stride: int = 1, out: str = "y") -> onnx.NodeProto:
    return node("Conv", ["x", "w"], [out], pads=[1, 1, 1, 1], strides=[stride, stride])


def answer(frames: NDArray[np.uint8], stride: int, align: bool = False) -> NDArray[Any]:
    """The scores of conv() in torch, at the frame's size."""
    image = torch.from_numpy(frames[..., ::-1].astype(np.float64).transpose(0, 3, 1, 2).copy()) / 255.0
    image = (image - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    scores = F.conv2d(image, torch.from_numpy(CONV["w"]).double(), stride=stride, padding=1)
    if stride > 1:
        scores = F.interpolate(scores, size=frames.shape[1:3], mode="bilinear", align_corners=align)
    return np.asarray(scores.numpy())


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("frame", ["rgb", "bgr"])
def test_the_network_sees_what_it_was_trained_on(color: Any, frame: Any) -> None:
    like = replace(spec(), input=replace(spec().input, color=color, frame=frame))
    fused = fuse(graph_of([conv()], weights=CONV), like)
    seen = run_all(proto_of(fused.graph), FRAMES[:1])["x"]
    wanted = np.empty((1, 3, *SIZE))
    for channel in range(3):
        source = channel if color == frame else 2 - channel
        wanted[0, channel] = (FRAMES[0, :, :, source] / 255.0 - like.input.mean[channel]) / like.input.std[channel]
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, wanted, atol=2e-6)
    assert ("Gather" in ops(fused.graph)) == (color != frame)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("align", [False, True])
def test_logits_and_mask(stride: int, align: bool) -> None:
    fused = fuse(graph_of([conv(stride)], weights=CONV), spec(align_corners=align))
    wanted = answer(FRAMES, stride, align)
    tensors = run_all(proto_of(fused.graph), FRAMES[:1])
    assert tensors["logits"].dtype == np.float32
    np.testing.assert_allclose(tensors["logits"], wanted[:1], atol=1e-4)
    assert tensors["mask"].dtype == np.uint8
    assert (tensors["mask"] == wanted[:1].argmax(1)).mean() > 0.99
    assert fused.spec == spec(align_corners=align)


def test_the_shape_that_engines_want() -> None:
    """The cast first (TensorRT casts uint8 at the border only, and only to and from floats), float before the mask."""
    proto = proto_of(fuse(graph_of([conv()], weights=CONV), spec()).graph)
    first, last = proto.graph.node[0], proto.graph.node[-1]
    assert (first.op_type, list(first.input)) == ("Cast", ["frame"])
    assert [n.op_type for n in proto.graph.node][-3:] == ["ArgMax", "Cast", "Cast"]
    assert list(last.output) == ["mask"]
    (image,), (mask,) = proto.graph.input, proto.graph.output
    assert image.type.tensor_type.elem_type == mask.type.tensor_type.elem_type == TensorProto.UINT8
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, *SIZE, 3]
    assert [d.dim_value for d in mask.type.tensor_type.shape.dim] == [1, *SIZE]
    assert sum("frame" in n.input for n in proto.graph.node) == 1
    onnx.checker.check_model(proto, full_check=True)


def test_channels_last() -> None:
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        node("Conv", ["a", "w"], ["b"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Transpose", ["b"], ["y"], perm=[0, 2, 3, 1]),
    ]
    graph = graph_of(nodes, weights=CONV, shape=("n", *SIZE, 3))
    fused = fuse(graph, spec())
    assert (masks(fused, FRAMES[:1]) == answer(FRAMES[:1], 2).argmax(1)).mean() > 0.99
    assert compare(onnx_reference(Onnx(graph), spec()), fused, FRAMES, agreement).overall > 0.999


def test_half_precision() -> None:
    kind = TensorProto.FLOAT16
    fused = fuse(graph_of([conv(2)], weights={"w": CONV["w"].astype(np.float16)}, kind=kind, out=kind), spec())
    assert run_all(proto_of(fused.graph), FRAMES[:1])["logits"].dtype == np.float32
    assert (masks(fused, FRAMES[:1]) == answer(FRAMES[:1], 2).argmax(1)).mean() > 0.97


def test_double_precision() -> None:
    kind = TensorProto.DOUBLE
    weights: dict[str, NDArray[Any]] = {"w": np.array([1.0, -2.0, 0.5]).reshape(1, 3, 1, 1)}
    graph = graph_of([node("Mul", ["x", "w"], ["y"])], weights=weights, kind=kind, out=kind)
    fused = fuse(graph, spec(3))
    assert run_all(proto_of(fused.graph), FRAMES[:1])["logits"].dtype == np.float32
    assert compare(onnx_reference(Onnx(graph), spec(3)), fused, FRAMES, agreement).overall > 0.995


@pytest.mark.parametrize("last", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_activations_that_cannot_change_the_decision_are_left_out(last: str) -> None:
    attributes: dict[str, Any] = {} if last == "Sigmoid" else {"axis": 1}
    full = graph_of([conv(out="a"), node(last, ["a"], ["y"], **attributes)], weights=CONV)
    fused = fuse(full, spec())
    assert last not in ops(fused.graph)
    assert (masks(fused, FRAMES[:1]) == answer(FRAMES[:1], 1).argmax(1)).mean() > 0.99
    # Before a resize they do not commute with it, and along another axis they are something else.
    assert last in ops(
        fuse(graph_of([conv(2, "a"), node(last, ["a"], ["y"], **attributes)], weights=CONV), spec()).graph
    )
    if last != "Sigmoid":
        assert last in ops(
            fuse(graph_of([conv(out="a"), node(last, ["a"], ["y"], axis=3)], weights=CONV), spec()).graph
        )


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_one_channel(squeezed: bool, stride: int) -> None:
    nodes = [conv(stride, "a" if squeezed else "y")]
    weights: dict[str, NDArray[Any]] = {"w": CONV["w"][:1]}
    if squeezed:
        nodes.append(node("Squeeze", ["a", "axis"], ["y"]))
        weights["axis"] = np.array([1], np.int64)
    fused = fuse(graph_of(nodes, weights=weights), spec(2, threshold=0.7))
    wanted = 1 / (1 + np.exp(-answer(FRAMES[:1], stride)[:, 0])) >= 0.7
    assert 0.02 < wanted.mean() < 0.98
    assert (masks(fused, FRAMES[:1]) == wanted).mean() > 0.995


def test_a_pixel_at_the_threshold_is_in() -> None:
    graph = graph_of([node("Slice", ["x", "from", "to", "axis"], ["y"])], weights={
        "from": np.array([0], np.int64), "to": np.array([1], np.int64), "axis": np.array([1], np.int64)})  # fmt: skip
    like = ModelSpec(
        "t", InputSpec((1, 3), frame="rgb", scale=1.0), OutputSpec(activation="probabilities", threshold=7.0)
    )
    frame = np.zeros((1, 1, 3, 3), np.uint8)
    frame[0, 0, :, 0] = 6, 7, 8
    assert masks(fuse(graph, like), frame).tolist() == [[[0, 1, 1]]]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_graph_that_decides_itself(keepdims: int, stride: int) -> None:
    graph = graph_of(
        [conv(stride, "a"), node("ArgMax", ["a"], ["y"], axis=1, keepdims=keepdims)],
        weights=CONV,
        out=TensorProto.INT64,
    )
    fused = fuse(graph, spec())
    scores = answer(FRAMES[:1], 1)[:, :, ::stride, ::stride]
    wanted = scores.argmax(1).repeat(stride, 1).repeat(stride, 2)
    assert (masks(fused, FRAMES[:1]) == wanted).mean() > 0.99


def test_the_output_is_chosen_by_name_or_position() -> None:
    nodes = [conv(out="aux"), node("Neg", ["aux"], ["out"])]
    graph = graph_of(nodes, weights=CONV, outputs=("aux", "out"))
    first = answer(FRAMES[:1], 1)
    for index, wanted in ((0, -first), (1, -first), ("out", -first), ("aux", first)):
        assert (masks(fuse(graph, spec(index=index)), FRAMES[:1]) == wanted.argmax(1)).mean() > 0.99
    assert "Neg" not in ops(fuse(graph, spec(index="aux")).graph)
    assert any("out is taken" in note for note in from_onnx(Onnx(graph), spec()).notes)
    with pytest.raises(ModelError, match="aux, out"):
        fuse(graph, spec(index="main"))


def test_names_that_are_taken() -> None:
    nodes = [
        node("Relu", ["x"], ["frame"]),
        node("Neg", ["frame"], ["mask"]),
        node("Conv", ["mask", "w"], ["logits"], pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    graph = graph_of(nodes, weights=CONV, outputs=("logits",))
    fused = fuse(graph, spec())
    assert compare(onnx_reference(Onnx(graph), spec()), fused, FRAMES, agreement).overall > 0.999


@pytest.mark.parametrize(
    ("graph", "like", "says"),
    [
        (graph_of([conv()], weights=CONV), spec(5), "4 channels, the spec names 5 classes"),
        (graph_of([conv()], weights={"w": CONV["w"][:1]}), spec(3), "1 channel .*the spec names 3 classes"),
        (graph_of([conv()], weights={"w": CONV["w"].repeat(100, 0)}), spec(0), "400 classes"),
        (graph_of([conv()], weights={"w": CONV["w"][:, :1]}, shape=(1, 1, 12, 20)), spec(), "three channels"),
        (graph_of([conv()], weights=CONV, shape=(1, 3, 24, 24)), spec(), "24 x 24 and the spec says 12 x 20"),
        (graph_of([node("Cast", ["x"], ["f"], to=1), node("Conv", ["f", "w"], ["y"])], weights=CONV,
                  kind=TensorProto.UINT8), spec(), "is UINT8.*without pre-processing"),
        (graph_of([conv(out="a"), node("Flatten", ["a"], ["y"])], weights=CONV), spec(), "wanted scores"),
        (graph_of([conv(out="a"), node("Reshape", ["a", "to"], ["y"])],
                  weights={**CONV, "to": np.array([1, 4, 24, 24], np.int64)}), spec(), "does not run .*12x20"),
    ],
    ids=["classes", "binary", "many", "gray", "size", "uint8", "flat", "reshape"],
)  # fmt: skip
def test_refusals(graph: bytes, like: ModelSpec, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        fuse(graph, like)


def test_several_inputs_are_refused() -> None:
    proto = proto_of(graph_of([node("Add", ["x", "z"], ["y"])]))
    proto.graph.input.append(helper.make_tensor_value_info("z", 1, ("n", 3, "h", "w")))
    with pytest.raises(ModelError, match=r"one input.*2 \(x, z\)"):
        fuse(proto.SerializeToString(), spec(3))


def test_old_graphs() -> None:
    """Opset 11, and initializers repeated among the inputs as exporters did before IR 4."""
    proto = proto_of(graph_of([conv(2)], weights=CONV, opset=11))
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, CONV["w"].shape))
    fused = fuse(proto.SerializeToString(), spec())
    assert opset_of(proto_of(fused.graph)) == 17
    assert (masks(fused, FRAMES[:1]) == answer(FRAMES[:1], 2).argmax(1)).mean() > 0.99


@pytest.mark.parametrize("stride", [1, 2])
def test_dynamic(stride: int) -> None:
    fused = fuse(graph_of([conv(stride)], weights=CONV), spec(), dynamic=True)
    for count, size in ((1, SIZE), (2, SIZE), (3, (16, 10)), (1, (31, 33))):
        frames = models.frames(count, size, seed=9)
        found = masks(fused, frames)
        assert found.shape == (count, *size)
        assert (found == answer(frames, stride).argmax(1)).mean() > 0.99


def test_a_graph_that_only_claims_to_be_dynamic() -> None:
    weights = {**CONV, "to": np.array([1, 4, *SIZE], np.int64)}
    graph = graph_of([conv(out="a"), node("Reshape", ["a", "to"], ["y"])], weights=weights)
    assert fuse(graph, spec())
    with pytest.raises(ModelError, match="without dynamic sizes"):
        fuse(graph, spec(), dynamic=True)


def test_foreign_graphs_are_simplified() -> None:
    norm = {name: RNG.uniform(0.5, 1.5, 4).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    nodes = [
        conv(2, "a"),
        node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"]),
        node("Identity", ["b"], ["c"]),
        node("Dropout", ["c"], ["d"]),
        node("Relu", ["d"], ["y"]),
        node("Neg", ["y"], ["unused"]),
    ]
    graph = graph_of(nodes, weights={**CONV, **norm}, shape=("n", 3, None, None))  # type: ignore[arg-type]
    exported = from_onnx(Onnx(graph), spec())
    assert ops(exported.graph) == {"Conv", "Relu"}
    fused = fuse(exported.graph, spec())
    assert compare(onnx_reference(Onnx(graph), spec()), fused, FRAMES, agreement).overall > 0.999
    assert first_divergence(Onnx(graph), fused, FRAMES[0]) is None


def test_a_graph_that_trains_is_refused() -> None:
    norm = {name: np.ones(4, np.float32) for name in ("scale", "bias", "mean", "var")}
    nodes = [
        conv(out="a"),
        node("BatchNormalization", ["a", *norm], ["y", "m", "v"], training_mode=1, name="trains"),
    ]
    with pytest.raises(ModelError, match="still trains: node trains"):
        from_onnx(Onnx(graph_of(nodes, weights={**CONV, **norm})), spec())
