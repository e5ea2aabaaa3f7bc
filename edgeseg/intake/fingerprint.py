"""A hash of all that a model file means: its bytes and, where a factory builds the network, the factory's code."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from edgeseg.errors import need
from edgeseg.intake.forms import form_of
from edgeseg.spec import spec_to_dict
from edgeseg.types import ModelSpec


def fingerprint(path: Path, spec: ModelSpec) -> str:
    """SHA-256 over the file, an ONNX graph's external data, the spec, and every Python file of the package or folder
    that the factory is in.

    The factory is found but not run. What it imports from further away is not followed: edgeseg builds again with
    `--no-cache` when that has changed.
    """
    digest = hashlib.sha256(repr(sorted(spec_to_dict(spec).items(), key=str)).encode())
    for part in (path, *_external(path)):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    if spec.factory:
        for source in _sources(spec.factory.split(":")[0], path.resolve().parent):
            digest.update(str(source.name).encode() + source.read_bytes())
    return digest.hexdigest()


def _external(path: Path) -> list[Path]:
    """The files in which an ONNX graph keeps its weights outside; that one is missing is for load() to say."""
    if form_of(path) != "onnx":
        return []
    need("onnx", extra="build", why=f"Reading the ONNX model {path.name}")
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError:
        return []
    entries = [entry for tensor in proto.graph.initializer for entry in tensor.external_data]
    files = [path.parent / name for name in sorted({entry.value for entry in entries if entry.key == "location"})]
    return [file for file in files if file.is_file()]


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
