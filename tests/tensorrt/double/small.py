"""The small objects that a caller makes: loggers, profilers, lengths."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.tensorrt.double.classes import Library

_SIGNS = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I", "VERBOSE": "V"}


class Logger:
    """Behind Logger: prints to stderr what is severe enough."""

    def __init__(self, library: Library, min_severity: Any = None) -> None:
        self.min_severity = min_severity or library.constant("ILogger.Severity.WARNING")

    def log(self, severity: Any, text: str) -> None:
        if severity.value <= self.min_severity.value:
            print(f"[TRT] [{_SIGNS[severity.name]}] {text}", file=sys.stderr)


class Profiler:
    """Behind Profiler: prints to stdout what each layer took."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def report_layer_time(self, name: str, ms: float) -> None:
        print(f"{name}: {ms}ms")


class Dims:
    """Behind Dims: at most eight lengths."""

    MAX_DIMS = 8

    def __init__(self, library: Library, lengths: list[int] | None = None) -> None:
        self.lengths = list(lengths or [])
        if len(self.lengths) > self.MAX_DIMS:
            raise ValueError(f"wanted at most {self.MAX_DIMS} lengths, not {len(self.lengths)}")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self.lengths[index]) if isinstance(index, slice) else self.lengths[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.lengths[index] = value

    def __eq__(self, other: object) -> bool:
        return list(other) == self.lengths if isinstance(other, list | tuple) else NotImplemented

    __hash__ = None  # type: ignore[assignment]
