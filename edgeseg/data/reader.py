"""Frames and labels, decoded one at a time, with every file that cannot be used named and counted.

OpenCV decodes what it can: a JPEG that was cut short comes back grey with a line on stderr, a palette PNG as colours.
So files are checked before they reach it, and labels are read as the indices they hold.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.data.splits import UNKNOWN, LabelRule, Split
from edgeseg.errors import DatasetError, need
from edgeseg.types import Color, Mask, Pixels, Sample

Colours = tuple[tuple[tuple[int, int, int], int], ...]  # RGB -> class index or ignore_index
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A frame that was asked for and could not be used."""

    name: str
    reason: str  # with the file's path


@dataclass(slots=True)
class Reading:
    """What `read` returns: iterate it for samples; `skipped` fills while that goes on. Each iteration starts anew."""

    split: Split
    indices: list[int]
    color: Color = "bgr"
    labels: bool = True
    expect: tuple[int, int] | None = None
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        """How many frames were asked for; as many samples come, less those skipped."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Sample]:
        self.skipped = []
        for k in self.indices:
            try:
                sample = read_sample(self.split, k, self.color, labels=self.labels)
                _check_size(sample, self.expect)
            except DatasetError as error:
                self.skipped.append(Skipped(self.split.names[k], str(error)))
                give_up_if_too_many(self.skipped, len(self.indices), self.split.name)
                continue
            yield sample


def read(
    split: Split,
    indices: Iterable[int] | None = None,
    *,
    color: Color = "bgr",
    labels: bool = True,
    expect: tuple[int, int] | None = None,
) -> Reading:
    """The frames of `split` (all, or those at `indices`), lazily and in order, as `Sample`s in `color` order.

    Labels come along if the split has them and `labels` is true: uint8, class indices and ignore_index only.
    Skipped, and named in `.skipped`: files that are missing, empty, cut short or no image; labels that are 16-bit,
    of another shape than their frame, or hold values that are no class; frames that are not `expect` (height, width).
    Raises DatasetError at once when more than a tenth of the frames asked for were skipped, or for an index outside
    the split. Pixels are as stored: an orientation in the EXIF header is not applied, because labels have none.
    """
    chosen = list(range(len(split))) if indices is None else split.check(indices)
    return Reading(split, chosen, color, labels, expect)


def give_up_if_too_many(skipped: Sequence[Skipped], asked: int, split: str) -> None:
    """Raise DatasetError, naming the first of them, if more than a tenth of the frames that were asked for is lost."""
    if 10 * len(skipped) <= asked:
        return
    shown = "\n".join(f"  {s.name}: {s.reason}" for s in skipped[:5])
    more = f"\n  and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    raise DatasetError(
        f"{len(skipped)} of the {asked} frames asked of split '{split}' cannot be used, "
        f"more than a tenth; mend or remove them:\n{shown}{more}"
    )


def read_sample(split: Split, k: int, color: Color, *, labels: bool = True) -> Sample:
    """Frame number k of the split; DatasetError, with the path and the reason, if it or its label cannot be used."""
    label: Mask | None = None
    if split.street is not None:
        from edgeseg.data import street

        seed, index = split.street.frame(k)
        pixels, truth = street.render(split.street.size, seed, index)
        label = truth if labels else None
    else:
        pixels = read_frame(split.frames[k])
        if labels and split.labels is not None:
            label = read_label(split.labels[k], split.rule)
    if color == "rgb":
        cv2 = need("cv2", extra="run", why="reading frames")
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    sample = Sample(split.names[k], pixels, label)
    _check_label_shape(sample)
    return sample


def _check_size(sample: Sample, expect: tuple[int, int] | None) -> None:
    height, width = sample.pixels.shape[:2]
    if expect is not None and (height, width) != tuple(expect):
        raise DatasetError(f"the frame is {height}x{width} (height x width), {expect[0]}x{expect[1]} was wanted")


def _check_label_shape(sample: Sample) -> None:
    if sample.label is None:
        return
    height, width = sample.pixels.shape[:2]
    tall, wide = sample.label.shape
    # A smaller or larger label is fine if the shape agrees within one pixel, which is what rounding can do.
    if abs(tall * width - wide * height) >= min(height, width):
        raise DatasetError(
            f"the label is {tall}x{wide} (height x width) and the frame {height}x{width}: not the same shape"
        )


def read_frame(path: Path) -> Pixels:
    """The image uint8 (H, W, 3) in BGR; DatasetError with the path and the reason if it is not whole."""
    data = _content(path)
    cut = _cut_short(data)
    if cut:
        raise DatasetError(f"{path} is cut short or damaged: {cut}")
    cv2 = need("cv2", extra="run", why="reading frames")
    pixels: Pixels = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, path)
    return pixels


def read_label(path: Path, rule: LabelRule) -> Mask:
    """The label PNG as uint8 (H, W) of class indices by `rule`; DatasetError, with the path, if it cannot be used.

    Grey and palette PNGs of 1 to 8 bits hold raw values (of a palette PNG the index counts, not the colour); RGB
    PNGs are mapped back by `rule.palette`, exactly. With `rule.colours` the colour counts in palette PNGs too.
    """
    data = _content(path)
    if not data.startswith(_PNG):
        raise DatasetError(f"{path} is not a PNG; a label must be one (a lossy format changes class indices)")
    try:
        chunks = _png_chunks(data)
    except ValueError as error:
        raise DatasetError(f"{path} is cut short or damaged: {error}") from error
    depth, kind = chunks[0][1][8], chunks[0][1][9]
    cv2 = need("cv2", extra="run", why="reading labels")
    if depth == 16:
        raise DatasetError(f"{path} is a 16-bit PNG; 8-bit class indices were wanted (instance ids? convert it first)")
    colours = rule.colours or tuple((colour, index) for index, colour in enumerate(rule.palette or ()))
    if colours and (kind in (2, 6) or (kind == 3 and rule.colours)):
        pixels = _decode(data, cv2.IMREAD_UNCHANGED if kind == 6 else cv2.IMREAD_COLOR, path)
        if kind == 6 and pixels[..., 3].min() < 255:
            raise DatasetError(f"{path} holds RGB colours that are partly transparent; save it without alpha")
        return _from_colours(pixels, colours, path)
    if kind not in (0, 3):
        what = {2: "RGB colours", 4: "grey with alpha", 6: "RGB colours with alpha"}.get(kind, f"colour type {kind}")
        hint = "; declare `palette` in DATASET.toml to map the colours back" if kind == 2 else ""
        raise DatasetError(f"{path} holds {what}; one channel of class indices was wanted{hint}")
    raw = _decode(_as_grey(chunks), cv2.IMREAD_UNCHANGED, path)
    if depth < 8:
        raw = raw // np.uint8(255 // (2**depth - 1))  # the decoder spreads few bits over 0 to 255
    return _to_classes(raw, rule, path)


def _to_classes(raw: Mask, rule: LabelRule, path: Path) -> Mask:
    if rule.table[: rule.classes] == tuple(range(rule.classes)):  # raw values are class indices
        beyond = np.count_nonzero(raw >= rule.classes) if rule.classes < 256 else 0
        ignore = rule.ignore_index
        if not beyond:
            return raw
        beyond_is_ignored = ignore is not None and ignore >= rule.classes and rule.table[ignore] == ignore
        if beyond_is_ignored and beyond == np.count_nonzero(raw == ignore):
            return raw
    counts = np.bincount(raw.ravel(), minlength=256)
    wrong = [value for value in np.flatnonzero(counts).tolist() if rule.table[value] == UNKNOWN]
    if wrong:
        more = f" and {len(wrong) - 1} other such values" if len(wrong) > 1 else ""
        raise DatasetError(
            f"{path}: the label value {wrong[0]} ({counts[wrong[0]]} pixels){more} is neither one of {rule.classes} "
            f"classes nor ignore_index ({rule.ignore_index}); set ignore_index or [label_map] in DATASET.toml"
        )
    mapped: Mask = np.maximum(np.array(rule.table), 0).astype(np.uint8)[raw]
    return mapped


def _from_colours(pixels: Pixels, colours: Colours, path: Path) -> Mask:
    blue, green, red = (pixels[..., c].astype(np.uint32) for c in range(3))
    keys = (red << 16) | (green << 8) | blue
    known = np.array([(r << 16) | (g << 8) | b for (r, g, b), _ in colours], np.uint32)
    order = np.argsort(known, kind="stable")
    found = order[np.minimum(np.searchsorted(known[order], keys), len(known) - 1)]
    wrong = keys[known[found] != keys]
    if wrong.size:
        r, g, b = int(wrong[0]) >> 16, int(wrong[0]) >> 8 & 255, int(wrong[0]) & 255
        raise DatasetError(
            f"{path}: the colour ({r}, {g}, {b}) is not in the palette ({wrong.size} pixels of such colours); "
            f'"{r},{g},{b}" = "ignore", or a class, in [label_map] of DATASET.toml says what it means'
        )
    indices: Mask = np.array([index for _, index in colours], np.uint8)[found]
    return indices


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise DatasetError(f"{path} is empty (0 bytes)")
    return data


def _decode(data: bytes, flags: int, path: Path) -> Any:
    cv2 = need("cv2", extra="run", why="reading frames")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # for example more pixels than OpenCV allows
        raise DatasetError(f"{path} cannot be decoded: {error}") from error
    if pixels is None:
        raise DatasetError(f"{path} is not an image that OpenCV can decode")
    return pixels


def _cut_short(data: bytes) -> str | None:
    """Why the bytes of an image are not all there, as far as its container tells; None if it does not say so."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_cut_short(data)
    if data.startswith(_PNG):
        try:
            _png_chunks(data)
        except ValueError as error:
            return str(error)
    declared = 0
    if data.startswith(b"BM") and len(data) >= 6:
        declared = int.from_bytes(data[2:6], "little")
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        declared = int.from_bytes(data[4:8], "little") + 8
    return f"{len(data)} bytes of {declared}" if declared > len(data) else None


