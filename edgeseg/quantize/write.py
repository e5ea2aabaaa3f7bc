"""OnnxModel + ScaleTable → OnnxModel with its precision written into the graph, in the dialect of one engine.

Numbers follow ONNX QuantizeLinear (round half to even, saturate) and, for OpenVINO, the FakeQuantize operation of its
operation set 1. Weights are symmetric, one scale for each output channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration import Quantizer, ScaleTable, Scheme, quantizer, unite
from calibration.scheme import SMALLEST_SCALE
from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.quantize.dialects import Dialect
from edgeseg.quantize.edges import activated, moves_only, output_axis
from edgeseg.quantize.placement import Placement, place
from edgeseg.quantize.weights import rounded
from edgeseg.types import OnnxModel

if TYPE_CHECKING:
    import onnx

_OPENVINO_DOMAIN = "org.openvinotoolkit"
_MOST = float(np.finfo(np.float32).max)
_MOST_BIAS = 2.0**30  # half of what int32 holds: the products are added to it


def quantize(
    model: OnnxModel,
    table: ScaleTable,
    dialect: Dialect,
    *,
    placement: Placement | None = None,
    bias: Mapping[str, NDArray[np.float32]] | None = None,
    rounding: Mapping[str, NDArray[np.int8]] | None = None,
) -> OnnxModel:
    """The model in INT8.

    `placement` defaults to the dialect's rule. `bias` replaces the biases of the named convolutions: float32 (K,).
    `rounding`: integers for the weights of the named convolutions, int8 of the weights' shape, instead of nearest ones.
    Raises ModelError when there is nothing to quantize, for a graph that is quantized already, for weights or biases
    that are not finite and ranges that float32 scales do not hold (each names its tensor); StaleScales or a ValueError
    of `calibration` when the table lacks a tensor.
    """
    graph = Graph(model.graph)
    placement = placement or place(graph, dialect)
    if not placement.convolutions:
        raise ModelError(
            "INT8 was wanted, but the network has no convolution that can run in INT8: "
            + "; ".join(f"{node}: {why}" for node, why in placement.floats.items())
            + ". Build it with --fp32 or --fp16."
        )
    quantizers = {tensor: _common(table, group, dialect.activations) for tensor, group in placement.quantizers.items()}
    added: list[onnx.NodeProto] = []
    chosen = [node for node in graph.nodes if node.name in set(placement.convolutions)]
    scale_of_input = {node.name: _scale_of(graph, node.input[0], quantizers, placement) for node in chosen}
    readers = {tensor: _readers(graph, tensor, placement) for tensor in (*quantizers, *placement.moves)}
    for tensor, nodes in readers.items():
        if not nodes:
            continue
        found = quantizers.get(tensor) or quantizers[placement.moves[tensor]]
        pair = (_fake_quantize if dialect.fake else _pair)(graph, tensor, found, dialect)
        graph.rewire(tensor, pair[-1].output[0], nodes)
        added += pair
    for node in chosen:
        given = (bias or {}).get(node.name), (rounding or {}).get(node.name)
        added += _weights(graph, node, scale_of_input[node.name], dialect, *given)
    if dialect.fake:
        _declare(graph.model, _OPENVINO_DOMAIN, 1)
    return replace(model, graph=graph.finish(added), precision="int8")


def _common(table: ScaleTable, group: tuple[str, ...], scheme: Scheme) -> Quantizer:
    """The quantizer of tensors that share a scale: of all that was seen of any of them."""
    seen = reduce(unite, (table.seen(tensor) for tensor in group))
    found = quantizer(seen, table.recipe.method, scheme, table.recipe.parameters)
    if not all(abs(value) <= _MOST for value in (found.scale, found.low, found.high)) or found.scale <= 0:
        raise ModelError(
            f"INT8 was wanted for tensor '{group[0]}', with values from {seen.minimum:.3g} to {seen.maximum:.3g}: "
            "float32 holds no scale for them. Something before it diverges; keep what reads it in float"
        )
    return found


def _scale_of(graph: Graph, tensor: str, quantizers: Mapping[str, Quantizer], placement: Placement) -> float | None:
    """The scale of the integers that a convolution reads, None where its inputs come from several quantizers."""
    while tensor not in quantizers:
        if tensor in placement.moves:
            return float(quantizers[placement.moves[tensor]].scale)
        node = graph.producer(tensor)
        if node is None or not moves_only(node):
            return None
        tensor = node.input[0]
    return float(quantizers[tensor].scale)


def _readers(graph: Graph, tensor: str, placement: Placement) -> list[onnx.NodeProto]:
    """Who reads the quantized tensor: everybody behind an INT8 convolution, elsewhere only the way to the next one."""
    chosen = set(placement.convolutions)
    if any(node.name in chosen and activated(graph, node) == tensor for node in graph.nodes):
        return graph.consumers(tensor)

    def leads(node: onnx.NodeProto) -> bool:
        if node.name in chosen or node.name in placement.sums:
            return True
        return (moves_only(node) or node.op_type == "Concat") and any(
            leads(reader) for reader in graph.consumers(node.output[0])
        )

    return [node for node in graph.consumers(tensor) if leads(node)]


def _pair(graph: Graph, tensor: str, found: Quantizer, dialect: Dialect) -> list[onnx.NodeProto]:
    from onnx import helper

    kind = np.int8 if dialect.activations.signed else np.uint8
    scale = graph.add_constant(f"edgeseg/{tensor}/scale", np.array(found.scale, np.float32))
    zero = graph.add_constant(f"edgeseg/{tensor}/zero_point", np.array(found.zero_point, kind))
    return [
        helper.make_node(
            "QuantizeLinear", [tensor, scale, zero], [f"edgeseg/{tensor}/q"], f"edgeseg/{tensor}/quantize"
        ),
        helper.make_node(
            "DequantizeLinear",
            [f"edgeseg/{tensor}/q", scale, zero],
            [f"edgeseg/{tensor}/dq"],
            f"edgeseg/{tensor}/dequantize",
        ),
    ]


def _fake_quantize(graph: Graph, tensor: str, found: Quantizer, dialect: Dialect) -> list[onnx.NodeProto]:
    from onnx import helper

    low = graph.add_constant(f"edgeseg/{tensor}/low", np.array(found.low, np.float32))
    high = graph.add_constant(f"edgeseg/{tensor}/high", np.array(found.high, np.float32))
    return [
        helper.make_node(
            "FakeQuantize",
            [tensor, low, high, low, high],
            [f"edgeseg/{tensor}/dq"],
            f"edgeseg/{tensor}/quantize",
            domain=_OPENVINO_DOMAIN,
            levels=2**dialect.activations.bits,
        )
    ]


def _weights(
    graph: Graph,
    node: onnx.NodeProto,
    input_scale: float | None,
    dialect: Dialect,
    bias: NDArray[np.float32] | None,
    rounding: NDArray[np.int8] | None = None,
) -> list[onnx.NodeProto]:
    """Weights as int8 (and the bias as int32, where the dialect wants it) behind a DequantizeLinear."""
    from onnx import helper

    weights = graph.constant(node.input[1])
    assert weights is not None
    if bias is None and len(node.input) > 2 and node.input[2]:
        found = graph.constant(node.input[2])
        bias = None if found is None else found.astype(np.float32)
    integer_scale = input_scale if dialect.integer_bias and bias is not None else None
    _finite(weights, f"the weights '{node.input[1]}' of {node.name}")
    if bias is not None:
        _finite(bias, f"the bias of {node.name}")
    least: ArrayLike = 0.0
    if integer_scale is not None and bias is not None:
        # A channel of next to no weights, which batch norm switched off, must not make steps too fine for its bias,
        # nor smaller than float32 has them.
        least = np.maximum(np.abs(bias, dtype=np.float64) / _MOST_BIAS, SMALLEST_SCALE) / integer_scale
        if float(np.max(least)) > _MOST:
            raise ModelError(
                f"the bias of {node.name} reaches {np.abs(bias).max():.3g}, but its input has steps of "
                f"{integer_scale:.3g}: no int32 bias holds both. Keep this convolution in float"
            )
    axis = output_axis(node, weights.shape)
    assert axis is not None
    weights = np.moveaxis(weights, axis, 0)
    integers, scales = rounded(weights, dialect.weight_bits, least)
    if rounding is not None:
        usual = rounded(weights, dialect.weight_bits)[1]
        integers = _as_given(node.name, np.moveaxis(rounding, axis, 0), integers, scales, usual, dialect)
    stem = f"edgeseg/{node.name}/weight"
    added = [
        helper.make_node(
            "DequantizeLinear",
            [
                graph.add_constant(weight_name(node.name), np.moveaxis(integers, 0, axis)),
                graph.add_constant(f"{stem}/scale", scales),
                graph.add_constant(f"{stem}/zero_point", np.zeros(len(scales), np.int8)),
            ],
            [f"{stem}/dq"],
            f"{stem}/dequantize",
            axis=axis,
        )
    ]
    node.input[1] = f"{stem}/dq"
    if bias is None:
        return added
    stem = bias_name(node.name)
    if integer_scale is not None:
        bias_scales = scales.astype(np.float64) * integer_scale
        added.append(
            helper.make_node(
                "DequantizeLinear",
                [
                    graph.add_constant(f"{stem}/q", np.rint(bias / bias_scales).astype(np.int32)),
                    graph.add_constant(f"{stem}/scale", bias_scales.astype(np.float32)),
                    graph.add_constant(f"{stem}/zero_point", np.zeros(len(scales), np.int32)),
                ],
                [f"{stem}/dq"],
                f"{stem}/dequantize",
                axis=0,
            )
        )
        value = f"{stem}/dq"
    else:
        value = graph.add_constant(stem, bias)
    if len(node.input) > 2:
        node.input[2] = value
    else:
        node.input.append(value)
    return added


def _finite(values: NDArray[np.float32], what: str) -> None:
    if not np.isfinite(values).all():
        raise ModelError(
            f"finite numbers were wanted, and {what} hold {np.count_nonzero(~np.isfinite(values))} NaN or Inf of "
            f"{values.size}: the checkpoint is damaged, or training diverged"
        )


def _as_given(
    node: str,
    given: NDArray[np.int8],
    nearest: NDArray[np.int8],
    scales: NDArray[np.float32],
    usual: NDArray[np.float32],
    dialect: Dialect,
) -> NDArray[np.int8]:
    """The integers given; nearest ones in channels whose scale their bias raised, for which others were meant."""
    limit = 2 ** (dialect.weight_bits - 1) - 1
    if given.shape != nearest.shape or given.dtype != np.int8 or int(np.abs(given.astype(np.int16)).max()) > limit:
        raise ValueError(
            f"rounding of '{node}': int8 {nearest.shape} from {-limit} to {limit} was expected, got {given.dtype} "
            f"{given.shape} from {given.min()} to {given.max()}. It was found for other weights or another dialect."
        )
    return np.where((scales == usual).reshape(-1, *[1] * (nearest.ndim - 1)), given, nearest)


def weight_name(node: str) -> str:
    """The name of the constant that holds the integers of a quantized convolution."""
    return f"edgeseg/{node}/weight/q"


def bias_name(node: str) -> str:
    """The name of the constant that holds the bias of a quantized convolution, where it is not an integer."""
    return f"edgeseg/{node}/bias"


def _declare(model: onnx.ModelProto, domain: str, version: int) -> None:
    from onnx import helper

    if all(opset.domain != domain for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, version))
