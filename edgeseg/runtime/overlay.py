"""What people see: the class map at the frame's size, in the palette's colours, and over the frame with its legend.

A Painter is the View that sinks are given. Each picture is made when it is first asked for, in buffers that are made
anew only when the frame's size changes; every step is one pass of OpenCV over the frame.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import need
from edgeseg.palette import Palette, colour_table
from edgeseg.runtime.values import Shot
from edgeseg.types import Mask, Pixels

SMALLEST_SHARE = 0.0005  # of the pixels: what covers less gets no line in the legend, or specks would make it flicker
_LEGEND_HEIGHT, _LEGEND_WIDTH = 0.4, 0.5  # of the frame's, at most
_LEGENDS_KEPT = 32
LINE = 540  # a contour is one pixel wide in frames of up to this many rows, two up to twice as many, ...
_REGULAR = 400  # weight of the font


class Painter:
    """Paints one stream of frames; a View of the shot that `show` was last given. Not to be shared between threads.

    `palette` is RGB by class index (black beyond it), `names` are the classes for the legend, `strength` is the weight
    of the colours over the frame, 0 to 1. Of a frame of h x w it holds about 11 bytes a pixel.
    """

    def __init__(
        self,
        palette: Palette,
        names: Sequence[str],
        *,
        legend: bool = True,
        contours: bool = True,
        strength: float = 0.5,
    ) -> None:
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"the strength of the colours lies between 0 and 1, got {strength}")
        self._cv2 = need("cv2", extra="run", why="painting masks")
        self._table = colour_table(palette).reshape(256, 1, 3)
        self._names = tuple(names)[:256]
        self._strength = strength
        self._contours = contours
        self._legends = Legends(self._table, self._names) if legend else None
        self._shot: Shot | None = None
        self._canvas: _Canvas | None = None
        self._mask: Mask | None = None
        self._coloured = self._painted = False

    def show(self, shot: Shot) -> None:
        """Take the next shot, whose `pixels`, `mask` and `shares` are read when a picture is asked for."""
        self._shot, self._mask = shot, None
        self._coloured = self._painted = False

    def mask(self) -> Mask:
        """The class map uint8 (h, w) at the source's size, the same pixels as `edgeseg.data.prepare.to_size` takes."""
        if self._mask is None:
            self._mask = self._sized().resize(self._current().mask)
        return self._mask

    def coloured(self) -> Pixels:
        """The class map in the palette's colours, BGR uint8 (h, w, 3) at the source's size."""
        picture = self._sized().coloured
        if not self._coloured:
            self._cv2.applyColorMap(self.mask(), self._table, dst=picture)
            self._coloured = True
        return picture

    def overlay(self) -> Pixels:
        """The frame under its coloured mask with contours and legend, BGR uint8 (h, w, 3) at the source's size."""
        picture = self._sized().overlay
        if not self._painted:
            frame, colours = self._current().pixels, self.coloured()
            self._cv2.addWeighted(frame, 1.0 - self._strength, colours, self._strength, 0.0, dst=picture)
            if self._contours:
                self._outline(picture)
            if self._legends is not None:
                self._legends.draw(picture, self._shares())
            self._painted = True
        return picture

    def _outline(self, picture: Pixels) -> None:
        """The last pixels before another class begins to the right or below, in the full colour of their class."""
        cv2, mask, canvas = self._cv2, self.mask(), self._sized()
        w = 1 + (mask.shape[0] - 1) // LINE
        # The last rows and columns have no neighbour and are never written: they stay 0 from when they were made.
        cv2.compare(mask[:, w:], mask[:, :-w], cv2.CMP_NE, dst=canvas.across[:, :-w])
        cv2.compare(mask[w:], mask[:-w], cv2.CMP_NE, dst=canvas.down[:-w])
        cv2.bitwise_or(canvas.across, canvas.down, dst=canvas.across_or_down)
        cv2.copyTo(self.coloured(), canvas.across_or_down, dst=picture)

    def _shares(self) -> NDArray[np.float64]:
        shot = self._current()
        if shot.shares:
            return np.asarray(shot.shares, np.float64)
        counts = self._cv2.calcHist([shot.mask], [0], None, [256], [0, 256])
        return np.asarray(counts, np.float64).ravel() / max(1, shot.mask.size)

    def _current(self) -> Shot:
        if self._shot is None:
            raise ValueError("a Painter has nothing to paint before `show`")
        return self._shot

    def _sized(self) -> _Canvas:
        shot = self._current()
        size = shot.pixels.shape[:2]
        if self._canvas is None or self._canvas.size != size or self._canvas.source != shot.mask.shape:
            if not shot.pixels.size or not shot.mask.size:
                raise ValueError(f"a frame {shot.pixels.shape} with a mask {shot.mask.shape} cannot be painted")
            self._canvas = _Canvas(size, shot.mask.shape)
        return self._canvas


