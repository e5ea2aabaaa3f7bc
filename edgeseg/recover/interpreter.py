"""ONNX graph → torch.fx graph that computes the same, node by node: strict, and small enough to be read.

Convolutions of constant weights become layers that can learn; all other constants stay what they are. Operators,
attributes and domains that are not known here are refused before anything runs, by the name of the node.
"""

from __future__ import annotations

import inspect
import keyword
import operator
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.recover import moves, ops, windows
from edgeseg.recover.fake import fake_quantize
from edgeseg.recover.layers import Convolution
from edgeseg.types import FRAME, LOGITS

if TYPE_CHECKING:
    import onnx

OPERATORS: dict[str, Callable[..., Any]] = {**ops.OPERATORS, **moves.OPERATORS, **windows.OPERATORS}
_CODES = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}
Layer = Callable[[str, bool, Mapping[str, Any], NDArray[Any], NDArray[Any] | None], Convolution]


def known_operators() -> tuple[str, ...]:
    """Names of the operators that `network` translates."""
    return tuple(sorted({*OPERATORS, "Constant", "QuantizeLinear", "DequantizeLinear"}))


def network(graph: bytes, output: str = LOGITS, *, layer: Layer = Convolution) -> fx.GraphModule:
    """The network that computes the tensor `output` of a complete graph from frames uint8 (N, H, W, 3), in eval mode.

    QuantizeLinear and DequantizeLinear of a tensor become one fake quantization, DequantizeLinear of a constant its
    value. `layer(node, transposed, attributes, weights, bias)` makes the layer of a convolution whose weights are
    constants. fx nodes carry the names of ONNX tensors (as far as Python allows), and the node's in meta["onnx"].
    Raises ModelError for what is not translated.
    """
    return _Translation(Graph(graph), layer).run(output)


def try_out(found: fx.GraphModule, frames: Tensor) -> Tensor:
    """What a translated network gives for frames uint8 (N, H, W, 3). Raises ModelError that names the node if it
    fails: some of what is not translated shows only in the values."""
    with torch.no_grad():
        result: Tensor = _Trial(found).run(frames)
    return result


class _Trial(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"recovery runs the ONNX graph in torch, and cannot run its node {n.meta.get('onnx', n.name)}: {told}. "
                "Build without --recover"
            ) from error


