"""DATASET.toml and known folder layouts become a `Dataset`: names, class names, colours, and where each frame lies.

Nothing is decoded here; `edgeseg.data.reader` does that. A split is either files on disk or frames that
`edgeseg.data.street` renders.

    name = "camvid"
    classes = ["sky", "building"]              # needed wherever there are labels
    palette = [[128,128,128], [128,0,0]]       # optional, RGB
    ignore_index = 11                          # optional: the label value that is not scored

    sequence = '^(\\w+?)_\\d+$'                # optional: a frame's video is group 1 of this pattern in its name
    label_set = "cityscapes-ids"               # optional: what raw values or colours are called (see `label_map`)

    [label_map]                                # optional: raw label value = class index, class name or "ignore"
    7 = "sky"                                  # also colours and names of the label set (see `label_map`)

    [class_map]                                # optional: a class of a model = a class here, for `edgeseg eval`
    vegetation = "tree"                        # many may go to one; the same names need no entry
    terrain = "none"                           # no class here: wrong wherever it is predicted and something is labelled

    [splits.train]
    images = "train/images"                    # relative to the file
    labels = "train/labels"                    # optional: PNGs with the stems of the images

    [splits.rendered]                          # or: frame k is drive seed + k // frames, index (k % frames) * stride
    street = { seed = 1, drives = 40, frames = 10, size = [180, 240], stride = 7 }
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeseg.data.label_map import label_set, rule_of
from edgeseg.data.layouts import detect
from edgeseg.data.splits import (
    Dataset,
    LabelRule,
    Palette,
    Split,
    Street,
    default_palette,
    file_split,
    images_in,
    same_stem,
)
from edgeseg.errors import DatasetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEYS = ("name", "classes", "palette", "ignore_index", "sequence", "label_set", "label_map", "class_map", "splits")
NONE = "none"  # in [class_map]: a class of the model that the data set does not have


def load_dataset(path: str | Path) -> Dataset:
    """Read a DATASET.toml, a folder that holds a dataset.toml, or a folder in a known layout (see `layouts`).

    Raises DatasetError for a missing file or folder (absolute path), unknown keys (with the closest valid one),
    wrong types, and empty splits. Frames are listed, not opened.
    """
    path = Path(path).absolute()
    if path.is_dir():
        if (path / "dataset.toml").is_file():
            return _from_toml(path / "dataset.toml")
        return detect(path)
    if not path.is_file():
        raise DatasetError(f"There is no data set at {path}; give a DATASET.toml or a folder of frames.")
    return _from_toml(path)


def _from_toml(path: Path) -> Dataset:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as TOML: {error}") from error
    _known_keys(content, KEYS, str(path))

    tables = _typed(content, "splits", dict, path, default={})
    if not tables:
        raise DatasetError(f'{path} has no splits; add for example:\n[splits.train]\nimages = "train/images"')
    rendered = any(isinstance(table, dict) and "street" in table for table in tables.values())
    known = label_set(content["label_set"], path) if "label_set" in content else None
    if known is not None and "classes" not in content:
        content["classes"] = list(known.classes)
        content.setdefault("palette", [list(colour) for colour in known.palette])
    classes, palette = _classes(content, path, rendered=rendered)
    free = known is not None and len(classes) < 256
    ignore_index = _typed(content, "ignore_index", int, path, default=255 if free else None)
    if ignore_index is not None and not 0 <= ignore_index <= 255:
        raise DatasetError(f"{path}: ignore_index is {ignore_index}; a label is 8 bit, so 0 to 255 was wanted.")
    label_map = _typed(content, "label_map", dict, path, default=None)
    rule = rule_of(label_map, known, classes, palette, ignore_index, str(path))
    sequence = _sequence(content, path)
    splits = {name: replace(_split(name, table, rule, path), sequence=sequence) for name, table in tables.items()}
    name = _typed(content, "name", str, path, default=path.parent.name)
    class_map = _class_map(content, classes, path)
    return Dataset(name, classes, palette or default_palette(len(classes)), ignore_index, splits, class_map)


def _split(name: str, table: Any, rule: LabelRule, path: Path) -> Split:
    where = f"{path} [splits.{name}]"
    if not isinstance(table, dict):
        raise DatasetError(f"{where}: a table with `images` or `street` was wanted, got {table!r}.")
    _known_keys(table, ("images", "labels", "street"), where)
    if "street" in table:
        if len(table) > 1:
            raise DatasetError(f"{where}: `street` renders frames and labels itself; remove `images` and `labels`.")
        street = _street(table["street"], where)
        pairs = [street.frame(k) for k in range(street.drives * street.frames)]
        # Built from the parameters, so that splits of different seeds never share a name.
        return Split(name, tuple(f"drive{seed:04d}-{index:05d}" for seed, index in pairs), rule, street=street)
    if "images" not in table:
        raise DatasetError(f"{where}: neither `images` (a folder) nor `street` (a table) is given.")
    images = path.parent / _typed(table, "images", str, where)
    frames = images_in(images)
    if "labels" not in table:
        return file_split(name, images, frames, rule)
    labels = path.parent / _typed(table, "labels", str, where)
    if not labels.is_dir():
        raise DatasetError(f"{where}: the folder {labels.absolute()} does not exist.")
    if not rule.classes:
        raise DatasetError(f"{where} has labels, but {path} has no `classes`; list their names in index order.")
    return file_split(name, images, frames, rule, same_stem(frames, labels))


def _street(table: Any, where: str) -> Street:
    if not isinstance(table, dict):
        raise DatasetError(f"{where}: street is {table!r}; wanted {{ seed, drives, frames, size = [height, width] }}.")
    where = f"{where} street"
    _known_keys(table, ("seed", "drives", "frames", "size", "stride"), where)
    size = _typed(table, "size", list, where)
    if len(size) != 2 or not all(_is_int(side) and side >= 16 for side in size):
        raise DatasetError(f"{where}: size is {size}; wanted [height, width] in pixels, each at least 16.")
    numbers = {key: _typed(table, key, int, where) for key in ("seed", "drives", "frames")}
    stride = _typed(table, "stride", int, where, default=1)
    if numbers["seed"] < 0 or min(numbers["drives"], numbers["frames"], stride) < 1:
        raise DatasetError(f"{where}: seed must be at least 0; drives, frames and stride at least 1.")
    return Street(numbers["seed"], numbers["drives"], numbers["frames"], (size[0], size[1]), stride)


def _classes(content: Mapping[str, Any], path: Path, *, rendered: bool) -> tuple[tuple[str, ...], Palette | None]:
    classes = tuple(_typed(content, "classes", list, path, default=[]))
    if not all(isinstance(name, str) and name for name in classes) or len(set(classes)) != len(classes):
        raise DatasetError(f"{path}: classes must be different, non-empty strings.")
    if len(classes) > 256:
        raise DatasetError(f"{path}: {len(classes)} classes; a mask is 8 bit, so at most 256 can be told apart.")
    palette: Palette | None = None
    if "palette" in content:
        colours = _typed(content, "palette", list, path)
        if not all(
            isinstance(c, list) and len(c) == 3 and all(_is_int(v) and 0 <= v <= 255 for v in c) for c in colours
        ):
            raise DatasetError(f"{path}: palette must be a list of [red, green, blue], each 0 to 255.")
        palette = tuple((r, g, b) for r, g, b in colours)
    if rendered:
        from edgeseg.data import street

        own = tuple(street.CLASSES)
        if classes and classes != own:
            raise DatasetError(
                f"{path}: a street split renders the classes {list(own)}; remove `classes` or list these."
            )
        classes = own
        palette = palette or tuple((int(r), int(g), int(b)) for r, g, b in street.PALETTE)
    if palette is not None and len(palette) != len(classes):
        raise DatasetError(f"{path}: the palette has {len(palette)} colours for {len(classes)} classes.")
    return classes, palette


def _class_map(content: Mapping[str, Any], classes: Sequence[str], path: Path) -> dict[str, str] | None:
    if "class_map" not in content:
        return None
    mapping = _typed(content, "class_map", dict, path)
    for theirs, target in mapping.items():
        where = f"{path} [class_map]: {theirs} = {target!r}"
        if not isinstance(target, str):
            raise DatasetError(f"{where}: wanted the name of a class of this data set, or 'none'.")
        if target not in classes and target != NONE:
            hint = " Predictions cannot be ignored, only labels; 'none' is never right." if target == "ignore" else ""
            raise DatasetError(
                f"{where}: there is no such class; did you mean '{_closest(target, (*classes, NONE))}'?{hint}"
            )
    return dict(mapping)


def _sequence(content: Mapping[str, Any], path: Path) -> str:
    pattern = str(_typed(content, "sequence", str, path, default=""))
    try:
        if re.compile(pattern).groups > 1:
            raise DatasetError(f"{path}: sequence = {pattern!r} has several groups; one says what the sequence is.")
    except re.error as error:
        raise DatasetError(f"{path}: sequence = {pattern!r} is no regular expression: {error}.") from error
    return pattern


def _known_keys(table: Mapping[str, Any], valid: Sequence[str], where: str) -> None:
    for key in table:
        if key not in valid:
            raise DatasetError(
                f"{where}: unknown key '{key}'; did you mean '{_closest(key, valid)}'? Valid keys: {', '.join(valid)}."
            )


_REQUIRED: Any = object()


def _typed(table: Mapping[str, Any], key: str, kind: type, where: object, default: Any = _REQUIRED) -> Any:
    if key not in table:
        if default is _REQUIRED:
            raise DatasetError(f"{where}: `{key}` is missing.")
        return default
    value = table[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {str: "a string", int: "a whole number", list: "a list", dict: "a table"}
        raise DatasetError(f"{where}: `{key}` must be {words[kind]}, got {value!r}.")
    return value


def _closest(word: str, valid: Sequence[str]) -> str:
    return difflib.get_close_matches(word, valid, n=1, cutoff=0.0)[0]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
