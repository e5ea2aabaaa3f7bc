"""The end of a page: on which machines the documents were made, with which versions, and how to make them again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeseg.report.parts import table
from edgeseg.report.sources import Source
from edgeseg.report.text import DASH

_FACTS = ("cpu", "gpu", "architecture", "cores_usable", "isa", "memory_mb", "os", "python", "virtual", "governor")


def machines_section(found: Sequence[Source]) -> str:
    """A row for each fact and a column for each machine; what differs between machines is bold."""
    columns: dict[tuple[str, ...], list[Source]] = {}
    names = [*_FACTS, *dict.fromkeys(name for source in found for name in _versions(source))]
    for source in found:
        here = source.document.get("machine") or {}
        facts = [_said(here.get(name)) if name in _FACTS else _versions(source).get(name, DASH) for name in names]
        columns.setdefault(tuple(facts), []).append(source)
    if not columns:
        return ""
    rows = []
    for at, name in enumerate(names):
        cells = [escape(facts[at]) for facts in columns]
        if all(cell == DASH for cell in cells):
            continue
        rows.append((name.replace("_", " "), *(f"<b>{cell}</b>" if len(set(cells)) > 1 else cell for cell in cells)))
    rows.append(("measured (UTC)", *(_when(measured) for measured in columns.values())))
    header = ("", *(", ".join(dict.fromkeys(escape(s.path.name) for s in measured)) for measured in columns.values()))
    several = "<p>Times of different machines or versions do not compare.</p>" if len(columns) > 1 else ""
    return f"<h2>Machine and versions</h2>{several}{table(header, rows, 'words')}"


def reproduce_section(found: Sequence[Source]) -> str:
    """The command for each document, as it was typed where the document knows, else as far as it can be told."""
    lines = dict.fromkeys(command_of(source) for source in found)
    code = "\n".join(escape(line) for line in lines if line)
    return f"<h2>How to make these numbers again</h2><pre>{code}</pre>" if code else ""


def command_of(source: Source) -> str:
    """An empty text for documents whose command cannot be told."""
    document = source.document
    if isinstance(document.get("command"), str):
        return str(document["command"])
    if source.kind == "bench":
        return f"edgeseg bench {_quoted(document, 'path', 'BUNDLE')} --variant {shlex.quote(document['variant'])}"
    if source.kind == "eval":
        split = shlex.quote(str(document["data"]["split"]))
        variant = shlex.quote(str(document["variant"]))
        return f"edgeseg eval BUNDLE --data DATASET.toml --split {split} --variant {variant}"
    if source.kind == "build":
        return _build(document, source.path.name)
    return ""


def _build(document: Mapping[str, Any], name: str) -> str:
    words = ["edgeseg build MODEL"]
    if calibration := document.get("calibration"):
        words += ["--data DATASET.toml", f"--split {shlex.quote(str(calibration['split']))}"]
        words.append(f"--recipe {shlex.quote(str(calibration['recipe']['name']))}")
    if document.get("asked"):
        words.append(f"--{document['asked']}")
    if document.get("max_drop") is not None:
        words.append(f"--max-miou-drop {document['max_drop']:g}")
    words += ["--quick"] if document.get("quick") else []
    return " ".join((*words, f"-o {shlex.quote(name)}"))


def _quoted(document: Mapping[str, Any], key: str, otherwise: str) -> str:
    return shlex.quote(str(document[key])) if document.get(key) else otherwise


def _versions(source: Source) -> dict[str, str]:
    return {str(name): str(version) for name, version in (source.document.get("versions") or {}).items()}


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or DASH
    return DASH if value is None else str(value)


def _when(measured: Sequence[Source]) -> str:
    times = sorted(source.time for source in measured if source.time is not None)
    if not times:
        return DASH
    first, last = f"{times[0]:%Y-%m-%d %H:%M:%S}", f"{times[-1]:%Y-%m-%d %H:%M:%S}"
    return first if first == last else f"{first} to {last}"
