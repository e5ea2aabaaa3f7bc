"""Whether a model's classes are a data set's, or how they go onto them by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from edgeseg.data import Dataset
from edgeseg.data.dataset import NONE
from edgeseg.errors import BadInput, DatasetError
from edgeseg.types import ModelSpec


@dataclass(frozen=True, slots=True)
class Matching:
    """The classes that are scored, and what a model's masks mean in them."""

    names: tuple[str, ...]
    # Index of the model's class -> index in names, len(names) for none of them; empty where the two are the same.
    table: tuple[int, ...] = ()
    unreachable: tuple[str, ...] = ()  # scored classes that no class of the model goes to

    @property
    def none(self) -> bool:
        """Whether the model has a class that the data set does not."""
        return len(self.names) in self.table


def class_names(spec: ModelSpec, dataset: Dataset | None) -> tuple[str, ...]:
    """The classes of spec and data set, which must be the same in the same order. Raises DatasetError."""
    theirs = dataset.classes if dataset is not None else ()
    if spec.output.classes and theirs and tuple(spec.output.classes) != tuple(theirs):
        raise DatasetError(
            f"the classes of the model ({', '.join(spec.output.classes)}) are not those of the data set "
            f"'{dataset.name if dataset else ''}' ({', '.join(theirs)}), or not in this order. Indices would mean "
            "other things: bring both lists in line, with [label_map] in the data set's file if need be. "
            "`edgeseg eval` alone can do without: [class_map] there says which class of the model is which."
        )
    return tuple(spec.output.classes or theirs)


def matching(spec: ModelSpec, dataset: Dataset) -> Matching:
    """How a model is scored on a data set: as it is, or, with the data set's [class_map], class by class by name.

    Raises DatasetError where classes differ without a [class_map], or where it leaves out a class of the model that the
    data set does not have under the same name; BadInput if nobody names the classes.
    """
    if dataset.class_map is None or not spec.output.classes or spec.output.classes == dataset.classes:
        names = class_names(spec, dataset)
        if not names:
            raise BadInput("neither the bundle nor the data set names the classes; add them to the data set's file")
        return Matching(names)
    names = dataset.classes
    targets = [dataset.class_map.get(name, name if name in names else None) for name in spec.output.classes]
    missing = [name for name, target in zip(spec.output.classes, targets, strict=True) if target is None]
    if missing:
        unused = [key for key in dataset.class_map if key not in spec.output.classes]
        close = difflib.get_close_matches(missing[0], unused, n=1)
        hint = f" Is '{close[0]}' there '{missing[0]}'?" if close else ""
        raise DatasetError(
            f"[class_map] of the data set '{dataset.name}' does not say what the model's classes "
            f"{', '.join(repr(name) for name in missing)} are there.{hint} Add for each a line such as\n"
            f'"{missing[0]}" = "{names[0]}"    # or "{NONE}": counts as wrong wherever something is labelled'
        )
    index = {name: k for k, name in enumerate(names)}
    table = tuple(index.get(target or NONE, len(names)) for target in targets)
    return Matching(names, table, tuple(name for k, name in enumerate(names) if k not in table))
