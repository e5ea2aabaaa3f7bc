"""mIoU of what was computed and of what was seen, against a replay of the whole event log in plain loops."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edgeseg.errors import DatasetError
from edgeseg.runtime.score import HISTORY, PENDING, Scorer
from edgeseg.types import Mask
from tests import reference

CLASSES, IGNORE = 3, 255
SMALL, LARGE = (4, 6), (8, 12)  # network's and labels' size
WAIT_S = 30.0


@dataclass
class Event:
    call_ns: int  # when it is told
    kind: str
    stream: int
    index: int
    time_ns: int = 0
    array: Mask | None = None


def picture(rng: np.random.Generator, size: tuple[int, int], label: bool = False) -> Mask:
    made = rng.integers(0, CLASSES, size, dtype=np.uint8)
    if label:
        made[rng.random(size) < 0.1] = IGNORE
    return made


def a_run(seed: int, streams: int = 2, frames: int = 40, drop: float = 0.4, labelled: float = 0.7) -> list[Event]:
    """Frames every 10 units; masks one after the other, each some time after its frame, told of later still."""
    dice, rng = random.Random(seed), np.random.default_rng(seed)
    events = []
    for stream in range(streams):
        free = told = 0
        for index in range(frames):
            captured = 10 * index + dice.randrange(3)
            call = captured + dice.randrange(4)
            if dice.random() < labelled:
                events.append(Event(call, "captured", stream, index, captured, picture(rng, LARGE, label=True)))
            if dice.random() < drop:
                events.append(Event(call + dice.randrange(15), "dropped", stream, index))
                continue
            free = max(captured, free) + dice.randrange(1, 25)
            told = max(told + 1, free + dice.randrange(6), call + 1)
            events.append(Event(told, "delivered", stream, index, free, picture(rng, SMALL)))
    return sorted(events, key=lambda event: event.call_ns)


def expected(events: list[Event]) -> dict[str, Any]:
    """For every label: its own mask if there is one, and the last of its stream that was ready at its time."""
    own: list[tuple[Mask, Mask]] = []
    seen: list[tuple[Mask, Mask]] = []
    before = 0
    masks = [event for event in events if event.kind == "delivered"]
    for label in (event for event in events if event.kind == "captured"):
        of_stream = [mask for mask in masks if mask.stream == label.stream]
        assert label.array is not None
        own += [(mask.array, label.array) for mask in of_stream if mask.index == label.index if mask.array is not None]
        ready = [mask for mask in of_stream if mask.time_ns <= label.time_ns]
        before += not ready
        if ready:
            last = max(ready, key=lambda mask: (mask.time_ns, mask.index)).array
            assert last is not None
            seen.append((last, label.array))
    return {
        **dict(zip(("miou", "iou"), means(own), strict=True)),
        **dict(zip(("streaming_miou", "streaming_iou"), means(seen), strict=True)),
        "frames": len(own),
        "streaming_frames": len(seen),
        "before_first": before,
    }


def means(pairs: list[tuple[Mask, Mask]]) -> tuple[float | None, dict[str, float | None]]:
    resized = [reference.nearest(mask, (label.shape[0], label.shape[1])) for mask, label in pairs]
    found = reference.iou_and_dice(resized, [label for _, label in pairs], CLASSES, IGNORE)
    iou = {name: None if one is None else one[0] for name, one in zip("abc", found, strict=True)}
    known = [value for value in iou.values() if value is not None]
    return (sum(known) / len(known) if known else None), iou


def tell(scorer: Scorer, event: Event) -> None:
    if event.kind == "dropped":
        scorer.dropped(event.stream, event.index)
    elif event.kind == "captured":
        assert event.array is not None
        scorer.captured(event.stream, event.index, event.time_ns, event.array)
    else:
        assert event.array is not None
        buffer = event.array.copy()
        scorer.delivered(event.stream, event.index, event.time_ns, buffer)
        buffer[:] = 0  # the stream uses it again


def agrees(document: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert document["skipped"] == 0, document["reasons"]
    for key, value in wanted.items():
        if isinstance(value, dict):
            assert document[key] == pytest.approx(value), key
        else:
            assert document[key] == (None if value is None else pytest.approx(value)), key


@pytest.mark.parametrize("capacity", [1, 16])
@pytest.mark.parametrize("seed", range(6))
def test_as_a_replay_of_the_log_says(seed: int, capacity: int) -> None:
    events = a_run(seed)
    with Scorer(2, CLASSES, IGNORE, "abc", wait=True, capacity=capacity) as scorer:
        for event in events:
            tell(scorer, event)
    wanted = expected(events)
    assert wanted["before_first"] > 0
    assert wanted["streaming_frames"] > wanted["frames"] > 0
    agrees(scorer.document(), wanted)
    json.dumps(scorer.document(), allow_nan=False)


def test_dropped_need_not_be_told() -> None:
    events = a_run(11)
    with Scorer(2, CLASSES, IGNORE, "abc", wait=True) as scorer:
        for event in events:
            if event.kind != "dropped":
                tell(scorer, event)
    agrees(scorer.document(), expected(events))


def test_stale_masks_cost_streaming_accuracy_alone() -> None:
    """A perfect network that is one frame late, before a picture that moves."""
    with Scorer(1, 2, None, ["road", "car"], wait=True) as scorer:
        for k in range(10):
            truth = np.zeros((1, 20), np.uint8)
            truth[0, k : k + 4] = 1
            scorer.captured(0, k, 100 * k, truth)
            scorer.delivered(0, k, 100 * k + 50, truth)
    document = scorer.document()
    assert document["miou"] == 1.0
    # of a car 4 pixels long that moved by one, 3 of 5 pixels are right; of the road 15 of 17
    assert document["streaming_iou"] == {"road": pytest.approx(15 / 17), "car": pytest.approx(3 / 5)}
    assert (document["frames"], document["streaming_frames"], document["before_first"]) == (10, 9, 1)


def test_a_mask_that_is_ready_at_the_labels_time_counts() -> None:
    for ready, streaming in ((100, 1.0), (101, None)):
        with Scorer(1, 2, None, wait=True) as scorer:
            scorer.delivered(0, 0, ready, np.ones((2, 2), np.uint8))
            scorer.captured(0, 1, 100, np.ones((2, 2), np.uint8))
        assert scorer.document()["streaming_miou"] == streaming


def test_labels_are_decoded_once_and_not_by_the_caller() -> None:
    threads: list[int] = []

    def load() -> Mask:
        threads.append(threading.get_ident())
        return np.ones((2, 2), np.uint8)

    with Scorer(1, 2, None, wait=True) as scorer:
        scorer.delivered(0, 0, 0, np.ones((2, 2), np.uint8))
        scorer.captured(0, 1, 10, load)
        scorer.captured(0, 2, 12, load)
        scorer.delivered(0, 1, 20, np.ones((2, 2), np.uint8))  # and seen by 2's label no more
        scorer.delivered(0, 2, 30, np.ones((2, 2), np.uint8))
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    document = scorer.document()
    assert (document["frames"], document["streaming_frames"]) == (2, 2)


def test_bad_labels_are_counted_with_their_reason() -> None:
    def unreadable() -> Mask:
        raise DatasetError("label 3.png is cut short")

    with Scorer(1, 2, None, wait=True) as scorer:
        scorer.captured(0, 0, 0, np.full((2, 2), 9, np.uint8))
        scorer.delivered(0, 0, 5, np.zeros((2, 2), np.uint8))
        scorer.captured(0, 1, 10, unreadable)
        scorer.delivered(0, 1, 15, np.zeros((2, 2), np.uint8))
        scorer.captured(0, 2, 20, np.zeros((2, 2), np.uint8))
        scorer.delivered(0, 2, 25, np.zeros((2, 2), np.uint8))
    document = scorer.document()
    assert document["skipped"] == 2
    assert any("cut short" in reason for reason in document["reasons"])
    assert any("value 9" in reason for reason in document["reasons"])
    assert (document["frames"], document["miou"]) == (1, 1.0)


def test_a_network_of_other_classes_does_not_end_the_stream() -> None:
    with Scorer(1, 2, None, wait=True) as scorer:
        scorer.captured(0, 0, 0, np.zeros((2, 2), np.uint8))
        scorer.delivered(0, 0, 5, np.full((2, 2), 7, np.uint8))
    assert scorer.document()["skipped"] == 1
    assert scorer.document()["miou"] is None


class Held:
    """A label that keeps the scorer busy until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self) -> Mask:
        self.begun.set()
        assert self.go.wait(WAIT_S)
        return np.zeros((2, 2), np.uint8)


