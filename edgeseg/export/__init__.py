"""The stage from a network to one graph: uint8 frame in, uint8 mask out, proven to compute what torch computes.

Torch ─to_onnx→ Exported ┐
Onnx ─from_onnx→ Exported ┴─fuse→ OnnxModel ─compare, require→ Parity   (first_divergence names a wrong node)
"""

from __future__ import annotations

from edgeseg.export.diagnose import Divergence, first_divergence
from edgeseg.export.fuse import fuse
from edgeseg.export.network import Exported, from_onnx, to_onnx
from edgeseg.export.parity import Parity, compare, require
from edgeseg.export.reference import onnx_reference, torch_reference

__all__ = [
    "Divergence",
    "Exported",
    "Parity",
    "compare",
    "first_divergence",
    "from_onnx",
    "fuse",
    "onnx_reference",
    "require",
    "to_onnx",
    "torch_reference",
]
