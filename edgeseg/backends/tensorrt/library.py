"""The two libraries behind one code path, and in one place what each version of them has and lacks.

`tensorrt` is TensorRT 8.5 to 11, `tensorrt_rtx` TensorRT-RTX. What differs is asked of the module itself, by name:
packages are renumbered and patched, but a member is there or it is not. Versions in comments say where it came or went,
as recorded from the bindings themselves (tests/tensorrt/surfaces).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from edgeseg.errors import MissingOnMachine

LEAST = (8, 5)


@dataclass(frozen=True, slots=True)
class Library:
    """One of the two: `name` is the backend's, `module` what Python imports."""

    name: Literal["tensorrt", "tensorrt-rtx"]
    module: Literal["tensorrt", "tensorrt_rtx"]

    def load(self) -> ModuleType:
        """The module. Raises MissingOnMachine, saying what to install, where it cannot be used."""
        try:
            trt = importlib.import_module(self.module)
        except Exception as error:  # its own __init__ raises more than ImportError: missing libraries, old drivers
            raise MissingOnMachine(self._missing(str(error))) from error
        if not hasattr(trt, "Builder"):  # a folder of type stubs imports as an empty namespace
            raise MissingOnMachine(self._missing("there is a folder of that name, but no library in it"))
        if self.module == "tensorrt" and version_of(trt) < LEAST:
            raise MissingOnMachine(
                f"TensorRT {trt.__version__} is older than {LEAST[0]}.{LEAST[1]}, the first with named tensors. Update "
                "JetPack to 5.1 or later. See: edgeseg doctor"
            )
        return trt

    @property
    def builds_without_gpu(self) -> bool:
        """TensorRT-RTX builds ahead of time for compute capabilities that are named."""
        return self.module == "tensorrt_rtx"

    def _missing(self, why: str) -> str:
        from edgeseg.doctor_nvidia import missing

        finding = missing(self.module)
        said = f"the backend '{self.name}' cannot be used here: "
        if finding is None:
            return f"{said}{why}. See: edgeseg doctor"
        return f"{said}{finding.detail}." + (f" Mend it with: {finding.fix}" if finding.fix else " See: edgeseg doctor")


TENSORRT = Library("tensorrt", "tensorrt")
TENSORRT_RTX = Library("tensorrt-rtx", "tensorrt_rtx")
LIBRARIES = {library.name: library for library in (TENSORRT, TENSORRT_RTX)}


def version_of(trt: Any) -> tuple[int, ...]:
    """`trt.__version__` as numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", str(trt.__version__))[:4])


def strongly_typed(trt: Any) -> bool:
    """Whether the network's own types decide (from 10.0; always on from 11.0), and not flags of the builder."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def network_flags(trt: Any) -> int:
    """For `create_network`. EXPLICIT_BATCH must be said up to 9, is the only way from 10.0 on and gone from 11.0."""
    flags = trt.NetworkDefinitionCreationFlag
    if strongly_typed(trt):
        return 1 << int(flags.STRONGLY_TYPED)
    return 1 << int(flags.EXPLICIT_BATCH)


def logger(trt: Any, heard: Callable[[str, str], None]) -> Any:
    """A logger of the library that tells `heard` (severity in lower case, text). Its severities keep one spelling."""

    class _Log(trt.ILogger):  # type: ignore[misc]  # the base exists in the library only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            heard(str(getattr(severity, "name", severity)).rpartition(".")[2].lower(), str(message).strip())

    return _Log()
