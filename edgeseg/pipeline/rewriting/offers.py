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


def opened(network: Network, size: Pair, target: Target) -> tuple[Network, list[Change]]:
    """Transposed convolutions as convolutions, which the approximate rules can take, unless that is slower."""
    return _taken(network, size, target, ["transposed"], None, NOT_SLOWER)


def finished(network: Network, size: Pair, target: Target) -> tuple[Network, list[Change]]:
    """1x1 convolutions of concatenations split; for those that stayed whole phases, fused branches and odd kernels."""
    whole = {layer.name for layer in layers(network, size)}  # those in a chain are in it by their paths
    network, split = _taken(network, size, target, ["split"], None, FASTER)
    network, others = _taken(network, size, target, ["phase", "interleave", "branches", "odd"], whole, FASTER)
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
