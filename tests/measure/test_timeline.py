from __future__ import annotations

import json
import random
import statistics
import threading
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.measure import Histogram, MachineSample, Timeline, slowdowns, summarize

S = 1_000_000_000
MS = 1_000_000


def test_a_row_for_every_second() -> None:
    timeline = Timeline(["infer", "deliver"])
    for frame in range(90):
        timeline.add(7 * S + frame * S // 30, {"infer": (10 + frame // 30) * MS, "deliver": MS})
    timeline.count(9 * S + S // 2, "dropped", 3)
    timeline.count(8 * S, "failed")  # an older time: into the window under way
    rows = timeline.rows()
    assert [row["t"] for row in rows] == [0.0, 1.0, 2.0]
    assert [(row["frames"], row["dropped"], row["failed"]) for row in rows] == [(30, 0, 0), (30, 0, 0), (30, 3, 1)]
    assert [row["seconds"] for row in rows] == [1.0, 1.0, pytest.approx(29 / 30)]
    assert rows[0]["fps"] == 30.0
    assert [row["infer"]["max"] for row in rows] == [10.0, 11.0, 12.0]
    assert rows[1]["infer"] == {"count": 30, "p50": 11.0, "p90": None, "p99": None, "max": 11.0}
    assert rows[0]["machine"] == {}
    assert rows[0]["throttled"] is None
    json.dumps(rows, allow_nan=False)


def test_a_young_window_tells_no_rate_and_an_empty_stage_nothing() -> None:
    timeline = Timeline(["infer", "deliver"], start_ns=0)
    assert timeline.rows() == []
    timeline.add(S // 10, {"infer": 5})
    (row,) = timeline.rows()
    assert row["fps"] is None
    assert row["deliver"] is None
    assert timeline.recent(5)["deliver"] is None


def test_what_it_does_not_know_is_refused() -> None:
    timeline = Timeline(["infer"])
    with pytest.raises(ValueError, match="no stage 'inter'; there are: infer"):
        timeline.add(0, {"inter": 1})
    with pytest.raises(ValueError, match="no kind of event 'lost'"):
        timeline.count(0, "lost")
    with pytest.raises(ValueError, match="at least two"):
        Timeline(["infer"], keep=1)


def test_a_clock_that_jumps() -> None:
    timeline = Timeline(["infer"], keep=10)
    timeline.add(100 * S, {"infer": 3 * MS})
    timeline.add(50 * S, {"infer": -50 * S})  # set back while the frame was under way
    timeline.add(10**9 * S, {"infer": 4 * MS})  # and far ahead
    timeline.add(101 * S, {"infer": 5 * MS})
    assert [row["frames"] for row in timeline.rows()] == [2, 2]
    assert timeline.impossible == 1
    assert timeline.total("infer").count == 3


@given(st.lists(st.integers(0, 5 * S), max_size=300), st.integers(2, 30))
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_when_windows_are_joined(steps: list[int], keep: int) -> None:
    timeline, now, samples = Timeline(["infer"], keep=keep, start_ns=0), 0, []
    for i, step in enumerate(steps):
        now += step
        samples.append(MS + 1000 * (i * 7919 % 1000))
        timeline.add(now, {"infer": samples[-1]})
        timeline.count(now, "dropped", i % 3)
        timeline.machine(now, MachineSample(temperature_c=float(i), throttled=i == 3))
    rows = timeline.rows(ranges=True)
    assert len(rows) <= keep
    assert sum(row["frames"] for row in rows) == len(steps)
    assert sum(row["dropped"] for row in rows) == sum(i % 3 for i in range(len(steps)))
    assert sum(row["infer"]["count"] for row in rows) == len(steps)
    assert timeline.total("infer") == Histogram(samples)
    for row, after in pairwise(rows):
        assert row["t"] + row["seconds"] <= after["t"]
    if steps:
        assert max(row["machine_range"]["temperature_c"][1] for row in rows) == len(steps) - 1
        assert min(row["machine_range"]["temperature_c"][0] for row in rows) == 0
        assert any(row["throttled"] for row in rows) == (len(steps) > 3)


def test_old_windows_are_joined_and_new_ones_stay_short() -> None:
    timeline, samples = Timeline(["infer"], keep=60), []
    for second in range(5000):
        for frame in range(4):
            samples.append(MS * (1 + second // 1000) + frame)
            timeline.add(second * S + frame * S // 4, {"infer": samples[-1]})
    rows = timeline.rows()
    assert len(rows) <= 60
    assert rows[0]["t"] == 0.0
    assert {row["seconds"] for row in rows[-10:-1]} == {1.0}
    assert max(row["seconds"] for row in rows) in (64.0, 128.0)
    for row in rows[:-1]:
        assert row["frames"] == 4 * row["seconds"]
        if row["infer"]["p50"] is not None:
            inside = samples[round(4 * row["t"]) : round(4 * (row["t"] + row["seconds"]))]
            assert row["infer"]["p50"] == pytest.approx(summarize(inside).p50, rel=0.004)
    assert timeline.total("infer").latency().max == max(samples) / 1e6


def test_recent_covers_the_last_seconds() -> None:
    timeline = Timeline(["infer"])
    for second in range(100):
        for _ in range(20):
            timeline.add(second * S, {"infer": (1 + second) * MS})
    recent = timeline.recent(9.5)["infer"]
    assert recent is not None
    assert (recent.count, recent.min, recent.max) == (220, 90.0, 100.0)  # 89.5 s is within the window from 89 to 90
    whole = timeline.recent(1e6)["infer"]
    assert whole is not None
    assert whole.count == 2000


def test_machine_samples_are_joined_by_time() -> None:
    timeline = Timeline(["infer"], window_s=2.0, start_ns=0)
    for second in range(4):
        timeline.machine(
            second * S,
            MachineSample(
                cpu_percent=10.0 * second,
                temperatures={"GPU-therm": 40.0 + second},
                rails={"VDD_IN": 5.0} if second > 1 else {},
                throttled=second == 3,
                throttle_reasons=("power cap",) if second == 3 else (),
            ),
        )
    first, second_row = timeline.rows(ranges=True)
    assert first["machine"] == {"cpu_percent": 5.0, "temperature_c:GPU-therm": 40.5}
    assert first["machine_range"]["cpu_percent"] == [0.0, 10.0]
    assert second_row["machine"] == {"cpu_percent": 25.0, "temperature_c:GPU-therm": 42.5, "power_w:VDD_IN": 5.0}
    assert (first["throttled"], first["throttle_reasons"]) == (False, [])
    assert "machine_range" not in timeline.rows()[0]
    assert (second_row["throttled"], second_row["throttle_reasons"]) == (True, ["power cap"])


def test_three_threads_at_once() -> None:
    timeline, done, errors = Timeline(["infer", "deliver"], keep=12), threading.Event(), []

    def write() -> None:
        for i in range(4000):
            timeline.add(i * S // 20, {"infer": 5 * MS + i, "deliver": i})

    def sample() -> None:
        for i in range(200):
            timeline.machine(i * S, MachineSample(cpu_percent=float(i)))

    def read() -> None:
        while not done.is_set():
            rows = timeline.rows()
            if any(a["t"] + a["seconds"] > b["t"] for a, b in pairwise(rows)) or len(rows) > 12:
                errors.append(rows)
            timeline.recent(3.0)
            timeline.total("infer")

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write), threading.Thread(target=sample)]
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert errors == []
    assert timeline.total("deliver").count == sum(row["frames"] for row in timeline.rows()) == 4000


def rows_of(
    times: list[float], machine: list[dict[str, float]] | None = None, throttled: list[bool] | None = None
) -> list[dict[str, Any]]:
    """A row a second with these medians of infer in ms."""
    return [
        {
            "t": float(i),
            "seconds": 1.0,
            "infer": {"p50": time},
            "machine": machine[i] if machine else {},
            "throttled": throttled[i] if throttled else None,
            "throttle_reasons": ["thermal slowdown by software"] if throttled and throttled[i] else [],
        }
        for i, time in enumerate(times)
    ]


STEP = [10.0] * 60 + [13.0] * 40


def test_throttling_is_the_cause() -> None:
    machine = [{"gpu_clock_mhz": 1300.0, "gpu_temperature_c": 70.0}] * 60
    machine += [{"gpu_clock_mhz": 900.0, "gpu_temperature_c": 91.0}] * 40
    (found,) = slowdowns(rows_of(STEP, machine, [False] * 60 + [True] * 40))
    assert (found.start_s, found.end_s, found.cause) == (60.0, 100.0, "throttled")
    assert found.slower == pytest.approx(1.3)
    assert found.text == (
        "infer was 30 % slower from 60 to 100 s: the machine throttled (thermal slowdown by software), "
        "GPU clock 900 MHz instead of 1300 MHz, GPU at 91 °C, 70 °C before"
    )


@pytest.mark.parametrize(
    ("fast", "slow", "cause", "words"),
    [
        ({"cpu_clock_mhz": 3000.0}, {"cpu_clock_mhz": 2500.0}, "clock", "CPU clock 2500 MHz instead of 3000 MHz"),
        ({"temperature_c": 60.0}, {"temperature_c": 88.0}, "temperature", "hottest zone at 88 °C, 60 °C before"),
        (
            {"cpu_percent": 50.0, "cpu_percent_self": 48.0},
            {"cpu_percent": 98.0, "cpu_percent_self": 40.0},
            "other load",
            "other programs used 58 % of the CPU instead of 2 %",
        ),
        ({"gpu_clock_mhz": 1300.0}, {"gpu_clock_mhz": 1250.0}, None, "no cause seen in the machine's samples"),
        ({"temperature_c": 88.0}, {"temperature_c": 88.0}, None, "no cause seen in the machine's samples"),
        ({}, {}, None, "there are no samples of the machine"),
    ],
)
def test_other_causes_and_none(fast: dict[str, float], slow: dict[str, float], cause: str | None, words: str) -> None:
    (found,) = slowdowns(rows_of(STEP, [fast] * 60 + [slow] * 40))
    assert found.cause == cause
    assert words in found.text


def test_throttling_that_was_there_all_the_time_explains_nothing() -> None:
    (found,) = slowdowns(rows_of(STEP, throttled=[True] * 100))
    assert found.cause is None


def test_a_slow_start_and_two_stretches() -> None:
    times = [14.0] * 5 + [10.0] * 40 + [12.0] * 5 + [10.0] * 40 + [12.5] * 2 + [10.0] + [12.5] * 6 + [10.0] * 4
    assert [(found.start_s, found.end_s) for found in slowdowns(rows_of(times))] == [(0, 5), (45, 50), (90, 99)]


@pytest.mark.parametrize(
    "times",
    [
        [],
        [10.0, 10.0, 10.0, 20.0, 20.0],  # too short to compare
        [10.0] * 50 + [11.3] * 50,  # 13 %
        [10.0] * 50 + [30.0] * 2 + [10.0] * 50,  # a hiccup
        [10.0, 10.0, 10.0, 30.0] * 30,  # every fourth window
        [0.0] * 30,  # nothing to be slower than
        [10.0, 14.0] * 40,  # that is how it is
    ],
)
def test_no_false_alarm(times: list[float]) -> None:
    assert slowdowns(rows_of(times)) == []


@pytest.mark.parametrize("scatter", [0.01, 0.05, 0.1, 0.2])
def test_no_false_alarm_in_noise_and_still_found(scatter: float) -> None:
    for seed in range(40):
        chance = random.Random(seed)
        times = [10.0 * chance.lognormvariate(0, scatter) for _ in range(360)]
        assert slowdowns(rows_of(times)) == [], seed
        slow = [time * (1.3 if scatter < 0.1 else 2.2) if 200 <= i < 260 else time for i, time in enumerate(times)]
        found = slowdowns(rows_of(slow))
        assert found, seed
        longest = max(found, key=lambda one: one.end_s - one.start_s)
        assert abs(longest.start_s - 200) <= 8
        assert abs(longest.end_s - 260) <= 8


def test_windows_without_a_median_are_left_out() -> None:
    rows = rows_of(STEP)
    for row in rows[60:]:
        row["infer"] = {"p50": None}
    assert slowdowns(rows) == []
    assert statistics.median(row["infer"]["p50"] for row in rows[:60]) == 10.0


def test_from_the_timeline_to_the_finding() -> None:
    timeline = Timeline(["infer"], keep=60)
    for second in range(600):
        hot = second >= 400
        for frame in range(12):
            timeline.add(second * S + frame * S // 12, {"infer": (26 if hot else 20) * MS + frame})
        timeline.machine(second * S, MachineSample(gpu_clock_mhz=850.0 if hot else 1300.0, temperature_c=60.0))
    (found,) = slowdowns(timeline.rows())
    assert found.cause == "clock"
    assert found.slower == pytest.approx(1.3, rel=0.01)
    assert abs(found.start_s - 400) <= 16


def test_the_last_rows_are_the_last_of_all_rows() -> None:
    timeline = Timeline(("infer",), start_ns=0)
    for second in range(30):
        timeline.add(second * 10**9, {"infer": 10**6})
    rows = timeline.rows()
    assert timeline.rows(last=4) == rows[-4:]
    assert timeline.rows(last=100) == rows
