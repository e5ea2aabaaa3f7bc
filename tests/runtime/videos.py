"""Small videos and pictures whose frames carry their number as eight black or white bars, so that it can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeseg.types import Pixels

SIZE = (64, 128)  # height, width
FPS = 25.0


def frame(number: int, size: tuple[int, int] = SIZE) -> Pixels:
    """BGR uint8: bar k is white where bit k of `number` (0 to 255) is set; the upper half is blue."""
    height, width = size
    pixels = np.zeros((height, width, 3), np.uint8)
    bars = np.repeat([(number >> k & 1) * 255 for k in range(8)], width // 8)
    pixels[height // 2 :, : len(bars)] = bars[None, :, None]
    pixels[: height // 2, :, 0] = 200
    return pixels


def number(pixels: Pixels) -> int:
    """The number that a frame carries."""
    height, width = pixels.shape[:2]
    row = pixels[height * 3 // 4].mean(axis=1)
    return sum(int(row[k * (width // 8) + width // 16] > 127) << k for k in range(8))


def write_video(path: Path, count: int = 60, *, size: tuple[int, int] = SIZE, fps: float = FPS) -> Path:
    """`count` frames, MPEG-4 for .mp4 and Motion JPEG for .avi."""
    import cv2

    code = cv2.VideoWriter.fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(path), code, fps, (size[1], size[0]))
    assert writer.isOpened()
    for k in range(count):
        writer.write(frame(k, size))
    writer.release()
    return path


def write_picture(path: Path, pixels: Pixels) -> Path:
    import cv2

    assert cv2.imwrite(str(path), pixels)
    return path
