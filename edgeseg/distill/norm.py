"""Batch norm put back for the time of training, without a change of what the network computes, and folded again.

Where batch norm was folded into the convolutions, their weights have scales that an optimizer's one learning rate does
not suit. With gamma and beta equal to the deviation and mean that a convolution's outputs have, the norm is the
identity, and training works on weights whose scale no longer matters (Ioffe and Szegedy 2015).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

EPS = 1e-5


@dataclass(slots=True)
class _Sums:
    """Of a convolution's outputs, over images and positions: float64 (C)."""

    count: int
    total: Tensor
    squares: Tensor


def insert(network: fx.GraphModule, images: Iterable[Tensor]) -> tuple[fx.GraphModule, dict[str, str]]:
    """A copy with a norm after each chain of convolutions, and the convolution's name by the norm's.

    `images` float32 (N, 3, H, W) give the statistics. Left out are convolutions that another one follows directly,
    those that give the network's outputs, and what is used in both ways. The copy computes what the network computes
    as long as its norms are in eval mode.
    """
    changed = copy.deepcopy(network)
    convs = _places(changed)
    sums = _statistics(changed, sorted(set(convs.values())), images)
    norms: dict[str, str] = {}
    names: dict[str, str] = {}
    for node, conv in convs.items():
        if conv not in names:
            names[conv] = _free(changed, f"recovery_norm_{len(names)}")
            norms[names[conv]] = conv
            changed.add_submodule(names[conv], _identity(sums[conv], _conv(changed, conv)))
        with changed.graph.inserting_after(node):
            made = changed.graph.call_module(names[conv], (node,))
        for user in [user for user in node.users if user is not made]:
            user.replace_input_with(node, made)
    changed.graph.lint()
    changed.recompile()
    return changed, norms


def fold(network: fx.GraphModule, norms: dict[str, str]) -> fx.GraphModule:
    """A copy without the norms that `insert` put there: their running statistics go into the convolutions."""
    folded = copy.deepcopy(network)
    with torch.no_grad():
        for name, conv_name in norms.items():
            norm, conv = folded.get_submodule(name), _conv(folded, conv_name)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            bias = conv.bias.double() if conv.bias is not None else torch.zeros_like(factor)
            bias = (bias - norm.running_mean.double()) * factor + norm.bias.double()
            conv.weight.copy_(conv.weight.double() * factor.view(-1, 1, 1, 1))
            conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
    for node in list(folded.graph.nodes):
        if node.op == "call_module" and node.target in norms:
            node.replace_all_uses_with(node.args[0])
            folded.graph.erase_node(node)
    folded.delete_all_unused_submodules()
    folded.graph.lint()
    folded.recompile()
    return folded


def _places(network: fx.GraphModule) -> dict[fx.Node, str]:
    """The nodes that a norm may follow, each with the name of the convolution that it can be folded into."""
    calls: dict[fx.Node, str] = {}
    for node in network.graph.nodes:
        if node.op == "call_module" and (conv := _last_conv(network, str(node.target))) is not None:
            calls[node] = conv
    last = _giving_outputs(network.graph, calls)
    refused = {
        conv
        for node, conv in calls.items()
        if node in last or not node.users or all(user in calls for user in node.users)
    }
    tied: dict[int, set[str]] = {}  # a convolution of two names, which one norm could not follow everywhere
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            tied.setdefault(id(module.weight), set()).add(name)
    refused |= {name for names in tied.values() if len(names) > 1 for name in names}
    return {node: conv for node, conv in calls.items() if conv not in refused}


def _last_conv(network: nn.Module, name: str) -> str | None:
    module = network.get_submodule(name)
    while isinstance(module, nn.Sequential) and len(module):
        last = [*module._modules][-1]
        name, module = f"{name}.{last}", module[-1]
    return name if type(module) is nn.Conv2d else None


def _giving_outputs(graph: fx.Graph, calls: dict[fx.Node, str]) -> set[fx.Node]:
    """The convolutions from which a way without another one leads to an output."""
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    pending = [node for node in graph.nodes if node.op == "output"]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source in calls:
                found.add(source)
            elif source not in seen:
                seen.add(source)
                pending.append(source)
    return found


def _statistics(network: fx.GraphModule, names: list[str], images: Iterable[Tensor]) -> dict[str, _Sums]:
    sums: dict[str, _Sums] = {}

    def hook(name: str, value: Tensor) -> None:
        wide = value.detach().double()
        new = _Sums(wide.numel() // wide.shape[1], wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)))
        old = sums.get(name)
        sums[name] = (
            new if old is None else _Sums(old.count + new.count, old.total + new.total, old.squares + new.squares)
        )

    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, value, name=name: hook(name, value))
        for name in names
    ]
    with torch.no_grad():
        for image in images:
            network(image)
    for handle in hooks:
        handle.remove()
    return sums


def _identity(sums: _Sums, conv: nn.Conv2d) -> nn.BatchNorm2d:
    """The norm that gives back what it gets, if that has these statistics."""
    mean = sums.total / sums.count
    variance = (sums.squares / sums.count - mean.square()).clamp_min(0.0)
    norm = nn.BatchNorm2d(conv.out_channels, eps=EPS).to(conv.weight.device).eval()
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        # of the rounded statistics, so that the norm is the identity and not nearly so
        norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)
    return norm


def _conv(network: nn.Module, name: str) -> nn.Conv2d:
    conv = network.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    return conv


def _free(network: nn.Module, name: str) -> str:
    while hasattr(network, name):
        name += "_"
    return name
