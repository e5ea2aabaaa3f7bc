"""What a page, a history and an export are made of: documents of JSON files and bundles, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeseg.bundle import Bundle, read_bundle
from edgeseg.documents import checked, is_bundle, read_documents
from edgeseg.errors import BadInput


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One document, the file or bundle it lies in, and that bundle."""

    path: Path
    document: Mapping[str, Any]
    bundle: Bundle | None = None

    @property
    def schema(self) -> str:
        """Such as "edgeseg.bench/2"."""
        return str(self.document["schema"])

    @property
    def kind(self) -> str:
        """Such as "bench"."""
        return self.schema.removeprefix("edgeseg.").partition("/")[0]

    @property
    def time(self) -> datetime | None:
        """When it was measured, in UTC, from the document; None where it does not say."""
        here = self.document.get("machine")
        created = self.bundle.created if self.bundle is not None else {}
        said = (here.get("time") if isinstance(here, Mapping) else None, created.get("time"))
        for text in (*said, self.document.get("started"), self.document.get("time")):
            if isinstance(text, str):
                return moment(text, self.path)
        return None


def moment(text: str, path: Path) -> datetime:
    """The time that ISO 8601 gives, in UTC. Raises BadInput naming the file."""
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise BadInput(f"{path}: wanted a time like 2026-03-01T12:00:00Z, came {text!r}") from error
    return found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found.astimezone(timezone.utc)


def sources(paths: Sequence[Path]) -> list[Source]:
    """All documents of files and bundles, in order. Raises BadInput for what is neither."""
    return [found for path in paths for found in _read(path)]


def _read(path: Path) -> Iterator[Source]:
    if is_bundle(path):
        bundle = read_bundle(path)
        yield Source(path, checked(bundle.verdict, path), bundle)
        return
    for document in read_documents(path):
        yield Source(path, document)


def worst_frames(found: Sequence[Source], split: str) -> list[str]:
    """Names of the worst frames of a split, the worst first, from the first eval document that has some."""
    for source in found:
        if source.kind == "eval" and (source.document.get("data") or {}).get("split") == split:
            return [str(row["name"]) for row in source.document.get("worst_frames") or ()]
    return []
