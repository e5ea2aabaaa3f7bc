"""The still background: sky, skyline, and the ground with its road, lines, pavements, grass and shadows.

Part of the street renderer (`street.py`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgeseg.data.street_canvas import (
    AIR,
    BUILDING,
    FAR,
    MARKING,
    PAVEMENT,
    ROAD,
    VEGETATION,
    Array,
    Camera,
    Canvas,
    cells,
)
from edgeseg.data.street_houses import HOUSE, WALLS, house
from edgeseg.data.street_world import Dice, Drive, billows, grain, toward


def sky(canvas: Canvas, drive: Drive) -> None:
    steps = 16
    first = len(canvas.colours)
    for step in range(steps):
        canvas.mix(toward(drive.zenith, drive.horizon, step / (steps - 1)), AIR)
    camera = canvas.camera
    rise = (camera.row - canvas.rows) / camera.focal  # tangent of the elevation
    level = np.clip((1.0 - rise * 1.8) * (steps - 1), 0, steps - 1).astype(np.int16)
    canvas.material[:] = (level + np.int16(first))[:, None]
    # Clouds on a plane far above: nearer the horizon they are smaller and closer together.
    height = 1.0 / np.maximum(rise + 0.12, 0.1)
    rows = (height * 34.0 + camera.s * 0.05).astype(np.int32) & 255
    ray = (canvas.columns - camera.column) / camera.focal
    columns = (ray[None, :] * height[:, None] * 46.0 + (drive.seed % 251)).astype(np.int32) & 255
    canvas.shade[:] = 1.0 + drive.clouds * (billows()[rows[:, None], columns] - 0.45)


@lru_cache(maxsize=64)
def _silhouettes(seed: int, greenery: float) -> tuple[tuple[float, float, float, bool, int], ...]:
    """Place, width, height, whether it is a wood, and the colour of what lies beyond the street."""
    dice = Dice(seed, 2)
    return tuple(
        (
            cell * 18.0 + dice.between(-4.0, 4.0),
            dice.between(18.0, 30.0),
            dice.between(4.0, 22.0),
            dice.chance(0.2 + 0.6 * greenery),
            dice.below(len(WALLS)),
        )
        for cell in range(-7, 8)
    )


def skyline(canvas: Canvas, drive: Drive) -> None:
    wood = canvas.mix(drive.leaves, VEGETATION)
    for x, width, height, green, colour in _silhouettes(drive.seed, drive.greenery):
        patch = canvas.board(x, 190.0, width, 0.0, 0.6 * height if green else height)
        if patch is None:
            continue
        if green:
            ragged = patch.up + 5.0 * billows()[30, (patch.along * 9.0).astype(np.int32) & 255] < 0.6 * height
            canvas.put(patch, wood, 0.8, ragged)
        else:
            canvas.put(patch, canvas.mix(WALLS[colour], BUILDING), 0.85)


def ground(canvas: Canvas, drive: Drive) -> None:
    camera = canvas.camera
    first = max(0, math.ceil(camera.row - 0.5 + 1e-3))
    if first >= canvas.height:
        return
    rows = slice(first, canvas.height)
    fall = np.maximum(canvas.rows[rows] - camera.row, np.float32(0.02))
    z = np.minimum(camera.focal * camera.height / fall, np.float32(400.0))
    s = z.astype(np.float64) + camera.s  # in double precision, since a drive has no end
    ray = (canvas.columns - camera.column) / camera.focal
    x = ray[None, :] * z[:, None] + (camera.x - camera.bend * z * z)[:, None]
    away = np.abs(x)

    tone = drive.asphalt
    road = canvas.mix((tone, tone, tone * 1.03), ROAD)
    slab = 1.25 * tone + 40.0
    pavement = canvas.mix((slab, 0.97 * slab, 0.92 * slab), PAVEMENT)
    leaf = drive.leaves
    grass = canvas.mix((0.6 * leaf[0] + 30, 0.8 * leaf[1] + 40, 0.7 * leaf[2] + 12), VEGETATION)
    white = canvas.mix((226, 226, 218), MARKING)
    zone = np.array([road, pavement, grass], np.int16)
    on_road = away < drive.half
    material = zone[2 - on_road.astype(np.int8) - (away < drive.half + drive.kerb).astype(np.int8)]

    # Texture fades with distance, where it would only flicker.
    near = np.minimum(1.0, 9.0 / z)[:, None]
    deep = ((s * 9.0).astype(np.int64) & 255)[:, None]
    ninths = (x * 9.0).astype(np.int32)
    across = ninths & 255
    stains = billows()[((s * 4.0).astype(np.int64) & 255)[:, None], across]
    rough = grain()[deep, across]
    shade = 0.88 + 0.24 * stains + near * 0.22 * (rough - 0.5)
    kerbstone = np.abs(away - drive.half - 0.09) < 0.09
    shade = np.where(kerbstone, shade * 0.78, shade)
    slabs = (deep >> 3 & 1) ^ (ninths >> 3 & 1)
    shade = np.where((material == pavement) & (slabs == 1), shade * (1.0 - 0.10 * near), shade)
    if drive.weather == "rain":  # a wet road mirrors the sky, the more the flatter one looks at it
        shade = np.where(on_road, shade * (0.8 + 0.9 * np.minimum(1.0, z / 45.0))[:, None], shade)

    line = _lines(drive, camera, x, s)
    worn = rough * np.float32(0.35) + 0.72
    material = np.where(line, np.int16(white), material)
    shade = np.where(line, worn, shade)

    if drive.weather == "clear":
        edge = _shadow_edge(drive, camera, z)
        shade = np.where(x * drive.sun > edge[:, None], shade * np.float32(0.52), shade)
    if drive.weather == "night":
        shade = shade * (0.75 + 1.5 * _lamplight(drive, x, s))
    canvas.material[rows] = material
    canvas.shade[rows] = shade
    canvas.depth[rows] = z[:, None]


def _lines(drive: Drive, camera: Camera, x: Array, s: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where the road is painted: centre and edge lines, and zebra crossings in their stead."""
    away = np.abs(x)
    line = np.zeros(x.shape, np.bool_)
    if drive.centre == 1:
        dashes = (s - 6.0 * np.floor(s / 6.0) < 3.0)[:, None]
        line |= (away < 0.09) & dashes
    elif drive.centre == 2:
        line |= away < 0.09
    if drive.edges:
        line |= np.abs(away - drive.half + 0.35) < 0.08
    for cell in cells(camera.s, camera.s + FAR, 55.0):
        dice = Dice(drive.seed, 3, cell)
        if dice.chance(0.55):
            start = cell * 55.0 + dice.between(0.0, 45.0)
            zebra = ((s >= start) & (s < start + 3.2))[:, None]
            bars = (x + 64.0) - np.floor(x + 64.0) < 0.5
            line = np.where(zebra, bars & (away < drive.half - 0.3), line)
    return line


def _lamplight(drive: Drive, x: Array, s: NDArray[np.float64]) -> Array:
    """The pools of light under the street lamps, which stand every 13 m on alternate sides."""
    light = np.zeros(x.shape, np.float32)
    for side, first in ((-1, 6.5), (1, 19.5)):
        along = s - first - 26.0 * np.floor((s - first) / 26.0 + 0.5)
        across = x - side * drive.half
        light += (1.0 / (1.0 + along * along / 14.0)).astype(np.float32)[:, None] / (1.0 + across * across / 10.0)
    return light


def _shadow_edge(drive: Drive, camera: Camera, z: Array) -> Array:
    """How far from the sunny side the houses' shadow reaches, a value for each row of the ground."""
    reach = 0.35 + 0.9 * Dice(drive.seed, 5).between(0.0, 1.0)
    first, count = math.floor(camera.s / HOUSE), 16
    table = np.full(count + 1, 99.0, np.float32)
    for place in range(count):
        found = house(drive.seed, drive.sun, first + place)
        if found is not None:
            table[place] = found.setback - reach * found.height
    return table[np.clip(((z + camera.s) / HOUSE).astype(np.int32) - first, 0, count)]
