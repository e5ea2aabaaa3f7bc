"""JSON that is taken at its word: strict reading, fields checked by name and kind, nothing bent on writing.

Below edgeseg.bundle, whose manifest may come from anybody. Every refusal is a BundleError that names the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from edgeseg.bundle_io import AGAIN
from edgeseg.errors import BundleError

MAX_DEPTH = 50

T = TypeVar("T")

_WORDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def parse(text: bytes, where: str) -> dict[str, Any]:
    """The object that is written here: UTF-8, no NaN or infinity in any spelling, no key twice, not too deep."""
    try:
        table = json.loads(
            text.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique
        )
        _check_depth_and_texts(table)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not valid JSON: {error}. {AGAIN}") from error
    return of_kind(table, dict, where)


def field_of(table: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    if key not in table:
        raise BundleError(f"{where}: {key} is missing. {AGAIN}")
    return of_kind(table[key], kind, f"{where}: {key}")


def of_kind(value: Any, kind: type[T], where: str) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BundleError(f"{where}: wanted {_WORDS[kind]}, found {str(value)[:100]!r}. {AGAIN}")
    return value


def only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise BundleError(f"{where}: {unknown[0][:100]!r} is unknown here. Made by a newer edgeseg? Update it. {AGAIN}")


def plain(value: Any, where: str) -> Any:
    """A copy in JSON's own types; what JSON would bend or refuse (numpy scalars, NaN, a key that is 3) is an error."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise BundleError(
                f"{where}: wanted texts as keys, found {list(value)!r:.100}. Convert them before writing."
            )
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    raise BundleError(
        f"{where}: wanted plain JSON, found {type(value).__name__} {value!r:.100}. Convert it before writing."
    )


def _check_depth_and_texts(table: Any) -> None:
    """So that whoever prints or walks the content later cannot be tripped by it. Not recursive, for the same reason."""
    level = [table]
    for _ in range(MAX_DEPTH):
        level = [inner for item in level if isinstance(item, dict | list) for inner in _items(item)]
    if level:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _items(item: dict[str, Any] | list[Any]) -> list[Any]:
    inner = [*item.keys(), *item.values()] if isinstance(item, dict) else item
    for text in inner:
        if isinstance(text, str):
            text.encode()  # half of a surrogate pair is refused with UnicodeEncodeError, a ValueError
    return inner


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:50]} is not finite")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError(f"one of the keys {sorted(table)!r:.100} stands twice")
    return table
