"""What a rewritten network may cost, and the options that keep to it: operations, milliseconds or bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from edgeseg.pipeline.rewriting.wish import Budget
from edgeseg.rewrite import select
from edgeseg.rewrite.plan import Option, Plan
from edgeseg.rewrite.values import Choice, Conv, Layer, Pair, Piece

Shape = tuple[Conv, Pair, tuple[Piece, ...]]  # a layer, the size of its input, and what stands for it
Times = Callable[[Sequence[Shape]], Mapping[Shape, float]]  # milliseconds of each on the target

UNITS = {"macs": "operations", "ms": "ms", "speedup": "ms", "bytes": "bytes"}
NOT_FASTER = 0.97  # of the dense layer's time: less is within what such a measurement can tell


@dataclass(frozen=True, slots=True)
class Whole:
    """What the network costs before it is rewritten. `ms` is None where nothing was timed."""

    macs: int
    parameters: int
    ms: float | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A choice for each layer that is to be rewritten, and what is predicted of them together."""

    choices: Mapping[str, Choice]
    options: Mapping[str, Option]
    damage: float
    cost: float
    slower: Mapping[str, str]  # layers for which something was measured and found no faster, with what


def dense(layer: Layer) -> Shape:
    return layer.conv, layer.size, (layer.conv,)


def shape(option: Option) -> Shape:
    return option.layer.conv, option.layer.size, option.choice.pieces


def within(
    budget: Budget,
    whole: Whole,
    layers: Sequence[Layer],
    plan: Plan,
    *,
    bytes_each: int = 4,
    times: Times | None = None,
) -> Chosen:
    """The options with the least damage within the budget.

    With `times`, what is not faster than its layer on the target is not chosen: budgets in time are solved with the
    times of all options; other budgets are solved, what they chose is timed, and what is not faster is left out, until
    all that is chosen is. Raises BadInput for a budget that cannot be reached.
    """
    timed = budget.in_time
    assert times is not None or not timed, "a budget in time needs times"
    allowed = {layer.name: list(plan.of(layer)) for layer in layers}
    slower: dict[str, str] = {}
    if timed:
        assert times is not None
        measured = times([dense(layer) for layer in layers] + [shape(option) for option in plan.options])
        for layer in layers:
            _drop_slower(layer, allowed[layer.name], measured, slower)
    while True:
        chosen = _solved(budget, whole, layers, allowed, bytes_each, measured if timed else {})
        if timed or times is None:
            return Chosen(chosen.choices, chosen.options, chosen.damage, chosen.cost, slower)
        some = list(chosen.options.values())
        found = times([dense(option.layer) for option in some] + [shape(option) for option in some])
        before = sum(map(len, allowed.values()))
        for option in some:
            if not found[shape(option)] < NOT_FASTER * found[dense(option.layer)]:
                allowed[option.layer.name].remove(option)
                slower[option.layer.name] = option.choice.label
        if sum(map(len, allowed.values())) == before:
            return Chosen(chosen.choices, chosen.options, chosen.damage, chosen.cost, slower)


def _drop_slower(layer: Layer, options: list[Option], times: Mapping[Shape, float], slower: dict[str, str]) -> None:
    limit = NOT_FASTER * times[dense(layer)]
    bad = [option for option in options if not times[shape(option)] < limit]
    for option in bad:
        options.remove(option)
    if bad and not options:
        slower[layer.name] = min(bad, key=lambda option: times[shape(option)]).choice.label


def _solved(
    budget: Budget,
    whole: Whole,
    layers: Sequence[Layer],
    allowed: Mapping[str, Sequence[Option]],
    bytes_each: int,
    times: Mapping[Shape, float],
) -> Chosen:
    def kept(layer: Layer) -> float:
        if budget.kind == "macs":
            return float(layer.macs)
        return (
            float(layer.conv.parameters * bytes_each) if budget.kind == "bytes" else layer.calls * times[dense(layer)]
        )

    def cost(option: Option) -> float:
        if budget.kind == "macs":
            return float(option.macs)
        if budget.kind == "bytes":
            return float(option.parameters * bytes_each)
        return option.layer.calls * times[shape(option)]

    if budget.kind == "macs":
        total, limit = float(whole.macs), budget.value * whole.macs
    elif budget.kind == "bytes":
        total, limit = float(whole.parameters * bytes_each), budget.value
    else:
        assert whole.ms is not None
        total, limit = whole.ms, budget.value if budget.kind == "ms" else whole.ms / budget.value
    rows = [
        [select.Option("keep", 0.0, kept(layer))]
        + [select.Option(o.choice.label, o.damage, cost(o)) for o in allowed[layer.name]]
        for layer in layers
    ]
    fixed = total - sum(row[0].cost for row in rows)
    if budget.in_time:
        fixed = max(fixed, 0.0)
    found = select.select(rows, limit if limit < inf else total, fixed=fixed, unit=UNITS[budget.kind])
    options = {
        layer.name: allowed[layer.name][pick - 1] for layer, pick in zip(layers, found.picks, strict=True) if pick
    }
    return Chosen(
        {name: option.choice for name, option in options.items()}, options, found.damage, found.cost, slower={}
    )
