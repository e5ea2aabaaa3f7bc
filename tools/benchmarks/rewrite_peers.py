"""The other ways to make a trained network cheaper, each given what ours is given, and a little more where it helps.

All start from the original's weights and are finished alike, by rewrite_making.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rewrite_making import MET, Clock, Made, Method, Start, done, guarded
from benchmarks.rewrite_pruning import pruned
from edgeseg.rewrite.modules import assemble
from edgeseg.rewrite.network import Network, layers, refusal
from edgeseg.rewrite.values import Choice, Conv, Fitted, Layer, Pair, Piece, macs

FEW = 4  # inputs: those of an image. To decompose them saves next to nothing and costs much, so nobody does
Chain = tuple[tuple[Piece, ...], tuple[Tensor, ...]]  # pieces in the place of a convolution, and their weights


# Uniform depthwise separable


def separable(start: Start, shares: Sequence[float]) -> Iterator[Made]:
    """Every k x k convolution but the image's depthwise and pointwise: each channel's kernels by their best rank 1."""
    clock = Clock()
    network = replaced(start.captured, start.size, _separated)
    yield done(start, Made("depthwise separable, SVD", None), network, clock)


def _separated(layer: Layer, weight: Tensor) -> Chain | None:
    conv = layer.conv
    if conv.inputs <= FEW:
        return None
    left, values, right = torch.linalg.svd(weight.double().flatten(2).transpose(0, 1), full_matrices=False)
    filters = right[:, 0].reshape(conv.inputs, 1, *conv.kernel)
    mixed = (left[:, :, 0] * values[:, :1]).T.reshape(conv.outputs, conv.inputs, 1, 1)
    pieces = (replace(conv, outputs=conv.inputs, groups=conv.inputs), Conv(conv.inputs, conv.outputs))
    return (pieces, (filters, mixed)) if macs(pieces, layer.size) < macs((conv,), layer.size) else None


# Tucker-2


def tucker(start: Start, shares: Sequence[float]) -> Iterator[Made]:
    """TensorLy's partial Tucker decomposition of every k x k convolution, ranks one fraction of the channels."""
    tensorly = importlib.import_module("tensorly")
    decompose = importlib.import_module("tensorly.decomposition").partial_tucker
    for share in shares:
        with tensorly.backend_context("pytorch"):  # ten times as fast as its NumPy backend here, and the same numbers
            made = guarded(Made("Tucker-2, TensorLy", share), partial(_tuckered, start, decompose, Clock()))
        yield made


def _tuckered(start: Start, decompose: Any, clock: Clock, made: Made) -> Made:
    assert made.asked is not None
    found = _decomposable(start.captured, start.size)
    fixed = start.work.whole.macs - sum(layer.macs for layer in found)
    aim, best = made.asked, None
    while True:
        fraction = _fraction(found, aim * start.work.whole.macs - fixed)
        ranks = {layer.name: _ranks(layer.conv, fraction) for layer in found}
        network = replaced(start.captured, start.size, partial(_tucked, decompose, ranks))
        note = f"ranks {fraction:.3f} of the channels"
        new = done(start, replace(made, note=note), network, clock)
        assert new.share is not None
        if best is not None and new.share > MET * made.asked:
            return best
        best = new
        if new.share >= 0.97 * made.asked or aim > 1.5 * made.asked:
            return best
        aim *= made.asked / new.share  # exact rewrites made it cheaper than was asked for: it may keep more


def _tucked(decompose: Any, ranks: Mapping[str, Pair], layer: Layer, weight: Tensor) -> Chain | None:
    outer, inner = ranks[layer.name]
    pieces = _tucker_pieces(layer.conv, outer, inner)
    if macs(pieces, layer.size) >= macs((layer.conv,), layer.size):
        return None
    (core, (last, first)), _ = decompose(weight.double(), rank=[outer, inner], modes=[0, 1], init="svd")
    if len(pieces) == 2:  # all channels of the input are kept
        return pieces, (torch.einsum("oikl,ci->ockl", core, first), last[:, :, None, None])
    return pieces, (first.T[:, :, None, None], core, last[:, :, None, None])


def _decomposable(network: Network, size: Pair) -> list[Layer]:
    found = layers(network, size)
    return [layer for layer in found if refusal(_conv(network, layer.name)) is None]


def _fraction(found: Sequence[Layer], budget: float) -> float:
    """The largest fraction of the channels at which all layers together keep to the budget, by bisection."""

    def cost(fraction: float) -> float:
        return sum(_tucker_macs(layer, fraction) for layer in found)

    if cost(0.0) > budget:
        raise ValueError("the budget is below what ranks of 1 need")
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low


def _tucker_macs(layer: Layer, fraction: float) -> float:
    pieces = _tucker_pieces(layer.conv, *_ranks(layer.conv, fraction))
    dense = macs((layer.conv,), layer.size)
    return layer.macs * min(macs(pieces, layer.size), dense) / dense


def _ranks(conv: Conv, fraction: float) -> Pair:
    """(outer, inner)."""
    inner = conv.inputs if conv.inputs <= FEW else max(1, round(fraction * conv.inputs))
    return max(1, round(fraction * conv.outputs)), inner


def _tucker_pieces(conv: Conv, outer: int, inner: int) -> tuple[Piece, ...]:
    last = (replace(conv, inputs=inner, outputs=outer), Conv(outer, conv.outputs))
    return last if inner == conv.inputs else (Conv(conv.inputs, inner), *last)


# Shared


def replaced(
    network: Network,
    size: Pair,
    choose: Callable[[Layer, Tensor], Chain | None],
) -> Network:
    """A copy with chains in the place of the k x k convolutions for which `choose` gives pieces and weights."""
    changed = copy.deepcopy(network)
    for layer in _decomposable(changed, size):
        module = _conv(changed, layer.name)
        chosen = choose(layer, module.weight.detach())
        if chosen is None:
            continue
        pieces, weights = chosen
        bias = module.bias.detach() if module.bias is not None else torch.zeros(layer.conv.outputs)
        fitted = Fitted(weights, torch.empty(0))
        changed.set_submodule(layer.name, assemble(Choice("peer", (), pieces), fitted, bias))
    changed.recompile()
    return changed


def _conv(network: Network, name: str) -> nn.Conv2d:
    module = network.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


PEERS: dict[str, tuple[str, tuple[str, ...], Method]] = {  # name: title, packages, method
    "separable": ("depthwise separable, SVD", (), separable),
    "tucker": ("Tucker-2, TensorLy", ("tensorly",), tucker),
    "l2": (
        "Torch-Pruning, group L2, global",
        ("torch_pruning",),
        pruned("GroupMagnitudeImportance", "Torch-Pruning, group L2, global", globally=True),
    ),
    "l2-uniform": (
        "Torch-Pruning, group L2, uniform",
        ("torch_pruning",),
        pruned("GroupMagnitudeImportance", "Torch-Pruning, group L2, uniform", globally=False),
    ),
    "taylor": (
        "Torch-Pruning, group Taylor, global",
        ("torch_pruning",),
        # Without the normalisation to each group's mean, its default: with it, global Taylor takes whole layers and
        # is worse on the frames held out (0.4 of the operations of the U-Net: agreement 11 instead of 18 %).
        pruned("GroupTaylorImportance", "Torch-Pruning, group Taylor, global", globally=True, normalizer=None),
    ),
}
