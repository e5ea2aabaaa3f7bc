"""Pre- and post-processing written into the graph: frame in, mask out, so that neither can drift from training.

    frame uint8 (N, H, W, 3) → Cast → [Transpose] → [Gather] → Mul → Add → network → [Resize] → logits → decision → mask

The order suits the engines: TensorRT takes uint8 only at a network's border, and casts it only to and from floats, so
the cast comes first, and the mask goes through float32 on its way out (exact: a class index is below 256).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import ModelError
from edgeseg.export import graph as g
from edgeseg.export.foreign import FREE, Layout, layout_of, settle
from edgeseg.types import FRAME, LOGITS, MASK, InputSpec, ModelSpec, OnnxModel

if TYPE_CHECKING:
    import onnx

MOST_CLASSES = 256  # a mask is uint8
LARGER = 64  # a dynamic graph is tried once at a frame larger by this: a multiple of every usual stride


def fuse(graph: bytes, spec: ModelSpec, *, dynamic: bool = False) -> OnnxModel:
    """Make the complete graph from a network's plain one, ours or a foreign: see the module's first lines.

    In: "frame", uint8 (1, H, W, 3) in the order spec.input.frame. Out: "mask", uint8 (1, H, W). In between
    "logits", float32 (1, C, H, W): the scores at the frame's size, upsampled bilinearly (after half_pixel, or
    align_corners by the spec) if the network's are smaller. Two or more channels: the largest, the first of equals.
    One channel: 1 where the probability is at least spec.output.threshold. `dynamic`: N, H and W are free.
    A softmax or sigmoid over classes at the end is left out: it cannot change which is largest.
    A network that returns a class map (integer, (N, H, W) or (N, 1, H, W)) has no "logits"; the map is cast,
    resized by nearest neighbour if it is smaller.

    Raises ModelError if the graph takes or returns something else, does not run at the size of the spec, or
    has another number of classes than the spec.
    """
    import onnx

    proto = settle(g.parse(graph), spec, dynamic=dynamic, notes=[])
    layout = layout_of(proto)
    plain = _try(proto, spec, layout)
    build = _Builder(proto)
    _front(build, spec.input, layout, dynamic=dynamic)
    if plain.dtype.kind in "iub":
        _class_map(build, plain, spec.input.size, dynamic=dynamic)
    else:
        channels = plain_channels(plain, spec, layout)
        if channels == 1 and spec.output.activation == "logits":
            _refuse_sigmoid(proto, build.scores)
        _decide(build, _logits(build, plain, spec, layout, dynamic=dynamic), channels, spec)
    g.keep_output(proto, MASK)
    shape = FREE if dynamic else (1, *spec.input.size)
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(MASK, onnx.TensorProto.UINT8, shape))
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    onnx.checker.check_model(proto)
    _check(proto, spec, dynamic=dynamic)
    return OnnxModel(proto.SerializeToString(), spec)


def plain_channels(plain: NDArray[Any], spec: ModelSpec, layout: Layout) -> int:
    """How many channels of scores the network returned, checked against the spec's classes."""
    if plain.ndim not in (3, 4):
        raise ModelError(
            f"wanted scores (1, classes, h, w) or a class map (1, h, w) from the network, came {plain.shape}: "
            "choose the output with output.index in the spec"
        )
    channels = 1 if plain.ndim == 3 else int(plain.shape[_channel_axis(plain, spec, layout)])
    classes = len(spec.output.classes)
    if channels > MOST_CLASSES:
        raise ModelError(f"the network has {channels} classes; a mask of uint8 holds at most {MOST_CLASSES}")
    if classes and classes != max(channels, 2):
        one = " (one channel means two classes: not it, it)" if channels == 1 else ""
        raise ModelError(
            f"the network scores {channels} channel{'s' * (channels > 1)}{one}, the spec names {classes} classes: "
            "correct output.classes, or output.index if these are not the scores"
        )
    return channels


def _channel_axis(plain: NDArray[Any], spec: ModelSpec, layout: Layout) -> int:
    """1 or 3. A graph of NHWC input usually answers in NHWC; the number of classes settles it where it can."""
    if layout == "NCHW":
        return 1
    classes = len(spec.output.classes)
    return 1 if plain.shape[1] == classes and plain.shape[3] != classes else 3