def _jpeg_cut_short(data: bytes) -> str | None:
    """Look for the end marker behind the header of the first scan (ITU T.81, annex B): before it lies a thumbnail's."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # entropy-coded data follows, in which FF is never followed by D9
            return None if data.rfind(b"\xff\xd9", at) >= 0 else "the JPEG has no end marker"
    return "the JPEG ends before its image data"


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(type, body) of each chunk up to IEND, checksums verified; ValueError saying what is wrong."""
    chunks: list[tuple[bytes, bytes]] = []
    at = len(_PNG)
    while not chunks or chunks[-1][0] != b"IEND":
        head = data[at : at + 8]
        size = int.from_bytes(head[:4], "big")
        end = at + 12 + size
        if len(head) < 8 or end > len(data):
            raise ValueError("the PNG ends before its IEND chunk")
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"the checksum of its {head[4:].decode('latin-1')} chunk is wrong")
        chunks.append((head[4:], data[at + 8 : end - 4]))
        at = end
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise ValueError("the PNG does not begin with its header")
    return chunks


def _as_grey(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """The same PNG declared grey, without palette and ancillary chunks: it then decodes to the stored indices."""
    header = bytearray(chunks[0][1])
    header[9] = 0
    kept = [(b"IHDR", bytes(header)), *(chunk for chunk in chunks if chunk[0] in (b"IDAT", b"IEND"))]
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in kept
    )
