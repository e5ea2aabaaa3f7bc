"""The facts of a rendered drive: chance that is a pure function of its key, and the conditions of one drive.

Lowest part of the street renderer (`street.py`). Everything is integer hashing or single IEEE operations
(+ - * / and square root) on Python floats, so a drive is the same on every machine and NumPy version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Colour = tuple[float, float, float]  # red, green, blue, 0 to 255 (above for what shines)
Weather = Literal["clear", "overcast", "fog", "rain", "night"]

FPS = 15.0
_MASK64 = (1 << 64) - 1


def _mix(state: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014)."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)


class Dice:
    """Random numbers that depend only on the key: the same house stands at the same place in every frame."""

    __slots__ = ("_state",)

    def __init__(self, *key: int) -> None:
        state = 0
        for part in key:
            state = _mix(state ^ (part & _MASK64))
        self._state = state

    def between(self, low: float, high: float) -> float:
        self._state = _mix(self._state)
        return low + (high - low) * ((self._state >> 11) / 9007199254740992.0)

    def below(self, count: int) -> int:
        self._state = _mix(self._state)
        return (self._state >> 16) % count

    def chance(self, probability: float) -> bool:
        return self.between(0.0, 1.0) < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]


def wander(seed: int, channel: int, time: float) -> float:
    """A smooth random path through time, -1 to 1, with about one turn per unit of time."""
    step = math.floor(time)
    part = time - step
    before = Dice(seed, channel, step).between(-1.0, 1.0)
    after = Dice(seed, channel, step + 1).between(-1.0, 1.0)
    return before + (after - before) * (part * part * (3.0 - 2.0 * part))


@lru_cache(maxsize=1)
def grain() -> NDArray[np.float32]:
    """A fixed 256 x 256 tile of white noise, 0 to 1."""
    raw = np.random.PCG64(20240229).random_raw(256 * 256)  # the raw stream is the part NumPy promises to keep
    tile: NDArray[np.float32] = ((raw >> np.uint64(56)).astype(np.float32) / np.float32(255.0)).reshape(256, 256)
    tile.flags.writeable = False
    return tile


@lru_cache(maxsize=1)
def billows() -> NDArray[np.float32]:
    """A fixed 256 x 256 tile of soft noise that wraps around, 0 to 1: clouds, stains, patches of asphalt."""
    total = np.zeros((256, 256), np.int64)
    whole = np.rint(grain() * np.float32(255.0)).astype(np.int64)
    for octave, weight in ((6, 8), (5, 4), (4, 2), (3, 1)):
        cell = 1 << octave
        coarse = np.roll(whole, 17 * octave, axis=0)[: 256 // cell, : 256 // cell]
        layer = coarse.repeat(cell, axis=0).repeat(cell, axis=1)
        for axis in (0, 1):  # two box filters of the cell's width: piecewise quadratic, and exact in integers
            for _ in range(2):
                padded = np.concatenate([layer, layer], axis=axis).cumsum(axis=axis)
                upper, lower = (np.take(padded, range(start, start + 256), axis=axis) for start in (cell, 0))
                layer = (upper - lower) // cell
        total += weight * layer
    low, high = int(total.min()), int(total.max())
    tile: NDArray[np.float32] = (total - low).astype(np.float32) / np.float32(high - low)
    tile.flags.writeable = False
    return tile


@dataclass(frozen=True, slots=True)
class Drive:
    """What stays the same during one drive. Lengths in metres, speeds in metres per second."""

    seed: int
    weather: Weather
    speed: float
    start: float  # position along the street at index 0
    height: float  # of the camera
    half: float  # half the width of the carriageway
    kerb: float  # width of the pavement
    greenery: float  # 0 to 1: trees and gaps between houses
    traffic: float  # 0 to 1: cars and people
    sun: int  # -1: the sun stands on the left, 1: on the right
    ambient: float  # light that is everywhere; 1 by day
    haze: float  # distance at which the air hides half of what is there
    air: Colour  # the colour of that haze
    zenith: Colour
    horizon: Colour
    clouds: float  # contrast of the clouds, 0 to 1
    leaves: Colour
    asphalt: float
    centre: int  # 0 no line, 1 dashed, 2 continuous
    edges: bool  # lines along the kerb
    gains: Colour  # exposure and colour cast
    curve: float  # tone curve, -0.3 (soft) to 0.8 (lifted shadows)
    noise: float  # sensor noise, in grey levels
    defocus: float  # 0 to 1
    smear: float  # motion blur, 0 to 1

    @property
    def shine(self) -> float:
        """What lamps and lit windows are brighter by, since the whole picture is multiplied by the ambient light."""
        return 1.0 / self.ambient


_WEATHERS: tuple[Weather, ...] = ("clear",) * 9 + ("overcast",) * 5 + ("fog",) * 2 + ("rain",) * 3 + ("night",) * 3
_ZENITH: dict[str, Colour] = {
    "clear": (86, 138, 208),
    "overcast": (176, 184, 194),
    "fog": (190, 194, 198),
    "rain": (128, 136, 148),
    "night": (52, 60, 96),
}
_HORIZON: dict[str, Colour] = {
    "clear": (196, 216, 236),
    "overcast": (214, 218, 222),
    "fog": (204, 207, 209),
    "rain": (168, 174, 182),
    "night": (120, 104, 104),
}
_LEAVES: tuple[Colour, ...] = ((66, 104, 44), (52, 92, 52), (84, 116, 48), (96, 112, 52), (150, 112, 44), (168, 86, 40))


def toward(colour: Colour, other: Colour, part: float) -> Colour:
    """A colour on the way from one to the other."""
    return (
        colour[0] + (other[0] - colour[0]) * part,
        colour[1] + (other[1] - colour[1]) * part,
        colour[2] + (other[2] - colour[2]) * part,
    )


@lru_cache(maxsize=256)
def conditions(seed: int) -> Drive:
    """The conditions of the drive with this seed."""
    dice = Dice(seed, 1)
    weather = _WEATHERS[seed * 5 % len(_WEATHERS)]  # by turns, so that a dozen drives in a row have every weather
    night = weather == "night"
    evening = dice.between(0.0, 1.0) if weather == "clear" and dice.chance(0.35) else 0.0
    horizon = toward(_HORIZON[weather], (250, 180, 120), 0.8 * evening)
    zenith = toward(_ZENITH[weather], (104, 104, 150), 0.7 * evening)
    haze = {
        "clear": dice.between(260, 700),
        "overcast": dice.between(180, 500),
        "fog": dice.between(28, 70),
        "rain": dice.between(80, 180),
        "night": dice.between(150, 400),
    }[weather]
    exposure = dice.between(0.75, 1.25) * (dice.between(0.8, 1.1) if night else 1.0)
    warmth = dice.between(-0.10, 0.12) + 0.10 * evening
    tint = dice.between(-0.05, 0.05)
    return Drive(
        seed=seed,
        weather=weather,
        speed=dice.between(5.0, 12.0),
        start=dice.between(0.0, 1000.0),
        height=dice.between(1.3, 1.9),
        half=dice.between(3.4, 5.2),
        kerb=dice.between(2.2, 4.0),
        greenery=dice.between(0.15, 0.85),
        traffic=dice.between(0.25, 0.9),
        sun=1 if dice.chance(0.5) else -1,
        ambient=dice.between(0.2, 0.34) if night else 1.0 - 0.35 * evening,
        haze=haze,
        air=horizon if not night else (88, 84, 96),
        zenith=zenith,
        horizon=horizon,
        clouds=dice.between(0.05, 0.5),
        leaves=dice.pick(_LEAVES),
        asphalt=dice.between(70, 128) * (0.8 if weather == "rain" else 1.0),
        centre=dice.pick((0, 1, 1, 1, 2)),
        edges=dice.chance(0.5),
        gains=(exposure * (1 + warmth), exposure * (1 + tint), exposure * (1 - warmth)),
        curve=dice.between(-0.25, 0.6) + (0.5 if night else 0.0),
        noise=dice.between(1.0, 7.0) + (dice.between(2.0, 8.0) if night else 0.0),
        defocus=dice.between(0.0, 1.0) if dice.chance(0.4) else 0.0,
        smear=dice.between(0.0, 1.0) if dice.chance(0.4) else 0.0,
    )
