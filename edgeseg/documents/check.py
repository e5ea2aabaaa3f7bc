"""Check documents against their published JSON Schemas: the part of draft 2020-12 that those files use.

https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
}
WORDS = frozenset(
    [
        *("type", "required", "properties", "additionalProperties", "items", "enum", "const", "minimum", "maximum"),
        *("minItems", "maxItems", "minProperties", "anyOf", "$ref", "$defs", "$schema", "title", "description"),
    ]
)


@cache
def schema_of(name: str) -> Mapping[str, Any]:
    """The published schema of a document such as "edgeseg.bench/2". Raises KeyError for a name without one."""
    stem = name.removeprefix("edgeseg.").replace("/", "-")
    file = resources.files(__package__).joinpath("schemas", f"{stem}.json")
    if not file.is_file():
        raise KeyError(name)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def fault(value: Any, schema: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first place where a value does not fit a schema: its key such as "engines[0].miou", and what is wrong there.

    None if all of it fits. The key of the value itself is "".
    """
    return _fault(value, schema, schema.get("$defs", {}), "")


def _fault(value: Any, schema: Mapping[str, Any], defs: Mapping[str, Any], key: str) -> tuple[str, str] | None:
    if (reference := schema.get("$ref")) is not None:
        return _fault(value, defs[reference.removeprefix("#/$defs/")], defs, key)
    if (choices := schema.get("anyOf")) is not None:
        found = [_fault(value, choice, defs, key) for choice in choices]
        if None in found:
            return None
        # Told of the choice that fits best, whose fault lies deepest: {"p50": "x"} is a latency, no null.
        return max((one for one in found if one), key=lambda one: len(re.findall(r"[.\[]", one[0])))
    wrong = _wrong(value, schema)
    if wrong is not None:
        return key, wrong
    if isinstance(value, dict):
        return _in_object(value, schema, defs, key)
    if isinstance(value, list) and "items" in schema:
        each = (_fault(child, schema["items"], defs, f"{key}[{at}]") for at, child in enumerate(value))
        return next((found for found in each if found), None)
    return None


def _in_object(
    value: Mapping[str, Any], schema: Mapping[str, Any], defs: Mapping[str, Any], key: str
) -> tuple[str, str] | None:
    for name in schema.get("required", ()):
        if name not in value:
            return f"{key}.{name}".lstrip("."), "this key is missing"
    known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
    for name, child in value.items():
        if found := _fault(child, known.get(name, other), defs, f"{key}.{name}".lstrip(".")):
            return found
    return None


def _wrong(value: Any, schema: Mapping[str, Any]) -> str | None:
    """What is wrong with the value itself, without what is in it."""
    if (types := schema.get("type")) is not None:
        names = [types] if isinstance(types, str) else types
        if not any(_is(value, name) for name in names):
            return f"wanted {' or '.join(names)}, came {_said(value)}"
    if "const" in schema and not _same(value, schema["const"]):
        return f"wanted {_said(schema['const'])}, came {_said(value)}"
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        return f"wanted one of {', '.join(map(_said, schema['enum']))}, came {_said(value)}"
    if _is(value, "number"):
        if "minimum" in schema and value < schema["minimum"]:
            return f"wanted at least {schema['minimum']}, came {_said(value)}"
        if "maximum" in schema and value > schema["maximum"]:
            return f"wanted at most {schema['maximum']}, came {_said(value)}"
    if isinstance(value, list) and not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        return f"wanted {least if least == most else f'at least {least}'} items, came {len(value)}"
    if isinstance(value, dict) and len(value) < schema.get("minProperties", 0):
        return f"wanted at least {schema['minProperties']} keys, came {len(value)}"
    return None


def _is(value: Any, name: str) -> bool:
    """Whether a value is of a type in JSON's sense: true is no number, and 2.0 is an integer."""
    if name == "integer":
        return _is(value, "number") and (isinstance(value, int) or value.is_integer())
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
