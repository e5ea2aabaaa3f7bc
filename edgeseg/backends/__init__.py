"""The runtimes that execute a graph, behind one seam: see base.py."""

from __future__ import annotations

import importlib
import importlib.util
from typing import cast

from edgeseg.backends.base import Backend, Engine, Session, Settings, check_settings
from edgeseg.errors import BadInput

NAMES = ("onnxruntime", "openvino")

__all__ = ["NAMES", "Backend", "Engine", "Session", "Settings", "get", "installed", "open_engine"]


def get(name: str) -> Backend:
    """The backend of this name. Raises BadInput for a name that edgeseg does not know."""
    if name not in NAMES:
        raise BadInput(f"there is no backend '{name}'; there are: {', '.join(NAMES)}")
    return cast(Backend, importlib.import_module(f"edgeseg.backends.{name}"))


def installed() -> tuple[str, ...]:
    """The backends whose package can be found here; finding is not importing."""
    return tuple(name for name in NAMES if importlib.util.find_spec(name) is not None)


def open_engine(engine: Engine) -> Session:
    """Open an engine with its own backend. Raises MissingOnMachine, ModelError, or BadInput for odd settings."""
    check_settings(engine)
    return get(engine.backend).open(engine)
