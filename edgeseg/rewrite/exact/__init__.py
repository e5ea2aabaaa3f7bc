"""Rewrites that change nothing but the work: each gives the same output as before, up to rounding, and is proven so."""

from __future__ import annotations

from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Protocol

from edgeseg.rewrite.exact import branches, dead, dilated, fold_norm, linear, odd, phase, pointwise, taps, transposed
from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.network import Network
from edgeseg.rewrite.values import Pair


class Apply(Protocol):
    """A rewrite of this package, in place, for images (1, 3, *size); `only`: names of the modules it may touch."""

    def __call__(self, network: Network, size: Pair, only: Container[str] | None = None) -> list[Change]: ...


# Never slower: done always.
ALWAYS: Mapping[str, Apply] = MappingProxyType(
    {
        "fold_norm": fold_norm.apply,
        "linear": linear.apply,
        "taps": taps.apply,
        "pointwise": pointwise.apply,
        "dead": dead.apply,
    }
)
# Exact as well, but whether they are faster is to be measured on the target, for each layer.
OFFERED: Mapping[str, Apply] = MappingProxyType(
    {
        "phase": phase.apply,
        "interleave": phase.interleave,
        "transposed": transposed.apply,
        "branches": branches.apply,
        "split": pointwise.split,
        "odd": odd.apply,
        "dilated": dilated.apply,
    }
)


def exact(network: Network, size: Pair) -> list[Change]:
    """Does all of ALWAYS in place, for images (1, 3, *size), until nothing is left to do; says what was done."""
    changes: list[Change] = []
    while True:
        found = [change for apply in ALWAYS.values() for change in apply(network, size)]
        if not found:
            return changes
        changes += found
