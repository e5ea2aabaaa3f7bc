"""The threads of a stream: capture (one a source) → prepare → infer → deliver, over preallocated shots.

    pool ─→ capture ─→ prepare ─→ infer ─→ deliver ─┐      what waits between two stages is newest first to be
     ↑______________________________________________│      replaced ("latest") or never lost ("every")

The stages overlap: while the engine works on one frame, the next is read and prepared and the last one painted. Every
captured frame ends in exactly one way: processed (its mask reached the sinks), dropped, or failed. Deliver runs in the
caller's thread. No stage allocates memory of a frame's size once the pools are warm.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from edgeseg.backends.base import Session
from edgeseg.data.prepare import fit
from edgeseg.errors import ModelError, need
from edgeseg.runtime.exchange import Exchange
from edgeseg.runtime.values import Grab, Shot, Unreadable
from edgeseg.types import InputSpec, Pixels

# One in each of capture, prepare, infer, deliver, one waiting between any two of them, and one to be read meanwhile.
SHOTS = 8
# An engine that fails so often in a row will not recover.
PATIENCE = 100
# How long a thread may keep the interpreter from another that wants it. Python's 5 ms are a quarter of a frame.
SWITCH_S = 0.0005


class Feed(Protocol):
    """Where the frames of one stream come from: a `capture.Capture`."""

    read_ns: int  # how long reading the last frame took, without waiting for it

    def next(self, into: Pixels | None) -> Grab | Unreadable | None: ...


class Observer(Protocol):
    """Who is told what happens to every frame. Called from the stage's own thread; must be quick."""

    def captured(self, shot: Shot) -> None: ...
    def dropped(self, shot: Shot) -> None: ...
    def failed(self, shot: Shot, why: str) -> None: ...


def run_flow(
    session: Session,
    captures: Sequence[Feed],
    spec: InputSpec,
    *,
    latest: bool,
    deliver: Callable[[Shot], bool],
    observer: Observer,
    stop: threading.Event,
    clock: Callable[[], int],
    limit: int | None = None,
) -> None:
    """Run until every source ended, `stop` was set, `deliver` returned False, or `limit` frames a source were captured.

    `deliver` is called in this thread with every shot whose mask is there, and the frame counts as processed when it
    returns. What it raises ends the stream: frames under way count as failed, the threads end, and then it is raised
    here. So is what broke a stage. Raises ModelError when the engine failed 100 times in a row.
    """
    flow = _Flow(session, captures, spec, latest=latest, observer=observer, stop=stop, clock=clock, limit=limit)
    with _stages_in_parallel():
        flow.run(deliver)


