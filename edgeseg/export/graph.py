"""Small, exact operations on an onnx.ModelProto that the rest of this stage is written with. Needs onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import ModelError, need

if TYPE_CHECKING:
    import onnx

Dim = int | str  # a number of elements, or the name of a free one


def parse(graph: bytes) -> onnx.ModelProto:
    """The graph with its weights as ordinary initializers and without what older files repeat among the inputs."""
    need("onnx", extra="build", why="Working on an ONNX graph")
    import onnx

    proto: onnx.ModelProto = onnx.ModelProto.FromString(graph)
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    _replace(proto.graph.input, inputs)
    proto.ir_version = max(
        proto.ir_version, 8
    )  # from 4 on, initializers need not be inputs; 8 came with opset 15 to 18
    return proto


def opset_of(proto: onnx.ModelProto) -> int:
    return int(next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1))


def shape_of(value: onnx.ValueInfoProto) -> list[Dim | None] | None:
    """Each dimension as a number, a name or None (unknown); None where even their count is unknown."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [
        int(dim.dim_value) if dim.HasField("dim_value") else (dim.dim_param or None)
        for dim in value.type.tensor_type.shape.dim
    ]


def constant(proto: onnx.ModelProto, name: str) -> NDArray[Any] | None:
    """The value of the tensor `name` if it is an initializer or a Constant node."""
    from onnx import numpy_helper

    for tensor in proto.graph.initializer:
        if tensor.name == name:
            return np.asarray(numpy_helper.to_array(tensor))
    for node in proto.graph.node:
        if node.op_type == "Constant" and name in node.output and node.attribute[0].name == "value":
            return np.asarray(numpy_helper.to_array(node.attribute[0].t))
    return None


def producer(proto: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    return next((node for node in proto.graph.node if name in node.output), None)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def set_dims(value: onnx.ValueInfoProto, dims: Sequence[Dim | None]) -> None:
    value.type.tensor_type.ClearField("shape")
    for dim in dims:
        entry = value.type.tensor_type.shape.dim.add()
        if isinstance(dim, int):
            entry.dim_value = dim
        elif dim is not None:
            entry.dim_param = dim


def forget_shapes(proto: onnx.ModelProto) -> None:
    """Drop what was noted about intermediate and output shapes; it is stale once the input's shape changed."""
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")


def rename(proto: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors everywhere, subgraphs included."""

    def walk(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for field in (node.input, node.output):
                for index, name in enumerate(field):
                    field[index] = names.get(name, name)
            for attr in node.attribute:
                for sub in [attr.g, *attr.graphs] if attr.HasField("g") else attr.graphs:
                    walk(sub)
        for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
            value.name = names.get(value.name, value.name)

    if names:
        walk(proto.graph)


def keep_output(proto: onnx.ModelProto, name: str) -> None:
    """Make the tensor `name` the only output, and drop every node and weight that it does not need."""
    outputs = [value for value in proto.graph.output if value.name == name]
    if not outputs:
        from onnx import helper

        outputs = [helper.make_empty_tensor_value_info(name)]
    _replace(proto.graph.output, outputs[:1])
    needed, nodes = {name}, []
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= _reads(node)
    _replace(proto.graph.node, nodes[::-1])
    _replace(proto.graph.initializer, [tensor for tensor in proto.graph.initializer if tensor.name in needed])
    made = {made for node in nodes for made in node.output}
    _replace(proto.graph.value_info, [value for value in proto.graph.value_info if value.name in made])


def strip_metadata(proto: onnx.ModelProto) -> None:
    """Drop doc strings and exporters' notes: they hold the paths and source lines of the machine that exported."""
    proto.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    proto.graph.ClearField("doc_string")
    for item in [
        *proto.graph.node,
        *proto.graph.initializer,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
    ]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def refuse_training(proto: onnx.ModelProto) -> None:
    """Raise ModelError if a node computes what it does in training, or something random."""
    for node in proto.graph.node:
        trains = node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0)
        if node.op_type == "Dropout" and len(node.input) > 2:
            trains = bool(np.all(constant(proto, node.input[2]) or False))
        if trains or node.op_type in ("Bernoulli", "RandomUniformLike", "RandomNormalLike", "RandomUniform"):
            raise ModelError(
                f"the network still trains: node {node.name or node.output[0]} ({node.op_type}) uses batch statistics "
                "or random numbers. Export it in eval mode; a functional dropout needs training=self.training"
            )


def opened(graph: bytes, *, optimised: bool = False) -> Callable[[NDArray[Any]], dict[str, NDArray[Any]]]:
    """A graph of one input in ONNX Runtime, for checks: a function from its input to its outputs by name."""
    ort = need("onnxruntime", extra="run", why="Checking the exported graph")
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what fails is raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feed_name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]

    def call(feed: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(outputs, session.run(outputs, {feed_name: feed}), strict=True))

    return call


def run(proto: onnx.ModelProto, feed: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The outputs of a graph of one input, by name, from ONNX Runtime with nothing optimised."""
    return opened(proto.SerializeToString())(feed)


def run_all(proto: onnx.ModelProto, feed: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The same for every tensor that a node of the graph makes."""
    from onnx import helper

    whole = type(proto).FromString(proto.SerializeToString())
    names = dict.fromkeys(name for node in proto.graph.node for name in node.output if name)
    _replace(whole.graph.output, [helper.make_empty_tensor_value_info(name) for name in names])
    return run(whole, feed)


def snr_db(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal-to-noise in decibels: 10 log10(sum r² / sum (r - o)²), computed in float64. inf where they are equal."""
    if reference.shape != other.shape:
        return -np.inf
    signal = np.asarray(reference, np.float64)
    noise = float(np.sum((signal - np.asarray(other, np.float64)) ** 2))
    power = float(np.sum(signal**2))
    if noise == 0.0:
        return np.inf
    if not np.isfinite(noise) or power == 0.0:
        return -np.inf
    return 10.0 * float(np.log10(power / noise))


def _reads(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attr in node.attribute:
        for sub in [attr.g, *attr.graphs] if attr.HasField("g") else attr.graphs:
            names |= {name for inner in sub.node for name in _reads(inner)} | {output.name for output in sub.output}
    return names


def _replace(field: Any, items: Sequence[Any]) -> None:
    kept = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(kept)
