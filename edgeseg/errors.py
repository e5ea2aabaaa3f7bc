"""Every deliberate exception of edgeseg, each with the exit code that the command line ends with.

    EdgesegError                     2   never raised itself
    ├── BadInput                     2   something the user gave cannot be used
    │   ├── SpecError                    SPEC.toml
    │   ├── DatasetError                 DATASET.toml, its frames and labels
    │   ├── ModelError                   the model file, or the network in it
    │   ├── BundleError                  a bundle that is damaged, foreign, newer or hostile
    │   └── StaleScales                  a scale table of another model, data set or recipe
    ├── GateFailed                   1   the work was done and the result is not good enough
    │   ├── ParityFailed                 the exported graph does not compute what the network computes
    │   ├── AccuracyFailed               nothing within the allowed loss of accuracy
    │   └── PrecisionAbsent              an engine does not compute in the precision it was built for
    ├── MissingOnMachine             3   a package, a device or a driver is not here
    └── CannotTell                   4   too few samples, or the runs cannot be compared

A message says what was wanted, what came, and what to do about it.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class EdgesegError(Exception):
    exit_code = 2


class BadInput(EdgesegError):
    exit_code = 2


class SpecError(BadInput):
    pass


class DatasetError(BadInput):
    pass


class ModelError(BadInput):
    pass


class BundleError(BadInput):
    pass


class StaleScales(BadInput):
    pass


class GateFailed(EdgesegError):
    exit_code = 1


class ParityFailed(GateFailed):
    pass


class AccuracyFailed(GateFailed):
    pass


class PrecisionAbsent(GateFailed):
    pass


class MissingOnMachine(EdgesegError):
    exit_code = 3


class CannotTell(EdgesegError):
    exit_code = 4


def need(module: str, *, extra: str, why: str) -> ModuleType:
    """Import an optional package where it is used, or raise MissingOnMachine with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingOnMachine(
            f"{why} needs the package '{module}', which cannot be imported here ({error}). "
            f"Install it with: pip install 'edgeseg[{extra}]'"
        ) from error
