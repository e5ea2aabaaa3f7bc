"""Channels that nothing needs, or whose value is known without a frame, taken out of the convolutions that make them.

A channel goes if each convolution that reads it, through pooling, up-sampling, concatenation and the like, gives it
only zero weights, or if it holds the same number everywhere: a zero is left out, another number becomes part of the
reader's bias if the reader pads nothing. What comes between and has weights per channel (batch norm, depthwise
convolutions) is narrowed along. Channels that a slice or an index leaves out go too. Residual sums, outputs of the
network and modules called several times keep theirs. Sums with what is zero everywhere are no sums.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.exact.graph import (
    AVERAGING,
    POINTWISE_,
    arguments,
    calls,
    constant,
    conv_of,
    double,
    kind_of,
    macs,
    name_of,
    ops,
    padding_of,
    parts_of_cat,
    propagate,
    shape,
)
from edgeseg.rewrite.exact.known import known
from edgeseg.rewrite.network import Network, tidy
from edgeseg.rewrite.values import Pair

RULE = "dead"
# Operations on each channel by itself that need no change when there are fewer.
_CARRYING = (
    POINTWISE_
    | AVERAGING
    | ops("max_pool2d avg_pool2d adaptive_max_pool2d adaptive_avg_pool2d reflection_pad2d replication_pad2d")
)


@dataclass(slots=True)
class _Reach:
    """Where the channels of a convolution go."""

    sinks: list[tuple[fx.Node, fx.Node, int]] = field(default_factory=list)  # module's call, what it reads, first
    narrowed: list[fx.Node] = field(default_factory=list)  # calls of norms and depthwise convolutions on the way
    selects: list[tuple[fx.Node, Tensor]] = field(default_factory=list)  # and the indices (int64) that they take


def apply(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """Removes what is dead, in place; `only`: names of the modules whose outputs may be taken."""
    changes = _unneeded(network, size)
    propagate(network, size)
    while True:
        values = known(network)
        change = _sum_with_zero(network, values, only)
        for node in list(network.graph.nodes) if change is None else ():
            if node.op == "call_module" and (only is None or str(node.target) in only):
                change = _narrow(network, node, values)
            if change is not None:
                break
        if change is None:
            return changes
        changes.append(change)
        tidy(network)
        propagate(network, size)


def _unneeded(network: Network, size: Pair) -> list[Change]:
    """Modules that no output needs."""
    propagate(network, size)
    before = {node: macs(network, [node]) for node in network.graph.nodes if node.op == "call_module"}
    names = {node: str(node.target) for node in before}
    tidy(network)
    left = set(network.graph.nodes)
    kept = {names[node] for node in before if node in left}
    gone = {names[node]: 0 for node in before if node not in left}
    for node, cost in before.items():
        if node not in left:
            gone[names[node]] += cost
    return [
        Change(RULE, (name,), f"{name} {'is called once less' if name in kept else 'makes no output'}", cost, 0)
        for name, cost in gone.items()
    ]


def _sum_with_zero(network: Network, values: dict[fx.Node, Tensor], only: Container[str] | None) -> Change | None:
    if only is not None:
        return None
    for node in network.graph.nodes:
        if name_of(node) != "aten::add" or len(node.all_input_nodes) != 2:
            continue
        first, second = node.args[:2]
        for zero, other in ((first, second), (second, first)):
            if not isinstance(zero, fx.Node) or not isinstance(other, fx.Node) or zero not in values:
                continue
            alone = zero is second or arguments(node)["alpha"] == 1
            if alone and bool((values[zero] == 0).all()) and shape(other) == shape(node):
                says = f"{node.name} added {zero.name}, which is zero everywhere"
                node.replace_all_uses_with(other)
                return Change(RULE, (), says, 0, 0)
    return None


def _narrow(network: Network, node: fx.Node, values: dict[fx.Node, Tensor]) -> Change | None:
    module = network.get_submodule(str(node.target))
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or module.groups != 1 or len(calls(network, node)) > 1:
        return None
    reach = _Reach()
    if not _follow(network, node, 0, module.out_channels, reach):
        return None
    count = module.out_channels
    dead = torch.ones(count, dtype=torch.bool)
    for sink, read, first in reach.sinks:
        dead &= _removable(network, sink, values[read])[first : first + count]
    for _, taken in reach.selects:
        dead[taken] = False
    if bool(dead.all()):
        dead[0] = False
    if not bool(dead.any()):
        return None
    sinks = list(dict.fromkeys(sink for sink, _, _ in reach.sinks))
    chain = [node, *dict.fromkeys(reach.narrowed), *sinks]
    before = macs(network, chain)
    _take_outputs(module, ~dead)
    for between in dict.fromkeys(reach.narrowed):
        _take_both(network, between, ~dead)
    for sink in sinks:
        gone = torch.zeros(shape(sink.all_input_nodes[0])[1], dtype=torch.bool)
        for other, _, first in reach.sinks:
            if other is sink:
                gone[first : first + count] |= dead
        _drop_inputs(network, sink, gone, values[sink.all_input_nodes[0]])
    for select, taken in reach.selects:
        _select_again(network, select, taken, ~dead)
    names = tuple(dict.fromkeys(str(one.target) for one in chain))
    says = f"{int(dead.sum())} of {count} channels of {node.target} are not needed"
    return Change(RULE, names, says, before, macs(network, chain))


# Where channels go


def _follow(network: Network, node: fx.Node, first: int, count: int, reach: _Reach) -> bool:
    """Adds what reads the channels [first, first + count) of a node's result; False if any of it needs them all."""
    for user in node.users:
        name, parts = name_of(user), parts_of_cat(user)
        if user.op == "call_module":
            if not _follow_module(network, user, node, first, count, reach):
                return False
        elif parts is not None:
            start = 0
            for part in parts:
                if part is node and not _follow(network, user, start + first, count, reach):
                    return False
                start += shape(part)[1]
        elif (taken := _selected(network, user, node)) is not None:
            if first or count != shape(node)[1]:
                return False
            reach.selects.append((user, taken))
        elif len(shape(user)) == 4 and len(user.all_input_nodes) == 1 and _carries(user, name):
            if not _follow(network, user, first, count, reach):
                return False
        else:
            return False
    return bool(node.users)


