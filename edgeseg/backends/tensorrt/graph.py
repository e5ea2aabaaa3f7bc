"""What TensorRT's ONNX parser wants written otherwise, rewritten exactly: the graph computes the same numbers.

By the documentation of its operators, and by what the parser and builder of TensorRT-RTX 1.7 refuse:

- uint8 exists at the border of a network only, cast to and from float32 or float16;
- max-pooling gives no indices, and MaxUnpool is unknown (SegNet, where edgeseg.export.unpool left it as it was);
- a transposed convolution cannot be strided and dilated at once;
- Resize knows no half_pixel_symmetric and no antialiasing, which change nothing at most scales.

It also refuses dilated max-pooling and antialiasing where it matters; those are left for the parser to name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.graph import Graph

if TYPE_CHECKING:
    import onnx

_FLOAT, _UINT8, _INT32, _HALF = 1, 2, 6, 10  # of TensorProto.DataType
# Operators that do the same to whole numbers below 256 whether these are uint8 or float32.
_TYPELESS = {
    *("Transpose", "Reshape", "Slice", "Gather", "Squeeze", "Unsqueeze", "Concat", "Split", "Identity", "Flatten"),
    *("Resize", "Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "Where", "Max", "Min", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Cast", "Shape", "Size"),
}


def for_tensorrt(graph: bytes) -> bytes:
    """The same graph in the way that TensorRT takes; one that it takes already comes back as it came, byte for byte.

    Exact: masks and scores do not change. Works on FP32, FP16 and Q/DQ graphs.
    """
    writer = _Rewriter(graph)
    for node in writer.graph.nodes:
        made = (
            _pool_with_indices(writer, node)
            or _unpool(writer, node)
            or _transposed_convolution(writer, node)
            or _resize(writer, node)
        )
        if made:
            writer.replaced[node.name] = made
    writer.apply()
    _bytes_at_the_border(writer)
    return writer.finish(graph)


class _Rewriter:
    def __init__(self, graph: bytes) -> None:
        self.graph = Graph(graph)
        self.proto = self.graph.model
        self.types: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.infer()
        self.replaced: dict[str, list[onnx.NodeProto]] = {}
        self.changed = False

    def infer(self) -> None:
        import onnx

        self.types = {tensor.name: tensor.data_type for tensor in self.proto.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(self.proto, data_prop=True).graph
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            dims = [d.dim_value for d in tensor.shape.dim]
            if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
                self.shapes[value.name] = tuple(dims)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if self.graph.constant(name) is None:
            self.graph.add_constant(name, value)
        return name

    def apply(self) -> None:
        """Put what was made where the nodes stood: the order stays topological."""
        nodes = [made for node in self.graph.nodes for made in self.replaced.get(node.name, [node])]
        self.set_nodes(nodes, bool(self.replaced))

    def set_nodes(self, nodes: list[onnx.NodeProto], changed: bool) -> None:
        if not changed:
            return
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(copies)
        del self.proto.graph.value_info[:]
        self.graph = Graph(self.proto.SerializeToString())
        self.proto = self.graph.model
        self.changed = True
        self.infer()

    def finish(self, given: bytes) -> bytes:
        return self.graph.finish([]) if self.changed else given


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(op, inputs, [output], f"edgeseg/trt/{op.lower()}/{output}", **attributes)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _copy(node: onnx.NodeProto, **changed: Any) -> onnx.NodeProto:
    """The node with attributes changed; None removes one."""
    from onnx import helper

    made: onnx.NodeProto = type(node).FromString(node.SerializeToString())
    kept = [attr for attr in made.attribute if attr.name not in changed]
    del made.attribute[:]
    made.attribute.extend(kept)
    made.attribute.extend(helper.make_attribute(key, value) for key, value in changed.items() if value is not None)
    return made


def _pool_with_indices(w: _Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The indices (flat, over the whole input) from an ArgMax over each window, where windows do not overlap."""
    if node.op_type != "MaxPool" or len(node.output) < 2 or not node.output[1]:
        return []
    shape, kernel = w.shapes.get(node.input[0]), tuple(_attribute(node, "kernel_shape", ()))
    plain = tuple(_attribute(node, "strides", (1, 1))) == kernel and not any(_attribute(node, "pads", (0,)))
    plain = plain and not _attribute(node, "ceil_mode", 0) and not _attribute(node, "storage_order", 0)
    plain = plain and set(_attribute(node, "dilations", (1,))) == {1}
    plain = plain and _attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    if shape is None or len(shape) != 4 or len(kernel) != 2 or not plain:
        return []
    (n, c, height, width), (kh, kw) = shape, kernel
    h, wide = height // kh, width // kw
    values, indices = node.output[:2]
    stem = f"edgeseg/trt/{indices}"
    planes = np.arange(n * c, dtype=np.int64).reshape(n, c, 1, 1) * (height * width)
    rows = np.arange(h, dtype=np.int64).reshape(1, 1, h, 1) * (kh * width)
    corners = rows + np.arange(wide, dtype=np.int64) * kw
    planes_name, corners_name = w.constant(f"{stem}/planes", planes), w.constant(f"{stem}/corners", corners)
    made = []
    if w.graph.consumers(values) or values in w.graph.outputs:
        pool = _copy(node)
        del pool.output[1:]
        made.append(pool)
    if (kh, kw) == (1, 1):
        return [*made, _node("Add", [planes_name, corners_name], indices)]

    def shaped(name: str, *dims: int) -> str:
        return w.constant(f"{stem}/{name}", np.array(dims, np.int64))

    source = node.input[0]
    if (h * kh, wide * kw) != (height, width):
        ends = [shaped("starts", 0, 0), shaped("ends", h * kh, wide * kw), shaped("axes", 2, 3)]
        made.append(_node("Slice", [source, *ends], f"{stem}/whole"))
        source = f"{stem}/whole"
    steps = (np.arange(kh)[:, None] * width + np.arange(kw)).astype(np.int64).ravel()
    return [
        *made,
        _node("Reshape", [source, shaped("split", n, c, h, kh, wide, kw)], f"{stem}/rows"),
        _node("Transpose", [f"{stem}/rows"], f"{stem}/windows", perm=[0, 1, 2, 4, 3, 5]),
        _node("Reshape", [f"{stem}/windows", shaped("flat", n, c, h, wide, kh * kw)], f"{stem}/window"),
        _node("ArgMax", [f"{stem}/window"], f"{stem}/place", axis=4, keepdims=0),
        _node("Gather", [w.constant(f"{stem}/steps", steps), f"{stem}/place"], f"{stem}/step", axis=0),
        _node("Add", [f"{stem}/step", corners_name], f"{stem}/in_plane"),
        _node("Add", [f"{stem}/in_plane", planes_name], indices),
    ]


