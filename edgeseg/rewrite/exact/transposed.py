"""Transposed convolutions as ordinary ones with depth-to-space, so that the rules for convolutions reach them.

Output o of stride s and padding p is position o + p = s j + r of depth-to-space: its taps are u = s a + r, read from
value j - a. A kernel k becomes one of ceil(k / s) with s * s times the outputs; k = s gives a 1x1 convolution. Where s
does not divide k some taps are zeros, so multiplications may grow: whether it pays is to be measured.
"""

from __future__ import annotations

from collections.abc import Container

from torch import fx, nn

from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.exact.graph import (
    by_group,
    calls,
    crop,
    depth_to_space,
    double,
    first_calls,
    follow,
    macs,
    module_of,
    new_conv,
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

RULE = "transposed"


def apply(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """Rewrites all transposed convolutions, in place, except those with both a stride and a dilation.

    `only`: names of modules.
    """
    changes: list[Change] = []
    propagate(network, size)
    for name, node in first_calls(network, only):
        module = module_of(network, node, nn.ConvTranspose2d)
        if module is None:
            continue
        if any(module.stride[axis] > 1 and module.dilation[axis] > 1 for axis in (0, 1)) or len(shape(node)) != 4:
            continue
        changes.append(_rewrite(network, name, module, calls(network, node)))
    tidy(network)
    propagate(network, size)
    return changes


def _rewrite(network: Network, name: str, module: nn.ConvTranspose2d, nodes: list[fx.Node]) -> Change:
    stride, taps, pads, starts, surplus = pair(module.stride), [], [], [], []
    for axis in (0, 1):
        s, k, d = stride[axis], module.kernel_size[axis], module.dilation[axis]
        p, extra = int(module.padding[axis]), int(module.output_padding[axis])
        w = -(-k // s)
        # Positions before the first and after the last output, in steps of the input; negative: missing.
        end = s * w - (k - p + extra) if d == 1 else p - extra
        spare = min(p // s, end // s, (w - 1) * d)
        taps.append(w)
        pads.append((w - 1) * d - spare)
        starts.append(p - s * spare)
        surplus.append((w - 1) * d - 2 * spare)
    made = _conv(module, pair(taps), pair(pads))
    graph, before, after = network.graph, macs(network, nodes), 0
    target = place(network, f"{name}_conv", made)
    for node in nodes:
        height, width = plane(source(node))
        low = height + surplus[0], width + surplus[1]
        conv = follow(graph, node, target, source(node))
        conv.meta["shape"] = (1, made.out_channels, *low)
        shuffled = depth_to_space(graph, conv, stride, module.out_channels, low)
        have = low[0] * stride[0], low[1] * stride[1]
        last = crop(graph, shuffled, pair(starts), plane(node), have)
        after += macs(network, [conv])
        replace(network, node, last)
    f, g = stride
    says = f"{name} is a {taps[0]}x{taps[1]} convolution with depth-to-space {f}x{g}"
    return Change(RULE, (name,), says, before, after)


def _conv(module: nn.ConvTranspose2d, taps: Pair, pads: Pair) -> nn.Conv2d:
    (f, g), groups = pair(module.stride), module.groups
    weight = by_group(module.weight.detach().double(), groups).transpose(1, 2).flatten(0, 1)
    outputs, inputs = weight.shape[:2]
    phases = weight.new_zeros(outputs, f, g, inputs, *taps)
    for row in range(module.kernel_size[0]):
        for column in range(module.kernel_size[1]):
            (down, i), (right, j) = divmod(row, f), divmod(column, g)
            phases[:, i, j, :, taps[0] - 1 - down, taps[1] - 1 - right] = weight[:, :, row, column]
    bias = double(module.bias)
    return new_conv(
        phases.flatten(0, 2),
        None if bias is None else bias.repeat_interleave(f * g),
        module,
        padding=pads,
        dilation=pair(module.dilation),
        groups=groups,
    )
