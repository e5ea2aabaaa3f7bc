"""Recipes: how ranges are taken, as small TOML files that people read, copy and change.

    method = "percentile"

    [parameters]
    percent = 99.99

Five come with the package, in calibration/recipes/; the name of a recipe is the stem of its file.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from calibration.errors import BadRecipe
from calibration.ranges import METHODS, PARAMETERS, Method

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
LARGEST = 65_536  # bytes; a recipe is a few lines


@dataclass(frozen=True, slots=True)
class Recipe:
    """A validated method and its parameters, defaults filled in. Raises BadRecipe."""

    name: str
    method: Method
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", _parameters(self.name, self.method, self.parameters))

    @property
    def digest(self) -> str:
        """SHA-256 of the method and its parameters: neither the name nor a comment changes it."""
        content = {"method": self.method, "parameters": dict(self.parameters)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe of the package by its name, or any TOML file. Raises BadRecipe."""
    path = RECIPES / f"{name_or_path}.toml" if str(name_or_path) in recipe_names() else Path(name_or_path)
    try:
        if path.stat().st_size > LARGEST:
            raise BadRecipe(f"{path}: a recipe of a few lines was expected, got {path.stat().st_size:,} bytes.")
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadRecipe(
            f"recipe '{name_or_path}' is neither one of {', '.join(recipe_names())} nor a file that can be read "
            f"({error.strerror or error})."
        ) from error
    except ValueError as error:  # TOML or UTF-8
        if isinstance(error, BadRecipe):
            raise
        raise BadRecipe(f"{path}: not a TOML file: {error}") from error
    unknown = sorted(set(content) - {"method", "parameters"})
    if unknown:
        raise BadRecipe(f"{path}: unknown {', '.join(unknown)}; a recipe has 'method' and '[parameters]'.")
    if "method" not in content:
        raise BadRecipe(f"{path}: 'method' is missing; it is one of {', '.join(METHODS)}.")
    return Recipe(path.stem, content["method"], content.get("parameters", {}))


def _parameters(name: str, method: object, given: object) -> dict[str, float]:
    if method not in METHODS:
        raise BadRecipe(f"recipe '{name}': method {method!r} does not exist; it is one of {', '.join(METHODS)}.")
    if not isinstance(given, Mapping):
        raise BadRecipe(f"recipe '{name}': parameters must be a table, got {given!r}.")
    allowed = PARAMETERS[cast(str, method)]
    unknown = sorted(str(key) for key in given if key not in allowed)
    if unknown:
        raise BadRecipe(
            f"recipe '{name}': unknown parameter {', '.join(unknown)}; {method} has {', '.join(allowed) or 'none'}."
        )
    values = {}
    for key, (default, least, most) in sorted(allowed.items()):
        value = given.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadRecipe(f"recipe '{name}': {key} must be a number, got {value!r}.")
        if not least <= value <= most:
            raise BadRecipe(f"recipe '{name}': {key} must lie from {least:g} to {most:g}, got {value!r}.")
        values[key] = float(value)
    return values
