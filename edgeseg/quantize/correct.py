"""Bias correction: rounding and clipping shift the mean of every output channel; the bias takes the shift back.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.2, with
measured instead of modelled means (their empirical correction): layer after layer, so that each sees the inputs that
the corrected layers before it give, the mean over frames and positions is brought to that of the FP32 network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import ScaleTable
from edgeseg.graph import Graph
from edgeseg.quantize.dialects import Dialect
from edgeseg.quantize.edges import outputs_of
from edgeseg.quantize.placement import place
from edgeseg.quantize.write import bias_name, quantize
from edgeseg.types import Frames, OnnxModel

Biases = dict[str, NDArray[np.float32]]  # node → bias (K,)
Probe = Callable[[bytes, Sequence[str], Iterable[Frames]], Iterator[Mapping[str, NDArray[Any]]]]


def corrected_biases(
    model: OnnxModel, table: ScaleTable, dialect: Dialect, probe: Probe, frames: Sequence[Frames]
) -> Biases:
    """Biases for the convolutions that the dialect quantizes; those with a computed bias are left out.

    `probe(graph, tensors, frames)` gives the named tensors of a graph for one batch of frames after the other. The
    quantized network is emulated by Q/DQ whatever the dialect writes. Raises ValueError without frames.
    """
    if not frames:
        raise ValueError("bias correction needs at least one frame")
    graph = Graph(model.graph)
    placement = place(graph, dialect)
    outputs: dict[str, str] = {}
    biases: Biases = {}
    for node in graph.nodes:
        if node.name in placement.convolutions:
            own = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
            weights = graph.constant(node.input[1])
            if own is not None and weights is not None:
                outputs[node.name] = node.output[0]
                biases[node.name] = np.broadcast_to(own, outputs_of(node, weights.shape)).astype(np.float32)
    exact = _means(probe(model.graph, list(outputs.values()), frames))
    emulated = replace(dialect, fake=False, integer_bias=False)
    rounded = Graph(quantize(model, table, emulated, placement=placement, bias=biases).graph)
    for node_name, tensor in outputs.items():
        found = _means(probe(rounded.upto(tensor), [tensor], frames))
        biases[node_name] = (biases[node_name] + exact[tensor] - found[tensor]).astype(np.float32)
        rounded.replace_constant(bias_name(node_name), biases[node_name])
    return biases


def _means(probed: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[np.float64]]:
    """The mean of each channel of each tensor (N, K, …) over everything that was probed: float64 (K,)."""
    means: dict[str, NDArray[np.float64]] = {}
    for count, values in enumerate(probed, start=1):
        for tensor, value in values.items():
            mean = value.mean(axis=(0, *range(2, value.ndim)), dtype=np.float64)
            means[tensor] = mean if count == 1 else means[tensor] + (mean - means[tensor]) / count
    return means
