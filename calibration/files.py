"""Scale tables as JSON that people and `diff` can read: tensors in the order of their names, one a block.

    "conv1": {
      "minimum": -1.5, "maximum": 7.25, "zeros": 0, "count": 480,
      "extremes": {"frames": 3, "first": [-1.5, 6.0], "average": [-1.49, 6.0225]},
      "bin_width": 0.0078125, "first_bin": -192,
      "histogram": [3, 1, -12, 7]
    }

Bin `first_bin` + i holds the values from (`first_bin` + i) * `bin_width` up to the next bin; zeros are not in it. In
the histogram a negative number -n stands for n empty bins. `count`, `bin_width` and `first_bin` follow from the rest
and are there for readers; they must agree. `extremes` (calibration/extremes.py) may be absent, as it is in files of
"edgeseg.scales/1", which are read too. Floats are written so that reading gives back the same bits. A file is
untrusted: everything is checked here, once, and BadScaleTable names the field.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import BadRecipe, BadScaleTable
from calibration.extremes import Extremes
from calibration.recipe import Recipe
from calibration.seen import Seen, grid
from calibration.table import SCHEMA, ScaleTable

LARGEST = 256 * 1024 * 1024  # characters
_OLDER = ("edgeseg.scales/1",)  # the same without the extremes of frames
_FIELDS = ("minimum", "maximum", "zeros", "count", "bin_width", "first_bin", "histogram")


def to_json(table: ScaleTable) -> str:
    """The table as text, the same for equal tables."""
    recipe = {
        "name": table.recipe.name,
        "method": table.recipe.method,
        "parameters": dict(table.recipe.parameters),
        "digest": table.recipe.digest,
    }
    blocks = [f"    {json.dumps(name)}: {{\n{_block(seen)}\n    }}" for name, seen in sorted(table.tensors.items())]
    lines = [
        "{",
        f'  "schema": {json.dumps(table.schema)},',
        f'  "model": {json.dumps(table.model)},',
        f'  "data": {json.dumps(table.data)},',
        f'  "recipe": {json.dumps(recipe)},',
        f'  "frames": {table.frames},',
        '  "tensors": {',
        ",\n".join(blocks),
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def from_json(text: str) -> ScaleTable:
    """The table in a text that `to_json` wrote. Raises BadScaleTable, which names the field at fault."""
    if len(text) > LARGEST:
        raise BadScaleTable(f"a scale table of at most {LARGEST:,} characters was expected, got {len(text):,}.")
    try:
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise BadScaleTable(f"not a scale table in JSON: {error}. Calibrate again, or copy the file again.") from error
    _object(content, "the file", None)
    schema = content.get("schema")
    if schema not in (SCHEMA, *_OLDER):
        raise BadScaleTable(_other_schema(schema))
    _object(content, "the file", ("schema", "model", "data", "recipe", "frames", "tensors"))
    tensors = content["tensors"]
    _object(tensors, "tensors", None)
    return ScaleTable(
        _text(content["model"], "model"),
        _text(content["data"], "data"),
        _recipe(content["recipe"]),
        _integer(content["frames"], "frames", least=1),
        {name: _seen(value, f"tensors.{name}") for name, value in tensors.items()},
    )


def _block(seen: Seen) -> str:
    exponent, first, _ = grid(seen.minimum, seen.maximum)
    extremes = "" if seen.extremes is None else f'      "extremes": {json.dumps(asdict(seen.extremes))},\n'
    return (
        f'      "minimum": {seen.minimum!r}, "maximum": {seen.maximum!r}, "zeros": {seen.zeros}, '
        f'"count": {seen.count},\n{extremes}'
        f'      "bin_width": {math.ldexp(1.0, exponent)!r}, "first_bin": {first},\n'
        f'      "histogram": {json.dumps(_packed(seen.counts))}'
    )


def _packed(counts: NDArray[np.int64]) -> list[int]:
    packed: list[int] = []
    empty = 0
    for value in counts.tolist():
        if value:
            packed += [-empty, value] if empty else [value]
            empty = 0
        else:
            empty += 1
    return [*packed, -empty] if empty else packed


def _unpacked(packed: object, bins: int, where: str) -> NDArray[np.int64]:
    if not isinstance(packed, list):
        raise BadScaleTable(f"{where}: a list of whole numbers was expected, got {_shown(packed)}.")
    counts = np.zeros(bins, np.int64)
    at = 0
    for i, value in enumerate(packed):
        _integer(value, f"{where}[{i}]", least=-bins)
        if value == 0:
            raise BadScaleTable(f"{where}[{i}]: empty bins are written as a negative number, got 0.")
        if value > 0 and at < bins:
            counts[at] = value
        at += max(1, -value)
    if at != bins:
        raise BadScaleTable(f"{where}: {bins} bins were expected for this minimum and maximum, got {at}.")
    return counts


def _seen(value: object, where: str) -> Seen:
    fields = _FIELDS if not isinstance(value, dict) or "extremes" not in value else (*_FIELDS, "extremes")
    block = _object(value, where, fields)
    minimum = _single(block["minimum"], f"{where}.minimum")
    maximum = _single(block["maximum"], f"{where}.maximum")
    if minimum > maximum:
        raise BadScaleTable(f"{where}.maximum: at least the minimum ({minimum}) was expected, got {maximum}.")
    exponent, first, bins = grid(minimum, maximum)
    zeros = _integer(block["zeros"], f"{where}.zeros", least=0)
    counts = _unpacked(block["histogram"], bins, f"{where}.histogram")
    # Python's integers: a sum of large counts must not wrap around
    derived = {
        "count": zeros + sum(counts.tolist()),
        "bin_width": math.ldexp(1.0, exponent),
        "first_bin": first,
    }
    for key, expected in derived.items():
        if isinstance(block[key], bool) or block[key] != expected:
            raise BadScaleTable(f"{where}.{key}: {expected} follows from the other fields, got {_shown(block[key])}.")
    if not 1 <= derived["count"] < 2**62:
        raise BadScaleTable(f"{where}.count: at least one value must have been seen, got {derived['count']}.")
    ends = {math.floor(math.ldexp(end, -exponent)) - first for end in (minimum, maximum) if end}
    if any(counts[end] == 0 for end in ends) or (zeros == 0 and 0.0 in (minimum, maximum)):
        raise BadScaleTable(f"{where}.histogram: the bins of the minimum and the maximum cannot be empty.")
    extremes = _extremes(block["extremes"], f"{where}.extremes", minimum, maximum) if "extremes" in block else None
    return Seen(minimum, maximum, zeros, counts, extremes)


def _extremes(value: object, where: str, minimum: float, maximum: float) -> Extremes:
    block = _object(value, where, ("frames", "first", "average"))
    frames = _integer(block["frames"], f"{where}.frames", least=1)
    slack = 1e-12 * max(-minimum, maximum)  # an average is rounded
    pairs = []
    for key in ("first", "average"):
        pair = block[key]
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(end) in (int, float) for end in pair):
            raise BadScaleTable(f"{where}.{key}: two numbers were expected, got {_shown(pair)}.")
        low, high = pair
        if not minimum - slack <= low <= high <= maximum + slack:  # neither is NaN or infinite then
            raise BadScaleTable(
                f"{where}.{key}: two numbers within {minimum} and {maximum}, in order, were expected, got {pair!r:.60}."
            )
        pairs.append((float(low), float(high)))
    return Extremes(frames, pairs[0], pairs[1])


def _recipe(value: object) -> Recipe:
    block = _object(value, "recipe", ("name", "method", "parameters", "digest"))
    if not isinstance(block["method"], str):
        raise BadScaleTable(f"recipe.method: text was expected, got {_shown(block['method'])}.")
    try:
        recipe = Recipe(_text(block["name"], "recipe.name"), block["method"], block["parameters"])  # type: ignore[arg-type]
    except BadRecipe as error:
        raise BadScaleTable(f"recipe: {error}") from error
    if block["digest"] != recipe.digest:
        raise BadScaleTable("recipe.digest: does not belong to this method and these parameters; the file was edited.")
    return recipe


def _object(value: object, where: str, keys: tuple[str, ...] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadScaleTable(f"{where}: an object was expected, got {_shown(value)}.")
    if keys is not None and value.keys() != set(keys):
        missing, unknown = [key for key in keys if key not in value], sorted(value.keys() - set(keys))
        raise BadScaleTable(
            f"{where}: missing fields: {', '.join(missing) or 'none'}; unknown fields: {', '.join(unknown) or 'none'}."
        )
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadScaleTable(f"{where}: text was expected, got {_shown(value)}.")
    return value


def _integer(value: object, where: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**62:
        raise BadScaleTable(f"{where}: a whole number from {least} was expected, got {_shown(value)}.")
    return value


def _single(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadScaleTable(f"{where}: a number was expected, got {_shown(value)}.")
    try:
        with np.errstate(over="ignore"):
            same = math.isfinite(value) and float(np.float32(value)) == value
    except OverflowError:  # an integer beyond every float
        same = False
    if not same:
        raise BadScaleTable(f"{where}: a finite float32 value was expected, got {_shown(value)}.")
    return float(value)


def _other_schema(schema: object) -> str:
    version = re.fullmatch(r"edgeseg\.scales/(\d{1,9})", schema) if isinstance(schema, str) else None
    if version and int(version[1]) > int(SCHEMA.rpartition("/")[2]):
        return f"schema: {schema} is newer than {SCHEMA}, which this version reads. Update it, or calibrate again."
    return f"schema: {SCHEMA} was expected, got {_shown(schema)}. This is not a scale table."


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, list | dict) else f"a {type(value).__name__} of {len(value)}"
    return text if len(text) <= 60 else text[:57] + "..."


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that a scale table may hold")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' occurs twice")
    return content
