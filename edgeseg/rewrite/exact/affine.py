"""Maps that multiply each channel by a number and add one: batch norms, and arithmetic with constants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgeseg.rewrite.exact.graph import arguments, constant, module_of, name_of, shape
from edgeseg.rewrite.network import Network


@dataclass(frozen=True, slots=True)
class Affine:
    """y = scale * x + shift on channels, dimension 1 of x; both float64 (C)."""

    source: fx.Node
    scale: Tensor
    shift: Tensor

    def part(self, start: int, length: int, of: fx.Node) -> Affine:
        end = start + length
        return Affine(of, self.scale[start:end], self.shift[start:end])


def affine_of(network: Network, node: fx.Node) -> Affine | None:
    """What a node does, if it is affine in each channel of (N, C, H, W) or (N, C)."""
    if node.op not in ("call_module", "call_function") or len(shape(node)) not in (2, 4):
        return None
    norm = module_of(network, node, nn.BatchNorm2d)
    if norm is not None:
        if norm.running_mean is None or norm.running_var is None:
            return None
        parts = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return _of_norm(source, *parts, norm.eps)
    name = name_of(node)
    if name == "aten::batch_norm":
        given = arguments(node)
        weight, bias = constant(network, given["weight"]), constant(network, given["bias"])
        mean, variance = constant(network, given["running_mean"]), constant(network, given["running_var"])
        if given["training"] or mean is None or variance is None:
            return None
        if (weight is None) != (given["weight"] is None) or (bias is None) != (given["bias"] is None):
            return None
        return _of_norm(given["input"], weight, bias, mean, variance, float(given["eps"]))
    return _of_arithmetic(network, node, name)


def _of_norm(
    source: fx.Node, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Affine:
    scale = (variance.detach().double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    return Affine(source, scale, shift if bias is None else shift + bias.detach().double())


def _of_arithmetic(network: Network, node: fx.Node, name: str) -> Affine | None:
    if name not in ("aten::mul", "aten::add", "aten::sub", "aten::rsub", "aten::div", "aten::neg"):
        return None
    given = arguments(node)
    first, second = given["self"], given.get("other")
    if given.get("rounding_mode") is not None:
        return None
    if not _is_map(network, first, node):
        if name in ("aten::rsub", "aten::div", "aten::neg") or not _is_map(network, second, node):
            return None
        assert isinstance(second, fx.Node)
        if name == "aten::sub":  # constant - alpha * x
            value = _per_channel(network, first, node)
            alpha = float(given.get("alpha", 1))
            return None if value is None else Affine(second, torch.full_like(value, -alpha), value)
        if name == "aten::add" and given.get("alpha", 1) != 1:
            return None
        first, second = second, first
    if name == "aten::neg":
        ones = torch.ones(shape(node)[1], dtype=torch.float64)
        return Affine(first, -ones, 0 * ones)
    value = _per_channel(network, second, node)
    if value is None:
        return None
    if name == "aten::mul":
        return Affine(first, value, torch.zeros_like(value))
    if name == "aten::div":
        return Affine(first, 1 / value, torch.zeros_like(value)) if bool(value.ne(0).all()) else None
    if name == "aten::rsub":  # constant - alpha * x
        return Affine(first, torch.full_like(value, -float(given["alpha"])), value)
    alpha = float(given.get("alpha", 1)) * (-1 if name == "aten::sub" else 1)
    return Affine(first, torch.ones_like(value), alpha * value)


def _is_map(network: Network, value: object, node: fx.Node) -> bool:
    return isinstance(value, fx.Node) and constant(network, value) is None and shape(value) == shape(node)


def _per_channel(network: Network, value: object, node: fx.Node) -> Tensor | None:
    """float64 (C) from a number, or from a constant that differs along the channels alone."""
    channels, dimensions = shape(node)[1], len(shape(node))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.full((channels,), float(value), dtype=torch.float64)
    tensor = constant(network, value)
    if tensor is None or tensor.is_complex() or tensor.dtype == torch.bool or tensor.dim() > dimensions:
        return None
    kind = next((part.dtype for part in network.parameters()), tensor.dtype)
    if tensor.dim() and torch.promote_types(tensor.dtype, kind) != kind:  # it makes the result wider than the map
        return None
    full = tensor.reshape((1,) * (dimensions - tensor.dim()) + tuple(tensor.shape))
    if any(length != 1 for axis, length in enumerate(full.shape) if axis != 1) or full.shape[1] not in (1, channels):
        return None
    return full.flatten().double().expand(channels).clone()
