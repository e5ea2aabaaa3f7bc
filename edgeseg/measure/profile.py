"""What a graph costs on paper: multiplications, parameters and activations, a row a layer. Behind `edgeseg profile`.

A multiplication (MAC) is counted for every product of a weight and an input that a convolution or a matrix product is
defined by. Biases are not counted, nor is anything saved because an input is zero padding; element-wise operations,
pooling and resizing count no multiplications, but their outputs count as activations. Quantizers (Q/DQ, FakeQuantize),
constants and the arithmetic of shapes are no layers, so a network has the same profile before and after quantization.

MACs are not time: a depthwise convolution is bound by memory, not by multiplications. `edgeseg bench` measures time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from edgeseg.errors import ModelError, need

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

# Operations that only pass a tensor on, or hold one: none of them is a layer.
_NO_LAYER = {"Constant", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear", "FakeQuantize"}
# Where the first factor and the weights of each counted operation stand among its inputs.
_CONV = {"Conv": (0, 1), "QLinearConv": (0, 3), "ConvInteger": (0, 1)}
_MATMUL = {"MatMul": (0, 1), "QLinearMatMul": (0, 3), "MatMulInteger": (0, 1)}
# Which inputs are learned, when they are constant.
_LEARNED = {
    **dict.fromkeys(("Conv", "ConvTranspose", "BatchNormalization"), (1, 2)),
    **dict.fromkeys(("InstanceNormalization", "LayerNormalization", "GroupNormalization"), (1, 2)),
    **dict.fromkeys(("MatMul", "MatMulInteger", "ConvInteger", "PRelu"), (0, 1)),
    "Gemm": (0, 1, 2),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
}
_MULTIPLIES_UNCOUNTED = {"Attention", "DeformConv", "Einsum", "GRU", "LSTM", "MultiHeadAttention", "QGemm", "RNN"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation. Counts are for one run of the graph at the shapes that it has."""

    name: str
    op: str
    detail: str  # kernel, stride, dilation and groups in words
    output: Shape
    macs: int
    parameters: int  # weights and biases; shared ones count at their first user
    activations: int  # elements of all outputs
    separable_macs: int | None = None  # a dense convolution larger than 1x1, as depthwise and pointwise
    bottleneck_macs: int | None = None  # the same behind a 1x1 convolution to a quarter of its input channels


@dataclass(frozen=True, slots=True)
class Profile:
    layers: tuple[Layer, ...]
    uncounted: tuple[str, ...] = ()  # operations that multiply in ways not counted here, one name for each node

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def activations(self) -> int:
        return sum(layer.activations for layer in self.layers)


def profile(graph: bytes) -> Profile:
    """Count a serialized onnx.ModelProto. Every shape must be fixed, or follow from fixed ones.

    Raises ModelError for what is no ONNX model, for shapes that stay open, and for control flow.
    """
    model = _with_shapes(graph)
    shapes = _shapes(model.graph)
    sources = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    flowing = {value.name for value in model.graph.input} - constants
    counted: set[str] = set()  # parameters that an earlier layer has counted
    layers, uncounted = [], []
    for node in model.graph.node:
        # What does not come from the input is a constant; what comes from a shape alone is no data.
        if node.op_type in ("Shape", "Size") or flowing.isdisjoint(node.input):
            continue
        flowing.update(node.output)
        if node.op_type in _NO_LAYER:
            continue
        if node.op_type in _MULTIPLIES_UNCOUNTED:
            uncounted.append(node.op_type)
        layers.append(_layer(node, shapes, _parameters(node, shapes, sources, constants, counted)))
    return Profile(tuple(layers), tuple(uncounted))


def separable(channels: int, outputs: int, kernel: Shape, output_size: Shape) -> int:
    """Multiplications of a depthwise and a pointwise convolution in place of a dense one (arXiv 1704.04861, 3.1)."""
    return prod(output_size) * channels * (prod(kernel) + outputs)


def bottleneck(channels: int, middle: int, outputs: int, kernel: Shape, input_size: Shape, output_size: Shape) -> int:
    """Multiplications of 1x1 from `channels` to `middle` at the input's size, then the kernel, `middle` to `outputs`.

    The 1x1 reduction of arXiv 1409.4842, section 4. Sizes include the batch.
    """
    return prod(input_size) * channels * middle + prod(output_size) * middle * outputs * prod(kernel)


