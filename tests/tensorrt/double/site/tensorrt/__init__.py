"""The double of the release in EDGESEG_TRT_DOUBLE, under the real module's name: for child processes of tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[5]))
from tests.tensorrt.double import make

_made = make(os.environ["EDGESEG_TRT_DOUBLE"])
if _made.__name__ != __name__:  # a machine has one of the two
    raise ModuleNotFoundError(f"No module named '{__name__}'", name=__name__)
_made.__spec__, _made.__file__ = __spec__, __file__
sys.modules[__name__] = _made  # what `import` gives: without the names of this file
