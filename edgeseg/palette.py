"""The colours of classes: the data set's, or one distinct colour for each. What reports and streams paint with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeseg.bundle import Bundle
from edgeseg.data.splits import default_palette
from edgeseg.types import Pixels

Palette = Sequence[tuple[int, int, int]]  # RGB


def palette_of(bundle: Bundle) -> Palette:
    """The colours of the data set that the bundle was built with, RGB, or one distinct colour for each class."""
    stored = bundle.verdict.get("palette")
    if stored:
        return [(int(r), int(g), int(b)) for r, g, b in stored]
    return default_palette(max(len(bundle.spec.output.classes), 2))


def colour_table(palette: Palette) -> Pixels:
    """uint8 (256, 3), BGR by class index; black beyond the palette."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8)[:256, ::-1]
    return table
