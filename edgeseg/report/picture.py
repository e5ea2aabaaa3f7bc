"""Masks made visible: coloured, laid over their frame, several side by side with captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeseg.bundle import Bundle
from edgeseg.errors import BadInput, need
from edgeseg.palette import Palette, colour_table, palette_of
from edgeseg.types import Mask, Pixels


def coloured(mask: Mask, palette: Palette) -> Pixels:
    """BGR (H, W, 3) of a mask (H, W); classes beyond the palette are black."""
    painted: Pixels = colour_table(palette)[mask]
    return painted


def overlay(frame: Pixels, mask: Mask, palette: Palette, strength: float = 0.55) -> Pixels:
    """The BGR frame under its mask, both (H, W)."""
    cv2 = need("cv2", extra="run", why="drawing masks")
    blended: Pixels = cv2.addWeighted(coloured(mask, palette), strength, frame, 1.0 - strength, 0.0)
    return blended


def side_by_side(pictures: Sequence[tuple[str, Pixels]], height: int = 240) -> Pixels:
    """BGR pictures in a row at one height, each under its caption."""
    cv2 = need("cv2", extra="run", why="drawing masks")
    columns = []
    for caption, picture in pictures:
        width = round(picture.shape[1] * height / picture.shape[0])
        scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)
        head = np.full((24, width, 3), 255, np.uint8)
        cv2.putText(head, caption, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
        columns += [np.vstack([head, scaled]), np.full((height + 24, 4, 3), 255, np.uint8)]
    return np.hstack(columns[:-1])


def stacked(rows: Sequence[Pixels]) -> Pixels:
    """Pictures below one another, padded with white to the widest."""
    widest = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.vstack(padded)


def comparisons(bundle: Bundle) -> list[Pixels]:
    """For each reference frame a row: the frame, the FP32 mask, the mask of the engine handed over, the difference."""
    palette = palette_of(bundle)
    rows = []
    for reference in bundle.references:
        frame = (
            reference.frame if bundle.spec.input.frame == "bgr" else np.ascontiguousarray(reference.frame[..., ::-1])
        )
        chosen = reference.masks.get(bundle.chosen, reference.mask)
        unequal = chosen != reference.mask
        differs = (frame // 3).astype(np.uint8)
        differs[unequal] = (40, 40, 255)
        pictures = [
            ("frame", frame),
            ("FP32", overlay(frame, reference.mask, palette)),
            (bundle.chosen, overlay(frame, chosen, palette)),
            (f"differs: {100 * float(unequal.mean()):.2f} %", differs),
        ]
        rows.append(side_by_side(pictures))
    return rows


def png(picture: Pixels) -> bytes:
    """A BGR picture as PNG."""
    cv2 = need("cv2", extra="run", why="writing a PNG")
    good, data = cv2.imencode(".png", picture)
    if not good:
        raise BadInput(f"OpenCV cannot write a picture of shape {picture.shape} as PNG")
    return bytes(data)
