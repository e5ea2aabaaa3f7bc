"""Which documents belong together: of one kind, scenario, bundle and engine; several of these are repeated runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeseg.bundle_io import MANIFEST
from edgeseg.compare.values import check, classes, identity, kind_of
from edgeseg.documents import read_documents
from edgeseg.errors import BadInput

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Group:
    """Documents of one engine in one scenario, on either side; several are repeated runs."""

    kind: str  # "bench", "eval", "build", "stream"
    scenario: str  # how it was timed, or the split
    bundle: str
    variant: str
    documents: tuple[Document, ...]

    @property
    def title(self) -> str:
        return f"{self.bundle}, {self.variant}"


def read(path: Path) -> list[Document]:
    """All documents of a file, a bundle, or a folder's *.json in order of their names. BadInput as `check`."""
    folder = path.is_dir() and not (path / MANIFEST).exists()  # an unpacked bundle is a folder too
    files = sorted(path.glob("*.json")) if folder else [path]
    if not files:
        raise BadInput(f"{path} holds no *.json.")
    found = []
    for file in files:
        for document in read_documents(file):
            check(document, file)
            found.append(document)
    return found


def groups(documents: Sequence[Document]) -> list[Group]:
    """Repeated runs put together. Engines of one name but another graph are not the same engine."""
    found: dict[tuple[str, ...], list[Document]] = {}
    for document in documents:
        key = (kind_of(document), *identity(document), str(document.get("graph")))
        found.setdefault(key, []).append(document)
    return [Group(key[0], key[1], key[2], key[3], tuple(same)) for key, same in found.items()]


def halves(found: Sequence[Group], path: Path) -> list[tuple[Group, Group]]:
    """One file against itself: of each kind and scenario the first engine is before, the second after.

    Raises BadInput if there are not two.
    """
    places: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        places.setdefault((group.kind, group.scenario), []).append(group)
    for (kind, scenario), same in places.items():
        if len(same) == 1 and len(same[0].documents) == 2:  # one engine that took turns with itself
            same[:] = [replace(same[0], documents=(document,)) for document in same[0].documents]
        if len(same) != 2:
            names = "; ".join(group.title for group in same)
            raise BadInput(
                f"{path} holds {len(same)} engines of {kind}, {scenario} ({names}); without NEW.json wanted two, "
                "before and after. Give NEW.json too."
            )
    return [_agreeing(same[0], same[1], path, path) for same in places.values()]


def matched(before: Sequence[Group], after: Sequence[Group], base: Path, new: Path) -> list[tuple[Group, Group]]:
    """Groups of the same kind and scenario by bundle and variant; where each side has one engine, by that alone.

    Raises BadInput, naming file and key: other kinds, nothing that belongs together, other classes.
    """
    kinds = [sorted({group.kind for group in side}) for side in (before, after)]
    if kinds[0] != kinds[1]:
        raise BadInput(
            f"{new}, schema: holds {', '.join(kinds[1])}, but {base} holds {', '.join(kinds[0])}; "
            "wanted documents of the same kinds. Were files swapped?"
        )
    pairs = []
    for place in dict.fromkeys((group.kind, group.scenario) for group in before):
        old = [group for group in before if (group.kind, group.scenario) == place]
        others = [group for group in after if (group.kind, group.scenario) == place]
        if len(old) == len(others) == 1:
            pairs.append((old[0], others[0]))
            continue
        for group in old:
            same = [one for one in others if (one.bundle, one.variant) == (group.bundle, group.variant)]
            graph = group.documents[0].get("graph")
            exact = [one for one in same if one.documents[0].get("graph") == graph]
            # Of several engines with one name, those of the same graph; else the first that is left.
            chosen = (exact or same)[:1]
            pairs += [(group, one) for one in chosen]
            others = [one for one in others if one not in chosen]
    if not pairs:
        names = ["; ".join(f"{g.scenario}: {g.title}" for g in side) for side in (before, after)]
        raise BadInput(
            f"{new}, bundle, variant: nothing there ({names[1]}) belongs to anything in {base} ({names[0]}). "
            "Compare runs of one scenario or split."
        )
    return [_agreeing(a, b, base, new) for a, b in pairs]


def left_out(found: Sequence[Group], pairs: Sequence[tuple[Group, Group]], path: Path) -> list[str]:
    """A line for each group that has no partner."""
    used = [id(group) for pair in pairs for group in pair]
    return [f"only in {path}: {g.title} ({g.kind}, {g.scenario})" for g in found if id(g) not in used]


def _agreeing(before: Group, after: Group, base: Path, new: Path) -> tuple[Group, Group]:
    known = [(c, path) for group, path in ((before, base), (after, new)) for d in group.documents if (c := classes(d))]
    for found, path in known:
        if set(found) != set(known[0][0]):
            raise BadInput(
                f"{path}, iou: its classes ({', '.join(found)}) are not those of {known[0][1]} "
                f"({', '.join(known[0][0])}). Only models of the same classes can be compared."
            )
    return before, after
