"""OnnxModel + ScaleTable → OnnxModel in INT8: where quantizers go, why not elsewhere, and how each engine wants it."""

from edgeseg.graph import Graph
from edgeseg.quantize.correct import Biases, corrected_biases
from edgeseg.quantize.dialects import (
    DIALECTS,
    ONNXRUNTIME_ARM,
    ONNXRUNTIME_X86,
    ONNXRUNTIME_X86_NO_VNNI,
    OPENVINO,
    TENSORRT,
    Dialect,
)
from edgeseg.quantize.half import Half, half
from edgeseg.quantize.half_ranges import largest_seen
from edgeseg.quantize.placement import Placement, place
from edgeseg.quantize.write import quantize

__all__ = [
    "DIALECTS",
    "ONNXRUNTIME_ARM",
    "ONNXRUNTIME_X86",
    "ONNXRUNTIME_X86_NO_VNNI",
    "OPENVINO",
    "TENSORRT",
    "Biases",
    "Dialect",
    "Graph",
    "Half",
    "Placement",
    "corrected_biases",
    "half",
    "largest_seen",
    "place",
    "quantize",
]