class _Flow:
    def __init__(
        self,
        session: Session,
        captures: Sequence[Feed],
        spec: InputSpec,
        *,
        latest: bool,
        observer: Observer,
        stop: threading.Event,
        clock: Callable[[], int],
        limit: int | None,
    ) -> None:
        self._session, self._captures, self._spec = session, captures, spec
        self._latest, self._observer, self._stop, self._clock, self._limit = latest, observer, stop, clock, limit
        streams = len(captures)
        self._pools: list[queue.SimpleQueue[Shot]] = [queue.SimpleQueue() for _ in captures]
        for stream, pool in enumerate(self._pools):
            for _ in range(SHOTS):
                pool.put(
                    Shot(stream, np.zeros((1, *spec.size, 3), np.uint8), np.zeros(spec.size, np.uint8)),
                )
        self._read = Exchange(streams, latest=latest, writers=streams)
        self._prepared = Exchange(streams, latest=latest)
        self._masked = Exchange(streams, latest=latest)
        self._broken: BaseException | None = None

    def run(self, deliver: Callable[[Shot], bool]) -> None:
        steps: list[tuple[str, Callable[[], None], Exchange]] = [
            (f"capture-{stream}", self._capturing(stream), self._read) for stream in range(len(self._captures))
        ]
        steps += [("prepare", self._prepare, self._prepared), ("infer", self._infer, self._masked)]
        threads = [
            threading.Thread(target=self._guarded, args=(step, out), name=f"edgeseg-{name}", daemon=True)
            for name, step, out in steps
        ]
        for thread in threads:
            thread.start()
        try:
            self._deliver(deliver)
        finally:
            self._stop.set()
            while (shot := self._masked.get()) is not None:  # after an error in the loop above
                self._fail(shot, "the stream ended")
            for thread in threads:
                thread.join()
            for exchange in (self._read, self._prepared):  # what a stage that broke left behind
                while (shot := exchange.get_now(set())) is not None:
                    self._fail(shot, "the stream ended")
        if self._broken is not None:
            raise self._broken

    def _guarded(self, step: Callable[[], None], out: Exchange) -> None:
        """Run a stage; what it raises is kept for the caller, and the stages after it come to their end."""
        try:
            step()
        except BaseException as error:  # any: it is raised again in the caller's thread
            self._broken = self._broken or error
            self._stop.set()
        finally:
            out.close()

    def _capturing(self, stream: int) -> Callable[[], None]:
        capture, pool = self._captures[stream], self._pools[stream]

        def run() -> None:
            index = 0
            while not self._stop.is_set() and (self._limit is None or index < self._limit):
                try:
                    shot = pool.get(timeout=0.1)
                except queue.Empty:
                    continue  # everything is under way: look again whether to stop
                got = capture.next(shot.pixels if shot.pixels.size else None)
                if got is None:
                    return
                shot.index, index = index, index + 1
                shot.position, shot.read_ns = got.position, capture.read_ns
                if isinstance(got, Unreadable):
                    # No name: whether it would be called by its number or by its file, the source does not say.
                    shot.name, shot.label, shot.captured_ns = "", None, self._clock()
                    self._captured(shot)
                    self._fail(shot, got.why)
                    continue
                shot.pixels, shot.name, shot.label = got.pixels, got.name, got.label
                shot.captured_ns = got.time_ns
                self._captured(shot)
                self._pass(self._read, shot)

        return run

    def _captured(self, shot: Shot) -> None:
        try:
            self._observer.captured(shot)
        except BaseException:  # it was counted, and goes no further
            self._fail(shot, "the stream ended")
            raise

    def _pass(self, to: Exchange, shot: Shot) -> None:
        replaced = to.put(shot)
        if replaced is not None:
            self._observer.dropped(replaced)
            self._free(replaced)

    def _free(self, shot: Shot) -> None:
        shot.label = None
        self._pools[shot.stream].put(shot)

    def _fail(self, shot: Shot, why: str) -> None:
        self._observer.failed(shot, why)
        self._free(shot)

    def _prepare(self) -> None:
        cv2 = need("cv2", extra="run", why="streaming")
        # Between resizing and changing the colour order.
        swapped = np.empty((*self._spec.size, 3), np.uint8) if self._spec.frame == "rgb" else None
        while (shot := self._read.get()) is not None:
            start = self._clock()
            try:
                if swapped is None:
                    fit(shot.pixels, self._spec.size, self._spec.resize, shot.input[0])
                else:
                    fit(shot.pixels, self._spec.size, self._spec.resize, swapped)
                    cv2.cvtColor(swapped, cv2.COLOR_BGR2RGB, dst=shot.input[0])
            except Exception as error:  # whatever a single frame did: the next may be a good one
                self._fail(shot, f"cannot be prepared: {error}")
                continue
            shot.prepare_ns = max(0, self._clock() - start)
            self._pass(self._prepared, shot)

    def _infer(self) -> None:
        most = min(len(self._captures), self._session.batch or len(self._captures))
        frames = np.empty((most, *self._spec.size, 3), np.uint8)
        masks = np.empty((most, *self._spec.size), np.uint8)
        failures = 0
        while (first := self._prepared.get()) is not None:
            batch = [first]
            streams = {first.stream}
            while len(batch) < most and (other := self._prepared.get_now(streams)) is not None:
                batch.append(other)
                streams.add(other.stream)
            start = self._clock()
            try:
                if len(batch) == 1:
                    self._session.run(first.input, first.mask[None])
                else:
                    for row, shot in zip(frames, batch, strict=False):
                        np.copyto(row, shot.input[0])
                    self._session.run(frames[: len(batch)], masks[: len(batch)])
                    for row, shot in zip(masks, batch, strict=False):
                        np.copyto(shot.mask, row)
            except Exception as error:  # an engine may fail on one frame and not on the next
                failures += 1
                for shot in batch:
                    self._fail(shot, f"the engine failed: {error}")
                if failures >= PATIENCE:
                    raise ModelError(f"the engine failed {failures} times in a row, at last with: {error}") from error
                continue
            failures = 0
            end = self._clock()
            for shot in batch:
                shot.infer_ns, shot.ready_ns = max(0, end - start), end
                self._pass(self._masked, shot)

    def _deliver(self, deliver: Callable[[Shot], bool]) -> None:
        while (shot := self._masked.get()) is not None:
            try:
                if not deliver(shot):
                    self._stop.set()
            except BaseException:
                self._fail(shot, "a sink failed")
                raise
            self._free(shot)


@contextmanager
def _stages_in_parallel() -> Iterator[None]:
    """The interpreter's switches are quick, and OpenCV keeps to the thread that calls it, while frames flow.

    The stages are parallel already; OpenCV's own threads would take the cores from a CPU engine (measured: 3 % of the
    frames a second).
    """
    cv2 = need("cv2", extra="run", why="streaming")
    before, threads = sys.getswitchinterval(), cv2.getNumThreads()
    sys.setswitchinterval(SWITCH_S)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        cv2.setNumThreads(threads)
