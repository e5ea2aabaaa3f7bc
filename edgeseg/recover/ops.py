"""ONNX operators that compute value by value, along an axis, or by matrices, as torch functions.

Positional arguments are the operator's inputs (None: left out), keyword arguments its attributes. Definitions are those
of opsets 13 and newer. What an operator can do and edgeseg's graphs do not raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip  # by onnx.TensorProto.DataType


def add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def sub(a: Tensor, b: Tensor) -> Tensor:
    return a - b


def mul(a: Tensor, b: Tensor) -> Tensor:
    return a * b


def div(a: Tensor, b: Tensor) -> Tensor:
    """Of integers, rounded towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def pow(a: Tensor, b: Tensor) -> Tensor:  # noqa: A001 - the operator's name
    return torch.pow(a, b).to(a.dtype)


def relu(x: Tensor) -> Tensor:
    return functional.relu(x)


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.elu(x, alpha)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def hardswish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)


def softplus(x: Tensor) -> Tensor:
    return functional.softplus(x)


def mish(x: Tensor) -> Tensor:
    return functional.mish(x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return x.softmax(axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return x.log_softmax(axis)


def identity(x: Tensor) -> Tensor:
    return x


def dropout(x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None, *, seed: int = 0) -> Tensor:
    """What it does in a graph that is deployed: nothing."""
    if training is not None and bool(training):
        raise ValueError("Dropout in training mode is not deployed anywhere")
    return x


def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    if to not in DTYPES:
        raise ValueError(f"Cast to the ONNX type {to} is not translated")
    return x.to(DTYPES[to])


def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1) -> Tensor:
    return x.to(like.dtype)


def minimum(*parts: Tensor) -> Tensor:
    return _folded(torch.minimum, parts)


def maximum(*parts: Tensor) -> Tensor:
    return _folded(torch.maximum, parts)


def total(*parts: Tensor) -> Tensor:
    return _folded(torch.add, parts)


def _folded(function: Callable[[Tensor, Tensor], Tensor], parts: Sequence[Tensor]) -> Tensor:
    found = parts[0]
    for part in parts[1:]:
        found = function(found, part)
    return found


def reduce_mean(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0, **old: Sequence[int]
) -> Tensor:
    over = reduced(x, axes, noop_with_empty_axes, old)
    return x.mean(over, keepdim=bool(keepdims)) if over else x


def reduce_sum(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0, **old: Sequence[int]
) -> Tensor:
    over = reduced(x, axes, noop_with_empty_axes, old)
    return x.sum(over, keepdim=bool(keepdims)).to(x.dtype) if over else x


def reduce_max(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0, **old: Sequence[int]
) -> Tensor:
    over = reduced(x, axes, noop_with_empty_axes, old)
    return x.amax(over, keepdim=bool(keepdims)) if over else x


def reduce_min(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0, **old: Sequence[int]
) -> Tensor:
    over = reduced(x, axes, noop_with_empty_axes, old)
    return x.amin(over, keepdim=bool(keepdims)) if over else x


def reduce_l2(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0, **old: Sequence[int]
) -> Tensor:
    over = reduced(x, axes, noop_with_empty_axes, old)
    return x.square().sum(over, keepdim=bool(keepdims)).sqrt() if over else x


def reduced(x: Tensor, axes: Tensor | None, noop: int, old: dict[str, Sequence[int]]) -> list[int]:
    """The axes to reduce: an input from opset 18 on (13 for ReduceSum), an attribute before; all if none are given."""
    if set(old) - {"axes"}:
        raise TypeError(f"attributes {', '.join(sorted(old))} are not translated")
    given = list(old["axes"]) if "axes" in old else [] if axes is None else [int(axis) for axis in axes.tolist()]
    return given or ([] if noop else list(range(x.dim())))


def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """The first of equals. Torch promises none, so equals are told apart here."""
    best = x == x.amax(axis, keepdim=True)
    if select_last_index:
        last = x.shape[axis] - 1
        return last - best.flip(axis).to(torch.uint8).argmax(axis, keepdim=bool(keepdims))
    places = torch.arange(x.shape[axis], device=x.device).view(
        [-1 if d == axis % x.dim() else 1 for d in range(x.dim())]
    )
    return torch.where(best, places, x.shape[axis]).amin(axis, keepdim=bool(keepdims))


def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0,
) -> Tensor:  # fmt: skip
    product = (a.T if transA else a) @ (b.T if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def einsum(*parts: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *parts)


def batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5,
    momentum: float = 0.9, training_mode: int = 0,
) -> Tensor:  # fmt: skip
    if training_mode:
        raise ValueError("BatchNormalization in training mode is not deployed anywhere")
    return functional.batch_norm(x, mean, variance, scale, shift, eps=epsilon)


def instance_norm(x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=shift, eps=epsilon)


def layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    shape = list(x.shape[axis:])
    found = functional.layer_norm(x, shape, eps=epsilon) * scale
    return found if shift is None else found + shift


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Add": add, "And": torch.logical_and, "ArgMax": arg_max, "BatchNormalization": batch_norm,
    "Cast": cast, "CastLike": cast_like, "Ceil": torch.ceil, "Clip": clip, "Cos": torch.cos, "Div": div,
    "Dropout": dropout, "Einsum": einsum, "Elu": elu, "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "Gelu": gelu, "Gemm": gemm, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "HardSigmoid": hard_sigmoid, "HardSwish": hardswish, "Identity": identity,
    "InstanceNormalization": instance_norm, "LayerNormalization": layer_norm, "LeakyRelu": leaky_relu,
    "Less": torch.lt, "LessOrEqual": torch.le, "Log": torch.log, "LogSoftmax": log_softmax, "MatMul": torch.matmul,
    "Max": maximum, "Min": minimum, "Mish": mish, "Mul": mul, "Neg": torch.neg, "Not": torch.logical_not,
    "Or": torch.logical_or, "PRelu": prelu, "Pow": pow, "Reciprocal": torch.reciprocal, "ReduceL2": reduce_l2,
    "ReduceMax": reduce_max, "ReduceMean": reduce_mean, "ReduceMin": reduce_min, "ReduceSum": reduce_sum,
    "Relu": relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Softmax": softmax, "Softplus": softplus, "Sqrt": torch.sqrt, "Sub": sub, "Sum": total, "Tanh": torch.tanh,
    "Where": torch.where,
}  # fmt: skip
