from __future__ import annotations

import numpy as np
import pytest

from edgeseg.measure.flicker import Flicker
from edgeseg.types import Mask

STEP = 10**8


def masks(count: int, seed: int = 0, classes: int = 3) -> list[Mask]:
    return list(np.random.default_rng(seed).integers(0, classes, (count, 7, 9), dtype=np.uint8))


def test_as_counted_by_loops() -> None:
    flicker = Flicker()
    stream = masks(30)
    changed, back = [], []
    for k, mask in enumerate(stream):
        seen = flicker.update(mask, k * STEP)
        before = [m.ravel().tolist() for m in stream[max(0, k - 2) : k + 1]]
        if k >= 1:
            changed.append(sum(a != b for a, b in zip(*before[-2:], strict=True)) / mask.size)
        if k >= 2:
            back.append(sum(a != b and a == c for a, b, c in zip(*before, strict=True)) / mask.size)
            assert seen == (changed[-1], back[-1])
        else:
            assert seen is None
    assert flicker.document() == {
        "changed": pytest.approx(sum(changed) / 29),
        "steps": 29,
        "flicker": pytest.approx(sum(back) / 28),
        "frames": 28,
    }


def test_motion_is_no_flicker_and_wavering_is() -> None:
    moving, wavering = Flicker(), Flicker()
    edge = np.arange(40) + np.zeros((20, 1))
    for k in range(12):
        moving.update((edge < 10 + k).astype(np.uint8), k * STEP)
        wavering.update((edge < 10 + k % 2).astype(np.uint8), k * STEP)
    assert moving.document()["changed"] == wavering.document()["changed"] == pytest.approx(1 / 40)
    assert moving.document()["flicker"] == 0
    assert wavering.document()["flicker"] == pytest.approx(1 / 40)


def test_what_is_given_may_be_overwritten() -> None:
    flicker = Flicker()
    buffer = np.zeros((4, 4), np.uint8)
    for k in range(3):
        buffer[:] = k % 2
        seen = flicker.update(buffer, k * STEP)
    assert seen == (1.0, 1.0)


@pytest.mark.parametrize("what", ["gap", "back", "size", "reset"])
def test_what_begins_anew(what: str) -> None:
    flicker = Flicker(gap_s=1.0)
    a, b = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    assert flicker.update(a, 0) is None
    assert flicker.update(b, STEP) is None
    assert flicker.update(a, 2 * STEP) == (1.0, 1.0)
    times = {"gap": 13 * STEP, "back": STEP}
    time_ns = times.get(what, 3 * STEP)
    if what == "reset":
        flicker.reset()
    if what == "size":
        a, b = a[:3], b[:3]
    assert flicker.update(b, time_ns) is None
    assert flicker.document()["steps"] == 2  # nothing was compared across the break
    assert flicker.update(a, time_ns + STEP) is None
    assert flicker.update(b, time_ns + 2 * STEP) == (1.0, 1.0)


def test_a_gap_just_short_enough() -> None:
    flicker = Flicker(gap_s=1.0)
    for k, mask in enumerate(masks(3)):
        seen = flicker.update(mask, k * 10**9)
    assert seen is not None


def test_nothing_seen() -> None:
    assert Flicker().document() == {"changed": None, "steps": 0, "flicker": None, "frames": 0}
