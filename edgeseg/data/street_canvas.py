"""A camera over a street and the canvas it paints on: faces in metres become pixels with a material, a shade, a depth.

Part of the street renderer (`street.py`). A pixel's class is the class of its material, so labels are exact by
construction: whatever is painted last is both what is seen and what the label says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeseg.data.street_world import Colour, Drive, wander

Array = NDArray[np.float32]
NEAR = 0.6  # metres; what is nearer is cut off
SKY = 1.0e4  # the depth that stands for the sky
FAR = 95.0  # metres; what is farther is skyline

CLASSES: tuple[str, ...] = (
    "sky",
    "building",
    "road",
    "marking",
    "pavement",
    "vegetation",
    "pole",
    "sign",
    "car",
    "pedestrian",
)
AIR, BUILDING, ROAD, MARKING, PAVEMENT, VEGETATION, POLE, SIGN, CAR, PEDESTRIAN = range(10)

Item = tuple[float, Callable[[], None]]  # the depth of a thing, and how to paint it


def cells(start: float, stop: float, length: float) -> range:
    """The cells of a length that touch start..stop of the street: what they hold depends on their number alone."""
    return range(math.floor(start / length), math.floor(stop / length) + 1)


def texture(tile: Array, up: Array, along: Array, per_metre: float) -> Array:
    """A 256 x 256 tile laid over a face."""
    rows = (up * per_metre).astype(np.int32) & 255
    columns = (along * per_metre).astype(np.int32) & 255
    found: Array = tile[rows, columns]
    return found


class Camera:
    """Pinhole camera in a street that bends. Right is +x, up is +y; z is metres ahead, s metres along the street."""

    def __init__(self, drive: Drive, size: tuple[int, int], index: int) -> None:
        height, width = size
        time = index / 15.0
        self.time = time
        self.s = drive.start + drive.speed * time
        self.x = drive.half * 0.36 + 0.2 * wander(drive.seed, 21, time * 0.4)
        self.height = drive.height + 0.01 * wander(drive.seed, 22, time * 3.0)
        self.focal = 0.9 * max(width, height)
        self.bend = 0.0011 * wander(drive.seed, 23, self.s / 80.0)
        self.column = width * 0.5 - self.focal * (0.05 * wander(drive.seed, 24, time * 0.3) + 15.0 * self.bend)
        self.row = height * 0.45 + self.focal * (0.012 * wander(drive.seed, 25, time * 1.3))

    def place(self, x: float, s: float) -> tuple[float, float]:
        """Street coordinates to (x, z) as the camera sees them."""
        z = s - self.s
        return x - self.x + self.bend * z * z, z


class Patch(NamedTuple):
    """The part of the canvas that a face covers, and the face's own coordinates of the pixel centres, in metres."""

    where: tuple[slice, slice]
    along: Array  # (1, columns)
    up: Array  # (rows, 1) or (rows, columns)
    depth: Array | float


