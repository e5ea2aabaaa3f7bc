"""Kernels of even size as odd ones, a row or column of zeros larger.

An even kernel has no middle, so each such layer moves what it sees by half a pixel, and runtimes have their fastest
code for 3 x 3 and 5 x 5. The multiplications grow: whether it pays is to be measured. The zeros come after the last tap
where the size of the result allows, else before the first, and what is then too much is cropped.
"""

from __future__ import annotations

from collections.abc import Container

from torch import fx, nn
from torch.nn import functional

from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.exact.graph import (
    calls,
    conv_of,
    crop,
    double,
    first_calls,
    follow,
    macs,
    new_conv,
    padding_of,
    pair,
    place,
    plane,
    propagate,
    replace,
    shape,
    source,
)
from edgeseg.rewrite.network import Network, tidy
from edgeseg.rewrite.values import Pair

RULE = "odd"


def apply(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """Makes all kernels odd that have an even side, in place; `only`: names of modules."""
    changes: list[Change] = []
    propagate(network, size)
    for name, node in first_calls(network, only):
        conv = conv_of(network, node)
        if conv is None or len(shape(node)) != 4:
            continue
        if any(side % 2 == 0 for side in conv.kernel_size):
            changes.append(_rewrite(network, name, conv, calls(network, node)))
    tidy(network)
    propagate(network, size)
    return changes


def _rewrite(network: Network, name: str, conv: nn.Conv2d, nodes: list[fx.Node]) -> Change:
    padding, dilation, stride = padding_of(conv), pair(conv.dilation), pair(conv.stride)
    assert padding is not None
    first, last, pads = [0, 0], [0, 0], list(padding)  # zeros before and after the taps
    for axis in (0, 1):
        k, d = conv.kernel_size[axis], dilation[axis]
        if k % 2:
            continue
        lengths = [(plane(source(node))[axis], plane(node)[axis]) for node in nodes]
        if all((given + 2 * padding[axis] - d * k - 1) // stride[axis] + 1 == wanted for given, wanted in lengths):
            last[axis] = 1
        else:
            first[axis], pads[axis] = 1, padding[axis] + d
    weight = functional.pad(conv.weight.detach().double(), (first[1], last[1], first[0], last[0]))
    made = new_conv(
        weight,
        double(conv.bias),
        conv,
        stride=stride,
        padding=pair(pads),
        dilation=dilation,
        groups=conv.groups,
    )
    graph, before, after = network.graph, macs(network, nodes), 0
    target = place(network, f"{name}_odd", made)
    for node in nodes:
        call = follow(graph, node, target, source(node))
        height, width = (
            (plane(source(node))[axis] + 2 * pads[axis] - dilation[axis] * (made.kernel_size[axis] - 1) - 1)
            // stride[axis]
            + 1
            for axis in (0, 1)
        )
        call.meta["shape"] = (1, made.out_channels, height, width)
        after += macs(network, [call])
        replace(network, node, crop(graph, call, (0, 0), plane(node), (height, width)))
    old, new = ("x".join(map(str, part.kernel_size)) for part in (conv, made))
    return Change(RULE, (name,), f"the {old} kernel of {name} is an odd one of {new}", before, after)
