from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from edgeseg.benchmark.scenarios import SEGMENT_S, Arrivals, Until, at_rate, in_turns
from tests.benchmark.fakes import Clock

MS = 1_000_000


def taking(clock: Clock, ms: Callable[[int], float]) -> Callable[[int], None]:
    calls = iter(range(10**9))
    return lambda k: clock.pass_ms(ms(next(calls)))


def simulated(services_ms: list[float], period_ms: float, *, latest: bool) -> tuple[list[float], int, list[float]]:
    """Latencies, drops and ages at replacement of a queue with one server, event by event. Slow and plain."""
    n, free, latency, dropped, ages, k, turn = len(services_ms), 0.0, [], 0, [], 0, 0
    shown = None
    while k < n:
        begun = max(free, k * period_ms)
        if latest:
            came = [j for j in range(k, n) if j * period_ms <= begun + 1e-9]
            dropped += len(came) - 1
            k = came[-1]
        free = begun + services_ms[turn]
        turn += 1
        latency.append(free - k * period_ms)
        if shown is not None:
            ages.append(free - shown * period_ms)
        shown = k
        k += 1
    return latency, dropped, ages


@pytest.mark.parametrize("latest", [True, False])
@pytest.mark.parametrize("mean", [4.0, 9.0, 17.0, 55.0])
def test_arrivals_as_in_a_simulation(latest: bool, mean: float) -> None:
    chance = random.Random(round(mean))
    services = [float(round(chance.uniform(0.2, 1.8) * mean)) for _ in range(round(SEGMENT_S * 100))]
    clock = Clock()
    turn = iter(services)
    found = at_rate(
        {"a": lambda k: clock.pass_ms(next(turn))},
        Until(0.0, 1),
        fps=100.0,
        latest=latest,
        clock=clock,
        sleep=clock.sleep,
        warmup=0,
    )["a"]
    latency, dropped, ages = simulated(services, 10.0, latest=latest)
    assert [ns / MS for ns in found.latency] == latency
    assert [ns / MS for ns in found.ages] == ages
    assert (found.dropped, found.arrived) == (dropped, len(services))
    assert len(found.latency) + found.dropped == found.arrived
    if not latest:
        assert found.dropped == 0


def test_waiting_behind_a_slow_query_counts() -> None:
    """One query of 100 ms at 100 a second: those due meanwhile are late although they are quick."""
    clock = Clock()
    found = at_rate(
        {"a": taking(clock, lambda k: 100.0 if k == 20 else 1.0)},
        Until(0.0, 1),
        fps=100.0,
        latest=False,
        clock=clock,
        sleep=clock.sleep,
        warmup=0,
    )["a"]
    assert found.latency[20] == 100 * MS
    assert found.latency[21] == 91 * MS
    assert found.latency[25] == 55 * MS
    assert found.latency[31] == 1 * MS
    assert found.service[21] == 1 * MS
    assert found.late(50 * MS) == 6


def test_frames_keep_their_number_when_others_are_dropped() -> None:
    clock = Clock()
    seen: list[int] = []

    def work(k: int) -> None:
        seen.append(k)
        clock.pass_ms(25.0)

    at_rate({"a": work}, Until(0.0, 1), fps=100.0, latest=True, clock=clock, sleep=clock.sleep, warmup=0)
    assert seen[:4] == [0, 2, 5, 7]
    assert seen[-1] == round(SEGMENT_S * 100) - 1  # the last one is never dropped: no newer one came


def test_an_idle_engine_waits_for_the_clock() -> None:
    clock = Clock()
    found = at_rate(
        {"a": taking(clock, lambda k: 1.0)},
        Until(0.0, 1),
        fps=50.0,
        latest=True,
        clock=clock,
        sleep=clock.sleep,
        warmup=0,
    )["a"]
    assert set(found.latency) == {MS}
    assert clock.slept == (found.arrived - 1) * 19 * MS


def test_a_wait_that_takes_too_long_counts() -> None:
    clock = Clock()

    def lazy(seconds: float) -> None:
        clock.sleep(seconds + 0.002)

    found = at_rate(
        {"a": taking(clock, lambda k: 1.0)}, Until(0.0, 1), fps=50.0, latest=True, clock=clock, sleep=lazy, warmup=0
    )["a"]
    assert set(found.latency[1:]) == {3 * MS}
    assert found.woken == [2 * MS] * (found.arrived - 1)


def test_at_a_rate_until_time_and_count_are_there() -> None:
    def run(until: Until) -> tuple[Arrivals, Arrivals, Clock]:
        clock = Clock()
        runs = {"a": taking(clock, lambda k: 1.0), "b": taking(clock, lambda k: 25.0)}
        found = at_rate(runs, until, fps=100.0, latest=True, clock=clock, sleep=clock.sleep)
        return found["a"], found["b"], clock

    a, b, _ = run(Until(0.0, 300))
    assert len(a.latency) >= 300
    assert len(b.latency) >= 300  # processed ones: of the slow one more must come
    assert a.arrived == b.arrived > 700
    a, b, clock = run(Until(30.0, 1))
    assert clock.now >= 30e9
    a, b, clock = run(Until(30.0, 100_000, limit_s=4.0))
    assert 4e9 <= clock.now < 6.5e9
    assert len(b.latency) < 300


def test_turns_are_taken_by_segments() -> None:
    clock = Clock()
    order: list[str] = []

    def work(name: str) -> Callable[[int], None]:
        def run(k: int) -> None:
            order.append(name)
            clock.pass_ms(1.0)

        return run

    runs = {name: work(name) for name in "ab"}
    between: list[int] = []
    at_rate(
        runs,
        Until(0.0, 500),
        fps=100.0,
        latest=True,
        clock=clock,
        sleep=clock.sleep,
        warmup=2,
        after=lambda: between.append(len(order)),
    )
    assert order[:4] == ["a", "b", "a", "b"]  # warm-up
    pieces = [order[4 + k : 4 + k + 200] for k in range(0, len(order) - 4, 200)]
    assert all(len(set(piece)) == 1 for piece in pieces)
    assert len(pieces) == 6
    assert all({first[0], second[0]} == {"a", "b"} for first, second in zip(pieces[::2], pieces[1::2], strict=True))
    assert between == [4 + 200 * k for k in range(1, 7)]


def test_one_after_the_other() -> None:
    clock = Clock()
    turns = in_turns(
        {"a": taking(clock, lambda k: 3.0), "b": taking(clock, lambda k: 5.0)}, Until(1.0, 64), clock=clock, warmup=3
    )
    assert set(turns.samples["a"]) == {3 * MS}
    assert len(turns.samples["a"]) == len(turns.samples["b"]) == len(turns.ended) == 125  # a second, at 8 ms a round
    assert turns.ended[0] == (3 + 1) * 8 * MS
    turns = in_turns({"a": taking(clock, lambda k: 3.0)}, Until(0.1, 64), clock=clock)
    assert len(turns.samples["a"]) == 64
    turns = in_turns({"a": taking(clock, lambda k: 3.0)}, Until(9.0, 64, limit_s=0.03), clock=clock)
    assert len(turns.samples["a"]) == 10
