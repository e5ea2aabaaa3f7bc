"""The recorded surface of one release, as values: its classes, members, signatures and enumerations."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "surfaces"


@dataclass(frozen=True, slots=True)
class Argument:
    name: str
    kind: str  # the type as pybind11 writes it, without modules: "int", "Dims", "Sequence[int]"
    optional: bool  # has a default
    nullable: bool  # takes None
    by_name: bool


@dataclass(frozen=True, slots=True)
class Signature:
    text: str
    arguments: tuple[Argument, ...]  # without self
    returns: str


@dataclass(frozen=True, slots=True)
class Class:
    name: str
    bases: tuple[str, ...] = ()
    methods: dict[str, tuple[Signature, ...]] = field(default_factory=dict)
    properties: dict[str, dict[str, str]] = field(default_factory=dict)  # "get" and, where it may be set, "set"
    constants: dict[str, str] = field(default_factory=dict)
    enum: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Surface:
    module: str  # "tensorrt" or "tensorrt_rtx"
    version: str
    classes: dict[str, Class]
    constants: dict[str, str]
    functions: tuple[str, ...]
    other: tuple[str, ...]  # classes of which only the name is recorded


def recorded() -> tuple[str, ...]:
    """The versions that there are: "8.6.1", …, "rtx-1.7.1.116"; oldest first, TensorRT-RTX last."""
    names = [path.stem for path in FOLDER.glob("*.json")]
    short = [name.removeprefix("tensorrt-").removeprefix("tensorrt_") for name in names]
    return tuple(sorted(short, key=lambda name: (name.startswith("rtx"), numbers(name))))


def numbers(version: str) -> tuple[int, ...]:
    """(10, 3, 0) of "10.3.0"; of "rtx-1.7.1.116" (1, 7, 1, 116)."""
    return tuple(map(int, version.removeprefix("rtx-").split(".")))


@cache
def load(version: str) -> Surface:
    """The surface of one of `recorded()`, or of the only one that begins so: "10.13", "rtx-1.7"."""
    found = [name for name in recorded() if name == version or name.startswith(version + ".")]
    if len(found) != 1:
        raise LookupError(f"no one recorded version is '{version}'; there are: {', '.join(recorded())}")
    stem = f"tensorrt_{found[0]}" if found[0].startswith("rtx") else f"tensorrt-{found[0]}"
    data = json.loads((FOLDER / f"{stem}.json").read_text(encoding="utf-8"))
    return Surface(
        data["module"],
        data["version"],
        {name: _class(name, entry) for name, entry in data["classes"].items()},
        data["constants"],
        tuple(data["functions"]),
        tuple(data["other"]),
    )


def _class(name: str, entry: dict[str, Any]) -> Class:
    if "enum" in entry:
        return Class(name, enum=entry["enum"])
    methods = {key: tuple(map(signature, texts)) for key, texts in entry["methods"].items()}
    return Class(name, tuple(entry["bases"]), methods, entry["properties"], entry["constants"])


def signature(text: str) -> Signature:
    tree = ast.parse(f"def {text}: ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    assert tree.returns is not None
    return Signature(text, tuple(_arguments(tree.args)), ast.unparse(tree.returns))


def _arguments(tree: ast.arguments) -> Iterator[Argument]:
    every = [*tree.posonlyargs, *tree.args]
    first = len(every) - len(tree.defaults)
    for index, argument in enumerate(every):
        kind = ast.unparse(argument.annotation) if argument.annotation else "object"
        if argument.arg == "self":
            continue
        default = ast.unparse(tree.defaults[index - first]) if index >= first else ""
        nullable = default == "None" or kind.startswith("Optional[") or kind.endswith("| None")
        plain = kind.removesuffix(" | None")
        plain = plain[len("Optional[") : -1] if plain.startswith("Optional[") else plain
        yield Argument(argument.arg, plain, bool(default), nullable, index >= len(tree.posonlyargs))
