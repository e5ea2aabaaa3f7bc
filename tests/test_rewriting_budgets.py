"""Options within a budget: it holds, the least damage is taken, and nothing that is not faster."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import inf

import pytest

from edgeseg.errors import BadInput
from edgeseg.pipeline.rewriting.budgets import NOT_FASTER, Chosen, Shape, Whole, dense, shape, within
from edgeseg.pipeline.rewriting.wish import Budget
from edgeseg.rewrite.plan import Option, Plan
from edgeseg.rewrite.rules import bottleneck, separable
from edgeseg.rewrite.values import Choice, Conv, Layer, macs, parameters

SIZE = (20, 30)
WIDTHS = {"a": (16, 16), "b": (16, 32), "c": (32, 32)}


def layer(name: str, calls: int = 1) -> Layer:
    conv = Conv(*WIDTHS[name], (3, 3), padding=(1, 1))
    return Layer(name, conv, SIZE, SIZE[0] * SIZE[1] * calls, calls)


def options(of: Layer) -> list[Option]:
    """A bottleneck, and separable with one to four filters: each with less damage than the one before."""
    choices = [
        Choice("separable", (m,), (separable._depthwise(of.conv, m), separable._pointwise(of.conv, m)))
        for m in (1, 2, 3, 4)
    ]
    choices.insert(0, Choice("bottleneck", (8, 8), bottleneck._pieces(of.conv, 8, 8)))
    return [
        Option(
            of,
            choice,
            0.1 * (1 + ord(of.name) % 3) / (1 + at),
            0.01,
            of.calls * macs(choice.pieces, of.size),
            parameters(choice.pieces),
        )
        for at, choice in enumerate(choices)
    ]


LAYERS = [layer("a"), layer("b"), layer("c", calls=2)]
PLAN = Plan(tuple(option for one in LAYERS for option in options(one)), {})
WHOLE = Whole(100_000 + sum(one.macs for one in LAYERS), 500 + sum(one.conv.parameters for one in LAYERS), 12.0)


def milliseconds(shapes: Sequence[Shape], slow: Mapping[str, float] | None = None) -> dict[Shape, float]:
    """By operations, a tenth of a millisecond for each piece, and times a factor for kinds of choices."""
    found = {}
    for conv, size, pieces in shapes:
        ms = macs(pieces, size) / 2e6 + 0.1 * len(pieces)
        kind = "dense" if pieces == (conv,) else "separable" if len(pieces) == 2 else "bottleneck"
        found[conv, size, pieces] = ms * (slow or {}).get(kind, 1.0)
    return found


def spent(chosen: Chosen, kind: str) -> float:
    """What the whole network costs then, added up by hand."""
    total = 0.0
    for one in LAYERS:
        option = chosen.options.get(one.name)
        if kind == "macs":
            total += option.macs if option else one.macs
        elif kind == "bytes":
            total += 2 * (option.parameters if option else one.conv.parameters)
        else:
            place = shape(option) if option else dense(one)
            total += one.calls * milliseconds([place])[place]
    if kind == "macs":
        return total + 100_000
    if kind == "bytes":
        return total + 1000
    own = [dense(one) for one in LAYERS]
    times = milliseconds(own)
    return total + max(0.0, 12.0 - sum(one.calls * times[place] for one, place in zip(LAYERS, own, strict=True)))


def limit(budget: Budget) -> float:
    return {
        "macs": budget.value * WHOLE.macs,
        "bytes": budget.value,
        "ms": budget.value,
        "speedup": 12.0 / budget.value,
    }[budget.kind]


BUDGETS = [
    *(Budget("macs", share) for share in (0.999, 0.7, 0.5, 0.35)),
    *(Budget("bytes", size) for size in (30_000, 20_000, 14_000)),
    *(Budget("ms", ms) for ms in (11.9, 9.0, 7.5)),
    *(Budget("speedup", factor) for factor in (1.01, 1.3, 1.6)),
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_a_budget_holds_with_the_least_damage(budget: Budget) -> None:
    chosen = within(budget, WHOLE, LAYERS, PLAN, bytes_each=2, times=milliseconds if budget.in_time else None)
    allowed = limit(budget)
    assert spent(chosen, budget.kind) <= allowed * (1 + 1e-9)
    assert chosen.cost == pytest.approx(spent(chosen, budget.kind))
    assert chosen.damage == pytest.approx(sum(option.damage for option in chosen.options.values()))
    assert {name: option.choice for name, option in chosen.options.items()} == chosen.choices
    assert chosen.choices
    # against every combination
    best = min(
        sum(option.damage for option in pick if option)
        for pick in itertools.product(*([None, *PLAN.of(one)] for one in LAYERS))
        if spent(
            Chosen({}, {o.layer.name: o for o in pick if o}, 0.0, 0.0, {}),
            budget.kind,
        )
        <= allowed
    )
    assert chosen.damage <= best * 1.01 + 1e-12


@pytest.mark.parametrize(
    "budget", [Budget("macs", 1.0), Budget("bytes", 1e9), Budget("ms", 99.0), Budget("speedup", 1)]
)
def test_enough_leaves_everything_as_it_is(budget: Budget) -> None:
    chosen = within(budget, WHOLE, LAYERS, PLAN, times=milliseconds)
    assert chosen.choices == {}
    assert chosen.damage == 0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget("macs", 0.01), r"wanted at most \S+ operations; the smallest that can be reached is \S+ operations"),
        (Budget("bytes", 100), r"wanted at most 100 bytes; the smallest that can be reached is"),
        (Budget("ms", 0.5), r"wanted at most 0.5 ms; the smallest that can be reached is \S+ ms"),
        (Budget("speedup", 50), r"wanted at most 0.24 ms; .* Ask for at least"),
    ],
)
def test_what_cannot_be_reached_is_said_with_what_can(budget: Budget, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        within(budget, WHOLE, LAYERS, PLAN, times=milliseconds if budget.in_time else None)


def test_options_that_are_not_faster_are_not_taken_in_time() -> None:
    """A depthwise convolution may be slower than the dense one; here all are."""

    def times(shapes: Sequence[Shape]) -> dict[Shape, float]:
        return milliseconds(shapes, {"separable": 20.0})

    chosen = within(Budget("speedup", 1.1), WHOLE, LAYERS, PLAN, times=times)
    assert chosen.choices
    assert {choice.rule for choice in chosen.choices.values()} == {"bottleneck"}
    assert chosen.slower == {}  # every layer had something that is faster


def test_layers_without_anything_faster_are_named() -> None:
    def times(shapes: Sequence[Shape]) -> dict[Shape, float]:
        found = milliseconds(shapes)
        for conv, size, pieces in shapes:
            if conv == LAYERS[1].conv and pieces != (conv,):
                found[conv, size, pieces] = NOT_FASTER * found.get(dense(LAYERS[1]), 9.0) + len(pieces)
        return found

    for budget in (Budget("ms", 10.0), Budget("macs", 0.33)):
        chosen = within(budget, WHOLE, LAYERS, PLAN, times=times)
        assert "b" not in chosen.choices
        assert set(chosen.slower) == {"b"}
        assert chosen.slower["b"] in {option.choice.label for option in PLAN.of(LAYERS[1])}
        assert chosen.choices


def test_within_what_can_be_told_is_not_faster() -> None:
    """And a choice that a runtime refuses has no time at all."""
    for factor, faster in ((NOT_FASTER - 0.01, True), (NOT_FASTER + 0.01, False), (inf, False)):

        def times(shapes: Sequence[Shape], factor: float = factor) -> dict[Shape, float]:
            return {(conv, size, pieces): 1.0 if pieces == (conv,) else factor for conv, size, pieces in shapes}

        if faster:
            assert within(Budget("macs", 0.9), WHOLE, LAYERS, PLAN, times=times).choices
        else:
            with pytest.raises(BadInput, match="smallest that can be reached"):
                within(Budget("macs", 0.9), WHOLE, LAYERS, PLAN, times=times)


def test_other_budgets_time_only_what_they_chose() -> None:
    """Until all of that is faster; then the budget still holds."""
    asked: list[int] = []

    def times(shapes: Sequence[Shape]) -> dict[Shape, float]:
        asked.append(len(shapes))
        return milliseconds(shapes, {"separable": 4.0})

    budget = Budget("macs", 0.5)
    first = within(budget, WHOLE, LAYERS, PLAN)
    assert "separable" in {choice.rule for choice in first.choices.values()}
    chosen = within(budget, WHOLE, LAYERS, PLAN, times=times)
    assert max(asked) <= 2 * len(LAYERS)
    assert len(asked) > 1
    assert spent(chosen, "macs") <= 0.5 * WHOLE.macs
    assert chosen.damage >= first.damage
    for option in chosen.options.values():
        found = milliseconds([shape(option), dense(option.layer)], {"separable": 4.0})
        assert found[shape(option)] < NOT_FASTER * found[dense(option.layer)]
    assert chosen.slower
    assert all(name in WIDTHS for name in chosen.slower)


def test_without_times_nothing_is_put_back() -> None:
    assert within(Budget("macs", 0.5), WHOLE, LAYERS, PLAN).slower == {}
    with pytest.raises(AssertionError, match="needs times"):
        within(Budget("speedup", 2.0), WHOLE, LAYERS, PLAN)


def test_a_network_without_layers() -> None:
    empty, whole = Plan((), {}), Whole(1000, 10, 1.0)
    assert within(Budget("macs", 1.0), whole, [], empty).choices == {}
    with pytest.raises(BadInput, match="0 layers"):
        within(Budget("macs", 0.9), whole, [], empty)
