"""The threads of a stream: nothing is lost with "every", "latest" gives the newest, each frame is accounted for."""

from __future__ import annotations

import sys
import threading
import time
import tracemalloc
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from edgeseg.backends.base import Session
from edgeseg.errors import BadInput, DatasetError, ModelError
from edgeseg.runtime.flow import PATIENCE, SHOTS, run_flow
from edgeseg.runtime.values import Shot, Unreadable
from edgeseg.types import Frames, InputSpec, Masks, Pixels
from tests.runtime.scripted import SIZE, SPEC, Counting, Engine, Scripted, picture


def run(
    feeds: list[Scripted],
    engine: Session,
    deliver: Callable[[Shot], bool | None] = lambda shot: True,
    *,
    latest: bool = False,
    spec: InputSpec = SPEC,
    stop: threading.Event | None = None,
    limit: int | None = None,
) -> Counting:
    seen = Counting()

    def count(shot: Shot) -> bool:
        answer = deliver(shot)
        seen.end(shot, "processed")
        return answer is not False

    before = set(threading.enumerate())
    try:
        run_flow(
            engine,
            feeds,
            spec,
            latest=latest,
            deliver=count,
            observer=seen,
            stop=stop or threading.Event(),
            clock=time.perf_counter_ns,
            limit=limit,
        )
    finally:
        assert set(threading.enumerate()) == before
        assert seen.accounted, seen.counts
    return seen


def test_every_frame_in_order_with_its_own_mask() -> None:
    got: list[tuple[int, int, int]] = []
    feed = Scripted(300)
    seen = run([feed], Engine(), lambda s: got.append((s.index, int(s.mask[0, 0]), int(s.pixels[0, 0, 0]))))
    assert got == [(i, i % 256, i % 256) for i in range(300)]
    assert seen.counts == {"captured": 300, "processed": 300}
    assert feed.in_place >= 300 - SHOTS  # each shot's buffer is made once


def test_latest_gives_the_newest_and_counts_the_rest() -> None:
    busy, free = threading.Event(), threading.Event()

    def engine(call: int) -> None:
        if call == 0:
            busy.set()
            assert free.wait(20)

    def source(index: int) -> None:
        if index == 1:
            assert busy.wait(20)  # the first frame is in the engine
        if index == 50:
            free.set()  # and 49 came meanwhile
            time.sleep(0.3)

    got: list[int] = []
    seen = run([Scripted(51, source)], Engine(engine), lambda s: got.append(s.index), latest=True)
    # Besides the newest, only what was in hand meanwhile: in the engine, prepared, in preparation. Which is chance.
    assert got[-1] == 50
    assert len(got) <= 4
    assert got == sorted(got)
    assert seen.counts["dropped"] == 51 - len(got)


def test_every_waits_for_the_slowest_and_keeps_few_frames_in_memory() -> None:
    gate = threading.Semaphore(0)
    feed = Scripted(100)
    done: list[Counting] = []
    thread = threading.Thread(target=lambda: done.append(run_in_thread(feed, gate)))
    thread.start()
    time.sleep(0.3)
    assert feed.given <= SHOTS  # it read ahead no more than there are buffers
    for _ in range(100):
        gate.release()
    thread.join(30)
    assert done[0].counts == {"captured": 100, "processed": 100}


def run_in_thread(feed: Scripted, gate: threading.Semaphore) -> Counting:
    seen = Counting()

    def deliver(shot: Shot) -> bool:
        assert gate.acquire(timeout=20)
        seen.end(shot, "processed")
        return True

    run_flow(
        Engine(),
        [feed],
        SPEC,
        latest=False,
        deliver=deliver,
        observer=seen,
        stop=threading.Event(),
        clock=time.perf_counter_ns,
    )
    return seen


def test_an_engine_that_raises_once_in_a_while_fails_those_frames_only() -> None:
    def each(call: int) -> None:
        if call % 10 == 3:
            raise RuntimeError("out of luck")

    seen = run([Scripted(200)], Engine(each))
    assert seen.counts == {"captured": 200, "processed": 180, "failed": 20}
    assert seen.whys == {"the engine failed: out of luck": 20}


def test_an_engine_that_raises_always_ends_the_stream_with_a_word() -> None:
    def each(call: int) -> None:
        raise RuntimeError("gone")

    seen = Counting()
    with pytest.raises(ModelError, match=f"{PATIENCE} times in a row, at last with: gone"):
        run_flow(
            Engine(each),
            [Scripted(10**9)],
            SPEC,
            latest=False,
            deliver=lambda s: True,
            observer=seen,
            stop=threading.Event(),
            clock=time.perf_counter_ns,
        )
    assert seen.accounted
    assert seen.counts["failed"] == seen.counts["captured"] >= PATIENCE


def test_unreadable_frames_fail_and_the_others_go_on() -> None:
    feed = Scripted(50, lambda i: Unreadable(i, "cut short") if i % 5 == 0 else None)
    got: list[int] = []
    seen = run([feed], Engine(), lambda s: got.append(s.index))
    assert got == [i for i in range(50) if i % 5]
    assert seen.whys == {"cut short": 10}


def test_sizes_that_change_are_resized_to_the_network() -> None:
    sizes = [SIZE, (48, 64), (7, 9), SIZE, (100, 20)]
    shapes = []

    def deliver(shot: Shot) -> None:
        shapes.append(shot.pixels.shape[:2])
        assert shot.mask.shape == SIZE
        assert (shot.mask == shot.index).all()

    run([Scripted(25, lambda i: picture(i, sizes[i % 5]))], Engine(), deliver)
    assert shapes == sizes * 5


