"""A hash of all that a model file means: its bytes and, where a factory builds the network, the factory's code."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from edgeseg.spec import spec_to_dict
from edgeseg.types import ModelSpec


def fingerprint(path: Path, spec: ModelSpec) -> str:
    """SHA-256 over the file, the spec, and every Python file of the package or folder that the factory is in.

    The factory is found but not run. What it imports from further away is not followed: edgeseg builds again with
    `--no-cache` when that has changed.
    """
    digest = hashlib.sha256(repr(sorted(spec_to_dict(spec).items(), key=str)).encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if spec.factory:
        for source in _sources(spec.factory.split(":")[0], path.resolve().parent):
            digest.update(str(source.name).encode() + source.read_bytes())
    return digest.hexdigest()


def _sources(module: str, folder: Path) -> list[Path]:
    top = module.split(".")[0]
    for place in (folder, *map(Path, sys.path)):
        if (place / top / "__init__.py").is_file():
            return sorted((place / top).rglob("*.py"))
        if (place / f"{top}.py").is_file():
            return sorted(place.glob("*.py")) if place == folder else [place / f"{top}.py"]
    found = importlib.util.find_spec(top)
    if found is None or found.origin is None:
        return []
    origin = Path(found.origin)
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
