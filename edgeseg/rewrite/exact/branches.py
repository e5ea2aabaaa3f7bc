"""Convolutions that read the same input in the same way, made one.

Their outputs are slices of its output; where they are concatenated right after, in this order and if need be with the
same pointwise operation on each, no slices are needed. The multiplications stay what they were: there are fewer, larger
calls. Convolutions that read the same cannot depend on each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from typing import Any

import torch
from torch import fx, nn

from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.exact.graph import (
    POINTWISE_,
    aten,
    calls,
    conv_of,
    copy_reading,
    macs,
    name_of,
    new_conv,
    padding_of,
    pair,
    parts_of_cat,
    place,
    propagate,
    source,
)
from edgeseg.rewrite.network import Network, tidy
from edgeseg.rewrite.values import Pair

RULE = "branches"


def apply(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """Fuses all such convolutions, in place; `only`: names of modules. Modules called several times are left."""
    changes: list[Change] = []
    propagate(network, size)
    groups: dict[tuple[Any, ...], list[fx.Node]] = defaultdict(list)
    for node in network.graph.nodes:
        conv = conv_of(network, node)
        if conv is None or conv.groups != 1 or (only is not None and str(node.target) not in only):
            continue
        if len(calls(network, node)) == 1:
            groups[source(node), conv.kernel_size, conv.stride, padding_of(conv), conv.dilation].append(node)
    for nodes in groups.values():
        if len(nodes) > 1:
            changes.append(_fuse(network, nodes))
    tidy(network)
    propagate(network, size)
    return changes


def _fuse(network: Network, nodes: list[fx.Node]) -> Change:
    concatenated = _concatenated(nodes)
    nodes = concatenated[1] if concatenated else nodes
    graph, read, cost = network.graph, source(nodes[0]), macs(network, nodes)
    names = tuple(str(node.target) for node in nodes)
    convs = [conv for node in nodes if (conv := conv_of(network, node)) is not None]
    target = place(network, f"{names[0]}_and_{len(nodes) - 1}_more", _stacked(convs))
    first = min(nodes, key=list(graph.nodes).index)
    with graph.inserting_before(first):
        fused = graph.call_module(target, (read,))
    at, begin = fused, 0
    if concatenated:
        cat, _, chains = concatenated
        last = fused
        for step in chains[0]:
            last = copy_reading(graph, last, step, last)
        ends = [chain[-1] if chain else node for node, chain in zip(nodes, chains, strict=True)]
        parts = parts_of_cat(cat)
        assert parts is not None
        start = parts.index(ends[0])
        cat.args = ([*parts[:start], last, *parts[start + len(ends) :]], 1)
        cat.kwargs = {}
        if len(cat.args[0]) == 1:
            cat.replace_all_uses_with(last)
        # Steps that write in place would be kept for that.
        for node, chain in zip(nodes, chains, strict=True):
            for old in (*reversed(chain), node):
                graph.erase_node(old)
    else:
        for node, conv in zip(nodes, convs, strict=True):
            with graph.inserting_after(at):
                at = graph.call_function(aten.slice.Tensor, (fused, 1, begin, begin + conv.out_channels))
            begin += conv.out_channels
            node.replace_all_uses_with(at)
            graph.erase_node(node)
    return Change(RULE, names, f"{', '.join(names)} are one convolution", cost, cost)


def _stacked(convs: list[nn.Conv2d]) -> nn.Conv2d:
    like = convs[0]
    weight = torch.cat([conv.weight.detach().double() for conv in convs])
    bias: torch.Tensor | None = None
    if any(conv.bias is not None for conv in convs):
        zeros = [torch.zeros(conv.out_channels, dtype=torch.float64) for conv in convs]
        bias = torch.cat(
            [
                zero if conv.bias is None else conv.bias.detach().double()
                for conv, zero in zip(convs, zeros, strict=True)
            ]
        )
    padding = padding_of(like)
    assert padding is not None
    return new_conv(
        weight, bias, like, stride=pair(like.stride), padding=padding, dilation=pair(like.dilation), groups=1
    )


def _concatenated(nodes: list[fx.Node]) -> tuple[fx.Node, list[fx.Node], list[list[fx.Node]]] | None:
    """The concatenation that takes all of them side by side, they in its order, and what is done to each before."""
    found = [_to_cat(node) for node in nodes]
    cats = {cat for cat, _ in found}
    cat = found[0][0]
    if len(cats) != 1 or cat is None:
        return None
    parts = parts_of_cat(cat)
    if parts is None or len(set(parts)) != len(parts):
        return None
    kinds = {tuple((step.target, str(step.args[1:]), str(step.kwargs)) for step in chain) for _, chain in found}
    if len(kinds) != 1:
        return None
    ends = [chain[-1] if chain else node for node, (_, chain) in zip(nodes, found, strict=True)]
    order = sorted(range(len(nodes)), key=lambda number: parts.index(ends[number]))
    places = [parts.index(ends[number]) for number in order]
    if places != list(range(places[0], places[0] + len(nodes))):
        return None
    return cat, [nodes[number] for number in order], [found[number][1] for number in order]


def _to_cat(node: fx.Node) -> tuple[fx.Node | None, list[fx.Node]]:
    chain: list[fx.Node] = []
    while len(node.users) == 1:
        user = next(iter(node.users))
        if name_of(user) == "aten::cat":
            return user, chain
        if name_of(user) not in POINTWISE_ or len(user.all_input_nodes) != 1:
            break
        chain.append(user)
        node = user
    return None, []
