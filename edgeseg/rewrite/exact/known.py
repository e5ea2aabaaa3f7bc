"""What is known without a frame: channels that hold one number at every position, borders included."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from edgeseg.rewrite.exact.affine import affine_of
from edgeseg.rewrite.exact.graph import (
    AVERAGING,
    POINTWISE_,
    arguments,
    by_group,
    conv_of,
    mirrors,
    module_of,
    name_of,
    ops,
    padding_of,
    parts_of_cat,
    shape,
    source,
)
from edgeseg.rewrite.network import Network

# The largest of equal numbers, or their mean, is that number; padding is no part of the former.
_KEEPING = AVERAGING | ops("max_pool2d adaptive_max_pool2d adaptive_avg_pool2d")


def known(network: Network) -> dict[fx.Node, Tensor]:
    """For each node that gives (N, C, H, W): float64 (C), the number that a channel holds everywhere, or NaN."""
    found: dict[fx.Node, Tensor] = {}
    for node in network.graph.nodes:
        whole = shape(node)
        if len(whole) == 4 and node.op in ("call_module", "call_function"):
            value = _value(network, node, found)
            found[node] = torch.full((whole[1],), torch.nan, dtype=torch.float64) if value is None else value
    return found


def _value(network: Network, node: fx.Node, found: dict[fx.Node, Tensor]) -> Tensor | None:
    reads = [found[read] for read in node.all_input_nodes if read in found]
    if (conv := conv_of(network, node)) is not None:
        return _after_conv(conv, reads[0] if reads else None)
    transposed = module_of(network, node, nn.ConvTranspose2d)
    if transposed is not None:
        return _after_transposed(transposed, reads[0] if reads else None)
    parts = parts_of_cat(node)
    if parts is not None:
        nothing = [torch.full((shape(part)[1],), torch.nan, dtype=torch.float64) for part in parts]
        return torch.cat([found.get(part, nan) for part, nan in zip(parts, nothing, strict=True)])
    if not reads:
        return None
    affine = affine_of(network, node)
    if affine is not None and affine.source in found:
        # A scale of zero makes a constant of anything, but of infinities; those are not looked for.
        return torch.where(affine.scale == 0, affine.shift, affine.scale * found[affine.source] + affine.shift)
    name = name_of(node)
    if len(node.all_input_nodes) == 1 and reads[0].shape[0] == shape(node)[1]:
        if name in POINTWISE_:
            return _apply(node, reads[0])
        if name in _KEEPING or mirrors(node) or (name == "aten::slice" and arguments(node)["dim"] % 4 >= 2):
            return reads[0]
        if name == "aten::avg_pool2d":
            given = arguments(node)
            whole = not any(given["padding"]) and not given["ceil_mode"] and given["divisor_override"] is None
            return reads[0] if whole else _only_zero(reads[0])
        if name in ("aten::constant_pad_nd", "aten::pad"):
            given = arguments(node)
            return _only_zero(reads[0]) if (given["value"] or 0) == 0 else None
    if name in ("aten::add", "aten::mul") and len(reads) == 2:
        first, second = (found[read] for read in node.all_input_nodes)
        if all(shape(read) == shape(node) for read in node.all_input_nodes):
            return first * second if name == "aten::mul" else first + float(arguments(node)["alpha"]) * second
    return None


def _apply(node: fx.Node, value: Tensor) -> Tensor:
    """A pointwise operation on the numbers; what is not known stays so, whatever the operation makes of NaN."""
    assert callable(node.target)
    args = [value.clone() if argument is source(node) else argument for argument in node.args]
    return torch.where(value.isnan(), value, node.target(*args, **node.kwargs))


def _only_zero(value: Tensor) -> Tensor:
    return torch.where(value == 0, value, torch.nan)


def _after_conv(conv: nn.Conv2d, read: Tensor | None) -> Tensor:
    weight = conv.weight.detach().double()
    constant = torch.full((conv.in_channels,), torch.nan, dtype=torch.float64) if read is None else read
    if padding_of(conv) != (0, 0):
        constant = _only_zero(constant)
    each = constant.reshape(conv.groups, 1, -1).expand(-1, weight.shape[0] // conv.groups, -1).flatten(0, 1)
    return _sum(weight.sum((2, 3)), weight.ne(0).any(3).any(2), each, conv.bias)


def _after_transposed(module: nn.ConvTranspose2d, read: Tensor | None) -> Tensor:
    weight = by_group(module.weight.detach().double(), module.groups).transpose(1, 2).flatten(0, 1)
    constant = torch.full((module.in_channels,), torch.nan, dtype=torch.float64) if read is None else _only_zero(read)
    each = constant.reshape(module.groups, 1, -1).expand(-1, weight.shape[0] // module.groups, -1).flatten(0, 1)
    return _sum(weight.sum((2, 3)), weight.ne(0).any(3).any(2), each, module.bias)


def _sum(taps: Tensor, read: Tensor, each: Tensor, bias: Tensor | None) -> Tensor:
    """taps, read (whether any tap is not zero) and the known inputs `each`, all (Co, Ci / groups)."""
    total = torch.where(read, taps * each, 0.0).sum(1)
    return total if bias is None else total + bias.detach().double()