class _Builder:
    """Appends nodes to a graph, in front of or behind what is there."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.scores = str(proto.graph.output[0].name)
        self.input = str(proto.graph.input[0].name)
        taken = {name for node in proto.graph.node for name in (*node.input, *node.output)} | {self.input}
        clashes = {name: f"network/{name}" for name in (FRAME, LOGITS, MASK) if name in taken}
        g.rename(proto, clashes)
        self.scores, self.input = clashes.get(self.scores, self.scores), clashes.get(self.input, self.input)
        self.front: list[onnx.NodeProto] = []

    def node(self, op: str, inputs: list[str], output: str, *, front: bool = False, **attributes: Any) -> str:
        from onnx import helper

        made = helper.make_node(op, inputs, [output], name=f"edgeseg/{op.lower()}/{output}", **attributes)
        (self.front if front else self.proto.graph.node).append(made)
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.proto.graph.initializer.append(numpy_helper.from_array(value, f"edgeseg/{name}"))
        return f"edgeseg/{name}"

    def place_front(self) -> None:
        nodes = [*self.front, *self.proto.graph.node]
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(copies)


def _front(build: _Builder, spec: InputSpec, layout: Layout, *, dynamic: bool) -> None:
    import onnx
    from onnx import helper

    image = build.proto.graph.input[0]
    kind = image.type.tensor_type.elem_type
    channels = (1, 3, 1, 1) if layout == "NCHW" else (1, 1, 1, 3)
    # (x / scale - mean) / std as one multiplication and one addition, rounded to float32 once
    std, mean = np.array(spec.std, np.float64), np.array(spec.mean, np.float64)
    factor, shift = (1.0 / (spec.scale * std)).astype(np.float32), (-mean / std).astype(np.float32)

    value = build.node("Cast", [FRAME], "edgeseg/frame_float", front=True, to=onnx.TensorProto.FLOAT)
    if layout == "NCHW":
        value = build.node("Transpose", [value], "edgeseg/frame_nchw", front=True, perm=[0, 3, 1, 2])
    if spec.frame != spec.color:
        order = build.constant("channel_order", np.array([2, 1, 0], np.int64))
        axis = 1 if layout == "NCHW" else 3
        value = build.node("Gather", [value, order], "edgeseg/frame_recolored", front=True, axis=axis)
    value = build.node(
        "Mul", [value, build.constant("factor", factor.reshape(channels))], "edgeseg/frame_scaled", front=True
    )
    target = build.input if kind == onnx.TensorProto.FLOAT else "edgeseg/frame_normalized"
    build.node("Add", [value, build.constant("shift", shift.reshape(channels))], target, front=True)
    if target != build.input:
        build.node("Cast", [target], build.input, front=True, to=kind)
    build.place_front()
    shape = (*FREE, 3) if dynamic else (1, *spec.size, 3)
    image.CopyFrom(helper.make_tensor_value_info(FRAME, onnx.TensorProto.UINT8, shape))


def _logits(build: _Builder, plain: NDArray[Any], spec: ModelSpec, layout: Layout, *, dynamic: bool) -> str:
    """The scores as float32 (N, C, H, W) under the name LOGITS."""
    import onnx

    channels = plain_channels(plain, spec, layout)
    axis = _channel_axis(plain, spec, layout) if plain.ndim == 4 else 1
    spatial = plain.shape[-2:] if axis == 1 else plain.shape[1:3]
    same_size = tuple(spatial) == spec.input.size
    scores = build.scores
    if channels > 1 and same_size:  # between classes only, and not before a resize, which does not commute with it
        scores = _before_activation(build.proto, scores, axis)
    steps: list[tuple[str, list[str], dict[str, Any]]] = []
    if plain.dtype != np.float32:
        steps.append(("Cast", [], {"to": onnx.TensorProto.FLOAT}))
    if plain.ndim == 3:
        steps.append(("Unsqueeze", [build.constant("channel_axis", np.array([1], np.int64))], {}))
    if axis == 3:
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    for position, (op, more, attributes) in enumerate(steps):
        last = same_size and position == len(steps) - 1
        scores = build.node(op, [scores, *more], LOGITS if last else f"edgeseg/scores_{op.lower()}", **attributes)
    if same_size and not steps:
        g.rename(build.proto, {scores: LOGITS})
        return LOGITS
    if same_size:
        return scores
    mode = "align_corners" if spec.output.align_corners else "half_pixel"
    sizes = _frame_sizes(build, scores, channels, spec.input.size, dynamic=dynamic)
    return build.node("Resize", [scores, "", "", sizes], LOGITS, mode="linear", coordinate_transformation_mode=mode)


def _frame_sizes(build: _Builder, scores: str, channels: int, size: tuple[int, int], *, dynamic: bool) -> str:
    """The shape (N, channels, H, W) of the frame: a constant, or computed from the frame in a dynamic graph."""
    if not dynamic:
        return build.constant("frame_size", np.array([1, channels, *size], np.int64))
    shape = build.node("Shape", ["edgeseg/frame_float"], "edgeseg/frame_shape")
    picked = [
        build.node("Gather", [shape, build.constant(f"index_{at}", np.array([at], np.int64))], f"edgeseg/frame_{at}")
        for at in (0, 1, 2)
    ]
    inner = build.constant("channels", np.array([channels], np.int64))
    return build.node("Concat", [picked[0], inner, *picked[1:]], "edgeseg/frame_size", axis=0)


def _before_activation(proto: onnx.ModelProto, name: str, axis: int) -> str:
    while (node := g.producer(proto, name)) is not None:
        over = g.attribute(node, "axis", -1)
        classes = node.op_type in ("Softmax", "LogSoftmax") and over in (axis, axis - 4)
        if not classes and node.op_type not in ("Sigmoid", "Identity"):
            break
        name = str(node.input[0])
    return name


def _refuse_sigmoid(proto: onnx.ModelProto, name: str) -> None:
    """A threshold for scores, put to probabilities, would make every pixel class 1."""
    while (node := g.producer(proto, name)) is not None and node.op_type in ("Identity", "Squeeze", "Reshape", "Cast"):
        name = str(node.input[0])
    if node is not None and node.op_type == "Sigmoid":
        raise ModelError(
            "the network has one channel and ends in a sigmoid, so it gives probabilities, but the spec says scores; "
            'add to its [output]: activation = "probabilities"'
        )


def _decide(build: _Builder, logits: str, channels: int, spec: ModelSpec) -> None:
    if channels > 1:
        classes = build.node("ArgMax", [logits], "edgeseg/classes", axis=1, keepdims=0)
    else:
        threshold = build.constant("threshold", np.array(spec.output.score_threshold, np.float32))
        chosen = build.node("GreaterOrEqual", [logits, threshold], "edgeseg/chosen")
        first = build.constant("mask_axis", np.array([1], np.int64))
        # squeezed as float: fewer engines squeeze booleans
        as_float = _float(build, chosen, "edgeseg/chosen_float")
        classes = build.node("Squeeze", [as_float, first], "edgeseg/classes")
    _to_mask(build, classes, is_float=channels == 1)


def _class_map(build: _Builder, plain: NDArray[Any], size: tuple[int, int], *, dynamic: bool) -> None:
    if plain.ndim not in (3, 4) or (plain.ndim == 4 and 1 not in (plain.shape[1], plain.shape[3])):
        raise ModelError(f"wanted a class map (1, h, w) or (1, 1, h, w) of integers, came {plain.shape}")
    value = _float(build, build.scores, "edgeseg/classes_float")
    axis = 1 if plain.ndim == 3 or plain.shape[1] == 1 else 3
    if plain.ndim == 4:
        value = build.node(
            "Squeeze", [value, build.constant("class_axis", np.array([axis], np.int64))], "edgeseg/classes_3d"
        )
    spatial = plain.shape[1:3] if plain.ndim == 3 or axis == 3 else plain.shape[2:]
    if tuple(spatial) != size:
        one = build.constant("resize_axis", np.array([1], np.int64))
        value = build.node("Unsqueeze", [value, one], "edgeseg/classes_4d")
        value = build.node(
            "Resize",
            [value, "", "", _frame_sizes(build, value, 1, size, dynamic=dynamic)],
            "edgeseg/classes_resized",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        value = build.node("Squeeze", [value, one], "edgeseg/classes_full")
    _to_mask(build, value, is_float=True)


def _float(build: _Builder, value: str, output: str) -> str:
    import onnx

    return build.node("Cast", [value], output, to=onnx.TensorProto.FLOAT)


def _to_mask(build: _Builder, classes: str, *, is_float: bool) -> None:
    import onnx

    value = classes if is_float else _float(build, classes, "edgeseg/mask_float")
    build.node("Cast", [value], MASK, to=onnx.TensorProto.UINT8)


def _try(proto: onnx.ModelProto, spec: ModelSpec, layout: Layout) -> NDArray[Any]:
    """What the plain network returns for one image of the spec's size."""
    import onnx

    height, width = spec.input.size
    kind = onnx.helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    shape = (1, 3, height, width) if layout == "NCHW" else (1, height, width, 3)
    sample = np.random.default_rng(0).standard_normal(shape).astype(kind)
    try:
        (returned,) = g.run(proto, sample).values()
    except Exception as error:  # the runtime has its own exceptions, one for each status
        raise ModelError(
            f"the graph does not run on one image of {height}x{width} (height x width): "
            f"{str(error).strip().splitlines()[0]}. Set input.size in the spec to a size that it takes, or export it "
            "again for batch 1 and this size"
        ) from error
    return returned


def _check(proto: onnx.ModelProto, spec: ModelSpec, *, dynamic: bool) -> None:
    height, width = spec.input.size
    sizes = [(2, height + LARGER, width + LARGER)] if dynamic else []
    for shape in [(1, height, width), *sizes]:
        try:
            mask = g.run(proto, np.zeros((*shape, 3), np.uint8))[MASK]
        except Exception as error:  # as above
            raise ModelError(
                f"the complete graph does not run on a frame of {shape[1]}x{shape[2]}, batch {shape[0]}: "
                f"{str(error).strip().splitlines()[0]}. {'Build it without dynamic sizes' if dynamic else ''}"
            ) from error
        if mask.shape != shape:
            raise ModelError(
                f"the complete graph turns a frame {shape} into a mask {mask.shape}: the network holds on to one "
                "size; build it without dynamic sizes"
            )
