"""The search on networks with planted hard layers: floors, journal, clock, Ctrl-C, bad input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.backends.onnxruntime import probe
from edgeseg.data import Reading, load_dataset, read
from edgeseg.errors import BadInput, ModelError
from edgeseg.graph import Graph
from edgeseg.pipeline.network import dialect_for
from edgeseg.pipeline.search import Floor, Found, search
from edgeseg.pipeline.search.candidates import Candidate
from edgeseg.pipeline.search.judge import Judge, emulating, selection_for
from edgeseg.quantize import place, quantize
from edgeseg.types import MASK, OnnxModel
from tests.data import files
from tests.quantize import making

NAMES = tuple(f"class {index}" for index in range(4))


def planted(seed: int = 0, hard: float = 60.0) -> OnnxModel:
    """Six convolutions and two ends: one channel of a huge range, PReLU, a sum of branches of different ranges."""
    net = making.Net(seed)
    first = net.relu(net.conv(net.image(), "conv1", 8), "relu1")
    second = net.relu(net.conv(first, "conv2", 8), "relu2")
    third = net.conv(second, "conv3", 8, 1)
    slope = net.weight("slope", np.full((8, 1, 1), 0.25, np.float32))
    bent = net.op("PRelu", [third, slope], "prelu")
    small = net.conv(first, "conv4", 8, 1, gain=0.05)
    added = net.op("Add", [bent, small], "sum")
    fifth = net.relu(net.conv(added, "conv5", 8), "relu5")
    sixth = net.relu(net.conv(net.relu(net.conv(fifth, "conv6", 8), "relu6"), "conv7", 8), "relu7")
    # The second's third channel is large and its readers weigh it down: exact in float, coarse in INT8.
    net.weights["conv2.w"][3] *= hard
    net.weights["conv2.b"][3] *= hard
    net.weights["conv3.w"][:, 3] /= hard
    return net.model(net.conv(sixth, "head", 4, 1, gain=3.0))


def int8(model: OnnxModel, backend: str = "tensorrt") -> Callable[[frozenset[str]], OnnxModel]:
    table, dialect = making.table_of(model), dialect_for(backend)
    return lambda kept: quantize(model, table, dialect, placement=place(Graph(model.graph), dialect, keep_float=kept))


def data(folder: Path, model: OnnxModel | None, count: int = 10) -> Reading:
    """Frames, labelled with what the FP32 network says but for a tenth of the pixels; without a network unlabelled."""
    rng = np.random.default_rng(0)
    for index, frame in enumerate(making.frames(count, seed=3)):
        files.write(folder / "images" / f"{index:02d}.png", frame)
        if model is not None:
            (values,) = probe(model.graph, [MASK], [frame[None]])
            label = values[MASK][0].copy()
            wrong = rng.random(label.shape) < 0.1
            label[wrong] = rng.integers(0, 4, np.count_nonzero(wrong))
            files.write(folder / "labels" / f"{index:02d}.png", label)
    toml = f'name = "toy"\nclasses = {list(NAMES)}\nignore_index = 255\n[splits.train]\nimages = "images"\n'.replace(
        "'", '"'
    )
    (folder / "dataset.toml").write_text(toml + ('labels = "labels"\n' if model is not None else ""))
    return read(load_dataset(folder / "dataset.toml").split("train"), range(count // 4, count))


def found_in(model: OnnxModel, reading: Reading, floor: Floor, backend: str = "tensorrt", **options: Any) -> Found:
    options = {"minutes": 5.0, "emulate": True, "ignore_index": 255, **options}
    of = options.pop("of", None) or int8(model, backend)
    return search(model, of, backend, reading, floor=floor, **options)


def macs(model: OnnxModel) -> dict[str, float]:
    """Multiplications of each convolution: all are at one size here."""
    graph = Graph(model.graph)
    return {
        node.name: float(weights.size)
        for node in graph.nodes
        if node.op_type == "Conv" and (weights := graph.constant(node.input[1])) is not None
    }


def test_what_reads_the_huge_channel_is_what_stays_in_float(tmp_path: Path) -> None:
    model = planted(0, hard=300.0)
    found = found_in(model, data(tmp_path, model), Floor(1.0, margin=0))
    assert "node_conv3" in found.keep_float
    worst = found.report["convolutions"][0]
    assert worst["node"] == "node_conv3"
    assert worst["snr_db"]["alone"] < 20
    inside = found.model.graph
    assert b"edgeseg/node_conv3/weight" not in inside
    assert b"edgeseg/node_conv4/weight" in inside


def test_without_labels_agreement_counts_and_a_class_may_have_a_floor(tmp_path: Path) -> None:
    model = planted(0)
    reading = data(tmp_path, None)
    found = found_in(model, reading, Floor(1.0, margin=0))
    assert found.report["metric"] == "agreement with FP32"
    assert found.reached
    chosen = found.chosen.outcome
    assert chosen is not None
    assert 99 <= chosen.accuracy <= 100
    masks = [
        [next(iter(probe(m.graph, [MASK], [sample.pixels[None]])))[MASK] for sample in reading]
        for m in (model, found.model)
    ]
    assert 100 * np.mean(np.array(masks[0]) == np.array(masks[1])) == pytest.approx(chosen.accuracy, abs=0.05)
    strict = found_in(model, reading, Floor(100, 4.0, margin=0))
    assert strict.reached
    assert strict.chosen.outcome is not None
    assert max(drop for drop in strict.chosen.outcome.class_drops if drop is not None) <= 4
    loose = found_in(model, reading, Floor(100))
    assert loose.keep_float == frozenset()


def test_a_margin_keeps_more_in_float(tmp_path: Path) -> None:
    model = planted(1)
    reading = data(tmp_path, model)
    bold, careful = (found_in(model, reading, Floor(2.0, margin=margin)) for margin in (0.0, 2.0))
    assert careful.chosen.outcome is not None
    assert careful.chosen.outcome.drop + 2 * careful.chosen.outcome.error <= 2
    assert sum(macs(model)[n] for n in careful.keep_float) >= sum(macs(model)[n] for n in bold.keep_float)


def test_the_closest_is_handed_over_where_nothing_meets_the_floor(tmp_path: Path) -> None:
    model = planted(0)
    hopeless = int8(planted(3))  # other weights than those of the yardstick

    def of(kept: frozenset[str]) -> OnnxModel:
        return replace(hopeless(kept), spec=model.spec)

    found = found_in(model, data(tmp_path, model), Floor(0.5), of=of)
    assert not found.reached
    assert not found.report["reached"]
    assert found.chosen.short == min(candidate.short for candidate in found.candidates) > 0
    assert found.keep_float == found.chosen.kept


def test_the_same_call_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = planted(0)
    reading = data(tmp_path, model)
    judged: list[int] = []
    real = Judge.outcome

    def counted(self: Judge, run: Any) -> Any:
        judged.append(1)
        return real(self, run)

    monkeypatch.setattr(Judge, "outcome", counted)
    ticks = itertools.count()
    part = found_in(model, reading, Floor(0.3), minutes=0.15, clock=lambda: float(next(ticks)))
    assert part.report["ended"] == "time"
    some = len(judged)
    assert 0 < some == len(part.candidates)
    judged.clear()
    whole = found_in(model, reading, Floor(0.3))
    more = len(judged)
    assert whole.report["ended"] == "done"
    judged.clear()
    again = found_in(model, reading, Floor(0.3))
    assert not judged
    assert again.candidates == whole.candidates
    alone = found_in(model, reading, Floor(0.3), use_cache=False)
    assert alone.candidates == whole.candidates
    assert more < len(judged)
    judged.clear()
    found_in(model, reading, Floor(0.5))  # another floor: what was judged is known
    assert len(judged) < len(alone.candidates)


def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = planted(0)
    reading = data(tmp_path, model)
    count = itertools.count(1)
    real = Judge.outcome
    last = 4

    def interrupted(self: Judge, run: Any) -> Any:
        if next(count) > last:
            raise KeyboardInterrupt
        return real(self, run)

    monkeypatch.setattr(Judge, "outcome", interrupted)
    found = found_in(model, reading, Floor(0.3))
    assert found.report["ended"] == "interrupted"
    assert len(found.candidates) == last
    assert found.chosen in found.candidates
    last = 0
    with pytest.raises(KeyboardInterrupt):  # before anything was found there is nothing to keep
        found_in(model, reading, Floor(0.3), use_cache=False)


def test_times_on_a_runtime_are_measured(tmp_path: Path) -> None:
    model = planted(0)
    reading = data(tmp_path, model)
    found = found_in(
        model, reading, Floor(2.0, margin=0), "onnxruntime", emulate=False, settings={"optimization": "all"}
    )
    report = found.report
    assert report["judged"] == "on the runtime"
    assert {unit["ms_from"] for unit in report["convolutions"]} == {"measured"}
    assert all(math.isfinite(unit["ms"]) for unit in report["convolutions"])
    assert report["fp32"]["ms"] > 0
    chosen = found.chosen
    assert chosen.measured
    assert chosen.ms is not None
    assert chosen.ms > 0
    assert chosen.ms == min(c.ms for c in found.candidates if c.measured and c.short <= 0 and c.ms is not None)
    assert all(candidate.ms is not None for candidate in found.candidates)


def test_a_graph_that_the_runtime_refuses_is_out(tmp_path: Path) -> None:
    model = planted(0)
    of = int8(model, "onnxruntime")

    def some(kept: frozenset[str]) -> OnnxModel:
        made = of(kept)
        if "node_conv1" in kept or not kept:
            return made
        broken = Graph(made.graph)
        broken.nodes[-1].domain = "unknown"
        return replace(made, graph=broken.finish([]))

    reading = data(tmp_path, model)
    judge = Judge(reading, model.spec, 255)
    with pytest.raises(ModelError, match="refuses"), emulating(some(frozenset({"node_conv2"}))):
        pass
    with emulating(model) as run:
        judge.reference(run)
    assert judge.labelled == len(reading)


def test_selection_frames_are_neither_calibrated_on_nor_judged_by(tmp_path: Path) -> None:
    reading = data(tmp_path, None, 20)
    split = reading.split
    calibration, verdict = read(split, range(0, 20, 4)), read(split, range(1, 20, 4))
    chosen = selection_for(calibration, verdict, 6)
    assert chosen is not None
    assert len(chosen) == 6
    assert not set(chosen.indices) & {*calibration.indices, *verdict.indices}
    assert selection_for(read(split), None) is None
    elsewhere = replace(verdict, split=replace(split, name="val"))
    every = selection_for(calibration, elsewhere)
    assert every is not None
    assert len(every) == 15


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan, math.inf])
def test_minutes_that_are_none(minutes: float, tmp_path: Path) -> None:
    model = planted(0)
    with pytest.raises(BadInput, match="minutes"):
        found_in(model, data(tmp_path, None), Floor(1), minutes=minutes)


def test_a_candidate_as_a_row() -> None:
    row = Candidate(frozenset("ba"), None, False, None, math.inf).to_json(NAMES)
    assert row["kept"] == ["a", "b"]
    assert row["ms"] is row["ms_from"] is row["accuracy"] is row["worst_class"] is None
    assert row["meets"] is False
