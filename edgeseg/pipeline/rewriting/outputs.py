"""Of a network with several outputs, the part that makes the scores: what is deployed, and what a budget is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from edgeseg.errors import ModelError
from edgeseg.export.outputs import pick
from edgeseg.rewrite.network import Network, tidy


@dataclass(frozen=True, slots=True, eq=False)
class _Leaf:
    """Stands for a tensor that the network returns."""

    node: fx.Node

    def dim(self) -> int:
        return 4


def only_scores(network: Network, index: int | str) -> bool:
    """Leave out the outputs that `index` does not name, such as auxiliary heads, and what leads to them alone.

    The scores stay where `index` finds them: in a dict or list without the others. Returns whether anything was left
    out: not where another place would change what `index` means, or where outputs are in something else than dicts,
    lists and tuples.
    """
    (node,) = (node for node in network.graph.nodes if node.op == "output")
    mapped: Any = fx.node.map_aggregate  # typed for what a graph may hold, which a leaf is not
    returned = mapped(node.args[0], lambda part: _Leaf(part) if isinstance(part, fx.Node) else part)
    try:
        wanted, _ = pick(returned, index)
        fewer = _only(returned, wanted)
        found, _ = pick(fewer, index)
    except ModelError:  # what is wrong with the index is said where the scores are asked for
        return False
    if found is not wanted or _leaves(fewer) == _leaves(returned):
        return False
    node.args = (mapped(fewer, lambda part: part.node if isinstance(part, _Leaf) else part),)
    tidy(network)
    return True


def _only(value: Any, wanted: _Leaf) -> Any:
    """The containers on the way to the leaf; in a sequence what is before it stays, so that positions do."""
    if isinstance(value, dict):
        return {key: _only(part, wanted) for key, part in value.items() if _holds(part, wanted)}
    if type(value) in (list, tuple, fx.immutable_collections.immutable_list):
        last = max(at for at, part in enumerate(value) if _holds(part, wanted))
        return type(value)(_only(part, wanted) if _holds(part, wanted) else part for part in value[: last + 1])
    return value


def _holds(value: Any, wanted: _Leaf) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return value is wanted or any(_holds(part, wanted) for part in parts)


def _leaves(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_leaves, value.values()))
    return sum(map(_leaves, value)) if isinstance(value, list | tuple) else 1
