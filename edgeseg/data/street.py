"""Street scenes with exact labels, rendered: the example that needs no download, and a labelled video source.

A drive is a seed: its street, weather, light and camera. `index` is time: frame `index` is taken index / 15 s after
the first, so neighbouring indices of one seed look like a video at 15 frames per second, without end. A frame is a
pure function of (size, seed, index), the same bytes on every machine.

    >>> pixels, mask = render((90, 120), seed=1, index=0)
    >>> pixels.shape, mask.shape, CLASSES[mask[89, 60]]
    ((90, 120, 3), (90, 120), 'road')

The parts: `street_world` (chance, conditions), `street_canvas` (camera, classes), `street_scene` with `street_ground`,
`street_houses` and `street_traffic` (what is in a street), `street_light` (what a camera makes of it). Only NumPy, and
no drawing library whose next version rounds otherwise.
"""

from __future__ import annotations

import numpy as np

from edgeseg.data.street_canvas import CLASSES, Camera, Canvas
from edgeseg.data.street_light import develop
from edgeseg.data.street_scene import paint
from edgeseg.data.street_world import FPS, conditions
from edgeseg.types import Mask, Pixels

__all__ = ["CLASSES", "FPS", "PALETTE", "render"]

PALETTE: tuple[tuple[int, int, int], ...] = (  # red, green, blue
    (70, 130, 180),
    (110, 80, 80),
    (128, 64, 128),
    (240, 240, 240),
    (244, 35, 232),
    (107, 142, 35),
    (153, 153, 153),
    (220, 220, 0),
    (0, 0, 142),
    (220, 20, 60),
)


def render(size: tuple[int, int], seed: int, index: int) -> tuple[Pixels, Mask]:
    """One frame of a drive and its labels.

    `size` is (height, width) in pixels, each at least 16; `seed` and `index` are any integers, `index` in frames at
    15 per second. Returns uint8 (H, W, 3) in blue, green, red, and uint8 (H, W) of indices into CLASSES.
    Raises ValueError for a smaller size.
    """
    height, width = size
    if height < 16 or width < 16:
        raise ValueError(f"a street needs at least 16 x 16 pixels, but the size asked for is {height} x {width}")
    drive = conditions(seed)
    canvas = Canvas(Camera(drive, size, index), size)
    paint(canvas, drive)
    mask: Mask = np.array(canvas.classes, np.uint8)[canvas.material]
    return develop(canvas, drive, index), mask