def _unpool(w: _Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Zeros, and the values scattered to their places."""
    from onnx import helper

    if node.op_type != "MaxUnpool":
        return []
    shape, kind = _unpooled(w, node), w.types.get(node.input[0])
    if shape is None or kind not in (_FLOAT, _HALF):
        return []
    stem, output = f"edgeseg/trt/{node.output[0]}", node.output[0]
    one = w.constant(f"{stem}/list", np.array([-1], np.int64))
    length = w.constant(f"{stem}/length", np.array([np.prod(shape)], np.int64))
    zero = helper.make_tensor("", kind, [1], [0.0])
    return [
        _node("ConstantOfShape", [length], f"{stem}/zeros", value=zero),
        _node("Reshape", [node.input[0], one], f"{stem}/values"),
        _node("Reshape", [node.input[1], one], f"{stem}/places"),
        _node("ScatterElements", [f"{stem}/zeros", f"{stem}/places", f"{stem}/values"], f"{stem}/scattered", axis=0),
        _node("Reshape", [f"{stem}/scattered", w.constant(f"{stem}/shape", np.array(shape, np.int64))], output),
    ]


def _unpooled(w: _Rewriter, node: onnx.NodeProto) -> tuple[int, ...] | None:
    """The output shape of a MaxUnpool: onnx infers it only from an input that names it."""
    if len(node.input) > 2 and node.input[2]:
        wanted = w.graph.constant(node.input[2])
        return None if wanted is None else tuple(int(size) for size in wanted)
    shape, kernel = w.shapes.get(node.input[0]), _attribute(node, "kernel_shape", ())
    if shape is None or len(shape) != 2 + len(kernel):
        return None
    strides = _attribute(node, "strides", [1] * len(kernel))
    pads = _attribute(node, "pads", [0] * 2 * len(kernel))
    inner = [(size - 1) * strides[i] + kernel[i] - pads[i] - pads[i + len(kernel)] for i, size in enumerate(shape[2:])]
    return (*shape[:2], *inner)


def _transposed_convolution(w: _Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Dilation written into the kernel, as zeros between its weights."""
    if node.op_type != "ConvTranspose":
        return []
    dilations, strides = _attribute(node, "dilations", []), _attribute(node, "strides", [])
    weights = w.graph.constant(node.input[1])
    if weights is None or max(dilations, default=1) == 1 or max(strides, default=1) == 1:
        return []
    kernel = [1 + (size - 1) * step for size, step in zip(weights.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weights.shape[:2], *kernel), weights.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in dilations))] = weights
    made = _copy(node, dilations=None, kernel_shape=kernel)
    made.input[1] = w.constant(f"edgeseg/trt/{node.output[0]}/weights", wide)
    return [made]