def test_a_frame_that_cannot_be_prepared_fails() -> None:
    def odd(index: int) -> Pixels | None:
        return np.zeros((0, 5, 3), np.uint8) if index == 3 else None

    seen = run([Scripted(10, odd)], Engine())
    assert seen.counts == {"captured": 10, "processed": 9, "failed": 1}
    assert "cannot be prepared" in next(iter(seen.whys))


def test_frames_reach_the_network_in_the_order_that_the_spec_names() -> None:
    for order, expected in (("bgr", 10), ("rgb", 30)):
        for size in (SIZE, (48, 64)):
            frame = np.zeros((*size, 3), np.uint8)
            frame[:] = (10, 20, 30)
            got: list[int] = []
            run(
                [Scripted(3, lambda i, frame=frame: frame)],  # type: ignore[misc]
                Engine(),
                lambda s, got=got: got.append(int(s.mask[0, 0])),  # type: ignore[misc]
                spec=InputSpec(SIZE, frame=order),  # type: ignore[arg-type]
            )
            assert got == [expected] * 3


def test_a_sink_that_raises_ends_the_stream_and_is_heard() -> None:
    def deliver(shot: Shot) -> None:
        if shot.index == 20:
            raise OSError("disk full")

    seen = Counting()

    def count(shot: Shot) -> bool:
        deliver(shot)
        seen.end(shot, "processed")
        return True

    stop = threading.Event()
    with pytest.raises(OSError, match="disk full"):
        run_flow(
            Engine(),
            [Scripted(10**9)],
            SPEC,
            latest=False,
            deliver=count,
            observer=seen,
            stop=stop,
            clock=time.perf_counter_ns,
        )
    assert stop.is_set()
    assert seen.accounted
    assert seen.counts["processed"] == 20
    assert 1 <= seen.counts["failed"] <= 2 * SHOTS


def test_a_feed_that_raises_ends_the_stream_and_is_heard() -> None:
    def each(index: int) -> None:
        if index == 7:
            raise BadInput("the camera is no camera")

    with pytest.raises(BadInput, match="no camera"):
        run([Scripted(100, each), Scripted(100)], Engine())


def test_a_frame_that_an_observer_does_not_bear_is_accounted_for() -> None:
    seen = Counting()
    count = seen.captured

    def captured(shot: Shot) -> None:
        count(shot)
        if shot.index == 5:
            raise DatasetError("two labels for one frame")

    seen.captured = captured  # type: ignore[method-assign]
    with pytest.raises(DatasetError, match="two labels"):
        run_flow(
            Engine(),
            [Scripted(100)],
            SPEC,
            latest=False,
            deliver=lambda shot: seen.end(shot, "processed") or True,  # type: ignore[func-returns-value]
            observer=seen,
            stop=threading.Event(),
            clock=time.perf_counter_ns,
        )
    assert seen.counts["captured"] == 6
    assert seen.fates[0, 5] == "failed"
    assert seen.accounted


def test_stop_finishes_what_is_under_way() -> None:
    stop = threading.Event()

    def deliver(shot: Shot) -> None:
        if shot.index == 30:
            stop.set()

    seen = run([Scripted(10**9)], Engine(), deliver, stop=stop)
    assert 31 <= seen.counts["processed"] == seen.counts["captured"] <= 31 + 2 * SHOTS


def test_false_from_deliver_asks_to_end() -> None:
    seen = run([Scripted(10**9)], Engine(), lambda s: s.index < 5)
    assert 6 <= seen.counts["processed"] <= 6 + 2 * SHOTS


def test_a_limit_of_frames_counts_for_each_source() -> None:
    seen = run([Scripted(100), Scripted(100)], Engine(), limit=17)
    assert seen.counts == {"captured": 34, "processed": 34}


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_several_streams_share_the_engine_fairly(batch: int) -> None:
    """One that floods and one that trickles, by the order they are served in."""
    trickle = 20
    order: list[int] = []

    def deliver(shot: Shot) -> bool:
        order.append(shot.stream)
        assert (shot.mask == shot.index % 256).all()
        return order.count(1) < trickle or order.count(0) < trickle

    engine = Engine(lambda call: time.sleep(0.002), batch)
    feeds = [Scripted(10**9), Scripted(trickle), Scripted(10**9)]
    run(feeds, engine, deliver)
    assert max(engine.batches) == (1 if batch == 1 else min(batch or 3, 3))
    # While all three had frames, none was served twice before another that waited.
    served = order[: 3 * (trickle - SHOTS)]
    assert abs(served.count(0) - served.count(2)) <= SHOTS
    assert served.count(1) >= trickle - SHOTS - 2


def test_no_allocation_of_a_frames_size_once_warm() -> None:
    size = (360, 480)
    frame = np.zeros((720, 960, 3), np.uint8)
    feed = Scripted(400, lambda i: frame)
    peaks: list[int] = []

    def deliver(shot: Shot) -> None:
        if shot.index == 100:
            tracemalloc.start()
        if shot.index == 399:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    class InPlace(Engine):
        def run(self, frames: Frames, out: Masks | None = None) -> Masks:
            assert out is not None
            np.copyto(out, frames[..., 0])
            return out

    run([feed], InPlace(), deliver, spec=InputSpec(size))
    assert peaks[0] < size[0] * size[1]  # less than one mask, in 300 frames


def test_settings_of_the_process_are_put_back() -> None:
    before = sys.getswitchinterval(), cv2.getNumThreads()
    inside: list[tuple[float, int]] = []
    run([Scripted(3)], Engine(), lambda s: inside.append((sys.getswitchinterval(), cv2.getNumThreads())))
    assert inside[0][0] < before[0]
    assert inside[0][1] == 1
    assert (sys.getswitchinterval(), cv2.getNumThreads()) == before
