"""The runtimes that execute a graph, behind one seam: see base.py."""

from __future__ import annotations

import importlib
import importlib.util
from typing import cast

from edgeseg.backends.base import Backend, Engine, Session, Settings, check_settings
from edgeseg.errors import BadInput

NAMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")

__all__ = ["NAMES", "Backend", "Engine", "Session", "Settings", "get", "installed", "open_engine"]


def get(name: str) -> Backend:
    """The backend of this name. Raises BadInput for a name that edgeseg does not know."""
    if name not in NAMES:
        raise BadInput(f"there is no backend '{name}'; there are: {', '.join(NAMES)}")
    if name.startswith("tensorrt"):
        return cast(Backend, importlib.import_module("edgeseg.backends.tensorrt").BACKENDS[name])
    return cast(Backend, importlib.import_module(f"edgeseg.backends.{name}"))


def installed() -> tuple[str, ...]:
    """The backends whose package can be found here; finding is not importing."""
    found = {name: importlib.util.find_spec(name.replace("-", "_")) for name in NAMES}
    # A folder of that name without code, such as one of type stubs, is no package.
    return tuple(name for name, spec in found.items() if spec is not None and spec.origin is not None)


def open_engine(engine: Engine) -> Session:
    """Open an engine with its own backend. Raises MissingOnMachine, ModelError, or BadInput for odd settings."""
    check_settings(engine)
    return get(engine.backend).open(engine)
