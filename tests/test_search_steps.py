"""What was lost and how sure that is; and the pure search, against every subset there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgeseg.errors import BadInput
from edgeseg.measure.confusion import scores
from edgeseg.pipeline.search.floor import Floor, Matrices, Outcome, outcome
from edgeseg.pipeline.search.steps import Kept, Unit, cheapest, closest, cost, explore, filled


def matrices(seed: int, frames: int = 7, classes: int = 4, wrong: int = 20) -> Matrices:
    rng = np.random.default_rng(seed)
    made = rng.integers(0, wrong, (frames, classes, classes))
    made[:, range(classes), range(classes)] += 200
    return made.astype(np.int64)


def test_what_is_lost_is_the_difference_of_the_scores_of_the_sums() -> None:
    one, two = matrices(1), matrices(2, wrong=60)
    names = [str(index) for index in range(4)]
    before, after = scores(one.sum(0), names), scores(two.sum(0), names)
    found = outcome(one, two)
    assert found.drop == pytest.approx(100 * (before.miou - after.miou))
    assert found.accuracy == pytest.approx(100 * after.miou)
    for name, drop in zip(names, found.class_drops, strict=True):
        assert drop == pytest.approx(100 * ((before.iou[name] or 0) - (after.iou[name] or 0)))
    overall = outcome(one, two, overall=True)
    assert overall.drop == pytest.approx(100 * (before.pixel_accuracy - after.pixel_accuracy))


def test_the_standard_error_is_the_jackknife_written_as_a_loop() -> None:
    one, two = matrices(3), matrices(4, wrong=60)
    left = []
    for frame in range(len(one)):
        rest = [index for index in range(len(one)) if index != frame]
        left.append(outcome(one[rest], two[rest]).drop)
    count, mean = len(left), sum(left) / len(left)
    expected = math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in left))
    assert outcome(one, two).error == pytest.approx(expected)
    assert outcome(one, one).error == 0
    assert outcome(one[:1], two[:1]).error == 0  # one frame says nothing about others


def test_a_class_that_does_not_occur_counts_nowhere() -> None:
    one, two = matrices(5, classes=3), matrices(6, classes=3)
    for made in (one, two):
        made[:, 2] = made[:, :, 2] = 0
    found = outcome(one, two)
    assert found.class_drops[2] is None
    assert found.class_errors[2] is None
    assert outcome(one[:, :2, :2], two[:, :2, :2]).drop == pytest.approx(found.drop)
    assert math.isfinite(found.error)


def test_matrices_of_other_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="same frames"):
        outcome(matrices(1), matrices(2, frames=3))
    with pytest.raises(ValueError, match="same frames"):
        outcome(matrices(1)[:0], matrices(2)[:0])


def test_a_floor_has_two_sides_and_a_margin() -> None:
    lost = Outcome(60.0, 0.2, 0.1, (0.1, 2.0, None), (0.0, 0.5, None))
    assert Floor(0.3, margin=1).short(lost) == pytest.approx(0)
    assert Floor(0.25, margin=1).short(lost) == pytest.approx(0.05)
    assert Floor(0.25, margin=0).short(lost) == pytest.approx(-0.05)
    assert Floor(1, 2.0, margin=1).short(lost) == pytest.approx(0.5)
    assert Floor(1, 2.5, margin=1).short(lost) == pytest.approx(0)
    assert lost.worst_class == 1
    assert Outcome.from_json(lost.to_json()) == lost
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(BadInput, match="max_drop"):
            Floor(wrong)
    with pytest.raises(BadInput, match="max_class_drop"):
        Floor(1, -1)


def chance(seed: int, count: int = 7) -> tuple[list[Unit], dict[Kept, float]]:
    """Units, and points beyond the floor of every set: damages that add up only about, noise, and pairs that clash."""
    rng = np.random.default_rng(seed)
    damage = rng.lognormal(-1, 1.2, count)
    units = [
        Unit(f"n{index}", float(loss * rng.lognormal(0, 0.4)), float(rng.lognormal(-1, 0.8)))
        for index, loss in enumerate(damage)
    ]
    clash = rng.exponential(0.05, (count, count))
    allowed = 0.35 * damage.sum()
    table: dict[Kept, float] = {}
    for size in range(count):
        for chosen in itertools.combinations(range(count), size):
            rest = [index for index in range(count) if index not in chosen]
            total = damage[rest].sum() + clash[np.ix_(rest, rest)].sum() + rng.normal(0, 0.01)
            table[frozenset(f"n{index}" for index in chosen)] = float(total - allowed)
    return units, table


@pytest.mark.parametrize("seed", range(30))
def test_the_search_is_near_the_best_of_all_subsets_and_always_meets_the_floor(seed: int) -> None:
    units, table = chance(seed)
    best = cheapest(table, units)
    trail: dict[Kept, float] = {}
    explore(units, table.__getitem__, trail)
    found = cheapest(trail, units)
    assert best is not None
    assert found is not None
    assert table[found] <= 0
    assert cost(found, units) <= 1.25 * cost(best, units)
    assert len(trail) < len(table)


def test_mostly_it_is_the_best_itself_and_few_sets_are_tried() -> None:
    hits, tried = 0, 0
    for seed in range(40):
        units, table = chance(seed, 8)
        trail: dict[Kept, float] = {}
        explore(units, table.__getitem__, trail)
        hits += cheapest(trail, units) == cheapest(table, units)
        tried += len(trail)
    assert hits >= 28
    assert tried / 40 < 256 / 5


def test_nothing_is_kept_where_everything_may_be_int8() -> None:
    units = [Unit("a", 1, 1), Unit("b", 1, 2)]
    trail: dict[Kept, float] = {}
    explore(units, lambda kept: -0.1, trail)
    assert set(trail) == {frozenset()}


def test_what_is_faster_in_float_is_float() -> None:
    units = [Unit("a", 0, -0.5), Unit("b", 1, 2), Unit("c", 3, 1)]
    trail: dict[Kept, float] = {}
    explore(units, lambda kept: -0.1, trail)
    assert cheapest(trail, units) == frozenset("a")
    trail = {}
    explore(units, lambda kept: -0.1 if "c" in kept else 0.1, trail)
    assert cheapest(trail, units) == frozenset("ac")


def test_where_no_set_meets_the_floor_the_closest_is_known() -> None:
    units, table = chance(3)
    table = {kept: short + 100 for kept, short in table.items()}
    trail: dict[Kept, float] = {}
    explore(units, table.__getitem__, trail)
    assert cheapest(trail, units) is None
    near = closest(trail)
    assert near is not None
    assert trail[near] == min(trail.values())
    assert near  # more than all in INT8 was tried


def test_a_floor_that_only_one_set_meets_is_found() -> None:
    units = [Unit(name, saved, 1) for name, saved in zip("abcdef", (9, 8, 7, 6, 5, 4), strict=True)]
    only = frozenset("bcdef")  # against all that sensitivity says

    def evaluate(kept: Kept) -> float:
        return -0.1 if kept == only else 10 - len(kept)

    trail: dict[Kept, float] = {}
    explore(units, evaluate, trail)
    assert cheapest(trail, units) == only


def test_the_clock_ends_it_and_what_was_found_stays() -> None:
    units, table = chance(5)
    trail: dict[Kept, float] = {}
    explore(units, table.__getitem__, trail, lambda: len(trail) >= 4)
    assert len(trail) == 4
    before = dict(trail)
    asked: list[Kept] = []

    def evaluate(kept: Kept) -> float:
        asked.append(kept)
        return table[kept]

    explore(units, evaluate, trail)
    assert not set(asked) & set(before)  # it goes on where it was
    alone: dict[Kept, float] = {}
    explore(units, table.__getitem__, alone)
    assert trail == alone


def test_a_refused_set_is_never_chosen() -> None:
    units, table = chance(6)
    best = cheapest(table, units)
    assert best is not None
    table[best] = math.inf
    trail: dict[Kept, float] = {}
    explore(units, table.__getitem__, trail)
    assert cheapest(trail, units) not in (None, best)


def test_what_stands_between_float_nodes_only_is_filled() -> None:
    around = {"a": frozenset("b"), "b": frozenset("ac"), "c": frozenset("bd"), "d": frozenset("ce")}
    assert filled(frozenset("ac"), around) == frozenset("abc")
    assert filled(frozenset("ad"), around) == frozenset("ad")
    assert filled(frozenset("a"), {"a": frozenset(), "b": frozenset()}) == frozenset("a")
