"""Writes data sets for the tests: real files, and PNGs of kinds that OpenCV cannot write."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeseg.types import Mask, Pixels

SHARED = Path(os.environ.get("EDGESEG_SHARED") or Path(__file__).parents[3] / "shared")
CAMVID = SHARED / "camvid"


def frame(seed: int = 0, size: tuple[int, int] = (24, 32)) -> Pixels:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    pixels: Pixels = cv2.resize(small, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return pixels


def label(seed: int = 0, size: tuple[int, int] = (24, 32), classes: int = 3) -> Mask:
    return np.random.default_rng(seed).integers(0, classes, size, dtype=np.uint8)


def write(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def write_png(
    path: Path, values: NDArray[np.uint8], *, kind: int, depth: int = 8, palette: bytes = b"", extra: bytes = b""
) -> Path:
    """A PNG (ISO/IEC 15948) of colour type `kind`, from rows of samples; `extra` is a chunk before the data."""
    rows = values.reshape(values.shape[0], -1)
    if depth < 8:
        bits = np.unpackbits(rows[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(rows.shape[0], -1), axis=-1)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"") + extra
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def dataset(
    root: Path, count: int = 4, *, size: tuple[int, int] = (24, 32), suffix: str = ".jpg", more: str = ""
) -> Path:
    """A data set of three classes, ignore_index 255, one labelled split "train"; returns its dataset.toml."""
    for k in range(count):
        write(root / "images" / f"f{k:02d}{suffix}", frame(k, size))
        write(root / "labels" / f"f{k:02d}.png", label(k, size))
    toml = 'name = "toy"\nclasses = ["a", "b", "c"]\nignore_index = 255\n' + more
    toml += '\n[splits.train]\nimages = "images"\nlabels = "labels"\n'
    (root / "dataset.toml").write_text(toml)
    return root / "dataset.toml"
