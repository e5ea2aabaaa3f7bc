"""Selecting options under a budget, against trying every combination."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from edgeseg.errors import BadInput
from edgeseg.rewrite.select import BINS, Option, Selection, frontier, select

Layers = list[list[Option]]


def random_layers(seed: int, count: int = 4, most: int = 5, whole: bool = False) -> Layers:
    """Layers of 1 to `most` options, among them dominated ones, ties and ones dearer than to keep."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(count):
        keep = rng.uniform(1, 10)
        options = [Option("keep", 0.0, round(keep) if whole else keep)]
        for index in range(rng.integers(0, most)):
            cost, damage = keep * rng.uniform(0, 1.3), rng.exponential()
            options.append(Option(f"{index}", round(damage, 1), round(cost) if whole else cost))
        layers.append(options)
    return layers


def total(layers: Layers, picks: tuple[int, ...]) -> tuple[float, float]:
    chosen = [options[pick] for options, pick in zip(layers, picks, strict=True)]
    return math.fsum(o.damage for o in chosen), math.fsum(o.cost for o in chosen)


def every(layers: Layers) -> list[tuple[float, float]]:
    return [total(layers, picks) for picks in itertools.product(*[range(len(options)) for options in layers])]


def least_damage(layers: Layers, budget: float) -> float:
    return min(damage for damage, cost in every(layers) if cost <= budget)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("whole", [False, True])
def test_no_combination_is_better(seed: int, whole: bool) -> None:
    layers = random_layers(seed, whole=whole)
    smallest = min(cost for _, cost in every(layers))
    keep = sum(options[0].cost for options in layers)
    for share in (0.0, 0.1, 0.35, 0.6, 0.9, 1.0, 2.0):
        budget = smallest + share * (keep - smallest)
        found = select(layers, budget + 3.0, fixed=3.0)
        damage, cost = total(layers, found.picks)
        assert found.damage == pytest.approx(damage)
        assert found.cost == pytest.approx(cost + 3.0)
        assert found.cost <= budget + 3.0 + 1e-7
        # at most what a budget smaller by a bin for each layer allows, and never less than the optimum
        tight = max(budget - len(layers) * max(budget - smallest, 0.0) / BINS, smallest)
        assert least_damage(layers, budget + 1e-7) - 1e-9 <= found.damage <= least_damage(layers, tight) + 1e-9


def test_a_bin_for_each_layer_is_all_that_rounding_costs() -> None:
    """Costs that no grid meets, and a budget that only their exact sum fits."""
    layers = [[Option("keep", 0.0, 10.0), Option("third", 1.0, 10 / 3 + at / 7)] for at in range(6)]
    whole = sum(options[0].cost for options in layers[:3]) + sum(options[1].cost for options in layers[3:])
    assert select(layers, whole * (1 + 1e-6)).damage == 3.0
    assert select(layers, whole * (1 - 1e-2)).damage >= 3.0


def test_what_is_not_cheaper_is_never_chosen() -> None:
    keep = Option("keep", 0.0, 5.0)
    layers = [
        [keep, Option("slower", 0.0, 6.0), Option("level", 0.0, 5.0)],
        [keep, Option("negative", 0.5, -1.0), Option("slower and worse", 0.1, 5.5)],
        [keep],
    ]
    assert select(layers, 100.0).picks == (0, 0, 0)
    assert select(layers, 9.5).picks == (0, 1, 0)
    assert select([[keep, Option("as good", 0.0, 4.0)]], 100.0).picks == (1,)
    assert select([[keep, Option("unmeasured", 0.1, math.inf), Option("broken", math.inf, 1.0)]], 100.0).picks == (0,)


def test_an_impossible_budget_says_what_is_possible() -> None:
    layers = [[Option("keep", 0.0, 5.0), Option("half", 1.0, 2.5)]] * 2
    with pytest.raises(BadInput, match=re.escape("wanted at most 5.9 ms; the smallest that can be reached is 6 ms")):
        select(layers, 5.9, fixed=1.0, unit="ms")
    assert select(layers, 6.0, fixed=1.0, unit="ms").picks == (1, 1)
    with pytest.raises(BadInput, match="Ask for at least 5,"):
        frontier(layers, [20.0, 1.0])
    with pytest.raises(BadInput):
        select([[Option("keep", 0.0, 1.0), Option("broken", math.inf, 0.1)]], 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_many_budgets_at_once(seed: int) -> None:
    layers = random_layers(seed, count=20, most=12)
    keep = sum(options[0].cost for options in layers)
    cheapest = sum(min(option.cost for option in options) for options in layers)
    budgets = [cheapest + (keep - cheapest) * share for share in (1.0, 0.0, 0.3, 0.7, 0.05, 0.3, 3.0)]
    together = frontier(layers, budgets)
    assert together[2] == together[5]
    assert together[0].damage == together[6].damage == 0.0
    for budget, found in zip(budgets, together, strict=True):
        assert found.cost <= budget * (1 + 1e-8)
        alone = select(layers, budget)
        # a common grid is coarser for small budgets: 20 layers, a bin of the largest each
        tight = max(budget - 20 * (keep - cheapest) / BINS, cheapest)
        assert found.damage <= select(layers, tight).damage + 1e-9
        assert alone.damage <= found.damage + 0.05
    ordered = [found.damage for _, found in sorted(zip(budgets, together, strict=True), key=lambda pair: pair[0])]
    assert ordered == sorted(ordered, reverse=True)


def test_the_size_of_real_networks() -> None:
    """130 layers with 15 options; against the bound that a mixture of two options per layer gives."""
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(130):
        keep = rng.lognormal(0, 1)
        shares = np.sort(rng.uniform(0.05, 1.0, 14))
        layers.append(
            [Option("keep", 0.0, keep)]
            + [Option(f"{s:.2f}", float(rng.exponential() * (1 - s) ** 2 * keep), keep * float(s)) for s in shares]
        )
    budget = 0.3 * sum(options[0].cost for options in layers)
    found = select(layers, budget)
    assert 0.995 * budget <= found.cost <= budget
    assert found.damage <= 1.002 * relaxed(layers, budget) + 1e-9


def relaxed(layers: Layers, budget: float) -> float:
    """The least damage if options could be mixed: no selection is below it. By the best price for the budget."""

    def bound(price: float) -> float:
        return sum(min(o.damage + price * o.cost for o in options) for options in layers) - price * budget

    return max(bound(price) for price in np.geomspace(1e-3, 1e3, 800))


@pytest.mark.parametrize(
    "options",
    [
        [],
        [Option("not kept", 0.1, 1.0)],
        [Option("keep", 0.0, math.inf)],
        [Option("keep", 0.0, 1.0), Option("x", math.nan, 1.0)],
        [Option("keep", 0.0, 1.0), Option("x", -0.1, 1.0)],
        [Option("keep", 0.0, 1.0), Option("x", 0.1, math.nan)],
    ],
)
def test_numbers_that_are_none(options: list[Option]) -> None:
    with pytest.raises(ValueError):
        select([options], 10.0)


def test_ends() -> None:
    assert select([], 1.0) == Selection((), 0.0, 0.0)
    assert frontier([[Option("keep", 0.0, 1.0)]], []) == ()
    free = [[Option("keep", 0.0, 0.0), Option("x", 1.0, 0.0)]]
    assert select(free, 0.0).picks == (0,)
    with pytest.raises(ValueError):
        select([], math.nan)
