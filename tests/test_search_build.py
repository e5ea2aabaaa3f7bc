"""The search in a build: when it is needed, what joins the field, what is said where nothing meets the floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from edgeseg.console import Console
from edgeseg.data import Dataset, Reading, load_dataset, read
from edgeseg.errors import AccuracyFailed
from edgeseg.measure.agreement import Agreement
from edgeseg.measure.evaluate import Accuracy
from edgeseg.pipeline.engines import Tried, engines_for, measured_accuracy
from edgeseg.pipeline.frames import QUICK, look_at
from edgeseg.pipeline.search import run, times
from edgeseg.pipeline.search.build import Mixed, failure, lost, mixed_for
from edgeseg.pipeline.search.floor import Floor
from edgeseg.types import OnnxModel, Pixels
from tests.quantize import making
from tests.test_search import data, int8, planted

BACKEND = "onnxruntime"
QUIET = Console()


@dataclass(frozen=True)
class Place:
    model: OnnxModel
    tried: Tried
    dataset: Dataset
    calibration: Reading
    verdict: Reading
    look: list[Pixels]
    accuracy: Mapping[str, Accuracy]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("mixed")
    model = planted(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESEG_CACHE", str(folder / "cache"))
        split = data(folder, model, 16).split
        dataset = load_dataset(folder / "dataset.toml")
        calibration, verdict = read(split, range(0, 16, 4), labels=False), read(split, range(1, 16, 4))
        look = look_at(calibration, model.spec, 3)
        graphs = {BACKEND: int8(model, BACKEND)(frozenset())}
        tried = engines_for(model, graphs, [BACKEND], "int8", look, QUICK, QUIET)
        accuracy = measured_accuracy(tried.engines, model.spec, dataset, verdict, True, QUIET)
    return Place(model, tried, dataset, calibration, verdict, look, accuracy)


def mixed(place: Place, floor: Floor, minutes: float | None = None, **more: Any) -> Mixed | None:
    of = int8(more.pop("of", place.model), BACKEND)
    options: dict[str, Any] = {"use_cache": True, "console": QUIET, **more}
    given = {name: options.pop(name, getattr(place, name)) for name in ("dataset", "calibration", "verdict")}
    return mixed_for(
        place.tried,
        place.model,
        lambda backend, kept: replace(of(kept), spec=place.model.spec),
        place.accuracy,
        given["dataset"],
        given["calibration"],
        given["verdict"],
        floor,
        minutes,
        place.look,
        QUICK,
        **options,
    )


def test_no_search_where_int8_is_good_enough(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # In networks this small a layer may well be faster in float: the clock has no say here.
    told = {"int8": 1_000_000, "fp32": 5_000_000}
    for module in (times, run):
        monkeypatch.setattr(
            module, "in_turns", lambda engines, *_, **__: {e: [told.get(e, 2_000_000)] for e in engines}
        )
    assert mixed(place, Floor(100.0)) is None
    asked = mixed(place, Floor(100.0), minutes=1.0)  # but where it is asked for
    assert asked is not None
    assert asked.found[BACKEND].keep_float == frozenset()
    assert asked.tried.engines == place.tried.engines
    assert "All in INT8 meets the floor" in asked.reasons[0]


def test_a_mixed_engine_joins_the_field_or_it_is_said_why_not(place: Place) -> None:
    before = lost(f"{BACKEND}-int8", place.tried.engines, place.accuracy, place.model.spec.output.classes)
    assert before is not None
    assert before[0] > 2
    made = mixed(place, Floor(2.0, margin=0))
    assert made is not None
    found = made.found[BACKEND]
    assert found.reached
    assert "node_conv3" in found.keep_float
    name = f"{BACKEND}-int8-mixed"
    new = [engine for engine in made.tried.engines if engine not in place.tried.engines]
    (reason,) = made.reasons
    assert "in float" in reason
    if new:
        assert [engine.name for engine in new] == [name]
        assert new[0].precision == "int8"
        assert new[0].source == found.model.digest
        assert made.tried.masks[name].shape == (3, *making.SIZE)
        assert "times as fast" in reason
    else:
        assert {"name": name, "why": reason} in made.tried.rejected
        assert "not worth having" in reason
    (document,) = made.to_json()
    assert document["schema"] == "edgeseg.search/1"
    assert document["reached"]
    assert not set(document["candidates"][0]) - {
        "kept", "ms", "ms_from", "accuracy", "drop", "error", "worst_class", "meets", "chosen",
    }  # fmt: skip
    used = {*place.calibration.indices, *place.verdict.indices}
    assert document["selection"]["frames"] == len(place.calibration.split) - len(used)


def test_what_cannot_be_met_is_said_and_fails_only_where_int8_is_demanded(place: Place) -> None:
    other = planted(3)  # INT8 of a network with other weights: hopeless
    made = mixed(place, Floor(0.1), of=other)
    assert made is not None
    assert not made.found[BACKEND].reached
    assert made.tried.engines == place.tried.engines
    assert "the closest of" in made.reasons[0]
    with pytest.raises(AccuracyFailed, match="no INT8 network stays within") as error:
        mixed(place, Floor(0.1), of=other, demanded=True)
    assert error.value.exit_code == 1
    text = str(error.value)
    assert "--max-miou-drop" in text
    assert "kept in float" in text  # the curve
    assert "everything: FP32" in text
    assert "and 3 of any class" in failure(made.found, Floor(0.1, 3))


def test_without_frames_to_choose_by_it_is_said(place: Place) -> None:
    everything = read(place.calibration.split)
    for given, why in (
        ({"calibration": everything}, "no frames of 'train' are left"),
        ({"dataset": None}, "no frames"),
    ):
        made = mixed(place, Floor(0.5), **given)
        assert made is not None
        assert why in made.reasons[0]
        assert made.tried is place.tried
        assert made.to_json() == []


def test_without_int8_there_is_nothing_to_search(place: Place) -> None:
    bare = replace(place, tried=replace(place.tried, engines=place.tried.engines[:1]))
    assert bare.tried.engines[0].precision == "fp32"
    assert mixed(bare, Floor(0.1), minutes=1.0) is None


def test_what_is_lost_on_the_verdict(place: Place) -> None:
    def seen(matrix: list[list[int]], equal: int, labelled: int) -> Accuracy:
        return Accuracy(np.array(matrix, np.int64), Agreement(100, equal, 10, 5), 1, labelled)

    one, two = place.tried.engines[0], place.tried.engines[-1]
    names = ("a", "b")
    accuracy = {one.name: seen([[50, 0], [0, 50]], 100, 1), two.name: seen([[50, 0], [25, 25]], 75, 1)}
    loss = lost(two.name, [one, two], accuracy, names)
    assert loss is not None
    assert loss[0] == pytest.approx(100 * (1 - (50 / 75 + 0.5) / 2))
    assert loss[1] == pytest.approx(50)
    bare = {name: replace(found, labelled=0) for name, found in accuracy.items()}
    unlabelled = lost(two.name, [one, two], bare, names)
    assert unlabelled is not None
    assert unlabelled[0] == pytest.approx(25)
    assert unlabelled[1] == 0
    assert lost("unknown", [one, two], accuracy, names) is None
