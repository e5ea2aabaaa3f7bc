"""Linear layers as convolutions, so that the rules for convolutions reach them.

Over flattened maps (channels, rows, columns in this order) a linear layer is a convolution as large as the map; over
means of maps, or over maps whose channels were moved last, one of 1x1. What moves or flattens is done after it.
"""

from __future__ import annotations

from collections.abc import Container
from math import prod
from typing import Any

from torch import fx, nn

from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.exact.graph import (
    POINTWISE_,
    arguments,
    aten,
    copy_reading,
    double,
    follow,
    macs,
    module_of,
    name_of,
    new_conv,
    place,
    plane,
    propagate,
    shape,
)
from edgeseg.rewrite.network import Network, tidy
from edgeseg.rewrite.values import Pair

RULE = "linear"
_RESHAPING = frozenset({"aten::view", "aten::reshape", "aten::flatten", "aten::_unsafe_view"})
_TOKENS = 3  # dimensions of (N, positions, C)


def apply(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """Makes convolutions of the linear layers for which that is possible, in place; `only`: names of modules."""
    changes: list[Change] = []
    made: dict[tuple[str, Pair], str] = {}
    done: set[fx.Node] = set()
    propagate(network, size)
    while True:
        for node in list(network.graph.nodes):
            linear = module_of(network, node, nn.Linear)
            if linear is None or node in done or (only is not None and str(node.target) not in only):
                continue
            done.add(node)
            change = _as_conv(network, node, linear, made)
            if change is not None:
                changes.append(change)
                break
        else:
            return changes
        propagate(network, size)
        _cancel(network)
        tidy(network)


def _as_conv(network: Network, node: fx.Node, linear: nn.Linear, made: dict[tuple[str, Pair], str]) -> Change | None:
    layout, between = _climb(node)
    maps = _maps(layout)
    if maps is None:
        return None
    kernel = plane(maps) if len(shape(layout)) == 2 and name_of(layout) != "aten::mean" else (1, 1)
    if linear.in_features != shape(maps)[1] * prod(kernel):
        return None
    before = macs(network, [node])
    name = str(node.target)
    if (name, kernel) not in made:
        weight = linear.weight.detach().double().reshape(linear.out_features, -1, *kernel)
        made[name, kernel] = place(network, f"{name}_conv", new_conv(weight, double(linear.bias), linear))
    graph = network.graph
    flat, given = maps, arguments(layout)
    if name_of(layout) == "aten::mean":
        flat = follow(graph, layout, aten.mean.dim, maps, [2, 3], True)
        at = flat
    else:
        at = layout
    for step in between:
        at = copy_reading(graph, at, step, flat)
        flat = at
    conv = follow(graph, at, made[name, kernel], flat)
    last = conv
    for target, rest in _layout_after(layout, given):
        last = follow(graph, last, target, last, *rest)
    node.replace_all_uses_with(last)
    graph.erase_node(node)
    says = f"{name} over {kernel[0]}x{kernel[1]} of the map is a convolution"
    return Change(RULE, (name,), says, before, before)


def _climb(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Up through operations on single numbers; they too can be done before the layout changes."""
    between: list[fx.Node] = []
    above = node.all_input_nodes[0]
    while name_of(above) in POINTWISE_ and len(above.users) == 1 and len(above.all_input_nodes) == 1:
        between.insert(0, above)
        above = above.all_input_nodes[0]
    if any(name_of(step).endswith("_") for step in between) and len(above.users) > 1:
        return node, []  # it writes into what others read too
    return above, between


def _maps(layout: fx.Node) -> fx.Node | None:
    """The maps (N, C, H, W) that a node brings into the order that a linear layer takes."""
    name = name_of(layout)
    if not layout.all_input_nodes:
        return None
    maps = layout.all_input_nodes[0]
    if name in _RESHAPING:
        whole = shape(maps)
        if len(whole) == 4 and shape(layout) == (whole[0], prod(whole[1:])):
            return maps
        return None
    if name == "aten::mean":
        given = arguments(layout)
        axes = {axis % 4 for axis in given["dim"] or ()}
        plain = not given["keepdim"] and given["dtype"] is None and len(shape(maps)) == 4
        return maps if plain and axes == {2, 3} else None
    if name == "aten::permute" and len(shape(maps)) == 4:
        return maps if [axis % 4 for axis in arguments(layout)["dims"]] == [0, 2, 3, 1] else None
    if _swaps_last(layout):
        return _flattened(maps)
    return None


def _swaps_last(node: fx.Node) -> bool:
    """(N, a, b) to (N, b, a)."""
    if name_of(node) not in ("aten::transpose", "aten::permute") or len(shape(node)) != _TOKENS:
        return False
    given = arguments(node)
    if name_of(node) == "aten::permute":
        return [axis % 3 for axis in given["dims"]] == [0, 2, 1]
    return {given["dim0"] % 3, given["dim1"] % 3} == {1, 2}


def _flattened(node: fx.Node) -> fx.Node | None:
    """The maps (N, C, H, W) of which a node makes (N, C, H * W)."""
    if name_of(node) not in _RESHAPING:
        return None
    maps = node.all_input_nodes[0]
    whole = shape(maps)
    return maps if len(whole) == 4 and shape(node) == (*whole[:2], whole[2] * whole[3]) else None


def _layout_after(layout: fx.Node, given: dict[str, Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    if len(shape(layout)) == 2:
        return [(aten.flatten.using_ints, (1,))]
    if len(shape(layout)) == _TOKENS:
        return [(aten.flatten.using_ints, (2,)), (aten.transpose.int, (1, 2))]
    return [(layout.target, (given["dims"],))]


def _cancel(network: Network) -> None:
    """Moves of dimensions that only undo the one before them."""
    changed = True
    while changed:
        changed = False
        for node in list(network.graph.nodes):
            first = node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None
            if first is None:
                continue
            start: fx.Node | None = None
            if _swaps_last(node) and _swaps_last(first):
                start = first.all_input_nodes[0]
            elif name_of(node) == name_of(first) == "aten::permute":
                inner, outer = arguments(first)["dims"], arguments(node)["dims"]
                order = [inner[axis] % len(inner) for axis in outer]
                start = first.all_input_nodes[0] if order == list(range(len(order))) else None
            elif name_of(node) in _RESHAPING and (maps := _flattened(first)) is not None and shape(maps) == shape(node):
                start = maps
            if start is not None and node.users:
                node.replace_all_uses_with(start)
                changed = True
