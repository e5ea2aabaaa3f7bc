"""How torch's exporters are to write operations that they refuse, or write in a way that engines run badly.

- Adaptive average pooling to a size that does not divide the map (PSPNet): the tracing exporter refuses it, the other
  makes about a hundred Gather and Add of it. It is two products with constant matrices of means.
- Max-unpooling (SegNet) and channel shuffle (ShuffleNet), which the tracing exporter refuses. The scatter that
  max-unpooling becomes here, and by the other exporter, is what unpool.py takes away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OPSET = 13  # from which the operators below are what they are today


def means(length: int, bins: int) -> NDArray[np.float32]:
    """The matrix (bins, length) of adaptive average pooling along one axis: bin i is the mean of a range of values.

    The range goes from floor(i * length / bins) to ceil((i + 1) * length / bins), so neighbours may share a value.
    """
    matrix = np.zeros((bins, length), np.float32)
    for i in range(bins):
        start, end = i * length // bins, -(-(i + 1) * length // bins)
        matrix[i, start:end] = 1.0 / (end - start)
    return matrix


def translations(dynamic: bool) -> dict[Callable[..., Any], Callable[..., Any]]:
    """For torch.onnx.export(dynamo=True): what to write in place of its own. Nothing where sizes are free."""
    if dynamic:
        return {}
    import onnx_ir
    import torch
    from onnxscript import opset18 as op

    def adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
        height, width = (int(length) for length in x.shape[-2:])
        rows, columns = (int(length) for length in output_size)
        if height % rows == 0 and width % columns == 0:
            sides = [height // rows, width // columns]
            return op.AveragePool(x, kernel_shape=sides, strides=sides)
        left = op.Constant(value=onnx_ir.tensor(means(height, rows)))
        right = op.Constant(value=onnx_ir.tensor(np.ascontiguousarray(means(width, columns).T)))
        return op.MatMul(op.MatMul(left, x), right)

    return {torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d}


@contextlib.contextmanager
def symbolics() -> Iterator[None]:
    """For the tracing exporter: it knows these operations in the block, and is as before after it."""
    import torch
    from torch.onnx import symbolic_helper, symbolic_opset9
    from torch.onnx.utils import register_custom_op_symbolic, unregister_custom_op_symbolic

    sizes_of = symbolic_helper._get_tensor_sizes

    def constant(g: Any, value: NDArray[Any]) -> Any:
        return g.op("Constant", value_t=torch.from_numpy(np.ascontiguousarray(value)))

    def numbers(value: Any) -> list[int]:
        return [int(part) for part in symbolic_helper._maybe_get_const(value, "is")]

    def adaptive_avg_pool2d(g: Any, x: Any, output_size: Any) -> Any:
        shape, bins = sizes_of(x), numbers(output_size)
        known = shape is not None and None not in shape[-2:]
        if not known or all(length % count == 0 for length, count in zip(shape[-2:], bins, strict=True)):
            return symbolic_opset9.adaptive_avg_pool2d(g, x, output_size)  # type: ignore[attr-defined]
        rows = g.op("MatMul", constant(g, means(shape[-2], bins[0])), x)
        result = g.op("MatMul", rows, constant(g, means(shape[-1], bins[1]).T))
        result.setType(x.type().with_sizes([*shape[:-2], *bins]))
        return result

    def max_unpool2d(g: Any, x: Any, indices: Any, output_size: Any) -> Any:
        shape, size = sizes_of(x), numbers(output_size)
        zeros = constant(g, np.zeros((*shape[:2], size[0] * size[1]), np.float32))
        flat = constant(g, np.array([shape[0], shape[1], -1], np.int64))
        values, places = (g.op("Reshape", part, flat) for part in (x, indices))
        spread = g.op("ScatterElements", zeros, places, values, axis_i=2)
        result = g.op("Reshape", spread, constant(g, np.array([*shape[:2], *size], np.int64)))
        result.setType(x.type().with_sizes([*shape[:2], *size]))
        return result

    def channel_shuffle(g: Any, x: Any, groups: Any) -> Any:
        _, channels, height, width = sizes_of(x)
        count = int(symbolic_helper._maybe_get_const(groups, "i"))
        apart = constant(g, np.array([-1, count, channels // count, height, width], np.int64))
        turned = g.op("Transpose", g.op("Reshape", x, apart), perm_i=[0, 2, 1, 3, 4])
        result = g.op("Reshape", turned, constant(g, np.array([-1, channels, height, width], np.int64)))
        result.setType(x.type())
        return result

    known = {f.__name__: f for f in (adaptive_avg_pool2d, max_unpool2d, channel_shuffle)}
    for name, function in known.items():
        register_custom_op_symbolic(f"aten::{name}", function, _OPSET)
    try:
        yield
    finally:
        for name in known:
            unregister_custom_op_symbolic(f"aten::{name}", _OPSET)