def until_taken(scorer: Scorer) -> None:
    end = time.monotonic() + WAIT_S
    while scorer._events:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_latest_leaves_out_what_does_not_fit_and_scores_no_label_with_a_wrong_mask() -> None:
    held = Held()
    zeros, ones = np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)
    with Scorer(1, 2, None, wait=False, capacity=2) as scorer:
        scorer.delivered(0, 0, 1, zeros)
        until_taken(scorer)
        scorer.captured(0, 1, 2, held)
        until_taken(scorer)
        scorer.delivered(0, 1, 3, zeros)  # resolves label 1, and hangs
        assert held.begun.wait(WAIT_S)
        scorer.captured(0, 2, 4, zeros)
        scorer.captured(0, 3, 8, zeros)  # full from here
        scorer.delivered(0, 2, 5, ones)  # lost: nobody knows what label 3 saw
        scorer.delivered(0, 3, 9, ones)
        scorer.captured(0, 4, 10, ones)  # lost
        assert scorer.document()["frames"] == 0
        held.go.set()
        until_taken(scorer)
        scorer.delivered(0, 5, 20, ones)
    document = scorer.document()
    # label 1: own and seen; label 2: seen (the mask of 1), own lost; label 3: neither; label 4: not taken
    assert (document["frames"], document["streaming_frames"]) == (1, 2)
    assert document["miou"] == document["streaming_miou"] == 1.0
    assert document["skipped"] == 4
    assert document["before_first"] == 0


