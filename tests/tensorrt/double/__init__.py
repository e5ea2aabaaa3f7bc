"""A double of the TensorRT Python module: the members that a release has, and no other, on a machine without a GPU.

`make("8.6.1")` gives a module whose classes have exactly the members and signatures recorded in tests/tensorrt/surfaces
(tools/record_tensorrt): touching another raises AttributeError, calling otherwise TypeError, as pybind11 does. It
parses ONNX graphs, refuses what that release refuses, builds "engines" that hold their graph, and runs them in ONNX
Runtime on host memory. test_double.py holds it against the real tensorrt_rtx. What goes wrong on request is in faults.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from tests.tensorrt.double.builder import Builder
from tests.tensorrt.double.classes import Library
from tests.tensorrt.double.context import NUMPY
from tests.tensorrt.double.engine import Runtime
from tests.tensorrt.double.parser import Parser
from tests.tensorrt.double.small import Dims, Logger, Profiler
from tests.tensorrt.double.surface import load, numbers, recorded

__all__ = ["make", "numbers", "recorded"]


def make(version: str) -> ModuleType:
    """The stand-in for a recorded release: "8.6.1", "10.13", "rtx-1.7.1"; each call makes a new module."""
    surface = load(version)
    kinds: tuple[type[Any], ...] = (Builder, Runtime, Dims, Logger, Profiler)
    logic = {**{kind.__name__: kind for kind in kinds}, "OnnxParser": Parser}
    library = Library(surface, logic)
    functions = {
        "volume": _volume,
        "nptype": lambda kind: _nptype(kind),
        "init_libnvinfer_plugins": lambda logger, namespace: True,
        "get_nv_onnx_parser_version": lambda: library.version[0] * 100 + library.version[1],
    }
    for name in surface.functions:
        library.module.__dict__[name] = functions.get(name) or _missing(name)
    return library.module


def _volume(lengths: Any) -> int:
    result = 1
    for length in lengths:
        result *= length
    return result


def _nptype(kind: Any) -> Any:
    import numpy as np

    if kind.name not in NUMPY:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return np.dtype(NUMPY[kind.name]).type


def _missing(name: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"the double knows the function {name} by name only")

    return refuse
