"""mIoU while a stream runs: of the masks that were computed, and of what the consumer sees.

The second is the streaming accuracy of Li, Wang and Ramanan, "Towards Streaming Perception" (ECCV 2020): at the time of
each label the most recent mask that is ready counts, however stale, and frames that were dropped have labels too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeseg.backends.base import Closing
from edgeseg.data.prepare import to_size
from edgeseg.measure.confusion import Confusion, confusion, scores
from edgeseg.types import Mask

Label = Mask | Callable[[], Mask]  # or what decodes it

HISTORY = 4  # masks of a stream that are kept: labels are told of a little after their time
PENDING = 256  # labels of a stream that wait for masks: then the oldest is scored with what there is
REASONS = 5


@dataclass(slots=True)
class _Waiting:
    """A label that is not done with: to be compared with its own mask, and with the one seen at its time."""

    time_ns: int
    label: Label
    seen: bool = False  # compared with what the consumer saw
    gone: bool = False  # its own mask will not come


@dataclass(slots=True)
class _Stream:
    waiting: dict[int, _Waiting] = field(default_factory=dict)  # by index, ascending
    masks: deque[tuple[int, Mask | None]] = field(
        default_factory=deque
    )  # ready_ns and mask, None for one that was lost
    forgotten: bool = False  # whether there were older masks than those kept
    lost: bool = False  # whether the last thing heard of was a mask that was lost


class Scorer(Closing):
    """Scores masks against labels in a thread of its own; its methods may be called from any thread.

    `names`: of the `classes` classes, else their numbers. `wait`: when scoring is behind, callers wait and nothing is
    lost (policy `every`); else what does not fit is left out and counted (`latest`). `capacity`: events that may lie
    before it. Masks are copied into buffers that are made once. Call `captured` before the frame is handed on.
    """

    def __init__(
        self,
        streams: int,
        classes: int,
        ignore_index: int | None,
        names: Sequence[str] = (),
        *,
        wait: bool,
        capacity: int = 16,
    ) -> None:
        self._classes, self._ignore, self._wait, self._capacity = classes, ignore_index, wait, capacity
        self._names = list(names) if len(names) == classes else [str(k) for k in range(classes)]
        self._streams = [_Stream() for _ in range(streams)]
        self._changed = threading.Condition()
        self._events: deque[Callable[[], None]] = deque()
        self._spare: list[Mask] = []  # buffers; together with those in use at most capacity + streams * (HISTORY + 1)
        self._lost = [False] * streams  # a mask was lost and no later one has come through
        self._closed = False
        self._tally = threading.Lock()
        self._own: Confusion = np.zeros((classes, classes), np.int64)
        self._seen: Confusion = np.zeros((classes, classes), np.int64)
        self._frames = self._seen_frames = self._before_first = self._skipped = 0
        self._reasons: list[str] = []
        self._thread = threading.Thread(target=self._work, name="score", daemon=True)
        self._thread.start()

    def captured(self, stream: int, index: int, time_ns: int, label: Label) -> None:
        """A frame with a label was captured, at `time_ns`. A mask uint8 (h, w) is copied, a callable called later."""
        kept, state = label if callable(label) else label.copy(), self._streams[stream]
        with self._changed:
            if self._room():
                self._push(lambda: self._take_label(state, index, time_ns, kept))
            elif not self._closed:
                self._skip("labels came faster than they could be scored")

    def delivered(self, stream: int, index: int, ready_ns: int, mask: Mask) -> None:
        """The mask uint8 (H, W) of a frame was ready at `ready_ns`; in order within a stream, labelled or not."""
        state = self._streams[stream]
        with self._changed:
            if not self._room():
                if not self._lost[stream] and not self._closed:  # one word about it has room always: one for a stream
                    self._lost[stream] = True
                    self._push(lambda: self._take_mask(state, index, ready_ns, None))
                return
            self._lost[stream] = False
            kept = self._spare.pop() if self._spare and self._spare[-1].shape == mask.shape else np.empty_like(mask)
            np.copyto(kept, mask)
            self._push(lambda: self._take_mask(state, index, ready_ns, kept))

    def dropped(self, stream: int, index: int) -> None:
        """The frame was dropped or failed: its own mask will not come. Frees its label early; may be left out."""
        state = self._streams[stream]
        with self._changed:
            if self._room():
                self._push(lambda: self._settle(state, index))

    def document(self) -> dict[str, Any]:
        """The scores so far, 0 to 1 or None where nothing was compared; exact once closed.

        `frames`: labelled frames whose own mask was compared; `streaming_frames`: labels that were compared with what
        was to be seen at their time; `before_first`: labels from before the first mask, in neither streaming figure;
        `skipped`: comparisons that could not be made, with the first few `reasons`.
        """
        with self._tally:
            own, seen = self._own.copy(), self._seen.copy()
            counts = {
                "frames": self._frames,
                "streaming_frames": self._seen_frames,
                "before_first": self._before_first,
                "skipped": self._skipped,
                "reasons": list(self._reasons),
            }
        miou, iou = self._scores(own)
        streaming_miou, streaming_iou = self._scores(seen)
        return {
            "miou": miou,
            "iou": iou,
            "streaming_miou": streaming_miou,
            "streaming_iou": streaming_iou,
            **counts,
        }

    def close(self) -> None:
        """Score what has come so far, and end. What comes later is not taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _scores(self, matrix: Confusion) -> tuple[float | None, dict[str, float | None]]:
        if not matrix.any():
            return None, dict.fromkeys(self._names)
        found = scores(matrix, self._names)
        return found.miou, dict(found.iou)

    # Callers' side; with the condition held.

    def _room(self) -> bool:
        while self._wait and len(self._events) >= self._capacity and not self._closed:
            self._changed.wait()
        return not self._closed and len(self._events) < self._capacity

    def _push(self, event: Callable[[], None]) -> None:
        self._events.append(event)
        self._changed.notify_all()

    # The thread's side: no other touches `_streams`.

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._events and not self._closed:
                    self._changed.wait()
                if not self._events:
                    break
                event = self._events.popleft()
                self._changed.notify_all()
            try:
                event()
            except Exception as error:  # whatever it is, who waits for room must not wait for ever
                self._skip(f"{type(error).__name__}: {error}")
        for stream in self._streams:
            for index in list(stream.waiting):
                self._compare_seen(stream, index)
            stream.waiting.clear()
            stream.masks.clear()

    def _take_label(self, stream: _Stream, index: int, time_ns: int, label: Label) -> None:
        stream.waiting[index] = _Waiting(time_ns, label)
        if stream.masks and stream.masks[-1][0] > time_ns:
            self._compare_seen(stream, index)
        if len(stream.waiting) > PENDING:
            oldest = next(iter(stream.waiting))
            self._compare_seen(stream, oldest)
            if stream.waiting.pop(oldest, None) is not None:
                self._skip(f"its mask did not come within {PENDING} labels")

    def _take_mask(self, stream: _Stream, index: int, ready_ns: int, mask: Mask | None) -> None:
        for other, label in list(stream.waiting.items()):
            if label.time_ns < ready_ns:
                self._compare_seen(stream, other)  # with what was there before this mask
        was_lost, stream.lost = stream.lost, mask is None
        stream.masks.append((ready_ns, mask))
        if len(stream.masks) > HISTORY:
            stream.forgotten = True
            self._give_back(stream.masks.popleft()[1])
        if index in stream.waiting:
            if mask is None:
                self._skip("masks came faster than they could be scored")
            else:
                self._compare_own(stream, index, mask)
        for other in [k for k in stream.waiting if k <= index]:  # masks come in order: theirs do not come any more
            if other != index and was_lost:
                self._skip("masks came faster than they could be scored")
            self._settle(stream, other)

    def _settle(self, stream: _Stream, index: int) -> None:
        label = stream.waiting.get(index)
        if label is not None:
            label.gone = True
            if label.seen:
                del stream.waiting[index]

    def _compare_seen(self, stream: _Stream, index: int) -> None:
        """Compare a label with the mask that the consumer saw at its time, unless that was done."""
        label = stream.waiting[index]
        if label.seen:
            return
        label.seen = True
        at_the_time = [mask for ready_ns, mask in stream.masks if ready_ns <= label.time_ns]
        if not at_the_time and not stream.forgotten:
            with self._tally:
                self._before_first += 1
        elif not at_the_time or at_the_time[-1] is None:
            self._skip("the mask that was to be seen at the label's time is not known any more")
        elif (matrix := self._matrix(stream, index, at_the_time[-1])) is not None:
            with self._tally:
                self._seen += matrix
                self._seen_frames += 1
        if label.gone:
            stream.waiting.pop(index, None)

    def _compare_own(self, stream: _Stream, index: int, mask: Mask) -> None:
        matrix = self._matrix(stream, index, mask)
        if matrix is not None:
            with self._tally:
                self._own += matrix
                self._frames += 1

    def _matrix(self, stream: _Stream, index: int, mask: Mask) -> Confusion | None:
        """The confusion matrix of a label and a mask; None, and the label is let go, where there can be none."""
        waiting = stream.waiting[index]
        try:
            if callable(waiting.label):
                waiting.label = waiting.label()
            label = waiting.label
            return confusion(to_size(mask, (label.shape[0], label.shape[1])), label, self._classes, self._ignore)
        except Exception as error:  # of a file that anybody made; a stream does not end for a label
            self._skip(str(error) or type(error).__name__)
            stream.waiting.pop(index, None)
            return None

    def _skip(self, reason: str) -> None:
        with self._tally:
            self._skipped += 1
            if len(self._reasons) < REASONS and reason not in self._reasons:
                self._reasons.append(reason)

    def _give_back(self, mask: Mask | None) -> None:
        if mask is not None:
            with self._changed:
                if self._spare and self._spare[-1].shape != mask.shape:
                    self._spare.clear()
                self._spare.append(mask)
