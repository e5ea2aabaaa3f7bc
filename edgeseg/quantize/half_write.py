"""The writer of half precision: given which nodes stay in float32, every tensor gets a type, every node its inputs.

Constants are made in the types that are read, and a cast stands right behind the node whose result is read in
another type than it has, once for all readers. A DequantizeLinear is written once for each type instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.quantize.half_ranges import Rounding, half_scales, to_half
from edgeseg.quantize.half_rules import SATURATES
from edgeseg.quantize.half_types import FLOAT, HALF, TypedGraph, attribute, captured, has_subgraph, rename_captured

if TYPE_CHECKING:
    import onnx

STEM = "edgeseg/half/"  # of the names of what is added in float16; those of float32 follow
_FLOAT_STEM = "edgeseg/float/"
# score >= t is score >= t rounded up, for every score of float16: a constant on the right, a constant on the left.
_ROUNDED: dict[str, tuple[Rounding, Rounding]] = {
    "GreaterOrEqual": ("up", "down"),
    "Greater": ("down", "up"),
    "LessOrEqual": ("down", "up"),
    "Less": ("up", "down"),
}


class Writer:
    """Decides the type of every tensor, then writes the nodes anew with casts where types meet."""

    def __init__(self, typed: TypedGraph, floats: Mapping[str, str]) -> None:
        self.typed = typed
        self.floats = floats
        self.outputs = typed.graph.outputs
        self.inner = {name for node in typed.graph.nodes for name in captured(node)}
        self.alias = self._casts_to_skip()
        self.wanted: dict[str, set[int]] = defaultdict(set)
        self.native: dict[str, int] = dict(typed.kinds)
        self._types()
        self.versions: dict[tuple[str, int, Rounding], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rescaled: dict[str, tuple[str, str]] = {}

    def _casts_to_skip(self) -> dict[str, str]:
        """Casts between float32 and float16 go: types are decided here."""
        alias: dict[str, str] = {}
        for node in self.typed.graph.nodes:
            real = node.op_type == "Cast" and self.typed.is_data(node)
            real = real and self.typed.real(node.input[0]) and self.typed.real(node.output[0])
            if real and node.output[0] not in self.outputs | self.inner:
                alias[node.output[0]] = alias.get(node.input[0], node.input[0])
        return alias

    def _source(self, tensor: str) -> str:
        return self.alias.get(tensor, tensor)

    def _types(self) -> None:
        """What each node gives, and in which types each tensor is read."""
        nodes = [node for node in self.typed.graph.nodes if node.output[0] not in self.alias]
        for node in nodes:
            if self.typed.is_data(node):
                for index, output in enumerate(node.output):
                    if output and self.typed.real(output):
                        self.native[output] = self._given(node, index)
        for node in nodes:
            for index, tensor in enumerate(node.input):
                if tensor and self.typed.real(tensor):
                    self.wanted[self._source(tensor)].add(self._read(node, index))
            for tensor in captured(node):
                if self.typed.real(tensor):
                    self.wanted[tensor].add(self.typed.kinds[tensor])
        for node in nodes:  # integers come back in the type that their readers want
            if node.op_type == "DequantizeLinear" and node.name not in self.floats:
                wanted = self.wanted[node.output[0]]
                self.native[node.output[0]] = HALF if HALF in wanted or not wanted else FLOAT

    def _in_half(self, node: onnx.NodeProto, variable: str) -> bool:
        signature = self.typed.signatures[node.name]
        return node.name not in self.floats and signature is not None and variable in signature.halves

    def _given(self, node: onnx.NodeProto, index: int) -> int:
        signature = self.typed.signatures[node.name]
        if has_subgraph(node):
            return self.typed.kinds[node.output[index]]
        if node.op_type == "Cast" and node.output[0] in self.outputs | self.inner:
            return self.typed.kinds[node.output[0]]
        return HALF if signature is not None and self._in_half(node, signature.outputs[index]) else FLOAT

    def _read(self, node: onnx.NodeProto, index: int) -> int:
        """The type in which a node reads one of its real inputs."""
        tensor, signature = self._source(node.input[index]), self.typed.signatures[node.name]
        if node.op_type in ("Shape", "Size") or not self.typed.is_data(node):
            return self.native[tensor]
        if node.op_type == "Cast":
            return self.native[tensor]  # either will do
        if node.op_type == "DequantizeLinear":
            return FLOAT  # its scale; written with the type of its output, below
        return HALF if signature is not None and self._in_half(node, signature.inputs[index]) else FLOAT

    def write(self) -> bytes:
        """The graph in topological order; constants that nobody reads any more are gone."""
        proto = self.typed.proto
        for value in proto.graph.input:
            self._make_casts(value.name, None)
        for node in self.typed.graph.nodes:
            if node.output[0] not in self.alias:
                self._write(node)
        read = {name for node in self.nodes for name in (*node.input, *captured(node))} | self.outputs
        made = {tensor.name for tensor in self.constants}
        kept = [t for t in proto.graph.initializer if t.name in read and t.name not in made] + self.constants
        kept = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
        for field, items in ((proto.graph.node, self.nodes), (proto.graph.initializer, kept)):
            del field[:]
            field.extend(items)
        del proto.graph.value_info[:]
        serialized: bytes = proto.SerializeToString()
        return serialized

    def _write(self, node: onnx.NodeProto) -> None:
        made = type(node).FromString(node.SerializeToString())
        if node.op_type == "DequantizeLinear":
            self._write_dequantize(node, made)
            return
        for index, tensor in enumerate(node.input):
            if tensor and self.typed.real(tensor):
                made.input[index] = self._version(tensor, self._read(node, index), self._rounding(node, index))
            elif tensor:
                made.input[index] = self._source(tensor)
        names = {t: self._version(t, self.typed.kinds[t]) for t in captured(node) if self.typed.real(t)}
        rename_captured(made, {old: new for old, new in names.items() if old != new})
        if self.typed.is_data(node):
            self._retype(node, made)
        self.nodes.append(made)
        for index, output in enumerate(node.output):
            if output and self.typed.real(output):
                if output in self.outputs and self.native[output] != self.typed.kinds[output]:
                    made.output[index] = f"{STEM}{output}"
                self._make_casts(output, made.output[index])

    def _retype(self, node: onnx.NodeProto, made: onnx.NodeProto) -> None:
        """Attributes that name a type follow the output."""
        from onnx import helper

        if not node.output or not self.typed.real(node.output[0]):
            return
        kind = self.native[node.output[0]]
        for attr in made.attribute:
            if (node.op_type, attr.name) in (("Cast", "to"), ("EyeLike", "dtype")) or (
                attr.name == "dtype" and node.op_type.startswith("Random")
            ):
                attr.i = kind
            elif (node.op_type, attr.name) == ("ConstantOfShape", "value") and attr.t.data_type in (FLOAT, HALF):
                from onnx import numpy_helper

                value = numpy_helper.to_array(attr.t)
                attr.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(_typed(value, kind), "")))

    def _make_casts(self, tensor: str, written: str | None) -> None:
        """The versions of a tensor that its readers want, right behind the node that gives it."""
        from onnx import helper

        native = self.native.get(tensor)
        if native is None or not self.typed.real(tensor):
            return
        written = written or tensor
        self.versions[tensor, native, "nearest"] = written
        if tensor in self.outputs and written != tensor:
            self._cast(written, tensor, self.typed.kinds[tensor])
            self.versions[tensor, self.typed.kinds[tensor], "nearest"] = tensor
        for kind in sorted(self.wanted[tensor]):
            if (tensor, kind, "nearest") not in self.versions:
                name = f"{STEM if kind == HALF else _FLOAT_STEM}{tensor}"
                self.nodes.append(helper.make_node("Cast", [written], [name], f"{name}/cast", to=kind))
                self.versions[tensor, kind, "nearest"] = name

    def _cast(self, source: str, target: str, kind: int) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Cast", [source], [target], f"{STEM}{target}/cast", to=kind))

    def _rounding(self, node: onnx.NodeProto, index: int) -> Rounding:
        if node.op_type in SATURATES:
            return "saturate"
        right, left = _ROUNDED.get(node.op_type, ("nearest", "nearest"))
        return right if index == 1 else left

    def _version(self, tensor: str, kind: int, rounding: Rounding = "nearest") -> str:
        """The name of a tensor in a type; a constant is made in it."""
        tensor = self._source(tensor)
        if tensor not in self.typed.initializers:
            return self.versions.get((tensor, kind, "nearest"), tensor)
        if self.typed.kinds[tensor] == kind:
            return tensor
        key = (tensor, kind, rounding if kind == HALF else "nearest")
        if key not in self.versions:
            value = self.typed.graph.constant(tensor)
            assert value is not None
            suffix = "" if rounding == "nearest" else f"/{rounding}"
            self._constant(key, tensor, suffix, _typed(value, kind, rounding))
        return self.versions[key]

    def _constant(self, key: tuple[str, int, Rounding], tensor: str, suffix: str, value: NDArray[Any]) -> None:
        from onnx import numpy_helper

        name = f"{STEM if key[1] == HALF else _FLOAT_STEM}{tensor}{suffix}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        self.versions[key] = name

    def _write_dequantize(self, node: onnx.NodeProto, made: onnx.NodeProto) -> None:
        """One DequantizeLinear for each type that is read: engines fuse it with its reader, a cast would hinder."""
        output = node.output[0]
        native = self.native[output]
        kinds = [native, *sorted(self.wanted[output] - {native})]
        if node.name in self.floats:
            kinds = [native]  # its scale is no float16 number: what wants halves gets a cast
        for kind in kinds:
            copy = type(made).FromString(made.SerializeToString())
            if kind == HALF:
                copy.input[0], copy.input[1] = self._scaled(node)
            else:
                copy.input[1] = self._version(node.input[1], kind)
            if (saved := attribute(node, "output_dtype", 0)) and saved in (FLOAT, HALF):
                next(attr for attr in copy.attribute if attr.name == "output_dtype").i = kind
            if kind != native:
                name = f"{STEM if kind == HALF else _FLOAT_STEM}{output}"
                copy.output[0], copy.name = name, f"{name}/dequantize"
            self.nodes.append(copy)
            self.versions[output, kind, "nearest"] = copy.output[0]
        self._make_casts(output, output)

    def _scaled(self, node: onnx.NodeProto) -> tuple[str, str]:
        """Integers and their scale in float16; weights are rounded again where a scale was raised."""
        integers, scales = (self.typed.graph.constant(name) for name in node.input[:2])
        axis = attribute(node, "axis", 1)
        plain = integers is None or scales is None or (scales.ndim and axis not in (0, -integers.ndim))
        if plain or integers is None or scales is None:
            return self._source(node.input[0]), self._version(node.input[1], HALF)
        if self.typed.kinds[node.input[1]] == HALF:
            return node.input[0], node.input[1]
        if node.input[0] not in self.rescaled:
            from onnx import numpy_helper

            made, halves, _ = half_scales(integers, scales)
            scale = f"{STEM}{node.input[1]}"
            if not any(tensor.name == scale for tensor in self.constants):
                self._constant((node.input[1], HALF, "nearest"), node.input[1], "", halves)
            name = node.input[0]
            if not np.array_equal(made, integers):
                name = f"{STEM}{node.input[0]}"
                self.constants.append(numpy_helper.from_array(made, name))
            self.rescaled[node.input[0]] = (name, scale)
        return self.rescaled[node.input[0]]


def _typed(value: NDArray[Any], kind: int, rounding: Rounding = "nearest") -> NDArray[Any]:
    return to_half(value, rounding) if kind == HALF else value.astype(np.float32)
