"""Batch norms, and arithmetic with constants, folded into the convolutions before or after them.

Before: exact always. What lies between may move values about (nearest up-sampling, cropping, mirrored borders), average
them with weights that sum to one (bilinear up-sampling), or take a largest (if no scale is negative); a concatenation
takes each part of the norm to the producer of that part. After: exact if the convolution pads nothing, or if the norm
only scales; with a shift and zero padding it is not, as the border would have to be -shift/scale, and is left.
"""

from __future__ import annotations

from collections.abc import Container
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgeseg.rewrite.exact.affine import Affine, affine_of
from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.exact.graph import (
    AVERAGING,
    arguments,
    by_group,
    calls,
    conv_of,
    follow,
    kind_of,
    macs,
    mirrors,
    module_of,
    name_of,
    ops,
    padding_of,
    parts_of_cat,
    place,
    propagate,
    shape,
    source,
)
from edgeseg.rewrite.network import Network, tidy
from edgeseg.rewrite.values import Pair

RULE = "fold_norm"
_MOVING = ops("dropout feature_dropout clone alias detach contiguous adaptive_avg_pool2d")
_LARGEST = ops("max_pool2d adaptive_max_pool2d")


@dataclass(frozen=True, slots=True)
class _Into:
    """A module that takes an affine map, or a node whose result has to be mapped, and the map."""

    node: fx.Node
    affine: Affine
    reader: fx.Node  # of the node's result, on the way to the norm


def apply(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """Folds what can be folded, in place; `only`: names of the norms' modules (arithmetic: of their nodes)."""
    changes: list[Change] = []
    propagate(network, size)
    found = True
    while found:
        found = False
        for node in list(network.graph.nodes):
            affine = affine_of(network, node) if node.users else None  # what is folded has none
            if affine is None or (only is not None and _label(node) not in only):
                continue
            change = _backward(network, node, affine) or _forward(network, node, affine)
            if change is not None:
                changes.append(change)
                found = True
        tidy(network)
    return changes


def _label(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _change(network: Network, node: fx.Node, into: list[fx.Node], rest: str = "") -> Change:
    names = tuple(dict.fromkeys(str(other.target) for other in into))
    what = (*names, str(node.target)) if node.op == "call_module" else names
    cost = macs(network, into)
    return Change(RULE, what, f"{_label(node)} folded into {', '.join(names)}{rest}", cost, cost)


# Into what comes before


def _backward(network: Network, node: fx.Node, affine: Affine) -> Change | None:
    shared = _shared_pair(network, node, affine)
    if shared is not None:
        return shared
    into: list[_Into] = []
    left: list[_Into] = []
    _absorb(network, affine, node, into, left)
    if not into or (left and module_of(network, node, nn.BatchNorm2d) is None):
        return None
    names = {str(one.node.target) for one in into}
    if len(names) < len(into):  # one module called twice before one concatenation, with different parts
        return None
    change = _change(network, node, [one.node for one in into], ", the rest of it kept" if left else "")
    for one in into:
        _own(network, one.node)
        _scale_outputs(network, one.node, one.affine)
    for one in left:
        _keep_part(network, node, one)
    node.replace_all_uses_with(affine.source)
    network.graph.erase_node(node)
    return change


def _shared_pair(network: Network, node: fx.Node, affine: Affine) -> Change | None:
    """A convolution and a norm that are called as a pair, several times."""
    producer = affine.source
    if node.op != "call_module" or producer.op != "call_module" or not _takes(network, producer):
        return None
    norms, producers = calls(network, node), calls(network, producer)
    if len(producers) < 2 or {source(norm) for norm in norms} != set(producers) or len(norms) != len(producers):
        return None
    if any(len(other.users) != 1 for other in producers):
        return None
    change = _change(network, node, [producer], ", in all their calls")
    _scale_outputs(network, producer, affine)
    for norm in norms:
        norm.replace_all_uses_with(source(norm))
        network.graph.erase_node(norm)
    return change


def _takes(network: Network, node: fx.Node) -> bool:
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.Linear):
        return len(shape(node)) == 2
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d)


def _absorb(network: Network, affine: Affine, reader: fx.Node, into: list[_Into], left: list[_Into]) -> None:
    """Sorts the parts of an affine map of `affine.source` into modules that take them and nodes that cannot."""
    node = affine.source
    if len(node.users) == 1:
        if _takes(network, node):
            into.append(_Into(node, affine, reader))
            return
        parts = parts_of_cat(node)
        inner: tuple[list[_Into], list[_Into]] = ([], [])
        if parts is not None and len(set(parts)) == len(parts):
            start = 0
            for part in parts:
                length = shape(part)[1]
                _absorb(network, affine.part(start, length, part), node, *inner)
                start += length
        elif _commutes(node, name_of(node), affine):
            _absorb(network, Affine(source(node), affine.scale, affine.shift), node, *inner)
        if inner[0]:
            into += inner[0]
            left += inner[1]
            return
    left.append(_Into(node, affine, reader))


def _commutes(node: fx.Node, name: str, affine: Affine) -> bool:
    """Whether affine maps of the channels may as well come before this node."""
    if len(shape(node)) != 4 or len(node.all_input_nodes) != 1 or len(shape(source(node))) != 4:
        return False
    if name in AVERAGING or name in _MOVING or mirrors(node):
        return True
    if name in _LARGEST:
        return bool((affine.scale >= 0).all())
    if name == "aten::slice":
        return bool(arguments(node)["dim"] % 4 >= 2)
    if name == "aten::avg_pool2d":
        given = arguments(node)
        padded = any(given["padding"]) or given["ceil_mode"]
        return not padded or (not given["count_include_pad"] and given["divisor_override"] is None)
    if name == "aten::mean":
        given = arguments(node)
        return {axis % 4 for axis in given["dim"] or ()} == {2, 3} and bool(given["keepdim"])
    return False


