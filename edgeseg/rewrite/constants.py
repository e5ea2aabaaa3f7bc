"""What in a graph does not depend on the image: tensors that the network holds, and what is computed from them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from edgeseg.rewrite.tracing import fetch


class Constants:
    """The constant nodes of one graph. Values are computed when they are asked for, once."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._values: dict[fx.Node, Any] = {}
        self._roots: dict[fx.Node, frozenset[fx.Node]] = {}
        self._constant: set[fx.Node] = set()
        held: dict[Any, fx.Node] = {}
        for node in list(module.graph.nodes):
            if node.op == "get_attr":
                value = fetch(module, node.target)
                first = held.setdefault(_same(value), node)  # one node for each tensor: tracing makes one for each use
                if first is not node:
                    node.replace_all_uses_with(first)
                    module.graph.erase_node(node)
                    continue
                self._values[node] = value
                self._roots[node] = frozenset([node])
                self._constant.add(node)
            elif _computes(node) and all(part in self._constant for part in node.all_input_nodes):
                self._roots[node] = frozenset[fx.Node]().union(*(self._roots[part] for part in node.all_input_nodes))
                self._constant.add(node)

    def is_constant(self, node: Any) -> bool:
        return node in self._constant

    def value(self, node: fx.Node) -> Any:
        if node not in self._values:
            arguments, options = fx.map_arg((node.args, node.kwargs), self.value)
            assert callable(node.target)
            with torch.no_grad():
                self._values[node] = node.target(*arguments, **options)
        return self._values[node]

    def roots(self, node: fx.Node) -> frozenset[fx.Node]:
        """The held tensors (get_attr nodes) that it is computed from."""
        return self._roots[node]

    def same(self, node: fx.Node | None) -> Any:
        """Equal for nodes that are the same held tensor, or computed from the same in the same way."""
        if node is None or node.op == "get_attr":
            return node
        return (node.target, repr(node.args), repr(node.kwargs), *(self.same(part) for part in node.all_input_nodes))


def place_of(value: Any) -> Any:
    """Where a tensor lies: equal for tensors that begin at the same place in memory."""
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.numel():
        return value.data_ptr()
    return id(value)


def _same(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return (place_of(value), tuple(value.shape), value.stride(), value.dtype, isinstance(value, nn.Parameter))
    return id(value)


def _computes(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and not node.target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in node.target.tags
    )
