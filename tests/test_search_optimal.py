"""The search against every subset there is, on networks with planted hard layers, in every engine's dialect."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edgeseg.data import Reading
from edgeseg.graph import Graph
from edgeseg.pipeline.network import dialect_for
from edgeseg.pipeline.search import Floor
from edgeseg.pipeline.search.judge import Judge, emulating
from edgeseg.quantize import place
from edgeseg.types import OnnxModel
from tests.test_search import data, found_in, int8, macs, planted


def every_subset(model: OnnxModel, reading: Reading, floor: Floor, backend: str) -> dict[frozenset[str], float]:
    """Points beyond the floor of every set that leaves something in INT8, each judged from nothing."""
    judge = Judge(reading, model.spec, 255)
    with emulating(model) as run:
        judge.reference(run)
    of, nodes = int8(model, backend), place(Graph(model.graph), dialect_for(backend)).convolutions
    table = {}
    for size in range(len(nodes)):
        for kept in itertools.combinations(nodes, size):
            with emulating(of(frozenset(kept))) as run:
                table[frozenset(kept)] = floor.short(judge.outcome(run))
    return table


@pytest.mark.parametrize(("seed", "backend"), [(0, "tensorrt"), (1, "onnxruntime"), (2, "openvino")])
def test_it_is_near_the_best_of_all_subsets_and_meets_the_floor(seed: int, backend: str, tmp_path: Path) -> None:
    model = planted(seed)
    reading = data(tmp_path, model)
    table = every_subset(model, reading, Floor(0.0, margin=0), backend)  # all floors from one pass
    lost = sorted(table.values())
    assert len(table) >= 63
    for allowed in (lost[len(lost) // 8], lost[len(lost) // 3]):
        floor = Floor(max(allowed, 0.01), margin=0)
        found = found_in(model, reading, floor, backend)
        assert found.reached
        assert table[found.keep_float] <= floor.max_drop + 1e-9  # by the judgement from nothing
        weights = macs(model)
        best = min(sum(weights[node] for node in kept) for kept, drop in table.items() if drop <= floor.max_drop)
        came = sum(weights[node] for node in found.keep_float)
        assert came <= 1.3 * best + 1e-9
        assert len(found.candidates) < len(table) / 2
