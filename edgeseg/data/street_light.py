"""From painted materials to a camera's picture: light, air, rain, lens, exposure, sensor.

Last part of the street renderer (`street.py`). Planes are float32 (3, H, W) in red, green, blue; every step is one
IEEE operation at a time, so the bytes do not depend on the machine.
"""

from __future__ import annotations

import numpy as np

from edgeseg.data.street_canvas import SKY, Array, Canvas
from edgeseg.data.street_world import Dice, Drive, wander
from edgeseg.types import Pixels


def develop(canvas: Canvas, drive: Drive, index: int) -> Pixels:
    """The picture, uint8 (H, W, 3) in blue, green, red."""
    planes = _lit(canvas, drive)
    if drive.weather == "rain":
        _rain(planes, drive, index)
    _blur(planes, drive, index)
    _expose(planes, canvas, drive, index)
    _sense(planes, drive, index)
    np.clip(planes, 0.0, 255.0, out=planes)
    picture: Pixels = np.empty((canvas.height, canvas.width, 3), np.uint8)
    for channel in range(3):
        picture[:, :, 2 - channel] = planes[channel]
    return picture


def _lit(canvas: Canvas, drive: Drive) -> Array:
    """Colour by shade by light, seen through the air."""
    sky = canvas.depth >= SKY
    light = canvas.shade * drive.ambient
    if drive.weather == "night":  # the camera's own headlights
        near = canvas.depth * np.float32(1.0 / 11.0)
        light *= np.where(sky, np.float32(1.0), 1.0 + 2.6 / (1.0 + near * near))
    thin = canvas.depth * (1.0 / drive.haze)
    clear = np.where(sky, np.float32(0.35 if drive.weather == "fog" else 1.0), 1.0 / (1.0 + thin * thin))
    palette = np.array(canvas.colours, np.float32).T.copy()
    material = canvas.material.astype(np.intp)
    planes = np.empty((3, canvas.height, canvas.width), np.float32)
    for channel in range(3):
        air = drive.air[channel] * (drive.ambient if drive.weather == "night" else 1.0)
        np.multiply(palette[channel].take(material), light, out=planes[channel])
        planes[channel] -= air
        planes[channel] *= clear
        planes[channel] += air
    return planes


def _rain(planes: Array, drive: Drive, index: int) -> None:
    height, width = planes.shape[1:]
    count = max(8, height * width // 500)
    length = max(2, height // 14)
    raw = np.random.PCG64([drive.seed % (1 << 63), index % (1 << 63), 1]).random_raw(count)
    column = (raw & np.uint64(0xFFFF)).astype(np.int64) * width >> 16
    row = ((raw >> np.uint64(16)) & np.uint64(0xFFFF)).astype(np.int64) * (height + length) >> 16
    steps = np.arange(length)
    rows = row[:, None] - steps[None, :]
    columns = (column[:, None] + steps[None, :] // 5) % width
    seen = (rows >= 0) & (rows < height)
    rows, columns = rows[seen], columns[seen]
    planes[:, rows, columns] = planes[:, rows, columns] * np.float32(0.8) + np.float32(42.0)


def _smooth(planes: Array, axis: int, amount: float, step: int) -> None:
    """One pass of (a, 1 - 2a, a), 0 <= a <= 1/3, along an axis with taps `step` apart; the ends stay as they are."""
    size = planes.shape[axis]
    if size <= 2 * step:
        return
    lines = np.moveaxis(planes, axis, 0)
    sides = lines[2 * step :] + lines[: size - 2 * step]
    sides *= np.float32(amount)
    inner = lines[step : size - step]
    inner *= np.float32(1.0 - 2.0 * amount)
    inner += sides


def _blur(planes: Array, drive: Drive, index: int) -> None:
    """The lens (which also hides the stairs of the edges), defocus that comes and goes, and motion."""
    scale = planes.shape[2] / 240.0
    focus = drive.defocus * (0.5 + 0.5 * wander(drive.seed, 31, index / 40.0))
    for amount, step in ((0.16, 1), *_passes(3.2 * focus * scale * scale)):
        _smooth(planes, 1, amount, step)
        _smooth(planes, 2, amount, step)
    for amount, step in _passes(6.0 * drive.smear * scale * scale):
        _smooth(planes, 2, amount, step)


def _passes(variance: float) -> list[tuple[float, int]]:
    """Passes of growing step, none stronger than a box of three taps, whose variances (2 a step²) add up."""
    passes = []
    for step in range(1, 12):
        amount = min(1.0 / 3.0, variance / (2.0 * step * step))
        if amount < 0.01:
            break
        passes.append((amount, step))
        variance -= 2.0 * amount * step * step
    return passes


def _expose(planes: Array, canvas: Canvas, drive: Drive, index: int) -> None:
    """Exposure that drifts, colour cast, vignette, and a tone curve x (1 + c) / (1 + c x)."""
    drift = 1.0 + 0.12 * wander(drive.seed, 32, index / 30.0)
    across = canvas.columns / canvas.width - 0.5
    down = canvas.rows / canvas.height - 0.5
    vignette = 1.0 - Dice(drive.seed, 33).between(0.0, 0.7) * ((across * across)[None, :] + (down * down)[:, None])
    curve = drive.curve
    for channel in range(3):
        plane = planes[channel]
        plane *= vignette
        plane *= drive.gains[channel] * drift
        np.minimum(plane, 300.0, out=plane)
        bent = plane * (curve / 255.0)
        bent += 1.0
        plane *= 1.0 + curve
        plane /= bent


def _sense(planes: Array, drive: Drive, index: int) -> None:
    """Sensor noise: the sum of two bytes, as a triangle; a little stronger where it is bright."""
    count = planes.size
    raw = np.random.PCG64([drive.seed % (1 << 63), index % (1 << 63), 0]).random_raw((count + 3) // 4)
    half = raw.astype("<u8").view("<u2")[:count].reshape(planes.shape)
    triangle = ((half >> np.uint16(8)) + (half & np.uint16(255))).astype(np.float32)
    triangle -= np.float32(255.0)
    triangle *= np.float32(drive.noise / 104.0)  # the triangle's standard deviation is 104.5
    triangle *= planes * np.float32(0.002) + np.float32(0.7)
    planes += triangle
    planes += np.float32(0.5)
