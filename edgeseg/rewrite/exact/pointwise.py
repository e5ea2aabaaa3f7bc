"""1x1 convolutions moved from after an up-sampling to before it, where there are fewer positions.

Each output of nearest, bilinear or bicubic up-sampling (corners aligned or not) is a mean of inputs with weights that
sum to one, at borders too, so what is affine in each position commutes with it, bias included. Nearest up-sampling
only repeats, so pointwise operations in between move along. Of a chain of pieces (nn.Sequential) the first moves, if
it is a 1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Container
from copy import deepcopy
from math import prod

import torch
from torch import fx, nn

from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.exact.graph import (
    AVERAGING,
    NEAREST,
    POINTWISE_,
    aten,
    calls,
    conv_of,
    copy_reading,
    double,
    follow,
    macs,
    module_of,
    name_of,
    new_conv,
    padding_of,
    parts_of_cat,
    place,
    plane,
    propagate,
    replace,
    shape,
    source,
)
from edgeseg.rewrite.network import Network, tidy
from edgeseg.rewrite.values import Pair

RULE = "pointwise"


def apply(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """Moves all 1x1 convolutions that then cost less, in place; `only`: names of modules."""
    return _all(network, size, only, chains=False)


def split(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """The same, and chains that begin with a 1x1 convolution of a concatenation are split too: an addition more, which
    not every runtime does for nothing."""
    return _all(network, size, only, chains=True)


def _all(network: Network, size: Pair, only: Container[str] | None, *, chains: bool) -> list[Change]:
    changes: list[Change] = []
    propagate(network, size)
    while True:
        for node in list(network.graph.nodes):
            if node.op != "call_module" or (only is not None and str(node.target) not in only):
                continue
            change = _move(network, node) or _split(network, node, chains)
            if change is not None:
                changes.append(change)
                break
        else:
            return changes
        tidy(network)
        propagate(network, size)


def below(network: Network, size: Pair) -> dict[str, tuple[float, int]]:
    """For each module called once: what share of the operations of a 1x1 convolution of its input goes, if that
    convolution is moved before the up-sampling or split, and how many outputs it may have for that."""
    propagate(network, size)
    found: dict[str, tuple[float, int]] = {}
    for node in network.graph.nodes:
        if node.op != "call_module" or len(calls(network, node)) != 1 or len(node.all_input_nodes) != 1:
            continue
        above = source(node)
        parts = parts_of_cat(above) or [above]
        small = [part for part in parts if name_of(part) in AVERAGING and len(part.users) == 1 and _grows(part)]
        if not small or len(above.users) != 1:
            continue
        saved = sum(shape(part)[1] * (1 - prod(plane(source(part))) / prod(plane(part))) for part in small)
        most = min(shape(part)[1] for part in small) if len(parts) > 1 else 1 << 30
        found[str(node.target)] = (saved / shape(above)[1], most)
    return found


def _move(network: Network, node: fx.Node) -> Change | None:
    if _first(network, node) is None:
        return None
    between: list[fx.Node] = []
    above = source(node)
    while name_of(above) in POINTWISE_ and len(above.users) == 1 and len(above.all_input_nodes) == 1:
        between.insert(0, above)
        above = source(above)
    if name_of(above) not in (NEAREST if between else AVERAGING) or len(above.users) != 1 or not _grows(above):
        return None
    name = str(node.target)
    _pull_out_first(network, node)
    before = macs(network, [node])
    graph, small = network.graph, source(above)
    at = small
    for step in between:
        at = copy_reading(graph, at, step, at)
    conv = follow(graph, at, str(node.target), at)
    conv.meta["shape"] = (*shape(node)[:2], *plane(small))
    up = copy_reading(graph, conv, above, conv)
    replace(network, node, up)
    says = f"{name} moved before the up-sampling {_sizes(above)}"
    return Change(RULE, (name,), says, before, macs(network, [conv]))


def _split(network: Network, node: fx.Node, chains: bool) -> Change | None:
    """W cat(up(a), b) = up(Wa a) + Wb b, if that also up-samples no more channels than before."""
    conv = _first(network, node)
    chain = isinstance(network.get_submodule(str(node.target)), nn.Sequential)
    if conv is None or conv.groups != 1 or (chain and not chains):
        return None
    cat = source(node)
    parts = parts_of_cat(cat)
    if parts is None or len(cat.users) != 1:
        return None
    small = [
        part
        for part in parts
        if name_of(part) in AVERAGING and _grows(part) and set(part.users) == {cat} and parts.count(part) == 1
    ]
    if not small or conv.out_channels > min(shape(part)[1] for part in small) or len(small) == len(parts) == 1:
        return None
    _pull_out_first(network, node)
    graph, name, before = network.graph, str(node.target), macs(network, [node])
    weights = torch.split(conv.weight.detach().double(), [shape(part)[1] for part in parts], 1)
    rest = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part not in small]
    bias, terms, convs = double(conv.bias), [], []
    with graph.inserting_before(node):
        if rest:
            read = rest[0][0] if len(rest) == 1 else graph.call_function(aten.cat.default, ([p for p, _ in rest], 1))
            alone = new_conv(torch.cat([weight for _, weight in rest], 1), bias, conv)
            terms.append(graph.call_module(place(network, f"{name}_rest", alone), (read,)))
            convs, bias = [terms[0]], None
            terms[0].meta["shape"] = node.meta["shape"]
        for part, weight in zip(parts, weights, strict=True):
            if part in small:
                below = place(network, f"{name}_below", new_conv(weight, bias, conv))
                convs.append(graph.call_module(below, (source(part),)))
                convs[-1].meta["shape"] = (*shape(node)[:2], *plane(source(part)))
                terms.append(copy_reading(graph, convs[-1], part, convs[-1]))
                bias = None
        total = terms[0]
    for term in terms[1:]:
        with graph.inserting_before(node):
            total = graph.call_function(aten.add.Tensor, (total, term))
    says = f"{name} split: the parts that were up-sampled are computed before the up-sampling"
    change = Change(RULE, (name,), says, before, macs(network, convs))
    replace(network, node, total)
    return change


def _first(network: Network, node: fx.Node) -> nn.Conv2d | None:
    """The 1x1 convolution that a node begins with."""
    chain = module_of(network, node, nn.Sequential)
    conv = conv_of(network, node) if chain is None else chain[0] if len(chain) else None
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1) or conv.stride != (1, 1):
        return None
    return conv if padding_of(conv) == (0, 0) else None


def _pull_out_first(network: Network, node: fx.Node) -> None:
    """Of a chain, so that `node` calls its first piece, and a new node the others."""
    chain = module_of(network, node, nn.Sequential)
    if chain is None:
        return
    name = str(node.target)
    shared = len(calls(network, node)) > 1
    pieces = [deepcopy(piece) if shared else piece for piece in chain]
    node.target = place(network, f"{name}_first", pieces[0])
    others = pieces[1] if len(pieces) == 2 else nn.Sequential(*pieces[1:])
    follower = follow(network.graph, node, place(network, f"{name}_others", others), node)
    follower.meta["shape"] = node.meta["shape"]
    node.replace_all_uses_with(follower, lambda user: user is not follower)
    size = shape(node)
    node.meta["shape"] = (size[0], pieces[0].out_channels, *plane(source(node)))


def _grows(up: fx.Node) -> bool:
    (height, width), (new_height, new_width) = plane(source(up)), plane(up)
    return new_height >= height and new_width >= width and (height, width) != (new_height, new_width)


def _sizes(up: fx.Node) -> str:
    (height, width), (new_height, new_width) = plane(source(up)), plane(up)
    return f"{height}x{width} to {new_height}x{new_width}"
