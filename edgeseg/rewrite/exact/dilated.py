"""Dilated convolutions without dilation: space-to-batch, a plain convolution, batch-to-space.

With a dilation of d an output sees only inputs whose rows and columns are d apart. The d x d maps of such positions
("phases") lie in the batch then, and each of them is convolved by the same kernel without gaps. For one image
space-to-batch is a reshape, a transposition and a reshape. Chen et al. 2015 (arXiv:1412.7062) compute it so; TensorFlow
once did for every dilated convolution. The multiplications stay what they were, but for sizes that d does not divide:
zeros are put after the last row and column, and what comes of them is cut off.

Layers of one dilation can share the two moves, together with what lies between them and looks at one position at a
time: pointwise operations, norms, 1x1 convolutions, sums and concatenations. So does a long stage of a dilated ResNet.
They do where fewer values are moved so. The zeros after the last row and column are no zeros any more behind a bias, so
there a shared run multiplies by a mask in front of each convolution: it must see zeros, as it would outside of the map.
Where d divides the size no mask is needed.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from itertools import count
from math import prod

import torch
from torch import fx, nn

from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.exact.graph import (
    POINTWISE_,
    aten,
    conv_of,
    crop,
    double,
    follow,
    functional,
    kind_of,
    macs,
    module_of,
    name_of,
    new_conv,
    ops,
    padding_of,
    pair,
    parts_of_cat,
    place,
    plane,
    propagate,
    shape,
    source,
)
from edgeseg.rewrite.network import Network, tidy
from edgeseg.rewrite.values import Pair

RULE = "dilated"
_ARITHMETIC = ops("add add_ sub sub_ mul mul_")
# What behind the last row and column is of no image: these could make an infinity of it, which no mask makes zero.
_UNSAFE = ops("exp exp_ sqrt sqrt_ square square_")


@dataclass(frozen=True, slots=True)
class _Phases:
    """How maps of one size are taken apart."""

    factor: Pair  # the dilation; 1 along an axis with one tap
    plane: Pair
    before: Pair = (0, 0)  # zeros before the first row and column: of the padding, what the factor does not divide

    @property
    def low(self) -> Pair:
        """The size of one phase."""
        return pair(-(-(self.plane[i] + 2 * self.before[i]) // self.factor[i]) for i in (0, 1))

    @property
    def count(self) -> int:
        return prod(self.factor)

    @property
    def complete(self) -> bool:
        """Whether each value of each phase is one of the map."""
        return all(self.low[i] * self.factor[i] == self.plane[i] for i in (0, 1))


@dataclass(frozen=True, slots=True)
class _Run:
    phases: _Phases
    nodes: tuple[fx.Node, ...]  # in the order of the graph


def apply(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """Rewrites all dilated convolutions, in place; `only`: names of modules.

    Left alone are those with a stride, and those whose dilation is as large as the map: there the taps but one of each
    row or column see nothing but padding.
    """
    propagate(network, size)
    seeds: dict[fx.Node, _Phases] = {}
    for node in network.graph.nodes:
        conv = conv_of(network, node)
        if conv is not None and (only is None or str(node.target) in only):
            phases = _phases(node, conv)
            if phases is not None:
                seeds[node] = phases
    runs = _runs(network, seeds)
    names: dict[str, str] = {}  # of the convolution without dilation, by that of the dilated one
    changes = [_rewrite(network, run, seeds, names) for run in runs]
    tidy(network)
    propagate(network, size)
    return changes


def _phases(node: fx.Node, conv: nn.Conv2d) -> _Phases | None:
    factor = pair(conv.dilation[axis] if conv.kernel_size[axis] > 1 else 1 for axis in (0, 1))
    if factor == (1, 1) or conv.stride != (1, 1) or len(shape(node)) != 4:
        return None
    padding, given = padding_of(conv), plane(source(node))
    assert padding is not None
    if any(factor[axis] >= max(given[axis], 2) for axis in (0, 1)):
        return None
    return _Phases(factor, given, pair(padding[axis] % factor[axis] for axis in (0, 1)))


def _runs(network: Network, seeds: dict[fx.Node, _Phases]) -> list[_Run]:
    """The convolutions with what lies between those that can share."""
    order = list(network.graph.nodes)
    sharing = {
        node: phases for node, phases in seeds.items() if plane(node) == phases.plane and phases.before == (0, 0)
    }
    runs = [_Run(phases, (node,)) for node, phases in seeds.items() if node not in sharing]
    taken = set(seeds)
    for phases in dict.fromkeys(sharing.values()):
        own = {node for node, other in sharing.items() if other == phases}
        passing = {
            node for node in order if node in own or (node not in taken and _passes(network, node, phases.plane))
        }
        inside = _inside(network, passing, own, phases)
        taken |= inside
        runs += [_Run(phases, nodes) for nodes in _connected(order, inside)]
    place_of = {node: number for number, node in enumerate(order)}
    return sorted(runs, key=lambda run: place_of[run.nodes[0]])


def _inside(network: Network, passing: set[fx.Node], own: set[fx.Node], phases: _Phases) -> set[fx.Node]:
    """Of the nodes that may be computed of phases those that are: so that the fewest values are moved or masked.

    A minimum cut: on one side is what is computed of phases, on the other what is computed of maps.
    """
    import networkx  # type: ignore[import-untyped]  # comes with torch

    cut = networkx.DiGraph()

    def end(node: fx.Node) -> fx.Node | str:
        return node if node in passing else "maps"

    for node in dict.fromkeys(read for reader in passing for read in (reader, *reader.all_input_nodes)):
        cost = prod(shape(node)[1:])
        if node in own:
            cut.add_edge("phases", node)  # an edge without a capacity is never cut
        elif node in passing:
            cut.add_edge(node, "maps", capacity=1)  # of two ways that move as much that with the shorter run
            if len(node.all_input_nodes) == 1 and conv_of(network, node) is None:
                cut.add_edges_from([(node, end(source(node))), (end(source(node)), node)])  # they may be fused
        for user in node.users:
            cut.add_edge(end(user), ("apart", node))
            cut.add_edge(("together", node), end(user))
        cut.add_edge(("apart", node), end(node), capacity=cost)
        cut.add_edge(end(node), ("together", node), capacity=cost)
        if not phases.complete and node in passing and own.intersection(node.users):
            cut.add_edge(node, ("masked", node), capacity=cost)
            cut.add_edge(("masked", node), "maps")
    _, (inside, _) = networkx.minimum_cut(cut, "phases", "maps")
    return {node for node in passing if node in inside}


def _connected(order: list[fx.Node], nodes: set[fx.Node]) -> list[tuple[fx.Node, ...]]:
    groups: list[set[fx.Node]] = []
    for node in order:
        if node in nodes:
            near = {node, *node.all_input_nodes} & nodes
            touched = [group for group in groups if group & near]
            groups = [group for group in groups if not group & near]
            groups.append(near.union(*touched))
    return [tuple(node for node in order if node in group) for group in groups]


def _passes(network: Network, node: fx.Node, size: Pair) -> bool:
    """Whether it computes each position of maps (N, C, *size) from that position of its inputs alone."""
    if len(shape(node)) != 4 or plane(node) != size or not node.all_input_nodes:
        return False
    if any(len(shape(read)) != 4 or plane(read) != size for read in node.all_input_nodes):
        return False
    conv = conv_of(network, node)
    if conv is not None:
        return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and padding_of(conv) == (0, 0)
    if module_of(network, node, nn.BatchNorm2d) is not None or parts_of_cat(node) is not None:
        return True
    name = name_of(node)
    if name in _ARITHMETIC:
        return all(shape(read) == shape(node) for read in node.all_input_nodes)
    return name in POINTWISE_ - _UNSAFE and len(node.all_input_nodes) == 1


def _rewrite(network: Network, run: _Run, seeds: dict[fx.Node, _Phases], names: dict[str, str]) -> Change:
    graph, phases = network.graph, run.phases
    inside, convs = set(run.nodes), [node for node in run.nodes if conv_of(network, node) is not None]
    layers = tuple(dict.fromkeys(str(node.target) for node in convs))
    dilated = tuple(dict.fromkeys(str(node.target) for node in convs if node in seeds))
    before, after = macs(network, convs), 0
    low: dict[fx.Node, fx.Node] = {}  # what was computed of the maps, of their phases
    clean: set[fx.Node] = set()  # nodes of the phases with zeros wherever there is nothing of the map
    mask: fx.Node | None = None
    for node in run.nodes:
        for read in node.all_input_nodes:
            if read not in low:
                with graph.inserting_before(node):
                    low[read] = _apart(graph, read, phases)
                clean.add(low[read])
        conv = conv_of(network, node)
        if conv is not None and node in seeds:
            given = low[source(node)]
            if not phases.complete and given not in clean:
                with graph.inserting_before(node):
                    mask = mask or graph.get_attr(_mask(network, phases, kind_of(conv)))
                    given = _masked(graph, given, mask, phases, conv.in_channels)
            name = str(node.target)
            if name not in names:
                names[name] = place(network, f"{name}_phases", _plain(conv, phases))
            with graph.inserting_before(node):
                low[node] = graph.call_module(names[name], (given,))
            sides = pair(-(-plane(node)[axis] // phases.factor[axis]) for axis in (0, 1))
        else:
            with graph.inserting_before(node):
                low[node] = graph.node_copy(node, lambda read: low[read])
            if node.op == "call_function":
                low[node].target = functional(node.target)
            sides = phases.low
        if conv is not None:
            after += conv.weight.numel() * phases.count * prod(sides)
        if any(user not in inside for user in node.users):
            whole = _together(graph, low[node], phases.factor, shape(node)[1], sides, plane(node))
            whole.meta["shape"] = shape(node)
            node.replace_all_uses_with(whole, delete_user_cb=lambda user: user not in inside)
    for node in reversed(run.nodes):
        graph.erase_node(node)
    f, g = phases.factor
    listed = dilated[0] if len(dilated) == 1 else f"{dilated[0]} and {len(dilated) - 1} more that share them"
    says = f"{listed}: {f}x{g} phases as a batch, without dilation"
    return Change(RULE, layers, says, before, after)


def _plain(conv: nn.Conv2d, phases: _Phases) -> nn.Conv2d:
    padding = padding_of(conv)
    assert padding is not None
    return new_conv(
        conv.weight.detach().double(),
        double(conv.bias),
        conv,
        padding=pair(padding[axis] // phases.factor[axis] for axis in (0, 1)),
        groups=conv.groups,
    )


def _apart(graph: fx.Graph, node: fx.Node, phases: _Phases) -> fx.Node:
    """(N, C, *plane) to (fh * fw * N, C, *low), after whatever was inserted last."""
    (f, g), (height, width), channels = phases.factor, phases.low, shape(node)[1]
    start = phases.before
    end = [phases.low[i] * phases.factor[i] - phases.plane[i] - start[i] for i in (0, 1)]
    if any((*start, *end)):
        node = graph.call_function(aten.constant_pad_nd.default, (node, [start[1], end[1], start[0], end[0]], 0.0))
    apart = graph.call_function(aten.reshape.default, (node, [-1, channels, height, f, width, g]))
    turned = graph.call_function(aten.permute.default, (apart, [3, 5, 0, 1, 2, 4]))
    return graph.call_function(aten.reshape.default, (turned, [-1, channels, height, width]))


def _together(graph: fx.Graph, node: fx.Node, factor: Pair, channels: int, low: Pair, plane: Pair) -> fx.Node:
    """(fh * fw * N, C, *low) to (N, C, *plane), right after the node."""
    have = (low[0] * factor[0], low[1] * factor[1])
    apart = follow(graph, node, aten.reshape.default, node, [*factor, -1, channels, *low])
    turned = follow(graph, apart, aten.permute.default, apart, [2, 3, 4, 0, 5, 1])
    whole = follow(graph, turned, aten.reshape.default, turned, [-1, channels, *have])
    return crop(graph, whole, (0, 0), plane, have)


def _mask(network: Network, phases: _Phases, kind: torch.dtype) -> str:
    """A buffer (fh * fw, 1, *low): 1 where a value is of the map, 0 elsewhere; gives its name."""
    (f, g), (height, width) = phases.factor, phases.low
    whole = torch.zeros(height * f, width * g, dtype=kind)
    whole[: phases.plane[0], : phases.plane[1]] = 1
    mask = whole.reshape(height, f, width, g).permute(1, 3, 0, 2).reshape(f * g, 1, height, width)
    taken = {name for name, _ in (*network.named_modules(), *network.named_parameters(), *network.named_buffers())}
    wanted = f"mask_{f}x{g}_of_{phases.plane[0]}x{phases.plane[1]}"
    name = next(name for number in count() if (name := f"{wanted}_{number}") not in taken)
    network.register_buffer(name, mask.contiguous())
    return name


def _masked(graph: fx.Graph, node: fx.Node, mask: fx.Node, phases: _Phases, channels: int) -> fx.Node:
    """One mask for every image and channel, which lie next to each other in each phase."""
    flat = graph.call_function(aten.reshape.default, (node, [phases.count, -1, *phases.low]))
    zeroed = graph.call_function(aten.mul.Tensor, (flat, mask))
    return graph.call_function(aten.reshape.default, (zeroed, [-1, channels, *phases.low]))