class _Canvas:
    """The buffers for frames of one size, and which pixels of the engine's mask they show."""

    def __init__(self, size: tuple[int, int], source: tuple[int, ...]) -> None:
        self.size, self.source = size, source
        self.coloured: Pixels = np.empty((*size, 3), np.uint8)
        self.overlay: Pixels = np.empty((*size, 3), np.uint8)
        self.across: Mask = np.zeros(size, np.uint8)
        self.down: Mask = np.zeros(size, np.uint8)
        self.across_or_down: Mask = np.zeros(size, np.uint8)
        self._rows, self._columns = (  # as in edgeseg.data.prepare: pixel centres on pixel centres
            (2 * np.arange(new, dtype=np.int64) + 1) * old // (2 * new) for old, new in zip(source, size, strict=True)
        )
        # Whole rows are copied much faster than single columns are gathered, so columns go first where rows are fewer.
        self._columns_first = source[0] <= size[0]
        self._between: Mask = np.empty((source[0], size[1]) if self._columns_first else (size[0], source[1]), np.uint8)
        self._mask: Mask = np.empty(size, np.uint8)

    def resize(self, mask: Mask) -> Mask:
        """`mask` at `size`, nearest. Not cv2.resize: INTER_NEAREST_EXACT is off by a pixel at one size in five."""
        if self.source == self.size:
            return mask
        first, second = (self._columns, 1), (self._rows, 0)
        if not self._columns_first:
            first, second = second, first
        # "clip" because "raise" would make numpy write into a new array and copy; no index is out of range.
        mask.take(*first, out=self._between, mode="clip")
        self._between.take(*second, out=self._mask, mode="clip")
        return self._mask


@dataclass(frozen=True, slots=True)
class _Legend:
    panel: Pixels  # swatches and names on a dark ground
    ink: Mask  # not 0 where the panel shows as it is; elsewhere the frame shines through
    at: tuple[int, int]  # row, column of its corner in the frame


