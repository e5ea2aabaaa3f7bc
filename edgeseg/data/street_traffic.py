"""What moves in a street, and what guides it: cars, people, lamps, signs, traffic lights.

Part of the street renderer (`street.py`). Whoever moves has a cell in a frame of reference that moves along.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from edgeseg.data.street_canvas import CAR, PEDESTRIAN, POLE, SIGN, Canvas, Item, Patch, cells
from edgeseg.data.street_world import Colour, Dice, Drive, conditions

_PAINTS: tuple[Colour, ...] = (
    (190, 30, 34), (30, 60, 140), (210, 210, 214), (34, 36, 40), (120, 124, 128), (236, 236, 236),
    (60, 96, 70), (150, 140, 110), (200, 150, 40), (70, 110, 160),
)  # fmt: skip
_CLOTHES: tuple[Colour, ...] = (
    (40, 44, 60), (150, 40, 44), (50, 80, 130), (190, 180, 160), (70, 90, 60), (220, 200, 60), (90, 60, 90),
    (30, 30, 32),
)  # fmt: skip
_SKIN: tuple[Colour, ...] = ((224, 180, 150), (190, 140, 108), (130, 90, 66), (92, 64, 50))


def furniture(canvas: Canvas, drive: Drive) -> Iterator[Item]:
    """Lamps, signs, traffic lights."""
    camera = canvas.camera
    for cell in cells(camera.s, camera.s + 75.0, 13.0):
        side = 1 if cell & 1 else -1
        x, z = camera.place(side * (drive.half + 0.45), (cell + 0.5) * 13.0)
        yield z, partial(_paint_lamp, canvas, drive, x, z, side)
    for side in (-1, 1):
        for cell in cells(camera.s, camera.s + 60.0, 17.0):
            dice = Dice(drive.seed, 7, side, cell)
            if dice.chance(0.6):
                x, z = camera.place(side * (drive.half + dice.between(0.3, 0.9)), cell * 17.0 + dice.between(0.0, 16.0))
                yield z, partial(_paint_sign, canvas, drive, x, z, dice)


def _paint_lamp(canvas: Canvas, drive: Drive, x: float, z: float, side: int) -> None:
    metal = canvas.mix((96, 100, 100), POLE)
    shine = drive.shine if drive.weather == "night" else 0.9
    for middle, width, low, high in ((x, 0.16, 0.0, 6.4), (x - side * 0.75, 1.5, 6.3, 6.42)):
        bar = canvas.board(middle, z, width, low, high)
        if bar is not None:
            canvas.put(bar, metal, 0.95 - 1.5 * bar.along if width < 0.5 else 0.9)
    bulb = canvas.board(x - side * 1.4, z, 0.55, 6.14, 6.32)
    if bulb is not None:
        canvas.put(bulb, canvas.mix((255 * shine, 226 * shine, 170 * shine), POLE))


def _paint_sign(canvas: Canvas, drive: Drive, x: float, z: float, dice: Dice) -> None:
    kind = dice.below(5)
    top = dice.between(2.1, 2.6)
    pole = canvas.board(x, z, 0.09, 0.0, top + 0.3)
    if pole is not None:
        canvas.put(pole, canvas.mix((140, 144, 146), POLE))
    wide, tall = ((0.7, 0.7), (0.8, 0.7), (0.62, 0.62), (1.5, 0.9), (0.36, 0.95))[kind]
    plate = canvas.board(x, z, wide, top, top + tall)
    if plate is None:
        return
    dx, dy = plate.along / (wide * 0.5), (plate.up - top) / tall * 2.0 - 1.0
    rim = canvas.mix(dice.pick(((200, 24, 30), (200, 24, 30), (24, 70, 170))), SIGN)
    white = canvas.mix((238, 238, 236), SIGN)
    if kind == 0:  # a disc with a rim
        square = dx * dx + dy * dy
        canvas.put(plate, np.where(square < 0.5, white, rim).astype(np.int16), 1.0, square < 1.0)
    elif kind == 1:  # a triangle
        slant = np.abs(dx) + (dy + 1.0) * 0.5
        canvas.put(plate, np.where((slant < 0.68) & (dy > -0.7), white, rim).astype(np.int16), 1.0, slant < 1.0)
    elif kind == 2:  # a blue square
        blue = canvas.mix((30, 84, 180), SIGN)
        canvas.put(plate, np.where((np.abs(dx) < 0.3) & (np.abs(dy) < 0.6), white, blue).astype(np.int16))
    elif kind == 3:  # directions
        field = canvas.mix(dice.pick(((24, 100, 60), (30, 70, 150), (230, 190, 40))), SIGN)
        text = (np.abs(np.abs(dy) - 0.45) < 0.14) & (np.abs(dx) < 0.75)
        canvas.put(plate, np.where(text, white, field).astype(np.int16))
    else:  # a traffic light
        box = canvas.mix((28, 30, 32), SIGN)
        phase = (int(canvas.camera.time / 6.0) + dice.below(3)) % 3
        glow = max(1.0, 0.8 * drive.shine)
        colour = ((240 * glow, 40, 30), (250 * glow, 190 * glow, 40), (40, 230 * glow, 120))[phase]
        lens = dx * dx + 7.0 * (dy - (0.62, 0.0, -0.62)[phase]) * (dy - (0.62, 0.0, -0.62)[phase]) < 0.5
        canvas.put(plate, np.where(lens, canvas.mix(colour, SIGN), box).astype(np.int16))


class Car(NamedTuple):
    along: float  # metres from the start of its cell
    kind: int  # 0 a car, 1 a van, 2 a bus
    paint: Colour


_PARKED, _ONCOMING, _OVERTAKING = 8, 9, 10  # streams of cars, each with chances of its own
_STREAMS = {_PARKED: (0.55, 1.5, 6), _ONCOMING: (0.5, 18.0, 7), _OVERTAKING: (0.7, 18.0, 7)}


@lru_cache(maxsize=4096)
def _car(seed: int, stream: int, side: int, cell: int) -> Car | None:
    """The car of a cell of a stream; None where there is none."""
    chance, room, kinds = _STREAMS[stream]
    dice = Dice(seed, stream, side, cell)
    if not dice.chance(chance * conditions(seed).traffic):
        return None
    return Car(dice.between(0.0, room), max(0, dice.below(kinds) - 4), dice.pick(_PAINTS))


def cars(canvas: Canvas, drive: Drive) -> Iterator[Item]:
    """Parked cars, oncoming ones, and faster ones that overtake and then drive ahead."""
    camera, seed = canvas.camera, drive.seed

    def item(x: float, s: float, this: Car, oncoming: bool) -> Item:
        x, z = camera.place(x, s)
        return z, partial(_paint_car, canvas, drive, this, x, z, oncoming)

    for side in (-1, 1) if drive.half > 3.9 else ():
        for cell in cells(camera.s - 6.0, camera.s + 80.0, 6.5):
            this = _car(seed, _PARKED, side, cell)
            if this is not None:
                yield item(side * (drive.half - 0.95), cell * 6.5 + this.along, this, side < 0)
    moved = 8.0 * camera.time
    for cell in cells(camera.s + moved, camera.s + moved + 80.0, 26.0):
        this = _car(seed, _ONCOMING, -1, cell)
        if this is not None:
            yield item(-drive.half * 0.36, cell * 26.0 - moved + this.along, this, True)
    moved = 1.2 * drive.speed * camera.time + drive.start
    for cell in cells(camera.s - 10.0 - moved, camera.s + 80.0 - moved, 26.0):
        this = _car(seed, _OVERTAKING, 1, cell)
        if this is not None:
            s = cell * 26.0 + this.along + moved
            merged = min(1.0, max(0.0, (s - camera.s - 5.0) / 7.0))  # 0 in the other lane, 1 back in this one
            yield item(drive.half * 0.36 * (2.0 * merged - 1.0), s, this, False)


def _paint_car(canvas: Canvas, drive: Drive, this: Car, x: float, z: float, oncoming: bool) -> None:
    kind = this.kind
    width, length, roof, waist = ((1.75, 4.2, 1.45, 0.92), (1.9, 4.8, 2.0, 1.05), (2.4, 9.0, 3.0, 1.2))[kind]
    paint = canvas.mix(this.paint, CAR)
    glass = canvas.mix((38, 46, 56), CAR)
    black = canvas.mix((20, 20, 22), CAR)
    shine = drive.shine if drive.weather == "night" else 1.1
    lamp: Colour = (250 * shine, 244 * shine, 214 * shine) if oncoming else (200 * shine, 20 * shine, 20 * shine)
    lights = canvas.mix(lamp, CAR)
    boxy = kind > 0
    canvas.dim(x - 0.3 * drive.sun * (drive.weather == "clear"), z - 0.4, width * 1.25, length + 0.8, 0.45)

    front, back = (1.1, 0.25) if oncoming else (0.25, 1.1)  # from the bumpers to the cabin
    if boxy:
        front = back = 0.05
    taper = 0.0 if boxy else 0.04

    def face(part: Patch | None, top: float) -> None:
        if part is None:
            return
        a, y = np.abs(part.along) / (width * 0.5), part.up
        narrow = 1.0 - taper * np.maximum(0.0, (y - waist) / (roof - waist))
        tyre = (y <= 0.3) & (a > 0.72) & (a < 0.98)
        pane = (y > waist + 0.06) & (y < roof - 0.12) & (a < narrow - 0.16)
        if kind == 1 and not oncoming:
            pane &= a > 0.08
        lit = (y > 0.6) & (y < 0.82) & (a > 0.68) & (a < 0.96)
        material = np.where(pane, glass, paint)
        material = np.where((y < 0.42) | ((y > 0.46) & (y < 0.6) & (a < 0.3)), black, material)
        material = np.where(lit, lights, material).astype(np.int16)
        canvas.put(part, material, 0.82 + 0.2 * y / roof, ((y > 0.28) & (y < top) & (a < narrow)) | tyre)

    if not boxy:  # the cabin stands back, behind the bonnet or the boot
        face(canvas.board(x, z + front, width, 0.0, roof), roof)
    side = 1.0 if x > 0 else -1.0
    edge = x - side * width * 0.5
    flank = canvas.wall((edge, z), (edge, z + length), 0.0, roof) if edge * side > 0 else None
    if flank is not None:
        a, y = flank.along, flank.up
        rake = 0.0 if boxy else 0.5 * (y - waist) / (roof - waist)
        cabin = (a > front) & (a < length - back - rake) & (y < roof)
        body = (y > 0.28) & ((y < waist) | cabin)
        pane = cabin & (y > waist + 0.04) & (y < roof - (0.12 if kind < 2 else 0.5))
        pane &= (a > front + 0.15) & (a < length - back - rake - 0.15) & (np.abs(a - length * 0.5) > 0.06)
        wheel = np.zeros(y.shape, np.bool_)
        for axle in (0.85, length - 0.85):
            wheel |= (a - axle) * (a - axle) + (y - 0.33) * (y - 0.33) < 0.115
        material = np.where(wheel, black, np.where(pane, glass, paint)).astype(np.int16)
        low, gain = (0.72, 0.2) if side == drive.sun else (0.85, 0.25)
        canvas.put(flank, material, low + gain * np.clip(y, 0.0, 1.0), body | wheel)
    top = roof if boxy else waist
    face(canvas.board(x, z, width, 0.0, top), top)


class Person(NamedTuple):
    across: float  # metres from the kerb, or part of a lap for one who crosses
    along: float  # metres from the start of the cell
    tall: float
    shirt: Colour
    trousers: Colour
    skin: Colour
    phase: float  # of the walk, 0 to 1


def _person(dice: Dice, across: float, along: float) -> Person:
    tall = dice.between(1.15, 1.3) if dice.chance(0.12) else dice.between(1.55, 1.9)
    shirt, trousers, skin = dice.pick(_CLOTHES), dice.pick(_CLOTHES[:5]), dice.pick(_SKIN)
    return Person(across, along, tall, shirt, trousers, skin, dice.between(0.0, 1.0))


@lru_cache(maxsize=4096)
def _walker(seed: int, side: int, way: int, cell: int) -> Person | None:
    drive, dice = conditions(seed), Dice(seed, 11, side, way, cell)
    if not dice.chance(0.5 * drive.traffic):
        return None
    along = dice.between(0.0, 6.0)
    return _person(dice, dice.between(0.5, drive.kerb - 0.4), along)


@lru_cache(maxsize=1024)
def _crosser(seed: int, cell: int) -> Person | None:
    dice = Dice(seed, 12, cell)
    if not dice.chance(0.6):
        return None
    lap = dice.between(0.0, 1.0)
    return _person(dice, lap, dice.between(5.0, 38.0))


def people(canvas: Canvas, drive: Drive) -> Iterator[Item]:
    """People on both pavements, walking both ways, and some who cross the street, back and forth."""
    camera = canvas.camera
    for side in (-1, 1):
        for way in (-1, 1):
            walked = way * 1.3 * camera.time
            for cell in cells(camera.s - walked, camera.s + 60.0 - walked, 7.0):
                this = _walker(drive.seed, side, way, cell)
                if this is not None:
                    x, z = camera.place(side * (drive.half + this.across), cell * 7.0 + walked + this.along)
                    yield z, partial(_paint_person, canvas, this, x, z)
    for cell in cells(camera.s, camera.s + 55.0, 40.0):
        this = _crosser(drive.seed, cell)
        if this is not None:
            lap = camera.time / 9.0 + this.across
            swing = 4.0 * abs(lap - math.floor(lap) - 0.5) - 1.0
            x, z = camera.place(swing * (drive.half + 1.2), cell * 40.0 + this.along)
            yield z, partial(_paint_person, canvas, this, x, z)


def _paint_person(canvas: Canvas, this: Person, x: float, z: float) -> None:
    tall = this.tall
    patch = canvas.board(x, z, 0.84, 0.0, tall)
    if patch is None:
        return
    shirt, trousers, skin = (canvas.mix(colour, PEDESTRIAN) for colour in (this.shirt, this.trousers, this.skin))
    canvas.dim(x, z - 0.2, 0.7, 0.5, 0.7)
    a, y = patch.along, patch.up / tall
    lap = canvas.camera.time * 1.1 + this.phase
    swing = 0.26 * (4.0 * abs(lap - math.floor(lap) - 0.5) - 1.0)
    hip = 0.5
    head = a * a + (y - 0.93) * (y - 0.93) * tall * tall < 0.0145
    torso = (y > hip - 0.04) & (y < 0.86) & (np.abs(a) < 0.15 + 0.12 * (y - hip) / 0.36)
    reach = swing * np.maximum(0.0, (hip - y) / hip)
    legs = (y <= hip) & ((np.abs(a - reach) < 0.085) | (np.abs(a + reach) < 0.085))
    arm = (y > hip - 0.05) & (y < 0.82) & (np.abs(a - swing * (0.82 - y) * 2.2) < 0.30) & (np.abs(a) > 0.2)
    material = np.where(head, skin, np.where(legs, trousers, shirt)).astype(np.int16)
    canvas.put(patch, material, 0.85 + 0.25 * y, head | torso | legs | arm)
