"""What a data set is: names, class names, colours, the rule for its labels, and where each frame lies.

The values that `dataset` (DATASET.toml) and `layouts` (known folders) make, and that `reader` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeseg.data.sequences import sequences
from edgeseg.errors import DatasetError

Palette = tuple[tuple[int, int, int], ...]  # RGB, one colour a class

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
UNKNOWN = -1  # in LabelRule.table: a raw value that must not occur


@dataclass(frozen=True, slots=True)
class LabelRule:
    """How the raw values of a label file become class indices."""

    classes: int
    ignore_index: int | None
    table: tuple[int, ...]  # 256 entries: raw value -> class index, ignore_index, or UNKNOWN
    palette: Palette | None = None  # for labels stored as RGB colours; None where colours were not declared
    # Instead of `palette`: colour -> class index or ignore_index, many to one; indexed PNGs are read by colour too.
    # Left out of the repr: `Split.digest` hashes that, and digests of data sets without such colours must not change.
    colours: tuple[tuple[tuple[int, int, int], int], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Street:
    """A rendered split: `drives` drives of `frames` frames each, `stride` time steps apart, `size` (height, width)."""

    seed: int
    drives: int
    frames: int
    size: tuple[int, int]
    stride: int = 1

    def frame(self, k: int) -> tuple[int, int]:
        """(seed, index) of frame number k, as `street.render` takes them."""
        return self.seed + k // self.frames, (k % self.frames) * self.stride


@dataclass(frozen=True, slots=True)
class Split:
    """An ordered set of frames. Exactly one of `frames` and `street` says where they come from."""

    name: str
    names: tuple[str, ...]  # one a frame, unique
    rule: LabelRule
    frames: tuple[Path, ...] = ()
    labels: tuple[Path, ...] | None = None  # where the label of each frame ought to be
    street: Street | None = None
    sequence: str = ""  # a regular expression that finds a frame's sequence in its name; "" for the usual names

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_labels(self) -> bool:
        return self.street is not None or self.labels is not None

    @property
    def sequences(self) -> tuple[str, ...]:
        """The video of every frame (see `edgeseg.data.sequences`); DatasetError where the pattern does not match."""
        if self.street is not None:
            return tuple(name.rpartition("-")[0] for name in self.names)
        return sequences(self.names, self.sequence)

    def digest(self, indices: Iterable[int] | None = None, *, labels: bool = False) -> str:
        """SHA-256 (hexadecimal) of what `read` would read: names and file bytes, or the parameters of the renderer.

        With `labels` also their bytes and the rule that maps them. A file that cannot be read counts as its absence.
        Of a rendered split the renderer's source is hashed with the parameters, so that a changed renderer is new data.
        """
        chosen = range(len(self)) if indices is None else self.check(indices)
        total = hashlib.sha256()
        if labels:
            total.update(repr(self.rule).encode())
            if self.rule.colours:
                total.update(repr(self.rule.colours).encode())
        if self.street is not None:
            for source in sorted(Path(__file__).parent.glob("street*.py")):
                total.update(source.read_bytes())
        for k in chosen:
            if self.street is not None:
                total.update(json.dumps([self.names[k], self.street.size, *self.street.frame(k)]).encode())
                continue
            parts = [self.frames[k]] + ([self.labels[k]] if labels and self.labels else [])
            for path in parts:
                content = _bytes_or_none(path)
                # Lengths separate the parts: moving a byte from one file to the next must change the digest.
                size = -1 if content is None else len(content)
                total.update(json.dumps([self.names[k], size]).encode())
                total.update(content or b"")
        return total.hexdigest()

    def check(self, indices: Iterable[int]) -> list[int]:
        """The indices as a list; DatasetError if one is outside the split."""
        chosen = [int(k) for k in indices]
        outside = [k for k in chosen if not 0 <= k < len(self)]
        if outside:
            raise DatasetError(
                f"Frame {outside[0]} of split '{self.name}' was asked for, which has frames 0 to {len(self) - 1}."
            )
        return chosen


@dataclass(frozen=True, slots=True)
class Dataset:
    """Class names, colours and splits. `classes` is empty where nothing is labelled."""

    name: str
    classes: tuple[str, ...]
    palette: Palette
    ignore_index: int | None
    splits: Mapping[str, Split] = field(default_factory=dict)
    class_map: Mapping[str, str] | None = (
        None  # a model's class -> a class here, or "none", for models of other classes
    )

    def split(self, name: str) -> Split:
        """The split of that name; DatasetError, naming those that exist, if there is none."""
        if name not in self.splits:
            raise DatasetError(f"Data set '{self.name}' has no split '{name}'; it has: {', '.join(self.splits)}.")
        return self.splits[name]


def pick(total: int, wanted: int) -> list[int]:
    """`wanted` evenly spaced indices of `total`, ascending, first and last among them; all if fewer exist.

    >>> pick(10, 4), pick(3, 8), pick(10, 1)
    ([0, 3, 6, 9], [0, 1, 2], [0])
    """
    if total < 0 or wanted < 0:
        raise ValueError(f"pick() takes counts, got total={total}, wanted={wanted}")
    if wanted >= total:
        return list(range(total))
    if wanted <= 1:
        return [0] * wanted
    gaps = wanted - 1
    return [(2 * i * (total - 1) + gaps) // (2 * gaps) for i in range(wanted)]  # rounded, in integers


def default_palette(count: int) -> Palette:
    """The PASCAL VOC colour map: the bits of the index, spread over the high bits of R, G and B.

    >>> default_palette(3)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """

    def channel(index: int, which: int) -> int:
        return sum(((index >> (3 * bit + which)) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


def label_rule(
    classes: int,
    ignore_index: int | None,
    mapping: Mapping[int, int] | None = None,
    palette: Palette | None = None,
    colours: tuple[tuple[tuple[int, int, int], int], ...] = (),
) -> LabelRule:
    """The rule for labels that hold class indices, or raw values that `mapping` takes to class indices.

    With a mapping only its keys, and ignore_index itself, may occur; with `colours` only those.
    """
    table = [UNKNOWN] * 256
    if mapping is None:
        table[:classes] = range(classes)
    if ignore_index is not None:
        table[ignore_index] = ignore_index
    for raw, index in (mapping or {}).items():
        table[raw] = index
    return LabelRule(classes, ignore_index, tuple(table), palette, colours)


def file_split(
    name: str, root: Path, frames: Sequence[Path], rule: LabelRule, labels: Sequence[Path] | None = None
) -> Split:
    """Files, named by their paths below `root` without the suffix; DatasetError if there are none or names clash."""
    if not frames:
        raise DatasetError(f"Split '{name}' has no frames in {root} (looked for {', '.join(IMAGE_SUFFIXES)}).")
    seen: dict[str, Path] = {}
    for frame in frames:
        stem = frame.relative_to(root).with_suffix("").as_posix()
        if stem in seen:
            raise DatasetError(
                f"{seen[stem].name} and {frame.name} in {frame.parent} have the same stem, so a label could belong "
                "to either; keep one of them, or keep frames and labels in separate folders."
            )
        seen[stem] = frame
    return Split(name, tuple(seen), rule, tuple(frames), None if labels is None else tuple(labels))


def images_in(folder: Path) -> list[Path]:
    """The images directly in `folder`, sorted by name, hidden files left out; DatasetError if it does not exist."""
    if not folder.is_dir():
        raise DatasetError(f"The folder {folder.absolute()} does not exist.")
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(found, key=lambda p: p.name)


def same_stem(frames: Iterable[Path], labels: Path) -> list[Path]:
    """Where the label of each frame ought to be: the same stem, .png."""
    return [labels / f"{frame.stem}.png" for frame in frames]


def _bytes_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None  # the reader names such a file; here its absence only has to change the digest
