"""Nearest up-sampling by a whole factor and the convolution after it, done at the low resolution.

A window over repeated values reads each of them several times. With the taps that meet the same value added up, each of
the f x f positions ("phases") between two low-resolution values has a smaller kernel of its own: for a factor of 2 and
3x3 taps four kernels of 2x2, 4/9 of the multiplications. The phases are one transposed convolution whose kernel is the
flipped kernel, fully convolved with f x f ones, or one convolution with f * f times the outputs, depth-to-space and a
crop. Zero padding is exact in both. (The idea is that of sub-pixel convolutions: Shi et al. 2016, arXiv:1609.07009.)

Where the convolution reads a concatenation of up-sampled and other channels, as in U-Nets, it is the sum of two.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn

from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.exact.graph import (
    NEAREST,
    aten,
    by_group,
    conv_of,
    crop,
    depth_to_space,
    double,
    kind_of,
    macs,
    name_of,
    new_conv,
    padding_of,
    pair,
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

RULE = "phase"
Form = Literal["transposed", "interleave"]


@dataclass(frozen=True, slots=True)
class _Part:
    """Channels of the input of a convolution: `read` at low resolution, or (factor (1, 1)) as they are."""

    read: fx.Node
    factor: Pair
    channels: int


def apply(network: Network, size: Pair, only: Container[str] | None = None, form: Form = "transposed") -> list[Change]:
    """Puts all convolutions after an up-sampling for which that saves into one of the forms, in place.

    `only`: names of modules. Left alone are strides, up-sampling by no whole factor, and padding beyond the window.
    """
    changes: list[Change] = []
    propagate(network, size)
    for node in list(network.graph.nodes):
        conv = conv_of(network, node)
        if conv is None or (only is not None and str(node.target) not in only):
            continue
        change = _apply(network, node, conv, form)
        if change is not None:
            changes.append(change)
    tidy(network)
    propagate(network, size)
    return changes


def interleave(network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]:
    """`apply` with one convolution, depth-to-space and a crop."""
    return apply(network, size, only, "interleave")


def _apply(network: Network, node: fx.Node, conv: nn.Conv2d, form: Form) -> Change | None:
    padding, reach = padding_of(conv), _reach(conv)
    assert padding is not None
    if conv.stride != (1, 1) or any(padding[axis] > reach[axis] for axis in (0, 1)):
        return None
    parts = _parts(source(node))
    if all(part.factor == (1, 1) for part in parts) or (len(parts) > 1 and conv.groups != 1):
        return None
    name, before, graph = str(node.target), macs(network, [node]), network.graph
    work = [_work(part, conv, plane(node), form) for part in parts]
    whole = conv.weight.numel() // (conv.in_channels // conv.groups)
    dense = [whole * (part.channels // conv.groups) * plane(node)[0] * plane(node)[1] for part in parts]
    if all(new >= old for part, new, old in zip(parts, work, dense, strict=True) if part.factor != (1, 1)):
        return None
    if sum(work) >= before:
        return None
    weights = torch.split(conv.weight.detach().double(), [part.channels // conv.groups for part in parts], 1)
    bias, terms = double(conv.bias), []
    plain = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.factor == (1, 1)]
    with graph.inserting_before(node):
        if plain:
            reads = [part.read for part, _ in plain]
            read = reads[0] if len(reads) == 1 else graph.call_function(aten.cat.default, (reads, 1))
            rest = new_conv(
                torch.cat([weight for _, weight in plain], 1),
                bias,
                conv,
                padding=padding,
                dilation=pair(conv.dilation),
            )
            terms.append(graph.call_module(place(network, f"{name}_skip", rest), (read,)))
            bias = None
    for part, weight in zip(parts, weights, strict=True):
        if part.factor == (1, 1):
            continue
        make = _transposed if form == "transposed" else _interleaved
        terms.append(make(network, node, conv, part, weight, bias))
        bias = None
    total = terms[0]
    for term in terms[1:]:
        with graph.inserting_before(node):
            total = graph.call_function(aten.add.Tensor, (total, term))
    replace(network, node, total)
    factors = ", ".join(f"{part.factor[0]}x{part.factor[1]}" for part in parts if part.factor != (1, 1))
    return Change(RULE, (name,), f"{name} done before the up-sampling by {factors} ({form})", before, sum(work))


def _reach(conv: nn.Conv2d) -> Pair:
    """From the first tap to the last."""
    return tuple(conv.dilation[axis] * (conv.kernel_size[axis] - 1) for axis in (0, 1))  # type: ignore[return-value]


def _parts(read: fx.Node) -> list[_Part]:
    return [
        _Part(part if factor == (1, 1) else source(part), factor, shape(part)[1])
        for part in parts_of_cat(read) or [read]
        for factor in [_factor(part)]
    ]


def _factor(node: fx.Node) -> Pair:
    """By which whole numbers a nearest up-sampling repeats rows and columns; (1, 1) if it does anything else."""
    if name_of(node) not in NEAREST:
        return (1, 1)
    (height, width), after = plane(source(node)), plane(node)
    if after[0] % height or after[1] % width or after == (height, width):
        return (1, 1)
    factor = after[0] // height, after[1] // width
    # Which value is repeated where is decided in float32 arithmetic: see what it really does.
    rows = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    repeated = rows.repeat_interleave(factor[0], 2).repeat_interleave(factor[1], 3)
    assert callable(node.target)
    with torch.no_grad():
        done = node.target(rows, *node.args[1:], **{key: v for key, v in node.kwargs.items() if key != "input"})
    return factor if torch.equal(done, repeated) else (1, 1)


def _work(part: _Part, conv: nn.Conv2d, after: Pair, form: Form) -> int:
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    products = conv.out_channels * (part.channels // conv.groups)
    if part.factor == (1, 1):
        return products * taps * after[0] * after[1]
    height, width = plane(part.read)
    (f, g), reach = part.factor, _reach(conv)
    if form == "transposed":
        return products * (reach[0] + f) * (reach[1] + g) * height * width
    kernel, padding, _ = _geometry(conv, part.factor)
    places = (height + 2 * padding[0] - kernel[0] + 1) * (width + 2 * padding[1] - kernel[1] + 1)
    return products * f * g * kernel[0] * kernel[1] * places


def _transposed(
    network: Network, node: fx.Node, conv: nn.Conv2d, part: _Part, weight: Tensor, bias: Tensor | None
) -> fx.Node:
    """y[o] = sum_i x[i] V[o + q - f i], where V[e + reach] is the sum of the taps u with 0 <= e + u < f."""
    reach, padding, factor = _reach(conv), padding_of(conv), part.factor
    assert padding is not None
    shapes = [reach[axis] + factor[axis] for axis in (0, 1)]
    spread = weight.new_zeros(*weight.shape[:2], *shapes)
    for row in range(conv.kernel_size[0]):
        for column in range(conv.kernel_size[1]):
            first = reach[0] - row * conv.dilation[0], reach[1] - column * conv.dilation[1]
            tap = weight[:, :, row, column, None, None]
            spread[:, :, first[0] : first[0] + factor[0], first[1] : first[1] + factor[1]] += tap
    apart = by_group(spread, conv.groups).transpose(1, 2).flatten(0, 1)  # (Ci, Co / groups, ...)
    made = nn.ConvTranspose2d(
        part.channels,
        conv.out_channels,
        pair(shapes),
        factor,
        (reach[0] - padding[0], reach[1] - padding[1]),
        groups=conv.groups,
        bias=bias is not None,
        dtype=kind_of(conv),
    )
    with torch.no_grad():
        made.weight.copy_(apart)
        if made.bias is not None and bias is not None:
            made.bias.copy_(bias)
    with network.graph.inserting_before(node):
        return network.graph.call_module(place(network, f"{node.target}_phase", made), (part.read,))


def _geometry(conv: nn.Conv2d, factor: Pair) -> tuple[Pair, Pair, Pair]:
    """Kernel, padding, and first row and column to keep after depth-to-space.

    Position o of the result lies at p + o' = o, o' = f j + slot: the slot's kernel begins at low-resolution value j.
    """
    padding, reach = padding_of(conv), _reach(conv)
    assert padding is not None
    kernel, pads, starts = [], [], []
    for axis in (0, 1):
        f, p, d = factor[axis], padding[axis], reach[axis]
        pad, further = -(-p // f), -(-d // f)  # further: taps after the first
        short = max(further - pad - (d - p) // f, 0)  # positions missing at the end
        kernel.append(further + 1)
        pads.append(pad + short)
        starts.append(f * (pad + short) - p)
    return pair(kernel), pair(pads), pair(starts)


def _interleaved(
    network: Network, node: fx.Node, conv: nn.Conv2d, part: _Part, weight: Tensor, bias: Tensor | None
) -> fx.Node:
    """Slot s of depth-to-space has tap u of the kernel at low-resolution tap floor((s + u) / f)."""
    (f, g), (kernel, padding, start) = part.factor, _geometry(conv, part.factor)
    outputs, inputs = weight.shape[:2]
    phases = weight.new_zeros(outputs, f, g, inputs, *kernel)
    for row in range(conv.kernel_size[0]):
        for column in range(conv.kernel_size[1]):
            for i in range(f):
                for j in range(g):
                    at = (i + row * conv.dilation[0]) // f, (j + column * conv.dilation[1]) // g
                    phases[:, i, j, :, at[0], at[1]] += weight[:, :, row, column]
    made = new_conv(
        phases.flatten(0, 2),
        None if bias is None else bias.repeat_interleave(f * g),
        conv,
        padding=padding,
        groups=conv.groups,
    )
    height, width = plane(part.read)
    low = height + 2 * padding[0] - kernel[0] + 1, width + 2 * padding[1] - kernel[1] + 1
    graph = network.graph
    with graph.inserting_before(node):
        made_node = graph.call_module(place(network, f"{node.target}_phase", made), (part.read,))
    shuffled = depth_to_space(graph, made_node, part.factor, outputs, low)
    return crop(graph, shuffled, start, plane(node), (low[0] * f, low[1] * g))
