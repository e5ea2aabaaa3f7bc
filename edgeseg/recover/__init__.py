"""Quantization-aware distillation: the deployed INT8 graph as a torch network that can learn. Needs torch.

    FP32 graph → teacher;  FP32 graph + Q/DQ graph → student → learned weights → FP32 graph with these weights

Any complete graph will do, whatever it was exported from: it is the ONNX graph itself that is translated.
"""

from __future__ import annotations

from edgeseg.recover.fake import fake_quantize, quantized_weights
from edgeseg.recover.interpreter import known_operators, network
from edgeseg.recover.layers import Convolution, exactly
from edgeseg.recover.student import every_bias, student, with_biases, with_weights

__all__ = [
    "Convolution",
    "every_bias",
    "exactly",
    "fake_quantize",
    "known_operators",
    "network",
    "quantized_weights",
    "student",
    "with_biases",
    "with_weights",
]
