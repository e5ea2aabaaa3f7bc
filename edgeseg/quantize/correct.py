"""Bias correction: rounding the weights shifts the mean of every output channel; the bias takes the shift back.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.2, with
measured instead of modelled means: beside each convolution of the FP32 graph stands one with the same input and the
rounding error of the weights, and what it gives on average over frames and positions (padding included) is the shift.
One pass over a few frames serves all dialects with weights of the same width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.quantize.graph import Graph
from edgeseg.quantize.placement import convolutions
from edgeseg.quantize.weights import rounded

if TYPE_CHECKING:
    import onnx


def shift_graph(graph: bytes, bits: int = 8) -> tuple[bytes, dict[str, str]]:
    """The FP32 graph with a mean shift, float32 (1, K, 1, 1), for each convolution; and {node's name: that tensor}."""
    import onnx
    from onnx import helper

    with_shifts = Graph(graph)
    added: list[onnx.NodeProto] = []
    shifts: dict[str, str] = {}
    for node in list(convolutions(with_shifts)):
        weights = with_shifts.constant(node.input[1])
        assert weights is not None
        integers, scales = rounded(weights, bits)
        error = weights - integers * scales.reshape(-1, *[1] * (weights.ndim - 1))
        twin = onnx.NodeProto.FromString(node.SerializeToString())
        del twin.input[2:]
        twin.input[1] = with_shifts.add_constant(f"{node.name}/rounding", error.astype(np.float32))
        twin.output[0] = f"{node.name}/shifted"
        twin.name = f"{node.name}/shift"
        shifts[node.name] = f"{node.name}/mean_shift"
        added += [twin, helper.make_node("GlobalAveragePool", [twin.output[0]], [shifts[node.name]])]
    return with_shifts.finish(added), shifts


def corrected_biases(
    graph: bytes, shifts: Mapping[str, str], probed: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[np.float32]]:
    """Biases float32 (K,) by node name, with the mean shift over all `probed` frames taken back.

    `probed`: {tensor: value} for one frame after the other, of the tensors that `shift_graph` named.
    """
    total: dict[str, NDArray[np.float64]] = {}
    count = 0
    for values in probed:
        count += 1
        for node, tensor in shifts.items():
            shift = values[tensor].astype(np.float64).mean(axis=0).ravel()
            total[node] = total[node] + shift if node in total else shift
    if not count:
        raise ValueError("bias correction needs at least one frame")
    plain = Graph(graph)
    biases = {}
    for node in convolutions(plain):
        has_bias = len(node.input) > 2 and node.input[2]
        own = plain.constant(node.input[2]) if has_bias else None
        if has_bias and own is None:
            continue  # computed: there is no constant to correct
        biases[node.name] = ((0.0 if own is None else own) + total[node.name] / count).astype(np.float32)
    return biases