def table(found: Profile, width: int = 120) -> str:
    """The profile as aligned text, a row a layer, at most `width` columns (100 or more); totals and shares below."""
    head = ("layer", "what", "output", "MACs", "share", "params", "activ.", "separ.", "bottle.")
    rows = [
        (
            layer.name,
            f"{layer.op} {layer.detail}".strip(),
            "x".join(map(str, layer.output)),
            human(layer.macs),
            _share(layer.macs, found.macs),
            human(layer.parameters),
            human(layer.activations),
            "" if layer.separable_macs is None else human(layer.separable_macs),
            "" if layer.bottleneck_macs is None else human(layer.bottleneck_macs),
        )
        for layer in found.layers
    ]
    total = (
        "total",
        f"{len(rows)} layers",
        "",
        human(found.macs),
        "",
        human(found.parameters),
        human(found.activations),
    )
    cells = [head, *rows, (*total, "", "")]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    spare = width - sum(widths[2:]) - 2 * (len(head) - 1)
    widths[1] = min(widths[1], max(10, spare - min(widths[0], spare // 2)))
    widths[0] = min(widths[0], max(10, spare - widths[1]))
    lines = ["  ".join(_cell(text, i, widths[i]) for i, text in enumerate(row)).rstrip() for row in cells]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], "", *_summary(found)])


def human(count: int) -> str:
    """A count in at most six characters: 999, 54.0k, 1.23M, 120M, 2.20G."""
    value = float(count)
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= 1000
    digits = 0 if not unit or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"


def _summary(found: Profile) -> Iterable[str]:
    by_op = Counter[str]()
    for layer in found.layers:
        by_op[layer.op] += layer.macs
    for op, macs in by_op.most_common():
        if macs:
            yield f"{_share(macs, found.macs):>6} of the MACs in {op}: {macs:,}"
    rewritable = [layer for layer in found.layers if layer.separable_macs is not None]
    for words, field in (
        ("were depthwise separable", "separable_macs"),
        ("had a 1x1 bottleneck before it", "bottleneck_macs"),
    ):
        chosen = [layer for layer in rewritable if (getattr(layer, field) or layer.macs) < layer.macs]
        if chosen:
            macs = found.macs - sum(layer.macs - getattr(layer, field) for layer in chosen)
            yield (
                f"{_share(macs, found.macs):>6} would remain if the {len(chosen)} dense convolutions that gain by it "
                f"{words}: {macs:,}"
            )
    yield f"       MACs: {found.macs:,}  parameters: {found.parameters:,}  activations: {found.activations:,}"
    if found.uncounted:
        yield "       NOT counted, so there are more MACs: " + ", ".join(
            f"{count} {op}" for op, count in Counter(found.uncounted).items()
        )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if part else ""


def _cell(text: str, column: int, width: int) -> str:
    if len(text) > width:  # the end of a node's name tells it from its neighbours, the beginning of what it does
        text = "…" + text[1 - width :] if column == 0 else text[: width - 1] + "…"
    return text.ljust(width) if column < 2 else text.rjust(width)


def _with_shapes(graph: bytes) -> onnx.ModelProto:
    loader = need("onnx", extra="build", why="Counting a graph")
    inliner = need("onnx.inliner", extra="build", why="Counting a graph")
    inference = need("onnx.shape_inference", extra="build", why="Counting a graph")
    message = need("google.protobuf.message", extra="build", why="Counting a graph")
    try:
        model: onnx.ModelProto = loader.load_model_from_string(graph)
    except message.DecodeError as error:
        raise ModelError(
            f"wanted an ONNX model, and these {len(graph)} bytes are none ({error}). Export it again."
        ) from error
    if not model.graph.node:
        raise ModelError("wanted an ONNX model with at least one node, found none. Export it again.")
    if model.functions:
        model = inliner.inline_local_functions(model)
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ModelError(
                f"the node {node.name or node.output[0]!r} ({node.op_type}) is control flow: how often it runs is not "
                f"known, so it cannot be counted. Export the network without branches and loops."
            )
        if node.op_type == "FusedConv":  # ONNX Runtime's own: a Conv with its activation
            node.domain = ""
            node.op_type = "Conv"
            del node.input[3:]
        if node.domain not in ("", "ai.onnx") and node.op_type in _NO_LAYER:
            # Inference knows no other domains; to shapes all of these are the identity.
            node.domain, node.op_type = "", "Identity"
            del node.input[1:], node.attribute[:]
    try:
        inferred: onnx.ModelProto = inference.infer_shapes(model, data_prop=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the shapes in this graph contradict one another: {error}. Export it again.") from error
    return inferred


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape | None]:
    """By name of tensor; None where a dimension is open."""
    shapes: dict[str, Shape | None] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        dims = kind.shape.dim if kind.HasField("shape") else None
        fixed = dims is not None and all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims)
        shapes.setdefault(value.name, tuple(dim.dim_value for dim in dims) if dims is not None and fixed else None)
    return shapes


