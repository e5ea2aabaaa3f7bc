"""The search over sets of convolutions that stay in float: pure, whatever measures a set.

Damages are taken to add up only to order what is tried; what is returned was evaluated as a whole. Start: everything in
INT8. Along an order of damage saved per millisecond, a binary search finds a short prefix that meets the floor; then
nodes are given back, or exchanged for cheaper ones, while it holds. Convolutions that read the same tensors stay units
of their own: each of them saves its own damage for its own milliseconds. But all of them in float may cost less than
one by one, for then nobody needs those tensors as integers; so whole groups are tried as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

Kept = frozenset[str]
_CHEAPER = 4  # cheaper nodes tried in the place of one
_SHARES = (0.97, 0.75, 0.5)  # of the milliseconds of the best so far, to be filled anew


@dataclass(frozen=True, slots=True)
class Unit:
    """One convolution. Keeping it in float saves `saved` of damage (0 or more) and costs `ms`, below 0 if it gains.

    `bond`: the names of its group, its own among them; with all of them in float each costs `less` ms fewer.
    """

    name: str
    saved: float
    ms: float
    bond: Kept = frozenset()
    less: float = 0.0


def cost(kept: Kept, units: Sequence[Unit]) -> float:
    """Milliseconds of a set, as far as they add up."""
    return math.fsum(
        unit.ms - (unit.less if unit.bond and unit.bond <= kept else 0.0) for unit in units if unit.name in kept
    )


def density(unit: Unit) -> float:
    """Damage saved per millisecond: what the first order goes by."""
    return math.inf if unit.ms <= 0 else unit.saved / unit.ms


def _saved(unit: Unit) -> float:
    return unit.saved


def cheapest(trail: Mapping[Kept, float], units: Sequence[Unit]) -> Kept | None:
    """Of the sets that meet the floor (points beyond it 0 or less) the one of the fewest milliseconds; None if none."""
    good = [kept for kept, short in trail.items() if short <= 0]
    return min(good, key=lambda kept: (cost(kept, units), len(kept), sorted(kept)), default=None)


def closest(trail: Mapping[Kept, float]) -> Kept | None:
    """The set that comes closest to the floor."""
    return min(trail, key=lambda kept: (trail[kept], len(kept), sorted(kept)), default=None)


def explore(
    units: Sequence[Unit],
    evaluate: Callable[[Kept], float],
    trail: dict[Kept, float],
    ended: Callable[[], bool] = lambda: False,
) -> None:
    """Evaluate sets until nothing gets better or `ended`; what was found is in `trail`: set → points beyond the floor.

    `trail` may hold sets evaluated before; it is filled as the search goes on, so that whoever interrupts it keeps the
    rest. A set of all units is never evaluated: it is no INT8 network. `inf` is for a set that cannot be had.
    """

    def meets(kept: Kept) -> bool | None:
        """None if there was no time to tell."""
        if kept not in trail:
            if ended():
                return None
            trail[kept] = evaluate(kept)
        return trail[kept] <= 0

    everything = frozenset(unit.name for unit in units)
    free = _free(units)
    for start in dict.fromkeys((frozenset[str](), free)):
        if start != everything and meets(start) is None:
            return
    if free != everything and trail[free] <= 0:
        return  # no set is cheaper
    paid = [unit for unit in units if unit.name not in free]
    single = [replace(unit, bond=frozenset((unit.name,))) for unit in paid]
    for order in (single, _joined(paid, units)) if any(unit.bond for unit in paid) else (single,):
        for key in (density, _saved):
            if not _prefix(free, sorted(order, key=key, reverse=True), everything, meets):
                return
    if not _nearer(units, trail, everything, meets):
        return
    while (best := cheapest(trail, units)) is not None:
        for other in _cheaper(best, paid, free):
            if other == everything or cost(other, units) >= cost(best, units):
                continue
            found = meets(other)
            if found is None:
                return
            if found:
                break
        else:
            return


def _free(units: Sequence[Unit]) -> Kept:
    """What costs nothing in float, one by one or as a whole group: no set is cheaper."""
    free = frozenset(unit.name for unit in units if unit.ms <= 0)
    for bond in {unit.bond for unit in units if unit.bond}:
        if cost(bond, units) < cost(bond & free, units):
            free |= bond
    return free


def _joined(paid: Sequence[Unit], units: Sequence[Unit]) -> list[Unit]:
    """Each group as one unit that stands for all of it, and the units that belong to none."""
    found = [replace(unit, bond=frozenset((unit.name,))) for unit in paid if not unit.bond]
    for bond in dict.fromkeys(unit.bond for unit in paid if unit.bond):
        saved = math.fsum(unit.saved for unit in units if unit.name in bond)
        found.append(Unit(min(bond), saved, cost(bond, units), bond))
    return found


def _prefix(free: Kept, order: Sequence[Unit], everything: Kept, meets: Callable[[Kept], bool | None]) -> bool:
    """Binary search for the shortest prefix that meets the floor, were it monotone; False if time was up."""
    low, high = 0, len(order)  # all in float meets the floor, being FP32
    while high - low > 1:
        middle = (low + high) // 2
        kept = free.union(*(unit.bond for unit in order[:middle]))
        found = kept == everything or meets(kept)
        if found is None:
            return False
        low, high = (low, middle) if found else (middle, high)
    return True


def _nearer(
    units: Sequence[Unit], trail: dict[Kept, float], everything: Kept, meets: Callable[[Kept], bool | None]
) -> bool:
    """Where no prefix meets the floor: more in float from the closest on, at last all but one; False if time was up."""
    order = sorted(units, key=lambda unit: -unit.saved)
    better = True
    while better and cheapest(trail, units) is None and (near := closest(trail)) is not None:
        better = False
        for unit in order:
            if unit.name not in near and near | {unit.name} != everything:
                if meets(near | {unit.name}) is None:
                    return False
                if better := trail[near | {unit.name}] < trail[near]:
                    break
    for unit in reversed(order):
        if cheapest(trail, units) is None and len(units) > 1 and meets(everything - {unit.name}) is None:
            return False
    return True


def _cheaper(kept: Kept, units: Sequence[Unit], free: Kept) -> Iterator[Kept]:
    """Sets that cost less than `kept`: one given back, what fits less time by the order, some exchanged for others."""
    mine = sorted((unit for unit in units if unit.name in kept), key=density)
    others = sorted((unit for unit in units if unit.name not in kept), key=lambda unit: -unit.saved)
    for bond in dict.fromkeys(unit.bond for unit in mine if unit.bond):
        yield kept | bond
        yield kept - (bond - free)
    for unit in mine:
        yield kept - {unit.name}
    total = math.fsum(unit.ms for unit in mine)
    for share in _SHARES:
        for key in (density, _saved):
            fits: list[Unit] = []
            for unit in sorted(units, key=key, reverse=True):
                if math.fsum(one.ms for one in (*fits, unit)) <= share * total:
                    fits.append(unit)
            yield free | {unit.name for unit in fits}
    for unit in sorted(mine, key=lambda unit: -unit.ms):
        less = [other for other in others if other.ms < unit.ms]
        for other in less[:_CHEAPER]:
            yield kept - {unit.name} | {other.name}
        pairs = ((a, b) for at, a in enumerate(less) for b in less[at + 1 :] if a.ms + b.ms < unit.ms)
        for _, (a, b) in zip(range(_CHEAPER), pairs, strict=False):
            yield kept - {unit.name} | {a.name, b.name}


def filled(kept: Kept, neighbours: Mapping[str, frozenset[str]]) -> Kept:
    """`kept` with every node that stands between nodes in float only: its borders may cost more than its INT8 saves.

    `neighbours`: node → the nodes that feed it or that it feeds. One step: what fills becomes no reason to fill more.
    """
    between = {name for name, around in neighbours.items() if around and around <= kept}
    return kept | between
