"""The quantization that a graph holds, taken apart by layer, and put back into the FP32 graph layer by layer.

What is in the deployed graph counts, not what somebody meant to put there: scales, integers and biases are copied as
they are found. A layer is a convolution with its weights, its bias and the quantizers that it reads through; what only
moves values (pooling, nearest resizing, concatenation) between a quantizer and its reader goes with the reader. A
quantizer that float nodes read too counts, for them as well, with the convolutions that read it; one that no
convolution reads counts with the convolution that made the tensor.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.pipeline.explain.copies import STEM, Copy, Quantizer, grid, value_of
from edgeseg.quantize.edges import is_convolution, moves_only, output_axis
from edgeseg.types import LOGITS

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """What is quantized of one node. Weights and bias as the deployed graph computes with them, float32."""

    node: str
    tensor: str  # what it gives, in both graphs
    quantizers: tuple[Quantizer, ...]  # those that it reads through, the nearest to the source first
    weights: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    axis: int = 0  # of the weights' output channels


@dataclass(frozen=True, slots=True)
class _Edge:
    """An input of a node that comes through quantizers: `tensor` of the deployed graph."""

    node: str
    position: int
    tensor: str
    quantizers: tuple[Quantizer, ...]
    owners: frozenset[str] = frozenset()


class Deployed:
    """A deployed graph beside the FP32 graph it was made from. `layers`: in order of the graph.

    Raises ModelError where the two do not belong together.
    """

    def __init__(self, fp32: bytes, deployed: bytes) -> None:
        self._fp32 = fp32
        self._float, self._graph = Graph(fp32), Graph(deployed)
        self._nodes = {node.name: node for node in self._graph.nodes}
        self._made = {tensor for node in self._float.nodes for tensor in node.output}
        self._made |= {value.name for value in self._float.model.graph.input}
        self._traced: dict[str, tuple[Quantizer, ...]] = {}
        convolutions = [node for node in self._float.nodes if is_convolution(node)]
        absent = [node.name for node in convolutions if node.name not in self._nodes]
        if absent or not convolutions:
            raise ModelError(
                f"the deployed graph has no nodes {', '.join(absent[:3]) or 'that convolve'}: it was not made from the "
                "FP32 graph beside it"
            )
        self.outputs = {node.name: (node.output[0], self._nodes[node.name].output[0]) for node in convolutions}
        edges = self._edges()
        self.layers = tuple(
            layer for node in convolutions if (layer := self._layer(node, edges.get((node.name, 0)))) is not None
        )
        own = {layer.node for layer in self.layers}
        self.floats = tuple(node.name for node in convolutions if node.name not in own)
        readers: dict[str, set[str]] = {}
        for layer in self.layers:
            for quantizer in layer.quantizers:
                readers.setdefault(quantizer.node, set()).add(layer.node)
        self._others: list[_Edge] = []
        orphans: dict[str, list[Quantizer]] = {}

        def owners_of(quantizers: tuple[Quantizer, ...]) -> frozenset[str]:
            found = {reader for quantizer in quantizers for reader in readers.get(quantizer.node, ())}
            if not found:
                found = {self.source(quantizers[-1].tensor)}
                for owner in found - own:
                    orphans.setdefault(owner, []).extend(quantizers)
            return frozenset(found)

        for (name, position), edge in edges.items():
            if name not in own or position != 0:
                owners = owners_of(edge.quantizers)
                self._others.append(_Edge(name, position, edge.tensor, edge.quantizers, owners))
        scores = self._trace(LOGITS)  # given as integers, through what only moves values
        self._of_scores = owners_of(scores) if scores else frozenset[str]()
        if orphans:
            by_name = {node.name: (at, node) for at, node in enumerate(self._float.nodes)}
            more = [Layer(name, by_name[name][1].output[0], tuple(dict.fromkeys(q))) for name, q in orphans.items()]
            self.layers = tuple(sorted((*self.layers, *more), key=lambda layer: by_name[layer.node][0]))
            self.floats = tuple(name for name in self.floats if name not in orphans)

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """All that were found, each once."""
        held = [layer.quantizers for layer in self.layers] + [edge.quantizers for edge in self._others]
        return tuple(dict.fromkeys(q for quantizers in (*held, self._trace(LOGITS)) for q in quantizers))

    def weight_of(self, node: str) -> NDArray[np.float32] | None:
        """What the FP32 graph has in the place of a layer's weights."""
        found = next((n for n in self._float.nodes if n.name == node and len(n.input) > 1), None)
        value = None if found is None else self._float.constant(found.input[1])
        return None if value is None else value.astype(np.float32)

    def weight_name(self, node: str) -> str | None:
        """What the FP32 graph calls a node's weights: the source's own name, where its exporter kept it."""
        found = next((n for n in self._float.nodes if n.name == node and len(n.input) > 1), None)
        return None if found is None else str(found.input[1])

    def graph(self, included: Collection[str], *, weights: bool = True, inputs: bool = True) -> bytes:
        """The FP32 graph with the quantization of these layers, and no other. `weights`, `inputs`: of what of them."""
        made = Graph(self._fp32)
        nodes = {node.name: node for node in made.nodes}
        copy = Copy(self._graph, made, self._traced)
        chosen = [layer for layer in self.layers if layer.node in included]
        for layer in chosen:
            node = nodes[layer.node]
            if inputs and layer.quantizers and layer.weights is not None:
                node.input[0] = copy.expression(self._nodes[layer.node].input[0])
            if not weights or layer.weights is None:
                continue
            node.input[1] = made.add_constant(f"{STEM}/{layer.node}/weight", layer.weights)
            if layer.bias is not None:
                name = made.add_constant(f"{STEM}/{layer.node}/bias", layer.bias)
                if len(node.input) > 2:
                    node.input[2] = name
                else:
                    node.input.append(name)
        for edge in self._others if inputs else ():
            if edge.owners & set(included):
                nodes[edge.node].input[edge.position] = copy.expression(edge.tensor)
        if inputs and self._of_scores & set(included):
            self._quantize_scores(made, copy)
        return made.finish(copy.added)

    def _quantize_scores(self, made: Graph, copy: Copy) -> None:
        from onnx import helper

        source = copy.expression(LOGITS)
        node = made.producer(LOGITS)
        if node is None or source == LOGITS:
            return
        node.output[list(node.output).index(LOGITS)] = f"{STEM}/float/{LOGITS}"
        copy.added.append(helper.make_node("Identity", [source], [LOGITS], f"{STEM}/{LOGITS}"))

    def _edges(self) -> dict[tuple[str, int], _Edge]:
        """Inputs of nodes that come through quantizers, by node and position; what only moves values has none."""
        found = {}
        for node in self._float.nodes:
            other = self._nodes.get(node.name)
            if other is None or other.op_type != node.op_type or self._passes(node):
                continue
            for position, tensor in enumerate(other.input[: len(node.input)]):
                if quantizers := self._trace(tensor):
                    found[node.name, position] = _Edge(node.name, position, tensor, quantizers)
        return found

    def _passes(self, node: onnx.NodeProto) -> bool:
        return moves_only(node) or node.op_type == "Concat"

    def _trace(self, tensor: str) -> tuple[Quantizer, ...]:
        """The quantizers above a tensor of the deployed graph, up to where its values are computed."""
        if tensor in self._traced:
            return self._traced[tensor]
        node = self._graph.producer(tensor)
        found: tuple[Quantizer, ...] = ()
        if node is not None and node.op_type == "DequantizeLinear":
            above = self._graph.producer(node.input[0])
            if above is not None and above.op_type == "QuantizeLinear":
                found = (*self._trace(above.input[0]), self._quantizer(above, node))
        elif node is not None and (node.op_type == "Cast" or self._passes(node)):
            inputs = node.input if node.op_type == "Concat" else node.input[:1]
            found = tuple(dict.fromkeys(quantizer for part in inputs for quantizer in self._trace(part)))
        self._traced[tensor] = found
        return found

    def _quantizer(self, quantize: onnx.NodeProto, dequantize: onnx.NodeProto) -> Quantizer:
        scale, zero = grid(self._graph, quantize)
        back, back_zero = grid(self._graph, dequantize)
        bounds = np.iinfo(zero.dtype)
        low, high = ((bound - back_zero.astype(np.int64)) * back for bound in (bounds.min, bounds.max))
        return Quantizer(
            quantize.name,
            self._base(quantize.input[0]),
            float(scale.max()),
            int(zero.ravel()[0]),
            float(low.min()),
            float(high.max()),
        )

    def _base(self, tensor: str) -> str:
        """The tensor of the FP32 graph of the same values, but for what was quantized above it."""
        while tensor not in self._made:
            node = self._graph.producer(tensor)
            if node is None or node.op_type not in ("Cast", "DequantizeLinear", "QuantizeLinear"):
                raise ModelError(
                    f"the deployed graph quantizes '{tensor}', which the FP32 graph beside it does not have"
                )
            tensor = node.input[0]
        return tensor

    def _from_integers(self, tensor: str) -> bool:
        node = self._graph.producer(tensor)
        while node is not None and node.op_type == "Cast":
            node = self._graph.producer(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    def source(self, tensor: str) -> str:
        """The convolution whose result a tensor of the FP32 graph is, through what has no weights; else its node."""
        at = self._float.producer(tensor)
        start = tensor if at is None else str(at.name)
        while at is not None:
            if is_convolution(at):
                return str(at.name)
            at = self._float.producer(at.input[0]) if at.input else None
        return start

    def _layer(self, node: onnx.NodeProto, edge: _Edge | None) -> Layer | None:
        other = self._nodes[node.name]
        own = self._float.constant(node.input[1])
        weights = value_of(self._graph, other.input[1])
        if own is None or weights is None:
            return None
        weights = weights.astype(np.float32)
        if weights.shape != own.shape:
            raise ModelError(f"node {node.name}: weights {weights.shape} in the deployed graph, {own.shape} in FP32")
        halves = own.astype(np.float16).astype(np.float32)
        if not self._from_integers(other.input[1]) and any(np.array_equal(weights, w) for w in (own, halves)):
            return None  # it computes with floats, whatever it reads
        bias = value_of(self._graph, other.input[2]) if len(other.input) > 2 and other.input[2] else None
        axis = output_axis(node, weights.shape)
        quantizers = edge.quantizers if edge is not None else ()
        return Layer(
            node.name,
            node.output[0],
            quantizers,
            weights,
            None if bias is None else bias.astype(np.float32),
            0 if axis is None else axis,
        )
