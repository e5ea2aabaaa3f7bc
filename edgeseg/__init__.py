"""edgeseg: from a trained segmentation network to a measured, faster engine.

    import edgeseg

    built = edgeseg.build("model.pt", data="dataset.toml", precision="int8", out="model.edgeseg")
    with edgeseg.open("model.edgeseg") as segment:
        mask = segment(frame)  # uint8 (H, W, 3) as the camera gives it → uint8 (H, W) of class indices

Each step is a function of its own too: `edgeseg.evaluate`, `edgeseg.bench`, `edgeseg.profile`, `edgeseg.stream`,
`edgeseg.load_dataset`.
Names load what they need when they are first used, so importing edgeseg costs next to nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# ONNX Runtime sends telemetry from 1.29 on, from Linux too, unless told before it is imported; a device has no business
# doing that. ORT_DISABLE_TELEMETRY=0 in the environment keeps it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from edgeseg.benchmark import bench as bench
    from edgeseg.bundle import read_bundle as read_bundle
    from edgeseg.data import load_dataset as load_dataset
    from edgeseg.evaluation import evaluate as evaluate
    from edgeseg.pipeline import build as build
    from edgeseg.pipeline import profiled as profile
    from edgeseg.runtime.streaming import stream as stream
    from edgeseg.segmenter import open_bundle as open  # noqa: A004 - edgeseg.open reads as it should
    from edgeseg.spec import read_spec as read_spec

_HOME = {
    "bench": ("edgeseg.benchmark", "bench"),
    "build": ("edgeseg.pipeline", "build"),
    "evaluate": ("edgeseg.evaluation", "evaluate"),
    "load_dataset": ("edgeseg.data", "load_dataset"),
    "open": ("edgeseg.segmenter", "open_bundle"),
    "profile": ("edgeseg.pipeline", "profiled"),
    "read_bundle": ("edgeseg.bundle", "read_bundle"),
    "read_spec": ("edgeseg.spec", "read_spec"),
    "stream": ("edgeseg.runtime.streaming", "stream"),
}

__all__ = ["bench", "build", "evaluate", "load_dataset", "open", "profile", "read_bundle", "read_spec", "stream"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        module, attribute = _HOME[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'edgeseg' has no attribute '{name}'")
