"""INT8 weights for TensorRT 8: as FP32 constants behind a QuantizeLinear and a DequantizeLinear.

TensorRT 8 refuses constants of int8 ("invalid weights type of Int8", seen up to 8.4: NVIDIA/TensorRT#2163,
microsoft/onnxruntime#11535; ONNX Runtime has the option AddQDQPairToWeight for it). From 10.0 on, what `quantize`
writes is taken: integers behind a DequantizeLinear, a quarter of the size.
"""

from __future__ import annotations

import numpy as np

from edgeseg.graph import Graph


def paired(graph: bytes) -> bytes:
    """The graph with each int8 constant that is dequantized as the FP32 constant that quantizes to it: exact."""
    from onnx import helper

    whole = Graph(graph)
    added = []
    for node in whole.nodes:
        if node.op_type != "DequantizeLinear":
            continue
        integers, scale = whole.constant(node.input[0]), whole.constant(node.input[1])
        if integers is None or scale is None or integers.dtype != np.int8:
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        shape = [1] * integers.ndim
        if scale.ndim:
            shape[axis] = -1
        stem = f"edgeseg/pairs/{node.output[0]}"
        # Off by less than a rounding of FP32, and so far from the half step that would quantize to another integer.
        values = (integers.astype(np.float32) * scale.astype(np.float32).reshape(shape)).astype(np.float32)
        name = whole.add_constant(f"{stem}/values", values)
        added.append(
            helper.make_node("QuantizeLinear", [name, *node.input[1:]], [f"{stem}/q"], f"{stem}/quantize", axis=axis)
        )
        node.input[0] = f"{stem}/q"
    return whole.finish(added) if added else graph