def _carries(user: fx.Node, name: str) -> bool:
    if name == "aten::slice":
        return bool(arguments(user)["dim"] % 4 >= 2)
    if name in ("aten::constant_pad_nd", "aten::pad"):
        return len(arguments(user)["pad"]) <= 4
    return name in _CARRYING


def _follow_module(network: Network, user: fx.Node, node: fx.Node, first: int, count: int, reach: _Reach) -> bool:
    if len(calls(network, user)) > 1:
        return False
    module = network.get_submodule(str(user.target))
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.groups == 1:
        if isinstance(module, nn.Conv2d) and conv_of(network, user) is None:
            return False
        reach.sinks.append((user, node, first))
        return True
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
    if (depthwise or isinstance(module, nn.BatchNorm2d)) and (first, count) == (0, shape(node)[1]):
        reach.narrowed.append(user)
        return _follow(network, user, 0, count, reach)
    return False


def _selected(network: Network, user: fx.Node, node: fx.Node) -> Tensor | None:
    """The channels (int64) that a slice or an index takes."""
    name, count = name_of(user), shape(node)[1] if len(shape(node)) == 4 else 0
    if not count or name not in ("aten::slice", "aten::index_select"):
        return None
    given = arguments(user)
    if given["dim"] % 4 != 1:
        return None
    if name == "aten::slice":
        return torch.arange(count)[slice(given["start"], given["end"], given["step"])] if given["step"] == 1 else None
    return constant(network, given["index"])


def _removable(network: Network, sink: fx.Node, value: Tensor) -> Tensor:
    """bool (Ci): which inputs of a convolution it can do without."""
    module = network.get_submodule(str(sink.target))
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    weight = (
        module.weight.detach().transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else module.weight.detach()
    )
    unread = ~weight.ne(0).any(3).any(2).any(0)
    plain = isinstance(module, nn.Conv2d) and padding_of(module) == (0, 0)
    return unread | (~value.isnan() if plain else value == 0)


# Taking them


def _set(module: nn.Module, name: str, value: Tensor | None) -> None:
    old = getattr(module, name)
    if value is None or (old is None and value is None):
        return
    kind = kind_of(module)
    if isinstance(old, nn.Parameter) or old is None:
        setattr(module, name, nn.Parameter(value.to(kind), requires_grad=False))
    else:
        setattr(module, name, value.to(old.dtype))


def _take_outputs(module: nn.Conv2d | nn.ConvTranspose2d, kept: Tensor) -> None:
    weight = module.weight.detach()
    _set(module, "weight", weight[:, kept] if isinstance(module, nn.ConvTranspose2d) else weight[kept])
    _set(module, "bias", None if module.bias is None else module.bias.detach()[kept])
    module.out_channels = int(kept.sum())


def _take_both(network: Network, node: fx.Node, kept: Tensor) -> None:
    """Of what has one set of weights per channel."""
    module = network.get_submodule(str(node.target))
    names = ["weight", "bias"] if isinstance(module, nn.Conv2d) else ["running_mean", "running_var", "weight", "bias"]
    for name in names:
        value = getattr(module, name)
        _set(module, name, None if value is None else value.detach()[kept])
    count = int(kept.sum())
    if isinstance(module, nn.Conv2d):
        module.in_channels = module.out_channels = module.groups = count
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = count


def _drop_inputs(network: Network, node: fx.Node, gone: Tensor, value: Tensor) -> None:
    module = network.get_submodule(str(node.target))
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    weight = module.weight.detach()
    if isinstance(module, nn.ConvTranspose2d):
        _set(module, "weight", weight[~gone])
    else:
        # What is known and not zero moves into the bias; where all weights are zero it adds nothing.
        held = torch.where(gone & ~value.isnan(), value, 0.0)
        shift = (weight.double().sum((2, 3)) * held).sum(1)
        if bool(shift.any()):
            old = double(module.bias)
            _set(module, "bias", shift if old is None else shift + old)
        _set(module, "weight", weight[:, ~gone])
    module.in_channels = int((~gone).sum())


def _select_again(network: Network, node: fx.Node, taken: Tensor, kept: Tensor) -> None:
    """The same channels, by where they are now."""
    now = (kept.cumsum(0) - 1)[taken]
    if name_of(node) == "aten::slice":
        node.args = (node.args[0], 1, int(now[0]), int(now[0]) + len(now))
    else:
        index = f"{node.name}_index"
        network.register_buffer(index, now)
        with network.graph.inserting_before(node):
            node.args = (node.args[0], 1, network.graph.get_attr(index))
    node.kwargs = {}