def _resize(w: _Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """half_pixel_symmetric is half_pixel where the scale gives a whole number; antialiasing is for shrinking only."""
    if node.op_type != "Resize":
        return []
    before, after = w.shapes.get(node.input[0]), w.shapes.get(node.output[0])
    if before is None or after is None or len(before) != len(after):
        return []
    changes: dict[str, Any] = {}
    if _attribute(node, "coordinate_transformation_mode", b"") == b"half_pixel_symmetric" and _whole(w, node, before):
        changes["coordinate_transformation_mode"] = "half_pixel"
    if _attribute(node, "antialias", 0) and all(a >= b for a, b in zip(after, before, strict=True)):
        changes["antialias"] = None
    return [_copy(node, **changes)] if changes else []


def _whole(w: _Rewriter, node: onnx.NodeProto, before: tuple[int, ...]) -> bool:
    if len(node.input) > 3 and node.input[3]:
        return True  # sizes are whole by nature
    scales = w.graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if scales is None or len(scales) != len(before):
        return False
    lengths = np.array(before) * scales.astype(np.float64)
    return bool(np.all(lengths == np.rint(lengths)))


def _bytes_at_the_border(w: _Rewriter) -> None:
    """Inside, what was uint8 is float32, cast right behind an input and right before an output."""
    inputs = {v.name for v in w.proto.graph.input if w.types.get(v.name) == _UINT8}
    outputs = {v.name for v in w.proto.graph.output if w.types.get(v.name) == _UINT8}
    inner = {
        tensor
        for node in w.graph.nodes
        for tensor in (*node.input, *node.output)
        if w.types.get(tensor) == _UINT8 and not _at_border(w, tensor, inputs, outputs)
    }
    touching = [node for node in w.graph.nodes if not inner.isdisjoint((*node.input, *node.output))]
    if any(
        node.op_type not in _TYPELESS or (node.op_type == "Resize" and _attribute(node, "mode", b"") != b"nearest")
        for node in touching
    ) or any(attr.HasField("g") or attr.graphs for node in w.graph.nodes for attr in node.attribute):
        inner = set()  # arithmetic on bytes, integers of a quantizer, branches: left for the parser to name
    nodes: list[onnx.NodeProto] = []
    changed = False
    for tensor in sorted(inner & inputs):
        nodes.append(_node("Cast", [tensor], f"edgeseg/trt/{tensor}/float", to=_FLOAT))
    for node in w.graph.nodes:
        made = list(_carried(w, node, inner, inputs, outputs))
        changed = changed or made != [node]
        nodes += made
    w.set_nodes(nodes, changed)


def _at_border(w: _Rewriter, tensor: str, inputs: set[str], outputs: set[str]) -> bool:
    """Whether TensorRT takes this uint8 tensor: an input that is only cast, an output that a cast gives."""
    readers, maker = w.graph.consumers(tensor), w.graph.producer(tensor)
    if tensor in inputs:
        return tensor not in outputs and all(
            node.op_type in ("Shape", "Size")
            or (node.op_type == "Cast" and _attribute(node, "to", 0) in (_FLOAT, _HALF))
            for node in readers
        )
    return tensor in outputs and not readers and maker is not None and maker.op_type == "Cast"


def _carried(
    w: _Rewriter, node: onnx.NodeProto, inner: set[str], inputs: set[str], outputs: set[str]
) -> Iterator[onnx.NodeProto]:
    """One node with its uint8 tensors as float32, and the casts that this takes."""
    made = type(node).FromString(node.SerializeToString())
    for position, tensor in enumerate(node.input):
        if tensor not in inner:
            continue
        value = w.graph.constant(tensor)
        if value is not None:
            made.input[position] = w.constant(f"edgeseg/trt/{tensor}/float", value.astype(np.float32))
        elif not (tensor in inputs and node.op_type in ("Shape", "Size")):
            made.input[position] = f"edgeseg/trt/{tensor}/float" if tensor in inputs | outputs else tensor
    if node.op_type == "Cast" and _attribute(node, "to", 0) == _UINT8:
        source = w.types.get(made.input[0])
        floats = source in (_FLOAT, _HALF) or made.input[0] != node.input[0] or node.input[0] in inner
        if node.output[0] not in inner:
            if not floats:  # TensorRT casts only floats to uint8
                yield _node("Cast", [made.input[0]], f"edgeseg/trt/{node.output[0]}/float", to=_FLOAT)
                made.input[0] = f"edgeseg/trt/{node.output[0]}/float"
        elif source in (_FLOAT, _HALF):  # which truncates
            yield _node("Cast", [made.input[0]], f"edgeseg/trt/{node.output[0]}/whole", to=_INT32)
            made = _copy(made, to=_FLOAT)
            made.input[0] = f"edgeseg/trt/{node.output[0]}/whole"
        else:
            made = _copy(made, to=_FLOAT)
    for position, tensor in enumerate(node.output):
        if tensor in inner and tensor in outputs:
            made.output[position] = f"edgeseg/trt/{tensor}/float"
    yield made
    for tensor in node.output:
        if tensor in inner and tensor in outputs:
            yield _node("Cast", [f"edgeseg/trt/{tensor}/float"], tensor, to=_UINT8)
