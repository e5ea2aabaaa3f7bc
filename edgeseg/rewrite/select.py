"""Which option for which layer: the least damage that fits a budget of milliseconds, operations or bytes.

A multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, chapter 11), solved by dynamic programming over a fine
grid of costs. Damages are taken to add up, and so are costs. One table answers for many budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import BadInput

BINS = 16_000  # of the grid; a layer is charged at most one bin too much
_SLIP = 1e-9  # of the sums: what adding floats in another order may change


Numbers = NDArray[np.float64]
Bins = NDArray[np.int64]
Places = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that a layer may become. `inf` for what cannot be had."""

    label: str
    damage: float  # from 0
    cost: float  # milliseconds, multiplications or bytes: one of them for all layers


@dataclass(frozen=True, slots=True)
class Selection:
    """One option for each layer, by its position among them, and what they come to."""

    picks: tuple[int, ...]
    damage: float
    cost: float  # with the fixed part


def select(layers: Sequence[Sequence[Option]], budget: float, *, fixed: float = 0.0, unit: str = "") -> Selection:
    """The options with the least total damage whose cost, with `fixed` for all that is no layer, is within `budget`.

    The first option of a layer is to keep it as it is, without damage: one that is not cheaper is never chosen. Costs
    are rounded up to the grid, so the budget holds; the damage may exceed the least by what the grid of 1/16 000 of
    the budget's play can hide. `unit` is for the message. Raises BadInput if the cheapest options cost more than the
    budget, ValueError for numbers that are none.
    """
    (found,) = frontier(layers, [budget], fixed=fixed, unit=unit)
    return found


def frontier(
    layers: Sequence[Sequence[Option]], budgets: Sequence[float], *, fixed: float = 0.0, unit: str = ""
) -> tuple[Selection, ...]:
    """`select` for each of the budgets, by one table. More budget never gives more damage."""
    if any(math.isnan(number) for number in (fixed, *budgets)):
        raise ValueError("a budget or the fixed cost is not a number")
    useful = [_useful(options, position) for position, options in enumerate(layers)]
    least = fixed + math.fsum(options[found[0]].cost for options, found in zip(layers, useful, strict=True))
    slip = _SLIP * (abs(fixed) + sum(abs(options[0].cost) for options in layers))
    for budget in budgets:
        if budget < least - slip:
            raise BadInput(_impossible(budget, least, fixed, len(layers), unit))
    if not budgets:
        return ()
    # What each option costs more than the cheapest of its layer. Beyond `most` there is nothing left to buy.
    more = [
        np.array([layers[at][index].cost - layers[at][found[0]].cost for index in found])
        for at, found in enumerate(useful)
    ]
    damages = [np.array([layers[at][index].damage for index in found]) for at, found in enumerate(useful)]
    most = math.fsum(float(extra[-1]) for extra in more)
    step = max(min(max(budgets) - least, most), slip, 1e-300) / BINS
    bins = [np.minimum(np.ceil(extra / step * (1 - _SLIP)), BINS + 1).astype(np.int64) for extra in more]
    table = _table(bins, damages)
    selections: dict[float, Selection] = {}
    best: Selection | None = None
    for budget in sorted(set(budgets)):
        play = max(budget - least, 0.0)
        chosen = _trace(table, bins, min(int(min(play / step, BINS) * (1 + _SLIP)), BINS))
        _spend(chosen, more, damages, play + slip)
        picks = tuple(found[place] for found, place in zip(useful, chosen, strict=True))
        pairs = [options[pick] for options, pick in zip(layers, picks, strict=True)]
        made = Selection(picks, math.fsum(o.damage for o in pairs), fixed + math.fsum(o.cost for o in pairs))
        best = made if best is None or made.damage < best.damage else best
        selections[budget] = best
    return tuple(selections[budget] for budget in budgets)


def _useful(options: Sequence[Option], position: int) -> list[int]:
    """Positions of the options that no other beats, from the cheapest to the least damage. Ties go to the first."""
    if not options or options[0].damage != 0 or not math.isfinite(options[0].cost):
        raise ValueError(f"layer {position}: the first option must be to keep it, with damage 0 and a finite cost")
    wrong = [option for option in options if not option.damage >= 0 or not option.cost > -math.inf]
    if wrong:
        raise ValueError(f"layer {position}: damage and cost must be numbers, damage from 0: {wrong[0]}")
    found: list[int] = []
    for index in sorted(range(len(options)), key=lambda index: (options[index].cost, options[index].damage, index)):
        least = options[found[-1]].damage if found else math.inf
        if options[index].damage < least and options[index].cost < math.inf:
            found.append(index)
    return found


def _table(bins: Sequence[Bins], damages: Sequence[Numbers]) -> list[Places]:
    """For each layer and number of bins spent up to it: which option it takes then."""
    least = np.zeros(BINS + 1)
    taken = []
    for costs, losses in zip(bins, damages, strict=True):
        after, choice = least + losses[0], np.zeros(BINS + 1, np.uint16)
        for index in range(1, len(costs)):
            cost = int(costs[index])
            if cost > BINS:
                break
            tried = least[: BINS + 1 - cost] + losses[index]
            better = tried < after[cost:]
            np.copyto(after[cost:], tried, where=better)
            choice[cost:][better] = index
        least = after
        taken.append(choice)
    return taken


def _trace(taken: Sequence[Places], bins: Sequence[Bins], spent: int) -> list[int]:
    chosen = []
    for choice, costs in zip(reversed(taken), reversed(bins), strict=True):
        index = int(choice[spent])
        chosen.append(index)
        spent -= int(costs[index])
    return chosen[::-1]


def _spend(chosen: list[int], more: Sequence[Numbers], damages: Sequence[Numbers], play: float) -> None:
    """Use up what rounding costs up has left over: one layer after the other less damaged, by the largest gain."""
    while True:
        left = play - math.fsum(float(extra[index]) for extra, index in zip(more, chosen, strict=True))
        steps = [
            (float(damages[at][index] - damages[at][other]), at, other)
            for at, index in enumerate(chosen)
            for other in range(index + 1, len(more[at]))
            if more[at][other] - more[at][index] <= left
        ]
        if not steps:
            return
        _, at, other = max(steps)
        chosen[at] = other


def _impossible(budget: float, least: float, fixed: float, count: int, unit: str) -> str:
    def said(value: float) -> str:
        return f"{value:.4g} {unit}".strip()

    return (
        f"wanted at most {said(budget)}; the smallest that can be reached is {said(least)}, of which {said(fixed)} "
        f"is for what is not rewritten and {said(least - fixed)} for the cheapest options of {count} layers. Ask for "
        f"at least {said(least)}, or allow more rules and smaller ranks"
    )
