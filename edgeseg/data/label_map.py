"""What the labels of a DATASET.toml mean: `label_set` and `[label_map]` become one class index a raw value or colour.

label_set = "cityscapes-ids"      # optional: names for raw values or colours (edgeseg.data.label_sets)

[label_map]                       # raw = class index, class name or "ignore"; many may go to one
7 = "flat"                        # a raw value, 0 to 255
"128,64,128" = "flat"             # or a colour of RGB labels: red, green, blue
sidewalk = "flat"                 # or a name of the label set
"*" = "ignore"                    # all names of the label set that are not listed and are no class here
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgeseg.data.label_sets import IGNORE, LABEL_SETS, Colour, LabelSet
from edgeseg.data.splits import LabelRule, Palette, label_rule
from edgeseg.errors import DatasetError

_COLOUR = re.compile(r"\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*")


def label_set(name: Any, where: object) -> LabelSet:
    """The label set of that name; DatasetError, naming those there are, for another."""
    if not isinstance(name, str) or name not in LABEL_SETS:
        raise DatasetError(f"{where}: label_set is {name!r}; there are: {', '.join(LABEL_SETS)}.")
    return LABEL_SETS[name]


def rule_of(
    label_map: Mapping[str, Any] | None,
    known: LabelSet | None,
    classes: Sequence[str],
    palette: Palette | None,
    ignore_index: int | None,
    where: str,
) -> LabelRule:
    """The rule for a data set's labels. `where` begins messages. Raises DatasetError, naming the entry that is wrong.

    With a label set whose files hold colours, or with colours in `label_map`, indexed PNGs are read by the colours of
    their own palette; otherwise by their indices.
    """
    if label_map is None and known is None:
        return label_rule(len(classes), ignore_index, None, palette)
    values: dict[int, int] = {}
    colours: dict[Colour, int] = {}
    by_name: dict[str, int] = {}
    rest: int | None = None
    for raw, target in (label_map or {}).items():
        index = _target(target, classes, ignore_index, f"{where} [label_map]: {raw} = {target!r}")
        if raw.isascii() and raw.isdigit() and int(raw) <= 255:
            values[int(raw)] = index
        elif (colour := _colour(raw)) is not None:
            colours[colour] = index
        elif known is not None and raw == "*":
            rest = index
        elif known is not None and raw in known.raw:
            by_name[raw] = index
        else:
            raise DatasetError(f"{where} [label_map]: {raw} = {target!r}: {_wanted(raw, known)}")
    if known is not None:
        _named(known, by_name, rest, classes, ignore_index, where, values, colours)
    if values and colours:
        raise DatasetError(f"{where} [label_map]: labels hold values or colours, not both; remove one kind of entry.")
    if not colours:
        return label_rule(len(classes), ignore_index, values, palette)
    if known is None:
        colours = {colour: index for index, colour in enumerate(palette or ())} | colours
    return label_rule(len(classes), ignore_index, {}, palette, tuple(colours.items()))


def _named(
    known: LabelSet,
    by_name: Mapping[str, int],
    rest: int | None,
    classes: Sequence[str],
    ignore_index: int | None,
    where: str,
    values: dict[int, int],
    colours: dict[Colour, int],
) -> None:
    """Add the label set's entries to those that the file gives itself."""
    open_: list[str] = []
    for name, raws in known.raw.items():
        group = known.group[name]
        if name in by_name:
            index = by_name[name]
        elif name in classes:
            index = classes.index(name)
        elif group in classes:
            index = classes.index(group)
        elif rest is not None:
            index = rest
        elif group == IGNORE:
            index = _target(IGNORE, classes, ignore_index, f"{where}: label_set '{known.name}': {name}")
        else:
            open_.append(name)
            continue
        for raw in raws:
            if isinstance(raw, tuple):
                colours.setdefault(raw, index)
            else:
                values.setdefault(raw, index)
    if open_:
        shown = ", ".join(f"'{name}'" for name in open_[:5]) + (f" and {len(open_) - 5} more" if open_[5:] else "")
        raise DatasetError(
            f"{where}: {shown} of label_set '{known.name}' is no class here; say in [label_map] what becomes of it, "
            f'for example "{open_[0]}" = "ignore", or "*" = "ignore" for all the rest.'
        )


def _target(target: Any, classes: Sequence[str], ignore_index: int | None, where: str) -> int:
    if target == IGNORE and IGNORE not in classes:
        if ignore_index is None:
            raise DatasetError(f"{where}: add ignore_index = 255 (or another free value) to the file.")
        return ignore_index
    if isinstance(target, str):
        if target not in classes:
            close = difflib.get_close_matches(target, (*classes, IGNORE), n=1, cutoff=0.0)[0]
            raise DatasetError(f"{where}: there is no such class; did you mean '{close}'?")
        return classes.index(target)
    number = isinstance(target, int) and not isinstance(target, bool)
    if number and (0 <= target < len(classes) or target == ignore_index):
        return int(target)
    raise DatasetError(f"{where}: wanted a class name, 'ignore', or an index below {len(classes)}.")


def _colour(raw: str) -> Colour | None:
    found = _COLOUR.fullmatch(raw)
    if found is None:
        return None
    red, green, blue = (int(part) for part in found.groups())
    return (red, green, blue) if max(red, green, blue) <= 255 else None


def _wanted(raw: str, known: LabelSet | None) -> str:
    wanted = 'the key is a raw label value, 0 to 255, or a colour such as "128,64,128"'
    if known is None:
        return f"{wanted}; names are for a label_set ({', '.join(LABEL_SETS)})."
    close = difflib.get_close_matches(raw, known.raw, n=1, cutoff=0.0)[0]
    return f"{wanted}, or a name of label_set '{known.name}'; did you mean '{close}'?"