def test_every_waits_and_loses_nothing() -> None:
    held = Held()
    zeros = np.zeros((2, 2), np.uint8)
    with Scorer(1, 2, None, wait=True, capacity=2) as scorer:
        scorer.delivered(0, 0, 0, zeros)

        def stream() -> None:
            for k in range(1, 30):
                scorer.captured(0, k, 10 * k, held)
                scorer.delivered(0, k, 10 * k + 5, zeros)

        thread = threading.Thread(target=stream)
        thread.start()
        assert held.begun.wait(WAIT_S)
        held.go.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()
    document = scorer.document()
    assert (document["frames"], document["streaming_frames"], document["skipped"]) == (29, 29, 0)


def test_closing_frees_those_who_wait() -> None:
    held = Held()
    scorer = Scorer(1, 2, None, wait=True, capacity=1)
    zeros = np.zeros((2, 2), np.uint8)
    scorer.captured(0, 0, 0, held)
    scorer.delivered(0, 0, 5, zeros)
    ended = threading.Event()

    def stream() -> None:
        for k in range(1, 20):
            scorer.delivered(0, k, 10 * k, zeros)
        ended.set()

    threading.Thread(target=stream, daemon=True).start()
    assert held.begun.wait(WAIT_S)
    closing = threading.Thread(target=scorer.close)
    closing.start()
    held.go.set()
    closing.join(WAIT_S)
    assert ended.wait(WAIT_S)
    scorer.close()  # twice is once
    scorer.captured(0, 99, 99, zeros)
    assert scorer.document()["frames"] == 1
    assert scorer.document()["skipped"] == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "score"]


@pytest.mark.parametrize("told", [True, False])
def test_memory_is_bounded(told: bool) -> None:
    """An engine that hangs while the camera goes on; then a long stream."""
    zeros = np.zeros((2, 2), np.uint8)
    with Scorer(1, 2, None, wait=True, capacity=4) as scorer:
        for k in range(3 * PENDING):
            scorer.captured(0, k, k, zeros)
            if told:
                scorer.dropped(0, k)
        assert len(scorer._streams[0].waiting) <= PENDING + 1
        for k in range(3 * PENDING, 4 * PENDING):
            scorer.captured(0, k, 10 * k, zeros)
            scorer.delivered(0, k, 10 * k + 5, zeros)
        made = len(scorer._spare) + len(scorer._streams[0].masks)
        assert made <= 4 + HISTORY + 2
    document = scorer.document()
    assert (document["frames"], document["streaming_frames"]) == (PENDING, PENDING - 1)
    assert document["before_first"] == 3 * PENDING + 1
    assert document["skipped"] == (0 if told else 2 * PENDING + 1)


def test_a_stream_that_does_not_exist_is_refused_where_it_is_named() -> None:
    with Scorer(1, 2, None, wait=True) as scorer, pytest.raises(IndexError):
        scorer.delivered(1, 0, 0, np.zeros((2, 2), np.uint8))


def test_nothing_told() -> None:
    with Scorer(1, 2, None, ["a", "b"], wait=True) as scorer:
        document = scorer.document()
    assert document["miou"] is document["streaming_miou"] is None
    assert document["iou"] == {"a": None, "b": None}
