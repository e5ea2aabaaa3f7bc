"""What it costs to paint a frame, part by part, next to the obvious way in NumPy, interleaved; on one core."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeseg.data import street
from edgeseg.data.prepare import to_size
from edgeseg.errors import need
from edgeseg.measure.latency import interleave, percentile
from edgeseg.palette import colour_table
from edgeseg.runtime.overlay import LINE, Painter
from edgeseg.runtime.values import Shot
from edgeseg.types import Mask, Pixels

STRENGTH = 0.5


def blended(pixels: Pixels, mask: Mask, table: Pixels) -> Pixels:
    """The usual line: look up the colours, weigh in floats."""
    picture: Pixels = (pixels * (1.0 - STRENGTH) + table[mask] * STRENGTH).astype(np.uint8)
    return picture


def outlined(pixels: Pixels, mask: Mask, table: Pixels) -> Pixels:
    picture = blended(pixels, mask, table)
    edge = np.zeros(mask.shape, np.bool_)
    w = 1 + (len(mask) - 1) // LINE
    edge[:, :-w] |= mask[:, w:] != mask[:, :-w]
    edge[:-w] |= mask[w:] != mask[:-w]
    picture[edge] = table[mask[edge]]
    return picture


def with_legend(pixels: Pixels, mask: Mask, table: Pixels) -> Pixels:
    """The whole of it, with a line drawn for each class in every frame."""
    cv2 = need("cv2", extra="run", why="measuring the overlay")
    picture = outlined(pixels, mask, table)
    for number, index in enumerate(np.unique(mask).tolist()):
        colour = tuple(int(value) for value in table[index])
        cv2.rectangle(picture, (10, 10 + 16 * number), (20, 20 + 16 * number), colour, -1)
        where = (26, 20 + 16 * number)
        cv2.putText(picture, street.CLASSES[index], where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1)
    return picture


def measure(height: int, width: int, rounds: int, engine: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """Median and p90 in microseconds of ours and of the alternative, a row for each part; the parts are cumulative.

    Of frames of a rendered drive, height x width, and masks at the size of the engine (default: half the frame's).
    OpenCV's pool is set to one thread while it lasts. p90 is None with fewer than 64 rounds.
    """
    cv2 = need("cv2", extra="run", why="measuring the overlay")
    tall, wide = engine or (height // 2, width // 2)
    shots = []
    for index in range(4):
        pixels, truth = street.render((height, width), 5, 10 * index)
        mask = to_size(truth, (tall, wide))
        shares = np.bincount(mask.ravel(), minlength=len(street.CLASSES)) / mask.size
        shots.append(Shot(0, np.empty((1, tall, wide, 3), np.uint8), mask, pixels, shares=tuple(shares.tolist())))
    table = colour_table(street.PALETTE)

    def ours(part: str, *, legend: bool = False, contours: bool = False) -> Callable[[Shot], object]:
        painter = Painter(street.PALETTE, street.CLASSES, legend=legend, contours=contours, strength=STRENGTH)

        def paint(shot: Shot) -> object:
            painter.show(shot)
            return getattr(painter, part)()

        return paint

    pairs: dict[str, tuple[Callable[[Shot], object], str, Callable[[Shot], object]]] = {
        "mask": (ours("mask"), "two index arrays", lambda s: to_size(s.mask, (height, width))),
        "coloured": (ours("coloured"), "palette[mask]", lambda s: table[to_size(s.mask, (height, width))]),
        "blended": (
            ours("overlay"),
            "palette[mask], blended in floats",
            lambda s: blended(s.pixels, to_size(s.mask, (height, width)), table),
        ),
        "outlined": (
            ours("overlay", contours=True),
            "and comparisons, and a masked assignment",
            lambda s: outlined(s.pixels, to_size(s.mask, (height, width)), table),
        ),
        "overlay": (
            ours("overlay", contours=True, legend=True),
            "and the legend drawn in every frame",
            lambda s: with_legend(s.pixels, to_size(s.mask, (height, width)), table),
        ),
    }
    _compare(pairs, shots[0])
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return [_row(name, *pair, shots, rounds) for name, pair in pairs.items()]
    finally:
        cv2.setNumThreads(threads)


def _compare(pairs: dict[str, tuple[Callable[[Shot], Any], str, Callable[[Shot], Any]]], shot: Shot) -> None:
    """Both ways must paint the same, but for rounding and the looks of the legend."""
    for name, (mine, _, theirs) in pairs.items():
        if name != "overlay":
            apart = np.abs(mine(shot).astype(np.int16) - theirs(shot).astype(np.int16)).max()
            assert apart <= (1 if name in ("blended", "outlined") else 0), (name, apart)


def _row(
    name: str,
    mine: Callable[[Shot], object],
    alternative: str,
    theirs: Callable[[Shot], object],
    shots: list[Shot],
    rounds: int,
) -> dict[str, Any]:
    turn = {"ours": 0, "theirs": 0}

    def each(key: str, run: Callable[[Shot], object]) -> Callable[[], object]:
        def paint() -> object:
            turn[key] += 1
            return run(shots[turn[key] % len(shots)])

        return paint

    times = interleave({"ours": each("ours", mine), "theirs": each("theirs", theirs)}, rounds=rounds, warmup=8)
    row: dict[str, Any] = {"step": name, "alternative": alternative}
    for key, prefix in (("ours", ""), ("theirs", "alternative_")):
        tail = percentile(times[key], 0.9).value_ms
        row[prefix + "us"] = statistics.median(times[key]) / 1e3
        row[prefix + "p90_us"] = None if tail is None else tail * 1e3
    return row
