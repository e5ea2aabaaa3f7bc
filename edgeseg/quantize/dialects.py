"""How each engine wants INT8 written. One table of ranges serves all of them; these are the differences, as data.

TensorRT: symmetric activations (zero point 0), per-channel weights, no DequantizeLinear of an int32 bias. It fuses a
convolution with the pair at its input, which is where its guide wants them: not every release moves one past a resize.
ONNX Runtime: a convolution runs in INT8 only between a DequantizeLinear and a QuantizeLinear, with an int32 bias;
unsigned activations on x86 (U8S8 is several times faster than S8S8), signed ones on Arm; without VNNI, two products
of U8S8 may saturate 16 bits, so weights keep to 7 bits there (ONNX Runtime's documentation calls it reduce_range).
OpenVINO: FakeQuantize in its own IR, both inputs of a concatenation on one scale.
"""

from __future__ import annotations

from dataclasses import dataclass

from calibration import Scheme

UNSIGNED = Scheme(bits=8, signed=False, symmetric=False)
SIGNED = Scheme(bits=8, signed=True, symmetric=True)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the writer must do for one engine."""

    name: str
    activations: Scheme
    fake: bool = False  # FakeQuantize instead of a QuantizeLinear/DequantizeLinear pair
    integer_bias: bool = False  # the bias as int32 behind a DequantizeLinear
    closed: bool = False  # a convolution needs its output quantized too; pooling and resizing stay integer by pairs
    one_scale_per_concat: bool = False
    at_convolutions: bool = False  # a pair also right in front of a convolution, behind what only moves values
    sums: bool = False  # an addition reads integers where what it adds is quantized anyway
    weight_bits: int = 8

    @property
    def engine(self) -> str:
        """The runtime that the dialect is for: onnxruntime, openvino or tensorrt."""
        return self.name.partition("-")[0]


ONNXRUNTIME_X86 = Dialect("onnxruntime-x86", UNSIGNED, integer_bias=True, closed=True)
ONNXRUNTIME_X86_NO_VNNI = Dialect("onnxruntime-x86-no-vnni", UNSIGNED, integer_bias=True, closed=True, weight_bits=7)
ONNXRUNTIME_ARM = Dialect(
    "onnxruntime-arm", Scheme(bits=8, signed=True, symmetric=False), integer_bias=True, closed=True
)
OPENVINO = Dialect("openvino", UNSIGNED, fake=True, one_scale_per_concat=True)
TENSORRT = Dialect("tensorrt", SIGNED, one_scale_per_concat=True, at_convolutions=True)

DIALECTS = {d.name: d for d in (ONNXRUNTIME_X86, ONNXRUNTIME_X86_NO_VNNI, ONNXRUNTIME_ARM, OPENVINO, TENSORRT)}
