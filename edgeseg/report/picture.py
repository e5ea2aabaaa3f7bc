"""Masks made visible: coloured, laid over their frame, several side by side with captions."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from edgeseg.bundle import Bundle
from edgeseg.errors import BadInput, need
from edgeseg.gallery import Gallery, Shown
from edgeseg.palette import Palette, colour_table, palette_of
from edgeseg.types import Mask, Pixels

# What became of a pixel between two engines, BGR: red got lost, green was won, blue is wrong in another way.
LOST, WON, OTHER = (60, 60, 230), (80, 190, 60), (230, 140, 60)


def coloured(mask: Mask, palette: Palette) -> Pixels:
    """BGR (H, W, 3) of a mask (H, W); classes beyond the palette are black."""
    painted: Pixels = colour_table(palette)[mask]
    return painted


def overlay(frame: Pixels, mask: Mask, palette: Palette, strength: float = 0.55, unknown: int | None = None) -> Pixels:
    """The BGR frame under its mask, both (H, W). Where the mask is `unknown` the frame shows as it is."""
    cv2 = need("cv2", extra="run", why="drawing masks")
    blended: Pixels = cv2.addWeighted(coloured(mask, palette), strength, frame, 1.0 - strength, 0.0)
    if unknown is not None:
        blended[mask == unknown] = frame[mask == unknown]
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


def gallery_section(shown: Gallery) -> str:
    """Each frame with its truth, the masks of its engines and what differs, side by side; on a phone one below another.

    Without truth the difference is between the two masks; with it, what was right before and is wrong now, and back.
    """
    if not shown.frames:
        return ""
    legend = "".join(
        f'<span class="class"><i style="background:rgb({r},{g},{b})"></i>{escape(name)}</span>'
        for name, (r, g, b) in zip(shown.classes, shown.palette, strict=False)
    )
    rows = "".join(f'<div class="frames">{_row(one, shown.palette)}</div>' for one in shown.frames)
    return f"<h3>{escape(shown.title)}</h3><p>{legend}</p>{rows}"


def _row(one: Shown, palette: Palette) -> str:
    pictures = [(f"frame {one.name}", one.frame)]
    if one.truth is not None:
        pictures.append(("truth", overlay(one.frame, one.truth, palette, unknown=one.ignore_index)))
    for name, mask in one.masks.items():
        miou = one.miou.get(name)
        caption = name if miou is None else f"{name}: mIoU {100 * miou:.1f} %"
        pictures.append((caption, overlay(one.frame, mask, palette)))
    pictures.append(difference(one))
    return "".join(
        f'<figure><img alt="{escape(caption)}, frame {escape(one.name)}" '
        f'width="{picture.shape[1]}" height="{picture.shape[0]}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(jpeg(picture)).decode()}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, picture in pictures
    )


def difference(one: Shown) -> tuple[str, Pixels]:
    """What differs between the first and the last mask, as a caption and a picture, BGR (H, W, 3).

    With one mask and a truth: where it is wrong.
    """
    masks = list(one.masks.values())
    before, after = masks[0], masks[-1]
    picture = np.repeat((one.frame.mean(2, keepdims=True) * 0.45).astype(np.uint8), 3, axis=2)
    if one.truth is None:
        unequal = before != after
        picture[unequal] = LOST
        return f"differs: {100 * float(unequal.mean()):.2f} % (red)", picture
    known = np.ones(one.truth.shape, bool) if one.ignore_index is None else one.truth != one.ignore_index
    total = max(int(known.sum()), 1)
    if len(one.masks) == 1:
        wrong = known & (after != one.truth)
        picture[wrong] = LOST
        return f"wrong: {100 * int(wrong.sum()) / total:.2f} % (red)", picture
    unequal, right = known & (before != after), after == one.truth
    lost, won = unequal & (before == one.truth), unequal & right
    picture[unequal], picture[lost], picture[won] = OTHER, LOST, WON
    shares = (100 * int(some.sum()) / total for some in (lost, won, unequal & ~lost & ~won))
    words = ("lost (red)", "won (green)", "wrong otherwise (blue)")
    return ", ".join(f"{share:.2f} % {word}" for share, word in zip(shares, words, strict=True)), picture


def jpeg(picture: Pixels, quality: int = 88) -> bytes:
    """A BGR picture as JPEG with colours at full resolution, so that thin classes keep theirs."""
    cv2 = need("cv2", extra="run", why="writing a JPEG")
    how = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    good, data = cv2.imencode(".jpg", picture, how)
    if not good:
        raise BadInput(f"OpenCV cannot write a picture of shape {picture.shape} as JPEG")
    return bytes(data)


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
