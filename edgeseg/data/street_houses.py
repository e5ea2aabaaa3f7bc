"""Houses and trees along the street, each a pure function of its place.

Part of the street renderer (`street.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeseg.data.street_canvas import BUILDING, FAR, VEGETATION, Array, Canvas, Item, Patch, cells, texture
from edgeseg.data.street_world import Colour, Dice, Drive, billows, conditions, grain

HOUSE = 13.0  # metres of street for one house
TREE = 8.0
FLOOR = 3.1

WALLS: tuple[Colour, ...] = (
    (168, 92, 72), (196, 176, 148), (150, 146, 140), (206, 194, 170), (122, 84, 66),
    (176, 160, 120), (112, 118, 128), (220, 214, 204), (184, 128, 96), (140, 156, 150),
)  # fmt: skip


class House(NamedTuple):
    """Lengths in metres; `start` and `stop` along the street, `setback` from its middle."""

    start: float
    stop: float
    attached: bool  # to the nearer neighbour, without a lane between them
    setback: float
    height: float
    wall: Colour
    glass: Colour
    shop: Colour
    pitch: float  # from window to window
    wide: float  # part of the pitch that is window
    tall: float  # part of the floor that is window
    bricks: bool
    has_shop: bool
    number: int  # tells its windows from the neighbour's


@lru_cache(maxsize=4096)
def house(seed: int, side: int, cell: int) -> House | None:
    """What stands in a cell on a side (-1 left, 1 right) of the street; None for a gap."""
    drive, dice = conditions(seed), Dice(seed, 4, side, cell)
    if dice.chance(0.55 * drive.greenery):
        return None
    lane = dice.between(0.5, 3.0) if dice.chance(0.3) else 0.0
    return House(
        start=cell * HOUSE + lane,
        stop=(cell + 1) * HOUSE,
        attached=lane == 0.0,
        setback=drive.half + drive.kerb + (dice.between(0.0, 4.0) if dice.chance(0.4) else 0.0),
        height=FLOOR * (2 + dice.below(6)) + 0.8,
        wall=dice.pick(WALLS),
        glass=dice.pick(((58, 66, 80), (40, 44, 52), (96, 118, 140), (120, 140, 160))),
        shop=dice.pick(((90, 70, 60), (60, 80, 90), (150, 60, 50), (70, 90, 60), (200, 190, 170))),
        pitch=dice.between(1.8, 3.4),
        wide=dice.between(0.4, 0.7),
        tall=dice.between(0.45, 0.7),
        bricks=dice.chance(0.5),
        has_shop=dice.chance(0.4),
        number=dice.below(1 << 20),
    )


def houses(canvas: Canvas, drive: Drive) -> Iterator[Item]:
    """The houses in view, in no order."""
    camera = canvas.camera
    for side in (-1, 1):
        for cell in cells(camera.s - HOUSE, camera.s + FAR, HOUSE):
            this, nearer = house(drive.seed, side, cell), house(drive.seed, side, cell - 1)
            if this is None:
                continue
            hidden = nearer is not None and nearer.setback <= this.setback and nearer.height >= this.height
            near, far = camera.place(side * this.setback, this.start), camera.place(side * this.setback, this.stop)
            if far[1] > 0.7:
                yield near[1], partial(_paint_house, canvas, drive, this, side, near, far, hidden and this.attached)


def _paint_house(
    canvas: Canvas,
    drive: Drive,
    this: House,
    side: int,
    near: tuple[float, float],
    far: tuple[float, float],
    hidden: bool,
) -> None:
    height, number = this.height, this.number
    wall, glass, shop = (canvas.mix(colour, BUILDING) for colour in (this.wall, this.glass, this.shop))
    shine = drive.shine
    lit = canvas.mix((250 * shine, 206 * shine, 130 * shine), BUILDING) if drive.weather == "night" else glass

    def facade(patch: Patch, light: float) -> None:
        across = (patch.along + 40.0) / this.pitch
        column = across.astype(np.int32)
        up = patch.up / FLOOR
        floor = up.astype(np.int32)
        window = (
            (across - column < this.wide)
            & (up - floor > 0.25)
            & (up - floor < 0.25 + this.tall)
            & (patch.up < height - 0.8)
        )
        chance = grain()[(floor * 7 + number) & 255, (column * 13 + (number >> 8)) & 255]
        tile = grain() if this.bricks else billows()
        shade = light * (0.90 + 0.2 * texture(tile, patch.up, patch.along + 40.0, 5.0))
        shade = np.where(window, 0.6 + 0.8 * chance, shade)
        material: NDArray[np.int16] = np.where(window, np.where(chance < 0.3, lit, glass), wall).astype(np.int16)
        if this.has_shop:
            material = np.where((patch.up < 2.8) & ~window, np.int16(shop), material)
        cornice = (patch.up > height - 0.45) | ((up - floor > 0.94) & (patch.up > 2.0))
        shade = np.where(cornice, light * 0.72, shade)
        canvas.put(patch, material, shade, (patch.up < height) & (patch.up > -0.3))

    sunny = drive.weather == "clear"
    front = None if hidden else canvas.board(near[0] + side * 5.0, near[1], 10.0, -0.2, height)
    if front is not None:
        facade(front, 0.8 if sunny else 0.92)
    face = canvas.wall(near, far, -0.2, height)
    if face is not None:
        facade(face, (0.66 if side == drive.sun else 1.12) if sunny else 1.0)


class Tree(NamedTuple):
    """Lengths in metres; a crown is a union of discs, in parts of its width and height."""

    away: float  # from the middle of the street
    s: float
    bush: bool
    height: float
    width: float
    low: float  # where the crown begins
    hue: float
    discs: Array  # (3, 5, 1, 1): radius, right, up


@lru_cache(maxsize=4096)
def tree(seed: int, side: int, cell: int, row: int) -> Tree | None:
    """The tree of a cell in a row: 0 stands on the pavement, the others behind it; None where there is none."""
    drive, dice = conditions(seed), Dice(seed, 6, side, cell, row)
    if not dice.chance(0.85 if row else 0.6 * drive.greenery):
        return None
    bush = row == 1
    away = drive.half + drive.kerb + (row * dice.between(1.5, 4.0) if row else -0.5)
    s = cell * TREE + dice.between(0.0, 7.0)
    height = dice.between(1.0, 2.6) if bush else dice.between(4.0, 8.5)
    width = dice.between(2.0, 4.0) if bush else dice.between(2.6, 4.6)
    low, hue = 0.0 if bush else dice.between(1.6, 2.6), dice.between(0.8, 1.2)
    discs = [(r, dice.between(r - 0.5, 0.5 - r), dice.between(r, 1.0 - r)) for r in (0.34, 0.32, 0.30, 0.28, 0.25)]
    shape = np.array(discs, np.float32).T[:, :, None, None]
    shape.flags.writeable = False
    return Tree(side * away, s, bush, height, width, low, hue, shape)


def trees(canvas: Canvas, drive: Drive) -> Iterator[Item]:
    """The trees in view: more of them where there is no house."""
    camera = canvas.camera
    for side in (-1, 1):
        for cell in cells(camera.s, camera.s + 80.0, TREE):
            gap = house(drive.seed, side, math.floor((cell * TREE + 4.0) / HOUSE)) is None
            for row in range(3 if gap else 1):
                this = tree(drive.seed, side, cell, row)
                if this is not None:
                    x, z = camera.place(this.away, this.s)
                    yield z, partial(_paint_tree, canvas, drive, this, x, z)


def _paint_tree(canvas: Canvas, drive: Drive, this: Tree, x: float, z: float) -> None:
    width, low, tall = this.width, this.low, this.height - this.low
    canvas.dim(x - drive.sun * 1.5 * (drive.weather == "clear"), z - 0.8, width * 0.9, 1.8, 0.65)
    if not this.bush:
        trunk = canvas.board(x, z, 0.2 + 0.02 * this.height, 0.0, low + 0.6)
        if trunk is not None:
            bark = canvas.mix((84, 68, 54), VEGETATION)
            canvas.put(trunk, bark, 0.8 + 0.4 * texture(grain(), trunk.up, trunk.along + 40.0, 9.0))
    crown = canvas.board(x, z, width, low, this.height)
    if crown is None:
        return
    ragged = texture(grain(), crown.up, crown.along + 40.0, 6.0)
    radius, right, top = this.discs
    dx = (crown.along / width - right) / radius
    dy = ((crown.up - low) / tall - top) / radius
    nearest = (dx * dx + dy * dy).min(axis=0)
    inside = nearest < 0.7 + 0.4 * ragged
    slant = crown.along / width * (0.5 * drive.sun) + (crown.up - low) / tall * 0.5
    light = 0.85 + slant - 0.25 * nearest
    red, green, blue = drive.leaves
    leaf = canvas.mix((red * this.hue, green * (0.5 + 0.5 * this.hue), blue * this.hue), VEGETATION)
    canvas.put(crown, leaf, light * (0.7 + 0.6 * ragged), inside)
