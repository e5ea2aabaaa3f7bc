"""What a writer of half precision must know of an ONNX graph: types, shapes, and which tensors depend on the frame.

ONNX binds the inputs and outputs of an operator to type variables ("T", "T1"); all that share one must have one type.
"Real" is float32 or float16 here: which of the two is what the writer decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeseg.graph import Graph

if TYPE_CHECKING:
    import onnx

FLOAT, HALF = 1, 10  # TensorProto.FLOAT and FLOAT16
_FIXED = "tensor(float)"
# Parameters that stay float32 beside float16 data where ONNX gives them a type of their own. Resize: a region of
# interest is a position. BatchNormalization: engines fold it into one factor and one shift, from whole numbers.
_OWN_TYPE = {"Resize": ("T2",), "BatchNormalization": ("T1", "T2", "U")}


@dataclass(frozen=True, slots=True)
class Signature:
    """For each input and output of a node its type variable, and which variables may be float16."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    halves: frozenset[str]


class TypedGraph:
    """A Graph (a copy of the model) with the type and shape of every tensor. Constant nodes become initializers."""

    def __init__(self, serialized: bytes) -> None:
        import onnx

        proto = onnx.load_from_string(serialized)
        _constants_to_initializers(proto)
        self.graph = Graph(proto.SerializeToString())
        self.proto = self.graph.model
        self.opsets = {"": 1} | {_domain(entry.domain): int(entry.version) for entry in self.proto.opset_import}
        self.initializers = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self.kinds: dict[str, int] = {name: tensor.data_type for name, tensor in self.initializers.items()}
        self.shapes: dict[str, tuple[int | None, ...]] = {
            name: tuple(tensor.dims) for name, tensor in self.initializers.items()
        }
        inferred = onnx.shape_inference.infer_shapes(self.proto, data_prop=True).graph
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            tensor = value.type.tensor_type
            if tensor.elem_type:
                self.kinds[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self.shapes[value.name] = tuple(
                    d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
                )
        self.signatures: dict[str, Signature | None] = {}
        self.data: set[str] = {value.name for value in self.proto.graph.input} - set(self.initializers)
        for node in self.graph.nodes:
            self._visit(node)

    def _visit(self, node: onnx.NodeProto) -> None:
        signature = self._signature(node)
        self.signatures[node.name] = signature
        reads = [*node.input, *captured(node)]
        for index, output in enumerate(node.output):
            if output and output not in self.kinds and any(self.real(tensor) for tensor in reads):
                # An operator that onnx does not know: what it gives is taken to be what it reads.
                same = [t for t, v in zip(node.input, signature.inputs, strict=True)] if signature else []
                bound = [t for t in same if signature and signature.inputs[same.index(t)] == signature.outputs[index]]
                known = [self.kinds[t] for t in bound if t in self.kinds]
                self.kinds[output] = known[0] if known else FLOAT
        if node.op_type not in ("Shape", "Size") and any(tensor in self.data for tensor in reads):
            self.data.update(output for output in node.output if output)

    def _signature(self, node: onnx.NodeProto) -> Signature | None:
        import onnx

        domain = _domain(node.domain)
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, 1), domain)
        except onnx.defs.SchemaError:
            return None
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        kept = _OWN_TYPE.get(node.op_type, ())
        return Signature(
            tuple(schema.inputs[min(i, len(schema.inputs) - 1)].type_str for i in range(len(node.input))),
            tuple(schema.outputs[min(i, len(schema.outputs) - 1)].type_str for i in range(len(node.output))),
            frozenset(name for name, types in allowed.items() if "tensor(float16)" in types and name not in kept),
        )

    @property
    def opset(self) -> int:
        return self.opsets[""]

    def real(self, tensor: str) -> bool:
        return self.kinds.get(tensor) in (FLOAT, HALF)

    def reals(self, node: onnx.NodeProto) -> Iterator[str]:
        """The real tensors that a node reads and gives, constants among them."""
        yield from (tensor for tensor in (*node.input, *node.output) if tensor and self.real(tensor))

    def is_data(self, node: onnx.NodeProto) -> bool:
        """Whether the node computes with reals that depend on the frame: weights behind a DequantizeLinear do too."""
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return True
        touched = any(tensor in self.data for tensor in (*node.output, *node.input, *captured(node)))
        return touched and (any(self.reals(node)) or any(self.real(tensor) for tensor in captured(node)))

    def can_halve(self, node: onnx.NodeProto) -> bool:
        """Whether ONNX lets the node compute in float16 in this opset."""
        signature = self.signatures[node.name]
        if signature is None or has_subgraph(node):
            return False
        pairs = (*zip(node.input, signature.inputs, strict=True), *zip(node.output, signature.outputs, strict=True))
        return any(v in signature.halves for tensor, v in pairs if tensor and self.real(tensor))

    def elements(self, tensor: str, axes: tuple[int, ...] | None) -> int | None:
        """How many elements lie along these axes (None: all) of a tensor; None where that is not known."""
        shape = self.shapes.get(tensor)
        if shape is None or any(not -len(shape) <= axis < len(shape) for axis in axes or ()):
            return None
        sizes = [shape[axis] for axis in (range(len(shape)) if axes is None else axes)]
        return None if any(size is None for size in sizes) else int(np.prod([size or 0 for size in sizes], dtype=int))


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def has_subgraph(node: onnx.NodeProto) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def captured(node: onnx.NodeProto) -> list[str]:
    """The tensors of the outer graph that the graphs inside a node read."""
    return [name for a in node.attribute for inner in ([a.g] if a.HasField("g") else a.graphs) for name in _free(inner)]


def _free(graph: onnx.GraphProto) -> list[str]:
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made |= {output for node in graph.node for output in node.output}
    read = [name for node in graph.node for name in (*node.input, *captured(node))]
    read += [value.name for value in graph.output]
    return [name for name in dict.fromkeys(read) if name and name not in made]


def rename_captured(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Let the graphs inside a node read other tensors of the outer graph."""
    for attr in node.attribute:
        for inner in [attr.g] if attr.HasField("g") else attr.graphs:
            for part in inner.node:
                for position, name in enumerate(part.input):
                    part.input[position] = names.get(name, name)
                rename_captured(part, names)
            for value in inner.output:
                value.name = names.get(value.name, value.name)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _constants_to_initializers(proto: onnx.ModelProto) -> None:
    from onnx import numpy_helper

    kept = []
    for node in proto.graph.node:
        value = node.attribute[0] if node.op_type == "Constant" and len(node.attribute) == 1 else None
        if value is not None and value.name == "value":
            tensor = type(value.t).FromString(value.t.SerializeToString())
            tensor.name = node.output[0]
        elif value is not None and value.name in ("value_float", "value_floats"):
            numbers = np.array(value.f if value.name == "value_float" else list(value.floats), np.float32)
            tensor = numpy_helper.from_array(numbers, node.output[0])
        else:
            kept.append(type(node).FromString(node.SerializeToString()))
            continue
        proto.graph.initializer.append(tensor)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
