"""Capture with sources that die, stall and end by script, under a clock that the test moves."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edgeseg.errors import BadInput, MissingOnMachine
from edgeseg.runtime.capture import Capture, Outages, Retry
from edgeseg.runtime.sources import Source, SourceBroken, open_source, parse
from edgeseg.runtime.values import Grab, Unreadable
from edgeseg.types import Pixels
from tests.runtime.test_sources import jpegs, open_now, served
from tests.runtime.videos import FPS, frame, number, write_picture, write_video

SECOND = 1_000_000_000


@dataclass
class World:
    """A clock and the waits under it: waiting moves the clock."""

    now: int = 0
    waited: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def clock(self) -> int:
        return self.now

    def wait(self, seconds: float) -> bool:
        assert seconds >= 0
        self.waited.append(round(seconds, 9))
        self.now += round(seconds * SECOND)
        return self.stop.is_set()


class Script(Source):
    """'.' a frame, 'u' an unreadable one, 'b' breaks, at the end None; each takes `takes_ns`."""

    fps = 30.0
    name = "script"

    def __init__(self, world: World, script: str, *, live: bool, takes_ns: int = 0) -> None:
        self.world, self.script, self.live, self.takes_ns = world, iter(script), live, takes_ns
        self.position, self.closed = -1, 0

    def read(self, into: Pixels | None) -> Grab | Unreadable | None:
        assert not self.closed, "read after it was closed"
        self.world.now += self.takes_ns
        what = next(self.script, None)
        if what is None:
            return None
        if what == "b":
            raise SourceBroken("it broke")
        self.position += 1
        if what == "u":
            return Unreadable(self.position, "torn")
        pixels = into if into is not None else np.empty((2, 2, 3), np.uint8)
        return Grab(pixels, self.world.now, self.position, "x")

    def close(self) -> None:
        self.closed += 1


class Opener:
    """Opens one script after the other; what is an exception is raised instead."""

    def __init__(self, world: World, scripts: Iterable[str | Exception], *, live: bool = True, takes_ns: int = 0):
        self.world, self.scripts, self.live, self.takes_ns = world, iter(scripts), live, takes_ns
        self.opened: list[Script] = []

    def __call__(self) -> Source:
        script = next(self.scripts)
        if isinstance(script, Exception):
            raise script
        assert all(source.closed == 1 for source in self.opened), "the one before is still open"
        self.opened.append(Script(self.world, script, live=self.live, takes_ns=self.takes_ns))
        return self.opened[-1]


def capture_of(
    world: World, opener: Callable[[], Source], *, pace: float | None = None, retry: Retry | None = None,
    loop: bool = False,
) -> Capture:  # fmt: skip
    return Capture(opener, pace=pace, retry=retry, loop=loop, stop=world.stop, clock=world.clock, wait=world.wait)


def states(capture: Capture) -> str:
    """Its state, of which the type checker does not believe that it changes."""
    return capture.state


def rest(capture: Capture) -> Iterator[Grab | Unreadable]:
    while (got := capture.next(None)) is not None:
        yield got


def test_a_file_from_its_opening_to_its_end() -> None:
    world = World()
    opener = Opener(world, ["..u."], live=False, takes_ns=5)
    capture = capture_of(world, opener)
    assert states(capture) == "opening"
    capture.open()
    assert (states(capture), capture.live, capture.fps, capture.name) == ("live", False, 30.0, "script")
    got = list(rest(capture))
    assert [item.position for item in got] == [0, 1, 2, 3]
    assert isinstance(got[2], Unreadable)
    assert [item.time_ns for item in got if isinstance(item, Grab)] == [5, 10, 20]
    assert capture.read_ns == 5
    assert states(capture) == "ended"
    assert capture.next(None) is None
    assert opener.opened[0].closed == 1
    assert (capture.outages, capture.complaint, world.waited) == (Outages(0, 0.0, None, 0), None, [])


def test_wrong_words_fail_at_once() -> None:
    world = World()
    for error in (BadInput("no such file"), MissingOnMachine("no gi")):
        with pytest.raises(type(error)):
            capture_of(world, Opener(world, [error])).open()
    capture = capture_of(world, Opener(world, [BadInput("no such file")]))
    with pytest.raises(BadInput, match="no such file"):  # also without open()
        capture.next(None)


def test_a_source_that_dies_fifty_times_loses_and_invents_nothing() -> None:
    world = World()
    opener = Opener(world, ["...b"] * 50 + ["..."])
    capture = capture_of(world, opener)
    into = np.zeros((2, 2, 3), np.uint8)
    got = []
    for _ in range(153):
        item = capture.next(into)
        assert isinstance(item, Grab)
        assert item.pixels is into
        got.append((item.position, item.name))
    # Its own numbers begin at 0 each time; files named after them would be written over.
    assert [position for position, _ in got] == list(range(153))
    assert [name for _, name in got[3:]] == [f"{k:06d}" for k in range(3, 153)]
    assert capture.next(into) is None
    assert world.waited == [0.5] * 50  # afresh after each, as it gave frames
    assert capture.outages == Outages(50, 25.0, "it broke", 50)
    assert [source.closed for source in opener.opened] == [1] * 51


def test_the_waits_grow_to_a_limit_while_nothing_comes() -> None:
    world = World()
    dead: list[str | Exception] = [SourceBroken("refused"), BadInput("unplugged"), "b", "b", "ub"]
    capture = capture_of(
        world, Opener(world, ["..b", *dead, ".b", "."]), retry=Retry(first_s=1.0, factor=3.0, longest_s=10.0)
    )
    kinds = [type(item).__name__[0] for item in rest(capture)]
    assert kinds == list("GGUGG")
    assert world.waited == [1.0, 3.0, 9.0, 10.0, 10.0, 10.0, 1.0]
    assert capture.outages == Outages(2, 44.0, "it broke", 5)


def test_an_outage_under_way_is_counted() -> None:
    world = World()
    capture = capture_of(world, Opener(world, [".b", ".."]))
    capture.next(None)
    seen: list[Outages] = []

    def wait(seconds: float) -> bool:
        assert capture.state == "reopening"
        world.now += 2 * SECOND
        seen.append(capture.outages)
        return False

    capture._wait = wait
    assert isinstance(capture.next(None), Grab)
    assert seen == [Outages(1, 2.0, "it broke", 0)]
    assert capture.state == "live"
    assert capture.outages == Outages(1, 2.0, "it broke", 1)


def test_a_camera_that_is_not_there_yet_is_waited_for() -> None:
    world = World()
    capture = capture_of(world, Opener(world, [SourceBroken("busy"), SourceBroken("busy"), "."]))
    capture.open()
    assert (capture.state, capture.live, capture.fps) == ("reopening", True, None)
    assert isinstance(capture.next(None), Grab)
    assert (capture.state, capture.fps) == ("live", 30.0)
    assert capture.outages == Outages(1, 1.5, "busy", 1)


@pytest.mark.parametrize("attempts", [0, 1, 3])
def test_after_so_many_failures_in_a_row_it_is_given_up(attempts: int) -> None:
    world = World()
    scripts: list[str | Exception] = [".b"] * 5 if attempts else []  # those between gave a frame
    opener = Opener(world, [*scripts, ".b", *[SourceBroken("refused")] * 9])
    capture = capture_of(world, opener, retry=Retry(attempts=attempts))
    for _ in range(len(scripts) + 1):
        assert isinstance(capture.next(None), Grab)
    with pytest.raises(BadInput, match="refused: .* in vain" if attempts else "it broke: .* not to be opened again"):
        capture.next(None)
    assert len(world.waited) == len(scripts) + attempts
    assert capture.state == "ended"
    assert capture.next(None) is None


def test_a_file_that_breaks_is_not_opened_again() -> None:
    world = World()
    capture = capture_of(world, Opener(world, ["..b", ".."], live=False), loop=True)
    assert len(list(rest(capture))) == 2
    assert capture.complaint == "it broke"
    assert capture.outages.count == 0


def test_a_complaint_of_the_source_is_kept() -> None:
    world = World()
    opener = Opener(world, [".."], live=False)
    capture = capture_of(world, opener)
    capture.open()
    opener.opened[0].complaint = "ended after 2 of 9 frames"
    assert len(list(rest(capture))) == 2
    assert capture.complaint == "ended after 2 of 9 frames"


def test_a_loop_starts_again_and_an_empty_one_ends() -> None:
    world = World()
    opener = Opener(world, ["..", ".", ""], live=False)
    capture = capture_of(world, opener, loop=True)
    assert [item.position for item in rest(capture)] == [0, 1, 0]
    assert [source.closed for source in opener.opened] == [1, 1, 1]


def test_a_loop_whose_source_does_not_open_again_ends_with_a_word() -> None:
    world = World()
    left = iter([".."])

    def opener() -> Source:
        for script in left:
            return Script(world, script, live=False)
        raise SourceBroken("the pipeline gave nothing")

    capture = Capture(opener, loop=True, stop=world.stop, clock=world.clock, wait=world.wait)
    assert len(list(rest(capture))) == 2
    assert (capture.state, capture.complaint, capture.finished) == ("ended", "the pipeline gave nothing", True)


def test_stop_ends_it_also_while_it_waits() -> None:
    world = World()
    opener = Opener(world, ["..b", "."])
    capture = capture_of(world, opener)
    capture.next(None)
    world.stop.set()
    assert capture.next(None) is None
    assert (capture.state, opener.opened[0].closed) == ("ended", 1)

    world = World()
    capture = Capture(Opener(world, [".b"]), retry=Retry(first_s=3600.0), stop=world.stop)
    capture.next(None)
    timer = threading.Timer(0.05, world.stop.set)
    timer.start()
    assert capture.next(None) is None  # an hour, were it not for the stop
    timer.join()
    assert capture.state == "ended"


def test_closing_twice_and_before_opening() -> None:
    world = World()
    opener = Opener(world, ["..."])
    with capture_of(world, opener) as capture:
        capture.next(None)
        capture.close()
        assert capture.next(None) is None
    assert opener.opened[0].closed == 1
    never = capture_of(world, opener)
    never.close()
    assert never.next(None) is None


# pace


def test_a_pace_can_be_given_once_it_is_known_that_there_is_none() -> None:
    world = World()
    capture = capture_of(world, Opener(world, ["..."], live=False))
    capture.open()
    assert (capture.live, capture.pace, capture.fps) == (False, None, 30.0)
    capture.keep_pace(10.0)
    assert (capture.pace, capture.fps) == (10.0, 10.0)
    assert [item.time_ns // 1_000_000 for item in rest(capture) if isinstance(item, Grab)] == [0, 100, 200]
    with pytest.raises(ValueError, match="pace"):
        capture.keep_pace(0.0)


def test_frames_are_given_at_their_pace_and_stamped_when_given() -> None:
    world = World(now=7)
    capture = capture_of(world, Opener(world, ["." * 300], live=False, takes_ns=3_000_000), pace=30.0)
    capture.open()
    assert capture.fps == 30.0
    times = [item.time_ns for item in rest(capture) if isinstance(item, Grab)]
    start = times[0]
    assert start == 7 + 3_000_000
    for k, t in enumerate(times):
        due = start + k * SECOND / 30  # no drift
        assert 0 <= t - due + 1 < 3
    assert capture.read_ns == 3_000_000  # the wait is left out


def test_who_is_late_gets_the_next_at_once_and_then_the_pace_again() -> None:
    world = World()
    capture = capture_of(world, Opener(world, ["." * 6], live=False), pace=10.0)
    times = []
    for pause in (0, 0, 450, 0, 0, 0):  # milliseconds before it is taken
        world.now += pause * 1_000_000
        got = capture.next(None)
        assert isinstance(got, Grab)
        times.append(got.time_ns // 1_000_000)
    assert times == [0, 100, 550, 650, 750, 850]  # never two in a hurry


def test_an_unreadable_frame_takes_its_time_too() -> None:
    world = World()
    assert len(list(rest(capture_of(world, Opener(world, [".u."], live=False), pace=10.0)))) == 3
    assert world.waited == [0.1, 0.1]


def test_a_live_source_is_not_paced() -> None:
    world = World()
    capture = capture_of(world, Opener(world, ["..."], live=True, takes_ns=9), pace=1.0)
    assert [item.time_ns for item in rest(capture) if isinstance(item, Grab)] == [9, 18, 27]
    assert world.waited == []
    assert capture.fps == 30.0
    assert capture.read_ns == 0


@pytest.mark.parametrize("jump_s", [-1e6, -3.0, -0.05, 0.05, 3.0, 1e6])
def test_a_clock_that_jumps_neither_hangs_it_nor_makes_it_hurry(jump_s: float) -> None:
    world = World(now=10**16)
    capture = capture_of(world, Opener(world, ["." * 20 + "b"] * 2), pace=10.0)
    paced = capture_of(world, Opener(world, ["." * 40], live=False), pace=10.0)
    for k in range(40):
        if k == 10:
            world.now += round(jump_s * SECOND)
        assert isinstance(paced.next(None), Grab)
        assert isinstance(capture.next(None), Grab)
    assert all(0 <= seconds <= 0.5 for seconds in world.waited)
    assert 36 <= len(world.waited) <= 44
    assert capture.outages.seconds == 0.5
    assert capture.read_ns >= 0


def test_a_clock_that_jumps_back_in_an_outage() -> None:
    world = World(now=10**16)
    capture = capture_of(world, Opener(world, [".b", "."]))
    capture.next(None)

    def wait(seconds: float) -> bool:
        world.now = 5
        return False

    capture._wait = wait
    assert isinstance(capture.next(None), Grab)
    assert capture.outages == Outages(1, 0.0, "it broke", 1)


def test_a_clock_that_stands_still_does_not_hang_it() -> None:
    world = World()
    capture = Capture(Opener(world, ["..."], live=False), pace=10.0, clock=lambda: 5, wait=lambda _: False)
    assert len(list(rest(capture))) == 3


# real sources


def real(text: str | Path, *, stall_s: float = 5.0) -> Callable[[], Source]:
    wanted = parse(str(text))
    return lambda: open_source(wanted, fps=None, stall_s=stall_s, clock=time.perf_counter_ns)


def test_a_video_in_a_loop_leaves_no_thread_and_no_handle(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list a process's handles in /proc/self/fd")
    capture = Capture(real(write_video(tmp_path / "a.avi", 4)), loop=True)
    into = np.empty(frame(0).shape, np.uint8)
    handles = threads = 0
    for k in range(4 * 51):
        got = capture.next(into)
        assert isinstance(got, Grab)
        assert got.pixels is into
        assert number(into) == got.position == k % 4
        if k == 3:
            handles, threads = open_now("fd"), open_now("task")
    assert open_now("fd") == handles
    assert open_now("task") <= threads
    assert capture.fps == FPS
    capture.close()
    assert open_now("fd") < handles


def test_a_folder_at_a_real_pace(tmp_path: Path) -> None:
    for k in range(5):
        write_picture(tmp_path / f"{k}.png", frame(k))
    capture = Capture(real(tmp_path), pace=100.0)
    times = [item.time_ns for item in rest(capture) if isinstance(item, Grab)]
    assert len(times) == 5
    assert all(b - a >= 0 for a, b in itertools.pairwise(times))
    assert times[-1] - times[0] >= 39_000_000


def test_a_server_that_dies_and_comes_back_is_found_again(tmp_path: Path) -> None:
    jpegs(tmp_path / "a.mjpg", 2000)
    limit = (tmp_path / "a.mjpg").stat().st_size // 2  # the connection is cut in the middle of a picture
    with ExitStack() as servers:
        port = servers.enter_context(served(tmp_path, limit))
        waits: list[Outages] = []

        def wait(seconds: float) -> bool:
            assert 0 < seconds <= 0.05
            waits.append(capture.outages)
            if len(waits) == 2:  # the second time it is the server that dies
                servers.close()
            if len(waits) == 6:
                servers.enter_context(served(tmp_path, limit, port))
            return False

        address = f"http://127.0.0.1:{port}/a.mjpg"
        capture = Capture(real(address), retry=Retry(first_s=0.02, longest_s=0.05), wait=wait)
        with capture:
            capture.open()
            assert (capture.live, states(capture)) == (True, "live")
            seen: list[tuple[int, int]] = []  # position, number
            while len(seen) < 100 or seen[-1][1] != 100 or len(waits) < 6:
                got = capture.next(None)
                assert got is not None
                if isinstance(got, Grab):
                    seen.append((got.position, number(got.pixels)))
    starts = [k for k, (_, shown) in enumerate(seen) if shown == 0 and seen[k - 1][1] != 255]  # numbers are a byte
    assert len(starts) == 3
    for start in starts:
        first = seen[start][0]
        assert seen[start : start + 100] == [(first + k, k) for k in range(100)]
    positions = [position for position, _ in seen]
    assert positions == sorted(set(positions))
    assert [outages.count for outages in waits] == [1, 2, 2, 2, 2, 2]
    assert [outages.reopened for outages in waits] == [0, 1, 1, 1, 1, 1]
    assert "ended after" in str(waits[1].last)
    assert "does not answer" in str(waits[2].last)
    assert capture.outages.reopened == 2
