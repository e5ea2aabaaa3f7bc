"""Reference architectures by name, for a state dict whose spec says `factory = "edgeseg.zoo:unet"`.

Importing this package does not import torch; the first use of a factory does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeseg.zoo.unet import unet

__all__ = ["unet"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"edgeseg.zoo has no architecture '{name}'; it has: {', '.join(__all__)}")
    from edgeseg.errors import need

    need("torch", extra="torch", why=f"The architecture '{name}'")
    factory = getattr(importlib.import_module(f"edgeseg.zoo.{name}"), name)
    globals()[name] = factory  # in place of the submodule of the same name, which the import has just bound here
    return factory
