"""Read JSON documents: strict JSON that fits its published schema in a known version. Refusals name file and key."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from edgeseg.bundle import read_bundle
from edgeseg.documents.check import fault, schema_of
from edgeseg.errors import BadInput

# Which versions of which document are read; older ones stay here when a new one is added.
VERSIONS: Mapping[str, tuple[int, ...]] = {
    "edgeseg.bench": (1, 2),
    "edgeseg.bench.gpu": (1,),
    "edgeseg.build": (1,),
    "edgeseg.compare": (1,),
    "edgeseg.eval": (1, 2),
    "edgeseg.explain": (1,),
    "edgeseg.profile": (1,),
    "edgeseg.rewrite": (1,),
    "edgeseg.search": (1,),
    "edgeseg.stream": (1,),
}


def is_bundle(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".edgeseg"


def read_documents(path: str | Path) -> list[Mapping[str, Any]]:
    """The documents of a JSON file, which holds one or a list of them, or the one of a bundle's build.

    At least one comes back. Raises BadInput, naming the file and the key: not readable, not JSON, NaN or an infinite
    number, a key twice, no document at all, an unknown schema, a version that this edgeseg does not read, a key that is
    missing or does not fit the published schema (documents/schemas). BundleError for a damaged bundle.
    """
    path = Path(path)
    if is_bundle(path):
        return [checked(read_bundle(path).verdict, path)]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}. Wanted a bundle or a JSON file that edgeseg wrote.") from error

    try:
        value = json.loads(text, parse_constant=float, object_pairs_hook=lambda pairs: _object(pairs, path))
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        raise BadInput(f"{path} is not JSON: {error}. Was it cut off? Write it again.") from error
    if value == []:
        raise BadInput(f"{path} holds an empty list: wanted at least one document.")
    if isinstance(value, list):
        return [checked(document, path, f"[{index}]") for index, document in enumerate(value)]
    return [checked(value, path)]


def checked(document: Any, path: Path, where: str = "") -> Mapping[str, Any]:
    """The same document, after a check that it is one of edgeseg's and fits its schema. Raises BadInput.

    `path` and `where` say in the message where it lies, such as "results.json" and "[2]". Documents within a build's,
    of its rewrite and its searches, are checked by their own schemas.
    """
    _check_schema(document, path, where)
    _check_numbers(document, path, where)
    if (found := fault(document, schema_of(document["schema"]))) is not None:
        _refuse(path, f"{where}.{found[0]}".strip("."), found[1])
    if document["schema"].startswith("edgeseg.build/"):
        inner = {".rewriting": document.get("rewriting")}
        inner |= {f".search[{index}]": one for index, one in enumerate(document.get("search") or ())}
        for key, one in inner.items():
            if one is not None:
                checked(one, path, f"{where}{key}".lstrip("."))
    return cast(Mapping[str, Any], document)


def _object(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise BadInput(f"{path}: the key '{key}' stands there twice in one object. Write the file again.")
        result[key] = value
    return result


def _check_schema(document: Any, path: Path, where: str) -> None:
    key = f"{where}.schema".lstrip(".")
    if not isinstance(document, dict):
        _refuse(path, where or "the top", f"wanted an object, came {type(document).__name__}")
    if not isinstance(schema := document.get("schema"), str):
        _refuse(path, key, f"wanted a text such as 'edgeseg.bench/2', came {schema!r}")
    if not (parts := re.fullmatch(r"([a-z_.-]+)/([0-9]{1,9})", schema)) or parts[1] not in VERSIONS:
        near = difflib.get_close_matches(schema.split("/")[0], VERSIONS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        _refuse(path, key, f"{schema!r} is no document that is read here ({', '.join(VERSIONS)}){hint}")
    if int(parts[2]) not in VERSIONS[parts[1]]:
        known = ", ".join(map(str, VERSIONS[parts[1]]))
        _refuse(path, key, f"version {parts[2]} of {parts[1]} is unknown, this edgeseg reads {known}: update edgeseg")


def _check_numbers(value: Any, path: Path, key: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(path, key, f"wanted a finite number or null, came {json.dumps(value)}")
    if isinstance(value, dict):
        for name, child in value.items():
            _check_numbers(child, path, f"{key}.{name}".lstrip("."))
    if isinstance(value, list):
        for index, child in enumerate(value):
            _check_numbers(child, path, f"{key}[{index}]")


def _refuse(path: Path, key: str, why: str) -> NoReturn:
    raise BadInput(f"{path}, {key}: {why}.")
