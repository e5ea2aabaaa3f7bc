"""Exact rewrites that are not faster everywhere: taken where the whole network, measured on the target, is."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence

from edgeseg.pipeline.rewriting.target import Target
from edgeseg.rewrite.exact import OFFERED
from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.network import Network, layers
from edgeseg.rewrite.values import Pair

FASTER = 0.98  # of the time before: less is within what such a measurement can tell
NOT_SLOWER = 1.03  # enough for what opens the way to approximate rules
# Their dilated convolutions are as fast as plain ones: moving values to phases and back was slower in every layer and
# network tried on them (DeepLabV3 at 180 x 240 and 192 x 256; 256 channels, dilations of 2, 4 and 12, at 23 x 30 and
# 45 x 60), in FP32 by 4 to 107 % on ONNX Runtime and 2 to 54 % on OpenVINO, in INT8 by 6 to 57 %.
_GAPS_COST_NOTHING = ("onnxruntime", "openvino")


def opened(network: Network, size: Pair, target: Target) -> tuple[Network, list[Change]]:
    """Transposed convolutions as convolutions, which the approximate rules can take, unless that is slower."""
    return _taken(network, size, target, ["transposed"], None, NOT_SLOWER)


def finished(network: Network, size: Pair, target: Target) -> tuple[Network, list[Change]]:
    """1x1 convolutions of concatenations split; for those that stayed whole phases, fused branches, odd kernels and,
    where it can pay, no dilation."""
    whole = {layer.name for layer in layers(network, size)}  # those in a chain are in it by their paths
    network, split = _taken(network, size, target, ["split"], None, FASTER)
    offers = ["phase", "interleave", "branches", "odd"]
    if target.engine.backend not in _GAPS_COST_NOTHING:
        offers.append("dilated")
    network, others = _taken(network, size, target, offers, whole, FASTER)
    return network, split + others


def _taken(
    network: Network,
    size: Pair,
    target: Target,
    offers: Sequence[str],
    only: Container[str] | None,
    limit: float,
) -> tuple[Network, list[Change]]:
    changes: list[Change] = []
    graph = None
    for name in offers:
        other = copy.deepcopy(network)
        found = OFFERED[name](other, size, only)
        if not found:
            continue
        graph = graph or target.graph(network)
        changed = target.graph(other)
        before, after = target.together([graph, changed])
        verdict = f"{before:.2f} → {after:.2f} ms"
        if after < limit * before:
            network, graph, changes = other, changed, [*changes, *found]
            target.console.say(f"           {name}: {len(found)} layers, {verdict}")
        else:
            target.console.say(f"           {name}: not taken, {verdict}")
    return network, changes