def _shape(name: str, node: onnx.NodeProto, shapes: Mapping[str, Shape | None]) -> Shape:
    shape = shapes.get(name)
    if shape is None:
        raise ModelError(
            f"wanted a fixed shape for {name!r} at the node {node.name or node.output[0]!r} ({node.domain or 'onnx'} "
            f"{node.op_type}), and it has open dimensions. Export the network at one fixed batch and size, and profile "
            f"the graph before an engine puts its own operations in."
        )
    return shape


def _layer(node: onnx.NodeProto, shapes: Mapping[str, Shape | None], parameters: int) -> Layer:
    outputs = [_shape(name, node, shapes) for name in node.output if name]
    out = outputs[0]
    macs, separate, narrow = 0, None, None
    kernel: Shape = ()
    if node.op_type in _CONV:
        data, weight = (_shape(node.input[i], node, shapes) for i in _CONV[node.op_type])
        kernel = weight[2:]
        macs = prod(out) * prod(weight[1:])
        if _attributes(node).get("group", 1) == 1 and prod(kernel) > 1:
            channels, sizes = weight[1], ((data[0], *data[2:]), (out[0], *out[2:]))
            separate = separable(channels, weight[0], kernel, sizes[1])
            if channels >= 4:
                narrow = bottleneck(channels, channels // 4, weight[0], kernel, *sizes)
    elif node.op_type == "ConvTranspose":
        data, weight = (_shape(node.input[i], node, shapes) for i in (0, 1))
        kernel = weight[2:]
        macs = prod(data) * prod(weight[1:])
    elif node.op_type == "Gemm":
        first = _shape(node.input[0], node, shapes)
        macs = prod(out) * first[0 if _attributes(node).get("transA", 0) else 1]
    elif node.op_type in _MATMUL:
        macs = prod(out) * _shape(node.input[_MATMUL[node.op_type][0]], node, shapes)[-1]
    detail = _detail(node, kernel, shapes)
    activations = sum(prod(shape) for shape in outputs)
    name = node.name or node.output[0]
    return Layer(name, node.op_type, detail, out, macs, parameters, activations, separate, narrow)


def _detail(node: onnx.NodeProto, kernel: Shape, shapes: Mapping[str, Shape | None]) -> str:
    attributes = _attributes(node)
    kernel = kernel or tuple(attributes.get("kernel_shape", ()))
    if not kernel:
        return ""
    words = ["x".join(map(str, kernel))]
    for word, key in (("stride", "strides"), ("dilation", "dilations")):
        steps = tuple(attributes.get(key, ()))
        if any(step != 1 for step in steps):
            words.append(f"{word} {steps[0] if len(set(steps)) == 1 else 'x'.join(map(str, steps))}")
    groups = attributes.get("group", 1)
    if groups > 1:
        data = shapes.get(node.input[0])
        words.append("depthwise" if data and data[1] == groups else f"{groups} groups")
    return ", ".join(words)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    helper = need("onnx.helper", extra="build", why="Counting a graph")
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _parameters(
    node: onnx.NodeProto,
    shapes: Mapping[str, Shape | None],
    sources: Mapping[str, onnx.NodeProto],
    constants: set[str],
    counted: set[str],
) -> int:
    places = _LEARNED.get(node.op_type, ())
    if node.op_type == "Add" and any(_source_op(name, sources) in _MATMUL for name in node.input):
        places = (0, 1)  # the bias of a matrix product
    total = 0
    for name in (node.input[i] for i in places if i < len(node.input) and node.input[i]):
        root = _root(name, sources)
        held = root in constants or _source_op(root, sources) == "Constant"
        if held and root not in counted:
            counted.add(root)
            total += prod(_shape(root, node, shapes))
    return total


def _source_op(name: str, sources: Mapping[str, onnx.NodeProto]) -> str:
    return sources[name].op_type if name in sources else ""


def _root(name: str, sources: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor that this one was quantized, cast or turned from."""
    through = {*_NO_LAYER, "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze"} - {"Constant"}
    while name in sources and sources[name].op_type in through and sources[name].input:
        name = sources[name].input[0]
    return name
