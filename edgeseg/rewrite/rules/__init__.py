"""The approximate rules by name, one file each: what a layer may become, and how the weights of that are found."""

from __future__ import annotations

from edgeseg.rewrite.rule import Rule
from edgeseg.rewrite.rules.bottleneck import BOTTLENECK
from edgeseg.rewrite.rules.bottleneck_separable import BOTTLENECK_SEPARABLE
from edgeseg.rewrite.rules.factorised import FACTORISED
from edgeseg.rewrite.rules.grouped import GROUPED
from edgeseg.rewrite.rules.pruned import PRUNED
from edgeseg.rewrite.rules.separable import FORKED, SEPARABLE
from edgeseg.rewrite.rules.stacked import STACKED

RULES: dict[str, Rule] = {
    SEPARABLE.name: SEPARABLE,
    FORKED.name: FORKED,
    BOTTLENECK.name: BOTTLENECK,
    BOTTLENECK_SEPARABLE.name: BOTTLENECK_SEPARABLE,
    FACTORISED.name: FACTORISED,
    STACKED.name: STACKED,
    GROUPED.name: GROUPED,
    PRUNED.name: PRUNED,
}
