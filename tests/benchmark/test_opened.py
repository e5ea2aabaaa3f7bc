from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

from edgeseg.benchmark.offline import Throughput, Way, choose, throughput, ways
from edgeseg.benchmark.opened import frames_digest
from edgeseg.errors import BadInput, ModelError
from tests.benchmark.fakes import Clock, FakeEngine, frames, opened


def first_pixels(engine: FakeEngine) -> list[list[int]]:
    return [[int(frame[0, 0, 0]) for frame in given] for given in engine.seen]


def test_frames_in_turn_one_at_a_time() -> None:
    engine = FakeEngine(Clock(), 1.0)
    one = opened(engine)
    alone, whole = one.works()
    for k in range(4):
        alone(k)
        whole(k)
    assert first_pixels(engine) == [[10], [10], [11], [11], [12], [12], [10], [10]]


def test_streams_are_at_different_places() -> None:
    engine = FakeEngine(Clock(), 1.0)
    alone, _ = opened(engine, own=frames(6)).works(3)
    alone(0)
    alone(1)
    assert first_pixels(engine) == [[10], [12], [14], [11], [13], [15]]


def test_batches_as_the_engine_takes_them() -> None:
    for batch, expected in ((0, [[10, 11, 12]]), (1, [[10], [11], [12]]), (2, [[10, 11], [12, 12]])):
        engine = FakeEngine(Clock(), 1.0, batch=batch)
        alone, whole = opened(engine).works(3)
        alone(0)
        assert first_pixels(engine) == expected
        engine.seen.clear()
        whole(0)
        given = first_pixels(engine)
        assert [len(part) for part in given] == [len(part) for part in expected]
        assert given[0] == expected[0]
    engine = FakeEngine(Clock(), 1.0, batch=0)
    opened(engine, own=frames(5)).works(5, batch=2)[0](0)
    assert first_pixels(engine) == [[10, 11], [12, 13], [14, 14]]


def test_whole_resizes_and_checks() -> None:
    engine = FakeEngine(Clock(), 1.0)
    one = opened(engine, own=frames(2, (12, 16)))
    one.works()[1](0)
    assert engine.seen[0].shape == (1, 6, 8, 3)
    one.frames = [np.zeros((4, 4), np.uint8)]
    with pytest.raises(BadInput, match="uint8 array"):
        one.works()[1](0)


def test_frames_have_a_digest() -> None:
    assert frames_digest(frames()) == frames_digest(frames())
    assert len({frames_digest(f) for f in (frames(), frames()[::-1], frames(2), frames(3, (8, 6)))}) == 4


def test_ways_that_are_tried() -> None:
    clock = Clock()
    one = opened(FakeEngine(clock, 1.0))
    assert ways(one) == [Way(1, 1, 1)]
    one = opened(FakeEngine(clock, 1.0, batch=0), threads=4)
    assert ways(one) == [Way(1, 1, 4), Way(1, 8, 4)]
    one.again = lambda threads: FakeEngine(clock, 1.0)  # type: ignore[assignment, return-value]
    assert ways(one) == [Way(1, 1, 4), Way(1, 8, 4), Way(4, 1, 1)]
    assert str(Way(4, 1, 1)) == "4 sessions of 1 thread, 1 frame at once"
    assert ways(opened(FakeEngine(clock, 1.0, batch=4))) == [Way(1, 4, 1)]


def test_the_fastest_way_is_taken() -> None:
    for each, batch in ((2.0, 8), (9.9, 1)):  # a batch costs 10 ms, and so much for each frame beyond the first
        clock = Clock()
        costs = {1: 10.0, 8: 13.0 + 7 * each}
        engine = FakeEngine(clock, costs.__getitem__, batch=0)
        with ExitStack() as stack:
            best, rows = choose(opened(engine), stack, clock)
        assert best.way == Way(1, batch, 1)
        assert [row["batch"] for row in rows] == [1, 8]
        assert rows[0]["frames_per_second"] == pytest.approx(100.0)
        assert rows[1]["frames_per_second"] == pytest.approx(8000 / (13 + 7 * each))


def test_a_refused_way_is_told() -> None:
    def refuses(threads: int) -> FakeEngine:
        raise ModelError("not twice")

    clock = Clock()
    one = opened(FakeEngine(clock, 1.0), threads=2)
    one.again = refuses  # type: ignore[assignment]
    with ExitStack() as stack:
        best, rows = choose(one, stack, clock)
    assert best.way == Way(1, 1, 2)
    assert rows[0]["refused"] == "not twice"
    with ExitStack() as stack, pytest.raises(ModelError, match="once only"):
        Throughput(opened(FakeEngine(clock, 1.0)), Way(2, 1, 1), stack)


def test_sessions_side_by_side_share_the_frames() -> None:
    clock, made = Clock(), []

    def again(threads: int) -> FakeEngine:
        assert threads == 1
        made.append(FakeEngine(clock, 0.0))
        return made[-1]

    one = opened(FakeEngine(clock, 0.0), own=frames(5), threads=2)
    one.again = lambda threads: _Closing(again(threads))  # type: ignore[assignment, return-value]
    with ExitStack() as stack:
        side = Throughput(one, Way(2, 1, 1), stack)
        side.engine(5)
    seen = sorted(int(given[0, 0, 0, 0]) for engine in made for given in engine.seen)
    assert seen == [10, 11, 12, 13, 14]  # each once, by one or the other
    assert len(made) == 2


class _Closing:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.batch, self.closed = engine, engine.batch, False

    def run(self, frames: object, out: object = None) -> object:
        return self.engine.run(frames)  # type: ignore[arg-type]

    def __enter__(self) -> _Closing:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


def test_throughput_has_an_interval() -> None:
    found = throughput([10e6] * 20, 7)
    assert found == {
        "frames": 140,
        "seconds": pytest.approx(1.4),
        "frames_per_second": pytest.approx(100.0),
        "interval": [pytest.approx(100.0), pytest.approx(100.0)],
        "turns": 20,
    }
    # A mean of times, not of rates: half the frames at 10 ms and half at 30 ms are 50 a second.
    mixed = throughput([10e6, 30e6] * 200, 1)
    assert mixed["frames_per_second"] == pytest.approx(50.0)
    low, high = mixed["interval"]
    # The mean of 400 of them has a standard error of 10 / sqrt(400) = 0.5 ms of 20.
    assert low == pytest.approx(1000 / (20 + 1.96 * 0.5), rel=0.01)
    assert high == pytest.approx(1000 / (20 - 1.96 * 0.5), rel=0.01)
    assert throughput([10e6], 1)["interval"] is None
