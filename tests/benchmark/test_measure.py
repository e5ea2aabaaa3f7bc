"""Documents, from fake engines and a clock that only they move."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from edgeseg.benchmark import SCENARIOS, Plan, measure
from edgeseg.errors import BadInput
from edgeseg.measure.latency import samples_needed
from edgeseg.measure.sensors import MachineSample
from edgeseg.report.bench import bench_section, bench_table
from tests.benchmark.fakes import Clock, FakeEngine, opened

OLD = {"schema", "bundle", "path", "graph", "variant", "backend", "precision", "settings", "cold_ms", "latency_ms"}
OLD |= {"end_to_end_ms", "fps", "frame_size", "samples", "machine", "versions"}  # of edgeseg.bench/1
NEW = {"scenario", "run", "frames_digest", "samples_ms", "slowdown", "roofline", "multi_stream", "offline", "camera"}


def measured(plan: Plan, *ms: float, sample: Any = None) -> tuple[list[dict[str, Any]], Clock]:
    clock = Clock()
    engines = [opened(FakeEngine(clock, each), f"net{k}") for k, each in enumerate(ms)]
    documents = measure(engines, plan, clock=clock, sleep=clock.sleep, sample=sample and (lambda: sample(clock.now)))
    return json.loads(json.dumps(documents, allow_nan=False)), clock


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_document_has_what_was_agreed(scenario: Any) -> None:
    for document in measured(Plan(scenario, seconds=0.5), 4.0, 8.0)[0]:
        assert set(document) >= OLD | NEW
        assert document["schema"] == "edgeseg.bench/2"
        assert document["scenario"] == scenario
        particular = {"multi-stream": "multi_stream", "offline": "offline", "camera": "camera"}.get(scenario)
        assert [key for key in ("multi_stream", "offline", "camera") if document[key] is not None] == (
            [particular] if particular else []
        )
        assert document["samples"] == len(document["samples_ms"]["engine"])
        assert document["lacking"] == {}
        assert f"{document['bundle']}.edgeseg" in bench_table([document])
        assert f"Scenario: {scenario}" in bench_section(document)


def test_single_stream() -> None:
    (one, two), _ = measured(Plan(seconds=3.0), 4.0, 8.0)
    assert one["run"] == two["run"]
    assert int(one["run"], 16) >= 0
    assert one["paired"] is True
    assert one["frames_digest"] == two["frames_digest"]
    assert set(one["samples_ms"]["engine"]) == {4.0}
    assert set(two["samples_ms"]["whole"]) == {8.0}
    # 3 s for each, and a round is two runs of each: 24 ms, so 250 rounds.
    assert one["samples"] == two["samples"] == 250
    assert (one["latency_ms"]["p90"], one["fps"]) == (4.0, 250.0)
    assert one["latency_ms"]["p99"] is None
    assert one["bounds_ms"]["confidence"] == 0.99
    assert one["bounds_ms"]["engine"] == {"p50": 4.0, "p90": 4.0, "p99": None}
    assert measured(Plan(seconds=3.0), 4.0)[0][0]["run"] != one["run"]


def test_as_many_samples_as_are_asked_for_and_no_fewer_than_needed() -> None:
    assert measured(Plan(seconds=0.001), 4.0)[0][0]["samples"] == samples_needed(0.9) == 64
    document = measured(Plan(seconds=0.001, samples=700), 4.0)[0][0]
    assert document["samples"] == 700
    assert document["latency_ms"]["p99"] == 4.0
    assert measured(Plan("multi-stream", seconds=0.001), 1.0)[0][0]["samples"] == samples_needed(0.99)


def test_a_limit_says_what_is_missing() -> None:
    (document,), clock = measured(Plan(limit_s=0.4), 10.0)
    assert document["samples"] == 20
    assert document["latency_ms"]["p90"] is None
    assert document["lacking"] == {"p90": {"needed": 64, "have": 20}}
    assert "it needs 64 samples, there are 20" in bench_table([document])
    assert "it needs 64 samples, there are 20" in bench_section(document)
    assert clock.now < 0.6e9


def test_the_tail_is_whole() -> None:
    clock = Clock()
    engine = FakeEngine(clock, [2.0] * 99 + [5000.0])
    (document,) = measure([opened(engine)], Plan(seconds=1.0, samples=300), clock=clock, sleep=clock.sleep)
    raw = document["samples_ms"]["engine"] + document["samples_ms"]["whole"]
    assert raw.count(5000.0) >= 5
    assert max(document["latency_ms"]["max"], document["end_to_end_ms"]["max"]) == 5000.0


def test_multi_stream_is_of_all_streams() -> None:
    (document,), _ = measured(Plan("multi-stream", seconds=0.1, streams=3), 4.0)
    assert document["latency_ms"]["p99"] == 12.0
    assert document["multi_stream"]["engine"] == {"frames_per_second": 250.0, "load": None}
    assert document["fps"] == 250.0
    assert "3 frames back to back" in bench_table([document])


def test_multi_stream_by_a_clock_queues() -> None:
    (document,), _ = measured(Plan("multi-stream", seconds=0.1, streams=3, fps=50.0), 4.0)
    assert document["latency_ms"]["p99"] == 12.0
    assert document["multi_stream"]["engine"]["load"] == pytest.approx(0.6)
    (document,), _ = measured(Plan("multi-stream", seconds=0.1, streams=3, fps=100.0), 4.0)
    # 12 ms of work every 10 ms: query k is done 12 (k + 1) ms after the start and was due after 10 k ms.
    assert document["samples_ms"]["engine"][:4] == [12.0, 14.0, 16.0, 18.0]
    assert document["multi_stream"]["engine"]["load"] == pytest.approx(1.2)
    assert "the queue grows without end" in bench_table([document])


def test_a_camera_that_is_kept_up_with() -> None:
    (document,), _ = measured(Plan("camera", seconds=0.1, fps=50.0), 12.0)
    part = document["camera"]["engine"]
    assert document["paired"] is False
    assert part["arrived"] == part["processed"] >= 662
    assert (part["dropped"], part["late"], part["missed"], part["missed_share"]) == (0, 0, 0, 0.0)
    assert document["latency_ms"]["p99"] == 12.0
    assert part["mask_age_ms"]["p50"] == 32.0  # a period and what the next one takes
    assert document["fps"] == 50.0
    assert document["camera"]["deadline_ms"] == 20.0


def test_a_camera_that_is_too_fast() -> None:
    (document,), _ = measured(Plan("camera", seconds=0.1, fps=100.0, deadline_ms=27.0), 25.0)
    part = document["camera"]["whole"]
    assert part["processed"] + part["dropped"] == part["arrived"]
    assert part["processed"] / part["arrived"] == pytest.approx(10 / 25, abs=0.01)
    assert part["service_ms"]["p99"] == 25.0
    assert part["wake_ms"] is None  # it never waited
    # It takes the frame of 0 ms, then at 25 ms that of 20 ms, done at 50 ms: 30 ms; then that of 50 ms: 25 ms; …
    assert document["samples_ms"]["whole"][:4] == [25.0, 30.0, 25.0, 30.0]
    assert part["late"] == pytest.approx(part["processed"] / 2, abs=8)
    assert part["missed"] == part["late"] + part["dropped"]
    assert document["fps"] == pytest.approx(40.0, abs=1.0)
    text = bench_table([document])
    assert f"{part['dropped']} dropped" in text
    assert "later than 27.0 ms" in text


def test_offline_states_throughput() -> None:
    (document,), _ = measured(Plan("offline", seconds=0.5), 4.0)
    found = document["offline"]
    assert found["engine"]["frames_per_second"] == pytest.approx(250.0)
    assert found["engine"]["turns"] == document["samples"] >= 11
    assert found["way"] == {"sessions": 1, "batch": 1, "threads": 1}
    assert set(document["samples_ms"]["engine"]) == {4.0}
    assert document["latency_ms"]["p50"] is None
    assert "throughput" in document["latency_ms"]["reasons"]["p50"]
    assert "250.00" in bench_table([document])
    assert "Throughput of net0" in bench_section(document)


def test_numbers_that_do_not_go_together() -> None:
    for wrong in (
        {"scenario": "server"},
        {"seconds": 0.0},
        {"seconds": float("inf")},
        {"limit_s": -1.0},
        {"samples": 0},
        {"streams": 0},
        {"fps": 30.0},
        {"scenario": "offline", "fps": 30.0},
        {"deadline_ms": 5.0},
        {"scenario": "camera", "deadline_ms": 0.0},
    ):
        with pytest.raises(BadInput):
            Plan(**wrong)
    assert Plan("camera").rate == 30.0
    assert Plan("multi-stream").rate is None
    assert Plan("camera", limit_s=3.0).until(2).limit_s == 6.0


def test_the_machine_is_asked_between_rounds_only() -> None:
    asked: list[int] = []

    def sample(now: int) -> MachineSample:
        asked.append(now)
        return MachineSample(cpu_clock_mhz=3000.0, cpu_percent=60.0, cpu_percent_self=45.0)

    (document,), _ = measured(Plan(seconds=5.0), 10.0, sample=sample)
    assert all(now % 20_000_000 == 0 for now in asked)  # a round is an engine's run and a whole one
    assert all(b - a >= 1_000_000_000 for a, b in pairwise(asked))
    found = document["slowdown"]
    assert found["moved"] is False
    assert found["machine"]["cpu_clock_mhz"] == {"min": 3000.0, "median": 3000.0, "max": 3000.0}
    assert found["others_percent"] == pytest.approx(15.0)
    assert found["drift"] == 1.0
    assert found["text"] == ["other programs used 15 % of the CPU meanwhile"]
    assert "other programs used 15 %" in bench_table([document])


def test_a_machine_that_slows_down_is_told() -> None:
    clock = Clock()

    def sample() -> MachineSample:
        return MachineSample(cpu_clock_mhz=3000.0 if clock.now < 20e9 else 2000.0)

    class Throttled(FakeEngine):
        def run(self, frames: Any, out: Any = None) -> Any:
            self._ms = 10.0 if clock.now < 20e9 else 15.0
            return super().run(frames, out)

    (document,) = measure([opened(Throttled(clock, 10.0))], Plan(seconds=40.0), clock=clock, sample=sample)
    found = document["slowdown"]
    assert found["moved"] is True
    assert found["drift"] == pytest.approx(1.5)
    (stretch,) = found["stretches"]
    assert stretch["cause"] == "clock"
    assert stretch["slower"] == pytest.approx(1.5, rel=0.02)
    assert stretch["start_s"] == pytest.approx(20.0, abs=1.5)
    assert any("3000 to 2000 MHz" in text for text in found["text"])


def test_nothing_is_said_where_nothing_is_known() -> None:
    (document,), _ = measured(Plan(seconds=0.1, samples=20), 10.0)
    assert document["slowdown"] is None


def test_bundles_of_one_name_are_told_apart() -> None:
    one, two = measured(Plan(seconds=0.1), 4.0, 8.0)[0]
    assert "net0.edgeseg v: engine" in bench_table([one, two])
    there = bench_table([one | {"path": "a/n.edgeseg"}, two | {"path": "b/n.edgeseg"}])
    assert "a/n.edgeseg v: engine" in there
    assert "b/n.edgeseg v: engine" in there
    assert "net0.edgeseg #2 v: engine" in bench_table([one, one])