class Legends:
    """Draws the legend of the classes in view, in the order of the classes, so that lines do not jump about.

    A legend is made once for each set of classes and size, and the last few are kept.
    """

    def __init__(self, table: Pixels, names: Sequence[str]) -> None:
        """`table` is BGR uint8 (256, 1, 3) by class, `names` the classes."""
        self._cv2 = need("cv2", extra="run", why="painting masks")
        self._table, self._names = table, tuple(names)
        self._width("a", 360)  # loads the font, which takes longer than a frame
        self._made: OrderedDict[tuple[tuple[int, ...], int, int], _Legend | None] = OrderedDict()

    def draw(self, picture: Pixels, shares: NDArray[np.float64]) -> None:
        """Draw into `picture` uint8 (h, w, 3) which classes it shows; `shares` are the shares of pixels by class."""
        height, width = picture.shape[:2]
        key = (self.shown(shares, height), height, width)
        if key in self._made:
            self._made.move_to_end(key)
        else:
            self._made[key] = self._make(*key)
            if len(self._made) > _LEGENDS_KEPT:
                self._made.popitem(last=False)
        legend = self._made[key]
        if legend is None:
            return
        rows, columns = legend.ink.shape
        top, left = legend.at
        ground = picture[top : top + rows, left : left + columns]
        self._cv2.addWeighted(ground, 0.3, legend.panel, 0.7, 0.0, dst=ground)
        self._cv2.copyTo(legend.panel, legend.ink, dst=ground)

    def shown(self, shares: NDArray[np.float64], height: int) -> tuple[int, ...]:
        """The classes that a legend in a frame of `height` rows lists: those in view, the largest if not all fit."""
        shares = shares[: len(self._names)]
        present = np.flatnonzero(shares >= SMALLEST_SHARE)
        lines = max(0, int(_LEGEND_HEIGHT * height - 2 * _padding(height)) // _line(height))
        largest = present[np.argsort(-shares[present], kind="stable")][:lines]
        return tuple(sorted(largest.tolist()))

    def _make(self, classes: tuple[int, ...], height: int, width: int) -> _Legend | None:
        line, pad = _line(height), _padding(height)
        swatch, room = round(0.7 * line), int(_LEGEND_WIDTH * width)
        left = pad + swatch + max(2, line // 3)  # of the text
        texts = [self._shortened(self._names[index], height, room - left - pad) for index in classes]
        if not any(texts):
            return None
        wide = left + max(self._width(text, height) for text in texts) + pad
        panel: Pixels = np.full((len(classes) * line + 2 * pad, wide, 3), 24, np.uint8)
        ink: Mask = np.zeros(panel.shape[:2], np.uint8)
        for number, (index, text) in enumerate(zip(classes, texts, strict=True)):
            top = pad + number * line
            baseline = top + round(0.76 * line)
            for target, white in ((panel, (255, 255, 255)), (ink, (255,))):
                self._write(target, text, (left, baseline), white, height)
            box = (slice(top + (line - swatch) // 2, top + (line - swatch) // 2 + swatch), slice(pad, pad + swatch))
            panel[box], ink[box] = 255, 255  # a light rim: a dark colour is seen on the dark ground too
            inner = tuple(slice(side.start + 1, side.stop - 1) for side in box)
            panel[inner] = self._table[index, 0]
        margin = max(2, height // 60)
        return _Legend(panel, ink, (margin, margin))

    def _shortened(self, text: str, height: int, room: int) -> str:
        text = " ".join(text.split())
        if self._width(text, height) <= room:
            return text
        while text and self._width(text + "..", height) > room:
            text = text[:-1]
        return text.rstrip() + ".." if text else ""

    def _width(self, text: str, height: int) -> int:
        cv2 = self._cv2
        if hasattr(cv2, "FontFace"):
            box = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace("sans"), _text(height), _REGULAR)
            return int(box[0] + box[2])
        return int(cv2.getTextSize(_ascii(text), cv2.FONT_HERSHEY_SIMPLEX, _text(height) / 30, 1)[0][0])

    def _write(self, target: Mask | Pixels, text: str, at: tuple[int, int], ink: tuple[int, ...], height: int) -> None:
        cv2 = self._cv2
        if hasattr(cv2, "FontFace"):  # OpenCV 5
            cv2.putText(target, text, at, ink, cv2.FontFace("sans"), _text(height), _REGULAR)
            return
        thick = 1 + _text(height) // 24
        cv2.putText(target, _ascii(text), at, cv2.FONT_HERSHEY_SIMPLEX, _text(height) / 30, ink, thick, cv2.LINE_AA)


def _text(height: int) -> int:
    """The size of letters in pixels for a frame of `height` rows."""
    return max(9, round(height / 28))


def _line(height: int) -> int:
    return round(1.3 * _text(height))


def _padding(height: int) -> int:
    return max(3, round(0.4 * _text(height)))


def _ascii(text: str) -> str:
    """OpenCV 4's font has no other letters."""
    return text.encode("ascii", "replace").decode("ascii")
