"""Reference architectures by name, for a state dict whose spec says `factory = "edgeseg.zoo:unet"`.

Importing this package does not import torch; the first use of a factory does. (The module of an architecture is not
called as the architecture is: importing it would put the module in the place of the factory here.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgeseg.errors import need

if TYPE_CHECKING:
    from edgeseg.zoo.u_net import unet

__all__ = ["unet"]

_MODULES = {"unet": "edgeseg.zoo.u_net"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"edgeseg.zoo has no architecture '{name}'; it has: {', '.join(_MODULES)}")
    need("torch", extra="torch", why=f"The architecture '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)
