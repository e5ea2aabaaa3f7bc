"""How queries come: one after the other, or at a fixed rate. Only callables, a clock and a way to wait come in.

The scenarios are in the manner of MLPerf Inference's edge division (mlcommons/inference_policies), the camera is not
one of theirs. Latency is counted from when a query was due, so that waiting behind a slow one counts: what is called
coordinated omission elsewhere cannot happen. No sample is left out, however long it took.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgeseg.measure.latency import interleave

Work = Callable[[int], object]  # does the work of query k: on the next of the real frames each time
Clock = Callable[[], int]  # ns
SEGMENT_S = 2.0  # how long a run that has its own clock goes on before it is another's turn
WARMUP = 5  # rounds that do not count


@dataclass(frozen=True, slots=True)
class Until:
    """When a measurement ends: both `seconds` passed and each run has `samples`; or, sooner, `limit_s` passed."""

    seconds: float
    samples: int
    limit_s: float | None = None


@dataclass(slots=True)
class Arrivals:
    """What became of the queries of one run that came at a fixed rate. Times in ns, one entry a query that was run."""

    latency: list[int] = field(default_factory=list)  # from when it was due until it was done
    service: list[int] = field(default_factory=list)  # from when it was begun until it was done
    ended: list[int] = field(default_factory=list)  # by the clock
    ages: list[int] = field(default_factory=list)  # of a result when the next one replaced it, from when it was due
    woken: list[int] = field(default_factory=list)  # how late the system woke us for a query that was waited for
    arrived: int = 0
    dropped: int = 0  # a newer one came before it could be begun

    def late(self, deadline_ns: int) -> int:
        """How many were done later than this after they were due."""
        return sum(latency > deadline_ns for latency in self.latency)


@dataclass(slots=True)
class Turns:
    """Samples of runs that took turns, query by query: sample i of one belongs to sample i of another."""

    samples: dict[str, list[int]]  # ns
    ended: list[int]  # by the clock, when each round ended


def in_turns(
    runs: Mapping[str, Work],
    until: Until,
    *,
    clock: Clock,
    warmup: int = WARMUP,
    after: Callable[[], object] | None = None,
) -> Turns:
    """Each run does one query a round, the next as soon as it is its turn again: a query is due when it is begun.

    `after` is called after every round, outside what is timed.
    """
    ended: list[int] = []

    def noted() -> None:
        ended.append(clock())
        if after is not None:
            after()

    samples = interleave(
        {name: _counting(work) for name, work in runs.items()},
        rounds=until.samples,
        warmup=warmup,
        seconds=until.seconds,
        limit_s=until.limit_s,
        clock=clock,
        on_round=noted,
    )
    return Turns(samples, ended)


def at_rate(
    runs: Mapping[str, Work],
    until: Until,
    *,
    fps: float,
    latest: bool,
    clock: Clock,
    sleep: Callable[[float], object],
    warmup: int = WARMUP,
    after: Callable[[], object] | None = None,
) -> dict[str, Arrivals]:
    """Queries that are due every 1 / `fps` seconds, whether or not the one before is done.

    `latest`: of those that wait, only the newest is run, and the others are dropped, as with a camera. Else all wait
    their turn, and the queue may grow. The runs take turns of SEGMENT_S, in a new random order each time; a turn
    begins with an empty queue. `after` is called between turns.
    """
    found = {name: Arrivals() for name in runs}
    for _ in range(warmup):
        for work in runs.values():
            work(0)
    length = SEGMENT_S if until.limit_s is None else min(SEGMENT_S, until.limit_s / (2 * max(1, len(runs))))
    queries = max(2, round(length * fps))
    chance, order = random.Random(0), list(runs)
    start = clock()
    while True:
        chance.shuffle(order)
        for name in order:
            _segment(runs[name], found[name], queries, fps=fps, latest=latest, clock=clock, sleep=sleep)
            if after is not None:
                after()
        passed = (clock() - start) / 1e9
        enough = all(len(arrivals.latency) >= until.samples for arrivals in found.values())
        if (enough and passed >= until.seconds) or (until.limit_s is not None and passed >= until.limit_s):
            return found


def _segment(
    work: Work,
    found: Arrivals,
    queries: int,
    *,
    fps: float,
    latest: bool,
    clock: Clock,
    sleep: Callable[[float], object],
) -> None:
    first, start = found.arrived, clock()

    def due(k: int) -> int:
        return start + round(k * 1e9 / fps)

    shown: int | None = None  # when the query of the newest result was due
    k = 0
    while k < queries:
        waited = False
        while (left := due(k) - clock()) > 0:
            sleep(left / 1e9)
            waited = True
        if latest:
            newest, now = k, clock()
            while newest + 1 < queries and due(newest + 1) <= now:
                newest += 1
            found.dropped += newest - k
            k = newest
        begun = clock()
        work(first + k)
        ended = clock()
        if waited:
            found.woken.append(begun - due(k))
        found.latency.append(ended - due(k))
        found.service.append(ended - begun)
        found.ended.append(ended)
        if shown is not None:
            found.ages.append(ended - shown)
        shown = due(k)
        k += 1
    found.arrived += queries


def _counting(work: Work) -> Callable[[], object]:
    numbers = iter(range(2**62))
    return lambda: work(next(numbers))