class Canvas:
    """Material, shade and depth of each pixel, painted from far to near."""

    def __init__(self, camera: Camera, size: tuple[int, int]) -> None:
        self.camera = camera
        self.height, self.width = size
        self.material = np.zeros(size, np.int16)
        self.shade = np.ones(size, np.float32)
        self.depth = np.full(size, SKY, np.float32)
        self.columns: Array = np.arange(self.width, dtype=np.float32) + np.float32(0.5)
        self.rows: Array = np.arange(self.height, dtype=np.float32) + np.float32(0.5)
        self.colours: list[Colour] = []
        self.classes: list[int] = []

    def mix(self, colour: Colour, label: int) -> int:
        """A new material: a colour that belongs to a class."""
        self.colours.append(colour)
        self.classes.append(label)
        return len(self.colours) - 1

    def _span(self, low: float, high: float, count: int) -> slice | None:
        """Pixels whose centres lie in low..high, at least one, so that thin things do not break up."""
        first, last = math.ceil(low - 0.5), math.ceil(high - 0.5)
        if last <= first:
            first = math.floor((low + high) * 0.5)
            last = first + 1
        first, last = max(first, 0), min(last, count)
        return slice(first, last) if first < last else None

    def board(self, x: float, z: float, width: float, low: float, high: float) -> Patch | None:
        """A rectangle that faces the camera, centred at x, from `low` to `high` above the ground; None if unseen."""
        if z < NEAR:
            return None
        camera = self.camera
        scale = camera.focal / z
        middle = camera.column + x * scale
        ground = camera.row + camera.height * scale
        columns = self._span(middle - width * 0.5 * scale, middle + width * 0.5 * scale, self.width)
        rows = self._span(ground - high * scale, ground - low * scale, self.height)
        if columns is None or rows is None:
            return None
        along = (self.columns[columns] - middle) / scale
        up = (ground - self.rows[rows]) / scale
        return Patch((rows, columns), along[None, :], up[:, None], z)

    def wall(self, near: tuple[float, float], far: tuple[float, float], low: float, high: float) -> Patch | None:
        """An upright face between two points (x, z) of the ground; `along` is metres from the near point in depth."""
        camera = self.camera
        (x1, z1), (x2, z2) = near, far
        if z2 <= NEAR or z2 - z1 < 1e-6:
            return None
        slope = (x2 - x1) / (z2 - z1)
        start = max(z1, NEAR)
        base = x1 - slope * z1
        edges = sorted(camera.column + camera.focal * (base / z + slope) for z in (start, z2))
        if edges[1] - edges[0] < 0.5:
            return None
        columns = self._span(edges[0], edges[1], self.width)
        top = camera.row - max((high - camera.height) / z for z in (start, z2)) * camera.focal
        bottom = camera.row - min((low - camera.height) / z for z in (start, z2)) * camera.focal
        rows = self._span(top, bottom, self.height)
        if columns is None or rows is None:
            return None
        ray = (self.columns[columns] - camera.column) / camera.focal - slope
        # Only a span widened to one pixel can miss the wall; its depth is then clipped to the wall's ends.
        ray = np.where(np.abs(ray) < 1e-6, np.float32(1e-6), ray)
        depth = np.clip(base / ray, start, z2)
        up = camera.height + ((camera.row - self.rows[rows]) / camera.focal)[:, None] * depth[None, :]
        return Patch((rows, columns), (depth - z1)[None, :], up, depth[None, :])

    def put(
        self,
        patch: Patch,
        material: NDArray[np.int16] | int,
        shade: Array | float = 1.0,
        inside: NDArray[np.bool_] | bool = True,
    ) -> None:
        """Paint a patch where `inside` holds."""
        np.copyto(self.material[patch.where], material, where=inside)
        np.copyto(self.shade[patch.where], shade, where=inside)
        np.copyto(self.depth[patch.where], patch.depth, where=inside)

    def dim(self, x: float, z: float, width: float, length: float, factor: float) -> None:
        """Darken an ellipse on the ground, from z to z + length: a shadow; materials, and so labels, stay."""
        if z > 45.0:  # less than a pixel high
            return
        if z < 2.0:  # so near, a shadow is below the picture or all of it
            z, length = 2.0, length - (2.0 - z)
        if length <= 0.5:
            return
        camera = self.camera
        near, far = (camera.row + camera.focal * camera.height / end for end in (z, z + length))
        scale = camera.focal / (z + 0.4 * length)
        middle = camera.column + camera.focal * x / (z + 0.4 * length)
        columns = self._span(middle - width * 0.5 * scale, middle + width * 0.5 * scale, self.width)
        rows = self._span(far, near, self.height)
        if columns is None or rows is None:
            return
        across = (self.columns[columns] - middle) / (width * 0.5 * scale)
        deep = (self.rows[rows] - (near + far) * 0.5) / max((near - far) * 0.5, 0.5)
        inside = (across * across)[None, :] + (deep * deep)[:, None] < 1.0
        self.shade[rows, columns] *= np.where(inside, np.float32(factor), np.float32(1.0))
