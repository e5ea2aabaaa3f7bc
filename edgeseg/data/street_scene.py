"""The whole scene, painted from far to near.

Part of the street renderer (`street.py`). The street is cut into cells of a few metres; what a cell holds is a pure
function of (seed, kind, side, cell), so nothing is stored (the caches only save time) and a drive has no end.
"""

from __future__ import annotations

from edgeseg.data.street_canvas import Canvas
from edgeseg.data.street_ground import ground, sky, skyline
from edgeseg.data.street_houses import houses, trees
from edgeseg.data.street_traffic import cars, furniture, people
from edgeseg.data.street_world import Drive


def paint(canvas: Canvas, drive: Drive) -> None:
    """Paint all that the canvas's camera sees."""
    sky(canvas, drive)
    skyline(canvas, drive)
    ground(canvas, drive)
    things = [*trees(canvas, drive), *furniture(canvas, drive), *cars(canvas, drive), *people(canvas, drive)]
    for layer in ([*houses(canvas, drive)], things):  # houses stand behind everything on the street, so they come first
        for depth, draw in sorted(layer, key=lambda item: -item[0]):
            if depth > -14.0:
                draw()