def _own(network: Network, node: fx.Node) -> None:
    """A copy of the module for this call alone, if others call it too."""
    if len(calls(network, node)) > 1:
        name = str(node.target)
        node.target = place(network, name, deepcopy(network.get_submodule(name)))


def _scale_outputs(network: Network, node: fx.Node, affine: Affine) -> None:
    module = network.get_submodule(str(node.target))
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d)
    if isinstance(module, nn.BatchNorm2d) and not module.affine:
        assert module.running_mean is not None
        ones, module.affine = torch.ones_like(module.running_mean), True
        module.weight, module.bias = nn.Parameter(ones, False), nn.Parameter(0 * ones, False)
    weight = module.weight.detach().double()
    if isinstance(module, nn.ConvTranspose2d):  # (Ci, Co / groups, kh, kw)
        apart = by_group(weight, module.groups)
        scaled = (apart * affine.scale.reshape(module.groups, 1, -1, 1, 1)).flatten(0, 1)
    else:
        scaled = weight * affine.scale.reshape(-1, *[1] * (weight.dim() - 1))
    shift = affine.shift
    if module.bias is not None:
        shift = shift + module.bias.detach().double() * affine.scale
    _write(module, scaled, shift)


def _write(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d, weight: Tensor, bias: Tensor) -> None:
    kind = kind_of(module)
    module.weight = nn.Parameter(weight.to(kind), requires_grad=False)
    module.bias = nn.Parameter(bias.to(kind), requires_grad=False)


def _keep_part(network: Network, node: fx.Node, left: _Into) -> None:
    """A norm of its own for the part of a concatenation that no convolution makes."""
    norm = nn.BatchNorm2d(len(left.affine.scale), eps=0.0, dtype=kind_of(network))
    with torch.no_grad():
        norm.weight.copy_(left.affine.scale)
        norm.bias.copy_(left.affine.shift)
    name = place(network, f"{node.target}_rest", norm)
    made = follow(network.graph, left.node, name, left.node)
    made.meta["shape"] = left.node.meta["shape"]
    left.reader.replace_input_with(left.node, made)


# Into what comes after


def _forward(network: Network, node: fx.Node, affine: Affine) -> Change | None:
    sinks: list[_Into] = []
    if not node.users or not _spread(network, node, affine, sinks) or len({one.node for one in sinks}) < len(sinks):
        return None
    change = _change(network, node, [one.node for one in sinks])
    for one in sinks:
        _own(network, one.node)
        _scale_inputs(network, one.node, one.affine)
    node.replace_all_uses_with(affine.source)
    network.graph.erase_node(node)
    return change


def _spread(network: Network, node: fx.Node, affine: Affine, sinks: list[_Into]) -> bool:
    """Finds all modules that read the result; False if something else reads it."""
    for user in node.users:
        if user.op == "call_module":
            if not _takes_inputs(network, user, affine):
                return False
            sinks.append(_Into(user, affine, user))
            continue
        parts = parts_of_cat(user)
        if parts is not None and parts.count(node) == 1:
            before = sum(shape(part)[1] for part in parts[: parts.index(node)])
            rest = shape(user)[1] - before - len(affine.scale)
            pads = affine.scale.new_ones(before), affine.scale.new_ones(rest)
            scale = torch.cat([pads[0], affine.scale, pads[1]])
            shift = torch.cat([0 * pads[0], affine.shift, 0 * pads[1]])
        elif _commutes(user, name_of(user), affine):
            scale, shift = affine.scale, affine.shift
        else:
            return False
        if not _spread(network, user, Affine(user, scale, shift), sinks):
            return False
    return bool(node.users)


def _takes_inputs(network: Network, node: fx.Node, affine: Affine) -> bool:
    module = network.get_submodule(str(node.target))
    if isinstance(module, nn.Linear):
        return len(shape(source(node))) == 2
    conv = conv_of(network, node)
    if conv is not None:
        return padding_of(conv) == (0, 0) or not bool(affine.shift.any())
    return isinstance(module, nn.ConvTranspose2d) and not bool(affine.shift.any())


def _scale_inputs(network: Network, node: fx.Node, affine: Affine) -> None:
    module = network.get_submodule(str(node.target))
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    weight = module.weight.detach().double()
    if isinstance(module, nn.ConvTranspose2d):
        outputs = module.out_channels
        scaled, shift = weight * affine.scale[:, None, None, None], weight.new_zeros(outputs)
    elif isinstance(module, nn.Linear):
        scaled, shift = weight * affine.scale, weight @ affine.shift
    else:
        apart = by_group(weight, module.groups)  # (groups, Co / groups, Ci / groups, kh, kw)
        scale = affine.scale.reshape(module.groups, 1, -1, 1, 1)
        shift = (apart * affine.shift.reshape(module.groups, 1, -1, 1, 1)).sum((2, 3, 4)).flatten()
        scaled = (apart * scale).flatten(0, 1)
    if module.bias is None and not bool(shift.any()):
        module.weight = nn.Parameter(scaled.to(kind_of(module)), requires_grad=False)
        return
    _write(module, scaled, shift if module.bias is None else shift + module.bias.detach().double())
