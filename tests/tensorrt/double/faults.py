"""What goes wrong on request: tests set these by environment variables, so that a child process has them too.

EDGESEG_TRT_DOUBLE_UNBUILDABLE  names of ONNX nodes, by semicolons: the build finds no implementation for one while a
                                DequantizeLinear is before it, or it reads FP16; with "!" after the name, always
EDGESEG_TRT_DOUBLE_CRASH        "build", "parse" or "deserialize": the process ends there by a segmentation fault
EDGESEG_TRT_DOUBLE_SLOW         seconds that every step of a build takes
EDGESEG_TRT_DOUBLE_PRECISION    "fp32": the inspector tells of no layer in INT8 or FP16, whatever was asked
EDGESEG_TRT_DOUBLE_ERROR        an error that every build logs before it gives up
EDGESEG_TRT_DOUBLE_WRONG        "1": engines give masks that are off by one class
EDGESEG_TRT_DOUBLE_DLA          how many DLA cores the machine has
"""

from __future__ import annotations

import os
import signal
import time

_PREFIX = "EDGESEG_TRT_DOUBLE_"


def asked(name: str) -> str:
    """The value of a fault, empty where it is not wanted."""
    return os.environ.get(_PREFIX + name, "")


def unbuildable() -> dict[str, bool]:
    """Node names, and whether each fails without Q/DQ, too."""
    names = [name for name in asked("UNBUILDABLE").split(";") if name]
    return {name.removesuffix("!"): name.endswith("!") for name in names}


def crash(where: str) -> None:
    if asked("CRASH") == where:
        os.kill(os.getpid(), signal.SIGSEGV)


def dawdle() -> None:
    time.sleep(float(asked("SLOW") or 0))


def dla_cores() -> int:
    return int(asked("DLA") or 0)
