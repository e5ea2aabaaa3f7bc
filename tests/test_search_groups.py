"""Convolutions that read the same tensors: units of their own, whose whole group may cost less; by brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeseg.backends.onnxruntime import inference_session
from edgeseg.graph import Graph
from edgeseg.pipeline.network import dialect_for
from edgeseg.pipeline.search import Floor, times
from edgeseg.pipeline.search.run import _units
from edgeseg.pipeline.search.sensitivity import Loss, Losses, Sensitivity, sensitivities
from edgeseg.pipeline.search.steps import Kept, Unit, cheapest, cost, explore
from edgeseg.pipeline.search.times import Cost, Costs, costs
from edgeseg.quantize import place, quantize
from edgeseg.quantize.weights import _KNOWN, rounded
from edgeseg.types import OnnxModel
from tests.quantize import making
from tests.test_search import data, found_in, int8
from tests.test_search_optimal import every_subset


def branches(seed: int = 0) -> OnnxModel:
    """Three branches of one tensor, joined; before and behind them convolutions of their own."""
    net = making.Net(seed)
    body = net.relu(net.conv(net.relu(net.conv(net.image(), "first", 8), "r0"), "before", 8), "r1")
    parts = [net.relu(net.conv(body, f"branch{at}", 8, 1 + 2 * (at > 0)), f"b{at}") for at in range(3)]
    joined = net.op("Concat", parts, "joined", 24, axis=1)
    return net.model(net.conv(net.relu(net.conv(joined, "behind", 8), "r2"), "head", 4, 1, gain=3.0))


GROUP = frozenset({"node_branch0", "node_branch1", "node_branch2"})


def grouped(seed: int, count: int = 8) -> tuple[list[Unit], dict[Kept, float]]:
    """Units of which three and two are groups that cost less as a whole, and points beyond the floor of every set."""
    rng = np.random.default_rng(seed)
    damage = rng.lognormal(-1, 1.0, count)
    units = [
        Unit(f"n{at}", float(d * rng.lognormal(0, 0.3)), float(rng.lognormal(-1, 0.7))) for at, d in enumerate(damage)
    ]
    for members in ((0, 1, 2), (3, 4)):
        bond = frozenset(f"n{at}" for at in members)
        less = rng.uniform(0.1, 0.9) * min(units[at].ms for at in members)
        for at in members:
            units[at] = replace(units[at], bond=bond, less=float(less))
    table = {}
    for size in range(count):
        for chosen in itertools.combinations(range(count), size):
            rest = [at for at in range(count) if at not in chosen]
            kept = frozenset(f"n{at}" for at in chosen)
            table[kept] = float(damage[rest].sum() + rng.normal(0, 0.01) - 0.35 * damage.sum())
    return units, table


def counted(kept: Kept, units: list[Unit]) -> float:
    """Milliseconds, counted group by group."""
    total, left = 0.0, set(kept)
    for bond in {unit.bond for unit in units if unit.bond}:
        if bond <= kept:
            total += sum(unit.ms - unit.less for unit in units if unit.name in bond)
            left -= bond
    return total + sum(unit.ms for unit in units if unit.name in left)


@pytest.mark.parametrize("seed", range(30))
def test_it_is_near_the_best_of_all_subsets(seed: int) -> None:
    units, table = grouped(seed)
    assert all(cost(kept, units) == pytest.approx(counted(kept, units)) for kept in table)
    good = [kept for kept, short in table.items() if short <= 0]
    best = min(counted(kept, units) for kept in good)
    trail: dict[Kept, float] = {}
    explore(units, table.__getitem__, trail)
    found = cheapest(trail, units)
    assert found is not None
    assert table[found] <= 0
    assert counted(found, units) <= 1.3 * best
    assert len(trail) < len(table) / 2


def test_knowing_groups_finds_cheaper_sets_than_units_alone() -> None:
    blind = seeing = most = 0.0
    for seed in range(40):
        units, table = grouped(seed)
        one: dict[Kept, float] = {}
        two: dict[Kept, float] = {}
        explore(units, table.__getitem__, one)
        alone = [Unit(unit.name, unit.saved, unit.ms) for unit in units]
        explore(alone, table.__getitem__, two)
        a, b = cheapest(one, units), cheapest(two, alone)
        assert a is not None
        assert b is not None
        seeing, blind = seeing + counted(a, units), blind + counted(b, units)
        most += min(counted(kept, units) for kept, short in table.items() if short <= 0)
    assert most <= seeing < blind
    assert seeing <= 1.05 * most


def test_groups_are_not_bound_where_one_of_them_does_the_damage() -> None:
    bond = frozenset("abc")
    units = [Unit(name, saved, 1.0, bond, 0.2) for name, saved in zip("abc", (5.0, 0.1, 0.1), strict=True)]
    units.append(Unit("d", 0.1, 1.0))
    trail: dict[Kept, float] = {}
    explore(units, lambda kept: -0.1 if "a" in kept else 1.0, trail)
    assert cheapest(trail, units) == frozenset("a")


def test_a_group_that_costs_less_than_its_parts_is_completed_and_a_free_one_is_kept() -> None:
    bond = frozenset("ab")
    units = [Unit("a", 3, 1.0, bond, 0.8), Unit("b", 1, 1.0, bond, 0.8), Unit("c", 0.1, 3.0)]
    trail: dict[Kept, float] = {}
    explore(units, lambda kept: -0.1 if "a" in kept else 1.0, trail)
    assert cheapest(trail, units) == bond  # 0.4 ms for both, 1 ms for the one that is needed
    free = [Unit("a", 3, 1.0, bond, 1.2), Unit("b", 1, 1.0, bond, 1.2), Unit("c", 0.1, 3.0)]
    trail = {}
    explore(free, lambda kept: -0.1, trail)
    assert cheapest(trail, free) == bond  # faster so than all in INT8
    asked: list[Kept] = []

    def evaluate(kept: Kept) -> float:
        asked.append(kept)
        return 1.0

    explore([replace(unit, bond=frozenset("ab")) for unit in free[:2]], evaluate, {})
    assert frozenset("ab") not in asked  # all in float is no INT8 network


@pytest.mark.parametrize(("seed", "backend"), [(0, "openvino"), (1, "tensorrt"), (2, "onnxruntime")])
def test_on_a_network_of_branches_it_is_near_the_best_of_all_subsets(seed: int, backend: str, tmp_path: Path) -> None:
    model = branches(seed)
    table = every_subset(model, data(tmp_path, model), Floor(0.0, margin=0), backend)
    nodes = place(Graph(model.graph), dialect_for(backend)).convolutions
    losses = sensitivities(model, nodes, int8(model, backend), [making.frames(1)], use_cache=False)
    of = {node: Cost(1.0 + at / 10, True) for at, node in enumerate(nodes)}
    price = Costs(9.0, 20.0, of, {GROUP: Cost(0.6 * sum(of[node].ms for node in GROUP), True)})
    units = _units(nodes, losses, price)
    assert frozenset(unit.name for unit in units if unit.bond) == GROUP
    lost = sorted(table.values())
    for allowed in (lost[len(lost) // 8], lost[len(lost) // 3], lost[len(lost) // 2]):
        shorts = {kept: short - max(allowed, 0.01) for kept, short in table.items()}
        best = min(counted(kept, units) for kept, short in shorts.items() if short <= 0)
        trail: dict[Kept, float] = {}
        explore(units, shorts.__getitem__, trail)
        found = cheapest(trail, units)
        assert found is not None
        assert counted(found, units) <= 1.3 * best + 1e-9
        assert len(trail) < len(table)


def test_units_know_their_group_only_where_it_was_measured_to_gain() -> None:
    loss = Loss(0.01, 0.99)
    losses = Losses(loss, tuple(Sensitivity(node, loss, None) for node in "abc"), 1)
    of = {node: Cost(1.0, True) for node in "abc"}
    both = frozenset("ab")
    units = _units("abc", losses, Costs(5.0, 9.0, of, {both: Cost(1.4, True)}))
    assert [(unit.bond, unit.less) for unit in units] == [(both, pytest.approx(0.3))] * 2 + [(frozenset(), 0.0)]
    assert cost(both, units) == pytest.approx(1.4)
    assert cost(frozenset("a"), units) == 1.0
    for ms in (1.95, 2.5):
        assert not any(unit.bond for unit in _units("abc", losses, Costs(5.0, 9.0, of, {both: Cost(ms, True)})))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_groups_are_timed_as_they_are_in_the_network(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="its engines are timed")
    model = branches()
    table, dialect = making.table_of(model), dialect_for(backend)
    placement = place(Graph(model.graph), dialect)
    assert [frozenset(group) for group in placement.groups if len(group) > 1] == [GROUP]
    asked: list[Kept] = []

    def of(kept: Kept) -> OnnxModel:
        asked.append(kept)
        return quantize(model, table, dialect, placement=place(Graph(model.graph), dialect, keep_float=kept))

    frames = [making.frames(1)]
    nodes = placement.convolutions
    found = costs(model, nodes, of, backend, frames, groups=[GROUP], rounds=2, use_cache=False)
    assert set(found.of) == set(nodes)
    assert list(found.together) == [GROUP]
    assert found.together[GROUP].measured
    assert GROUP in asked
    monkeypatch.setattr(times, "_TOGETHER", len(nodes))  # engines opened at once: the group comes after the nodes
    late = costs(model, nodes, of, backend, frames, groups=[GROUP], rounds=2, use_cache=False, ended=lambda: True)
    assert late.together == {}  # predicted, a group is no more than its nodes
    assert not costs(model, nodes, of, backend, frames, groups=[GROUP], timed=False).together


def test_a_search_on_the_runtime_times_groups_and_says_so(tmp_path: Path) -> None:
    model = branches()
    reading = data(tmp_path, model)
    found = found_in(model, reading, Floor(0.05, margin=0), "onnxruntime", emulate=False, use_cache=False)
    (group,) = found.report["groups"]
    assert group["nodes"] == sorted(GROUP)
    assert np.isfinite(group["ms"])
    assert found_in(model, reading, Floor(50.0), "onnxruntime").report["groups"] == []  # emulated, nothing is timed


def test_one_of_a_group_in_float_breaks_no_scale_of_the_others() -> None:
    model = branches()
    table = making.table_of(model)
    for name in ("onnxruntime", "openvino", "tensorrt"):
        dialect = replace(dialect_for(name), fake=False)
        whole = place(Graph(model.graph), dialect)
        for node in sorted(GROUP):
            part = place(Graph(model.graph), dialect, keep_float={node})
            graph = quantize(model, table, dialect, placement=part).graph
            inference_session(graph, "off")
            assert set(part.convolutions) == set(whole.convolutions) - {node}
            # What they read is quantized as before, and what is joined behind them still on one scale.
            assert part.quantizers["r1"] == whole.quantizers["r1"]
            joined = [part.quantizers[t] for t in ("b0", "b1", "b2") if t in part.quantizers]
            assert len(set(joined)) == 1 or name == "onnxruntime"


def test_scales_of_weights_are_found_once_and_are_the_same() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    _KNOWN.clear()
    first, second = rounded(weights, 8), rounded(weights.copy(), 8)
    assert len(_KNOWN) == 1
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    coarse = rounded(weights, 8, least=10.0)
    assert np.array_equal(coarse[1], np.full(4, 10, np.float32))
    assert np.array_equal(rounded(weights, 8)[1], first[1])  # no caller changes what is held
    assert not np.array_equal(rounded(weights, 4)[1], first[1])
    turned = np.ascontiguousarray(np.moveaxis(weights, 0, 1))
    assert len(rounded(turned, 8)[1]) == 3
    assert len(_KNOWN) == 3
