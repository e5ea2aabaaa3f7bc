"""Taps of a kernel that see nothing but the padding go.

At a fixed size that is so where the dilation reaches past the map, as in the head of DeepLabV3 on small images: a 3 x 3
kernel with a dilation of 36 on a map of 23 x 30 is a 1 x 1 (Chen et al. 2017, arXiv:1706.05587, saw it degenerate so).
Zeros times a weight are zero, so nothing changes but the multiplications.
"""

from __future__ import annotations

from collections.abc import Container

from torch import nn

from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.exact.graph import (
    calls,
    conv_of,
    double,
    first_calls,
    macs,
    new_conv,
    padding_of,
    pair,
    place,
    plane,
    propagate,
    shape,
    source,
)
from edgeseg.rewrite.network import Network, tidy
from edgeseg.rewrite.values import Pair

RULE = "taps"


def apply(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """Cuts the first and last rows and columns of all kernels that see no value of the map, in place.

    `only`: names of modules. One that is called several times loses what none of its calls needs.
    """
    changes: list[Change] = []
    propagate(network, size)
    for name, node in first_calls(network, only):
        conv = conv_of(network, node)
        if conv is None or len(shape(node)) != 4:
            continue
        nodes = calls(network, node)
        lengths = [(plane(source(call)), plane(call)) for call in nodes]
        kept = [_kept(conv, axis, [(given[axis], wanted[axis]) for given, wanted in lengths]) for axis in (0, 1)]
        if all(len(taps) == side for taps, side in zip(kept, conv.kernel_size, strict=True)):
            continue
        before = macs(network, nodes)
        target = place(network, f"{name}_taps", _cut(conv, kept))
        for call in nodes:
            call.target = target
        old, new = ("x".join(map(str, part)) for part in (conv.kernel_size, [len(taps) for taps in kept]))
        says = f"the {old} kernel of {name} is one of {new}: its other taps see nothing but padding"
        changes.append(Change(RULE, (name,), says, before, macs(network, nodes)))
    tidy(network)
    propagate(network, size)
    return changes


def _kept(conv: nn.Conv2d, axis: int, lengths: list[tuple[int, int]]) -> range:
    """From the first tap to the last that sees a value, for lengths of maps before and after; at least one tap."""
    padding = padding_of(conv)
    assert padding is not None
    stride, dilation, sides = conv.stride[axis], conv.dilation[axis], conv.kernel_size[axis]
    seeing = [
        tap
        for tap in range(sides)
        for first in [tap * dilation - padding[axis]]
        if any(any(0 <= first + stride * at < given for at in range(wanted)) for given, wanted in lengths)
    ]
    # What is cut off at the end has to be cut off the padding there, which is as wide as that at the beginning: only
    # as much as both allow.
    less = min(seeing[0], sides - 1 - seeing[-1], padding[axis] // dilation) if seeing else 0
    return range(less, sides - less)


def _cut(conv: nn.Conv2d, kept: list[range]) -> nn.Conv2d:
    padding = padding_of(conv)
    assert padding is not None
    rows, columns = kept
    return new_conv(
        conv.weight.detach().double()[:, :, rows.start : rows.stop, columns.start : columns.stop],
        double(conv.bias),
        conv,
        stride=pair(conv.stride),
        padding=pair(padding[axis] - kept[axis].start * conv.dilation[axis] for axis in (0, 1)),
        dilation=pair(conv.dilation[axis] if len(kept[axis]) > 1 else 1 for axis in (0, 1)),
        groups=conv.groups,
    )