class _Translation:
    """One pass over a graph; constants become buffers, and each is one however many read it."""

    def __init__(self, graph: Graph, layer: Layer) -> None:
        self.graph, self.layer = graph, layer
        self.holder, self.fx = nn.Module(), fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.layers = 0

    def run(self, output: str) -> fx.GraphModule:
        opsets = {entry.domain: entry.version for entry in self.graph.model.opset_import}
        if opsets.get("", opsets.get("ai.onnx", 0)) < 13:
            raise ModelError("recovery wants an ONNX graph of opset 13 or newer")
        if self.graph.producer(output) is None:
            raise ModelError(
                f"recovery learns from scores, and the graph has no tensor '{output}': a network that returns classes "
                "says nothing to learn from"
            )
        self.values[FRAME] = self.fx.placeholder(FRAME)
        needed = self._needed(output)
        for node in needed:
            self._check(node)
        for node in needed:
            self._translate(node)
        self.fx.output(self._value(output))
        found = fx.GraphModule(self.holder, self.fx, "Graph").eval()
        found.graph.eliminate_dead_code()
        found.delete_all_unused_submodules()
        found.recompile()
        return found

    def _needed(self, output: str) -> list[onnx.NodeProto]:
        wanted, chosen = {output}, []
        for node in reversed(self.graph.nodes):
            if wanted & set(node.output):
                chosen.append(node)
                wanted |= set(node.input)
        return chosen[::-1]

    def _check(self, node: onnx.NodeProto) -> None:
        if node.domain not in ("", "ai.onnx") or node.op_type not in known_operators():
            name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
            raise ModelError(
                f"recovery runs the ONNX graph in torch, and does not know the operator {name} of node {node.name}. "
                "Build without --recover"
            )
        function = OPERATORS.get(node.op_type)
        given = {attribute.name for attribute in node.attribute}
        if function is not None and (unknown := sorted(given - _keywords(function))):
            raise ModelError(
                f"recovery runs the ONNX graph in torch, and does not know {', '.join(unknown)} of {node.op_type}, "
                f"node {node.name}. Build without --recover"
            )
        if function is not None and node.op_type != "Split" and len([name for name in node.output if name]) > 1:
            raise ModelError(f"recovery does not translate further outputs of {node.op_type}, node {node.name}")

    def _translate(self, node: onnx.NodeProto) -> None:
        attributes = _attributes(node)
        made: fx.Node | None
        if node.op_type == "Constant":
            made = self._given(node, attributes)
        elif node.op_type == "QuantizeLinear":
            if not all(reader.op_type == "DequantizeLinear" for reader in self.graph.consumers(node.output[0])):
                raise ModelError(f"recovery wants a DequantizeLinear behind node {node.name}")
            return
        elif node.op_type == "DequantizeLinear":
            made = self._dequantized(node, attributes)
        elif node.op_type in ("Conv", "ConvTranspose") and (layer := self._layer(node, attributes)) is not None:
            name = f"layer{self.layers}"
            self.layers += 1
            self.holder.add_module(name, layer)
            made = self._add("call_module", name, (self._value(node.input[0]),), {}, node)
        else:
            inputs = [self._value(name) if name else None for name in node.input]
            while inputs and inputs[-1] is None:
                inputs.pop()
            made = self._add("call_function", OPERATORS[node.op_type], tuple(inputs), attributes, node)
        if node.op_type == "Split":
            for place, name in enumerate(node.output):
                self.values[name] = self._add("call_function", operator.getitem, (made, place), {}, node, name)
        elif made is not None:
            self.values[node.output[0]] = made

    def _layer(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Convolution | None:
        weights = self._constant(node.input[1])
        bias = self._constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        computed = len(node.input) > 2 and node.input[2] and bias is None
        if weights is None or weights.dtype != np.float32 or weights.ndim != 4 or computed:
            return None
        return self.layer(node.name, node.op_type == "ConvTranspose", attributes, weights, bias)

    def _constant(self, name: str) -> NDArray[Any] | None:
        """The value of a constant, or of one behind a DequantizeLinear."""
        value = self.graph.constant(name)
        node = self.graph.producer(name)
        if value is not None or node is None or node.op_type != "DequantizeLinear":
            return value
        codes = self.graph.constant(node.input[0])
        return None if codes is None else self._floats(node, codes)

    def _floats(self, node: onnx.NodeProto, codes: NDArray[Any]) -> NDArray[np.float32]:
        scale = self.graph.constant(node.input[1])
        zero = self.graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros((), codes.dtype)
        if scale is None or zero is None:
            raise ModelError(f"recovery wants constant scales; those of node {node.name} are computed")
        if scale.ndim:
            shape = [1] * codes.ndim
            shape[_attributes(node).get("axis", 1)] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        shifted = codes.astype(np.int64) - zero.astype(np.int64)
        return shifted.astype(np.float32) * scale.astype(np.float32)

    def _dequantized(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> fx.Node | None:
        if (codes := self.graph.constant(node.input[0])) is not None:
            readers = self.graph.consumers(node.output[0])
            if all(reader.op_type in ("Conv", "ConvTranspose") for reader in readers):
                return None  # a layer takes it in; one that cannot asks for the value
            return self._hold(self._floats(node, codes), node.output[0])
        above = self.graph.producer(node.input[0])
        scale = self.graph.constant(node.input[1])
        zero = self.graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        if above is None or above.op_type != "QuantizeLinear" or list(above.input[1:]) != list(node.input[1:]):
            raise ModelError(f"recovery wants the QuantizeLinear of the same scale in front of node {node.name}")
        if scale is None or zero is None or scale.size != 1 or zero.dtype not in _CODES:
            raise ModelError(f"recovery wants one constant scale, and uint8 or int8, at node {node.name}")
        lowest, highest = _CODES[zero.dtype]
        constants = [
            self._hold(value.reshape(()).astype(np.float32), f"{node.output[0]}_{what}")
            for what, value in (("scale", scale), ("zero", zero))
        ]
        given = (self._value(above.input[0]), *constants)
        return self._add("call_function", fake_quantize, given, {"lowest": lowest, "highest": highest}, node)

    def _given(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> fx.Node:
        (value,) = attributes.values()
        kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
        name = next(iter(attributes))
        if name != "value" and name not in kinds:
            raise ModelError(f"recovery does not translate {name} of Constant, node {node.name}")
        return self._hold(value if name == "value" else np.array(value, kinds[name]), node.output[0])

    def _value(self, name: str) -> fx.Node:
        if name not in self.values:
            value = self._constant(name)
            if value is None:
                raise ModelError(f"the graph reads '{name}', which nothing gives")
            self.values[name] = self._hold(value, name)
        return self.values[name]

    def _hold(self, value: NDArray[Any], name: str) -> fx.Node:
        buffer = f"constant{len(list(self.holder.buffers(recurse=False)))}"
        self.holder.register_buffer(buffer, torch.from_numpy(np.array(value)))
        return self.fx.create_node("get_attr", buffer, name=_plain(name))

    def _add(
        self, kind: str, target: Any, inputs: tuple[Any, ...], attributes: dict[str, Any], node: onnx.NodeProto,
        output: str = "",
    ) -> fx.Node:  # fmt: skip
        name = output or node.output[0]
        given = {
            key: self._hold(v, f"{name}_{key}") if isinstance(v, np.ndarray) else v for key, v in attributes.items()
        }
        made = self.fx.create_node(kind, target, inputs, given, name=_plain(name))
        made.meta["onnx"] = node.name
        return made


def _keywords(function: Callable[..., Any]) -> set[str]:
    """The attributes that a function takes; torch's own take none."""
    if inspect.isbuiltin(function):
        return set()
    parameters = inspect.signature(function).parameters.values()
    found = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    return found | ({"axes"} if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters) else set())


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper, numpy_helper

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.HasField("t"):
            value = numpy_helper.to_array(value)
        elif isinstance(value, bytes):
            value = value.decode()
        found[attribute.name] = list(value) if attribute.ints or attribute.floats else value
    return found


def _plain(name: str) -> str:
    plain = re.sub(r"\W", "_", name)
    return f"_{plain}" if not plain or plain[0].isdigit() or keyword.iskeyword(plain) else plain
