"""The student of quantization-aware distillation, and its weights on their way back into the FP32 graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.recover.interpreter import network, try_out
from edgeseg.recover.layers import Convolution, Integers
from edgeseg.types import LOGITS, Frames, OnnxModel

if TYPE_CHECKING:
    import onnx


def student(
    model: OnnxModel,
    quantized: bytes,
    weight_bits: int,
    *,
    bias: Mapping[str, NDArray[np.float32]] | None = None,
    teacher: fx.GraphModule | None = None,
    frames: Frames | None = None,
    output: str = LOGITS,
) -> fx.GraphModule:
    """The INT8 graph of `model` as a network that learns: what it computes is what the INT8 graph computes.

    `quantized`: the graph with QuantizeLinear and DequantizeLinear that was written for `model`, from which scales and
    places are taken; weights (which stay floats, and are rounded in every pass) come from `model`, biases from `bias`,
    as they were given to the writer, or the model: best every_bias(). All convolutions learn, those that stay in float
    too. `teacher` and frames uint8 (N, H, W, 3) show how far each channel spreads, which is
    the unit of its bias. Raises ModelError for a graph that cannot be translated, or is none of `model`.
    """
    original, written, given = Graph(model.graph), Graph(quantized), every_bias(model, bias)
    spreads = _spreads(teacher, frames) if teacher is not None and frames is not None else {}
    nodes = {node.name: node for node in original.nodes}
    deployed = {node.name: node for node in written.nodes}

    def layer(
        name: str, transposed: bool, attributes: Mapping[str, Any], weights: NDArray[Any], biases: NDArray[Any] | None
    ) -> Convolution:
        node = nodes.get(name)
        own = original.constant(node.input[1]) if node is not None else None
        if node is None or own is None or own.shape != weights.shape:
            raise ModelError(f"the INT8 graph is none of this model: its convolution {name} is another one there")
        axis = _output_axis(transposed, int(attributes.get("group", 1)), own.shape)
        integers = _integers(written, deployed[name], axis, weight_bits)
        return Convolution(
            name, transposed, attributes, own, given[name], axis=axis, integers=integers, spread=spreads.get(name)
        )

    return network(quantized, output, layer=layer)


def every_bias(
    model: OnnxModel, given: Mapping[str, NDArray[np.float32]] | None = None
) -> dict[str, NDArray[np.float32]]:
    """A bias float32 (K,) for every convolution of constant weights: the one given, its own, or zeros.

    Written with these, the INT8 graph has a place for each bias that is learned. One that is computed is left alone.
    """
    graph = Graph(model.graph)
    found: dict[str, NDArray[np.float32]] = {}
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose") or (weights := graph.constant(node.input[1])) is None:
            continue
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        own: NDArray[Any] | None = np.zeros(weights.shape[0] if node.op_type == "Conv" else weights.shape[1] * groups)
        if len(node.input) > 2 and node.input[2]:
            own = graph.constant(node.input[2])
        if own is not None:
            found[node.name] = own.astype(np.float32)
    return found | dict(given or {})


def with_weights(model: OnnxModel, learned: nn.Module) -> OnnxModel:
    """The FP32 graph with the weights and biases that a student of it has now.

    Written by the same rules, it gives the INT8 graph that the student is. Weights that several convolutions shared
    are each one's own afterwards.
    """
    graph = Graph(model.graph)
    nodes = {node.name: node for node in graph.nodes}
    for layer in learned.modules():
        if isinstance(layer, Convolution):
            weights, bias = layer.values()
            node = nodes[layer.node]
            node.input[1] = graph.add_constant(f"edgeseg/{node.name}/recovered/weight", weights.detach().cpu().numpy())
            assert bias is not None
            _put_bias(graph, node, bias.detach().cpu().numpy())
    return replace(model, graph=graph.finish([]))


def with_biases(model: OnnxModel, bias: Mapping[str, NDArray[np.float32]]) -> OnnxModel:
    """The FP32 graph with these biases of the named convolutions, float32 (K,), in the place of its own."""
    if not bias:
        return model
    graph = Graph(model.graph)
    for node in graph.nodes:
        if node.name in bias:
            _put_bias(graph, node, bias[node.name])
    return replace(model, graph=graph.finish([]))


def _put_bias(graph: Graph, node: onnx.NodeProto, bias: NDArray[np.float32]) -> None:
    name = f"edgeseg/{node.name}/recovered/bias"
    if len(node.input) > 2:
        node.input[2] = graph.add_constant(name, bias)
    elif np.any(bias):  # one of zeros would only cost time
        node.input.append(graph.add_constant(name, bias))


def _output_axis(transposed: bool, groups: int, shape: tuple[int, ...]) -> int | None:
    if not transposed:
        return 0
    if groups == 1:
        return 1
    return 0 if shape[1] == 1 else None


def _integers(written: Graph, node: onnx.NodeProto, axis: int | None, bits: int) -> Integers | None:
    """How the written graph holds a convolution's weights; None for floats."""
    scales = _scales(written, node.input[1])
    if scales is None:
        return None
    if axis is None:
        raise ModelError(f"the weights of {node.name} have no axis of outputs, and are integers")
    bias_scales = _scales(written, node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if bias_scales is None:
        return Integers(bits, axis)
    # The input's scale, a float32: the scales of the bias are its products with those of the weights, rounded.
    near = np.float32(np.median(bias_scales.astype(np.float64) / scales))
    tried = [near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))]
    fits = [np.sum((scales.astype(np.float64) * float(s)).astype(np.float32) == bias_scales) for s in tried]
    return Integers(bits, axis, float(tried[int(np.argmax(fits))]))


def _scales(written: Graph, tensor: str) -> NDArray[np.float32] | None:
    made = written.producer(tensor)
    if made is None or made.op_type != "DequantizeLinear":
        return None
    return written.constant(made.input[1])


def _spreads(teacher: fx.GraphModule, frames: Frames) -> dict[str, NDArray[np.float32]]:
    """The deviation of each channel that each convolution of the teacher gives: node → float32 (K,)."""
    found: dict[str, NDArray[np.float32]] = {}

    def seen(layer: nn.Module, _: Any, given: Tensor) -> None:
        assert isinstance(layer, Convolution)
        deviation = given.detach().float().transpose(0, 1).flatten(1).std(1, correction=0)
        found[layer.node] = deviation.cpu().numpy()

    hooks = [layer.register_forward_hook(seen) for layer in teacher.modules() if isinstance(layer, Convolution)]
    try_out(teacher, torch.from_numpy(frames))
    for hook in hooks:
        hook.remove()
    return found
