"""Labels beside points, where they lie over no other and over no point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Box = tuple[float, float, float, float]  # left, bottom, right, top; in pixels of the figure

# Where a label may stand beside its point: shares of its width to the right, pixels up; the nearest first.
_NEAR = ((1, -10), (0, -17), (-1, 10), (0, 15), (1, 3), (-1, 3), (1, 10), (-1, -10))
_SPOTS = (*_NEAR, *((dx, dy + 15 * away) for away in (1, -1, 2, -2, 3, -3) for dx, dy in _NEAR))


def label(axes: Any, texts: Sequence[tuple[Any, float]], points: Sequence[tuple[float, float, float]]) -> None:
    """Move matplotlib's annotations beside their points, each to the nearest place that is free.

    `texts`: an annotation, and how far from its point it begins. `points`: x and y in data, and a radius; all lengths
    in points of 1/72 inch. Where nothing is free the nearest place inside the axes is taken.
    """
    for text, _ in texts:
        text.set_in_layout(False)
    axes.figure.draw_without_rendering()  # the layout decides where the points are
    frame = axes.get_window_extent()
    scale = axes.figure.dpi / 72
    taken: list[Box] = []
    for x, y, radius in points:
        middle, height = axes.transData.transform((x, y))
        half = (1 + radius) * scale
        taken.append((middle - half, height - half, middle + half, height + half))
    for text, away in texts:
        text.set(ha="center", va="center", anncoords="offset points", annotation_clip=False)
        text.set_position((0, 0))
        extent = text.get_window_extent()
        wide, tall = extent.width, extent.height
        x, y = axes.transData.transform(text.xy)
        spots = [(dx * (wide / 2 + away * scale), dy * scale * max(1.0, away / 7.5)) for dx, dy in _SPOTS]
        boxes = [(x + dx - wide / 2, y + dy - tall / 2, x + dx + wide / 2, y + dy + tall / 2) for dx, dy in spots]
        inside = [
            at
            for at, (left, bottom, right, top) in enumerate(boxes)
            if left >= frame.x0 and right <= frame.x1 + 4 and bottom >= frame.y0 and top <= frame.y1 + 10
        ]
        free = [at for at in inside if not any(overlap(boxes[at], other) for other in taken)]
        at = (free or inside or [0])[0]
        taken.append(boxes[at])
        text.set_position((spots[at][0] / scale, spots[at][1] / scale))


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes have an area in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
