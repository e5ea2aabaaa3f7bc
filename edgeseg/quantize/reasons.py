"""Which nodes run in INT8 on which engine, and which edges carry quantizers for that: the rules as data, each with why.

A rule is quoted to the user as it stands. Figures in it were measured on three networks trained on CamVid (a U-Net, a
residual one, one of dilated branches with PReLU), 180x240, one thread of an AVX512-VNNI core, engines taking turns;
dB is the signal-to-noise ratio of the scores on frames that were not calibrated on. A transposed convolution of 64
channels in OpenVINO: 0.5 to 0.87 of the float time of a network of three layers around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeseg.quantize.dialects import Dialect


@dataclass(frozen=True, slots=True)
class Rule:
    """What an engine does best with one kind of node. `why`: one sentence, without a full stop at its end."""

    int8: bool
    why: str


_INT8 = Rule(
    True, "a convolution with what is fused behind it (batch norm, ReLU, clip): most of the time, and INT8 pays"
)
_SUM = Rule(
    False,
    "adds in float: with integers from the branch that goes around a residual network loses 1.2 to 1.7 dB and saves "
    "0 to 4 % of the time",
)
_IMAGE = Rule(
    False,
    "reads the image, three channels that INT8 pads to more: in INT8 it costs 2 to 5 dB, the most of all layers, and 0 "
    "to 5 % of the time",
)

_NO_KERNEL = Rule(False, "a transposed convolution: ONNX Runtime has no INT8 kernel for it")
_FEW_KERNELS = Rule(
    False,
    "a transposed convolution: TensorRT takes it with one scale an output channel, but has kernels for few shapes, "
    "and 0.5 dB are lost",
)

# What is no rule of an engine: of a search, of an engine as it was found, of edges without a quantizer of their own.
BY_SEARCH = "kept in float by the search: accuracy needs that more than the time it costs"
FOUND_FLOAT = "in float in this engine, though the rules would run it in INT8"
FOUND_INT8 = "in INT8 in this engine, though the rules would leave it in float"
FOUND_EDGE = "quantized in this engine, though the rules would leave it in float"
PASSED = "values are only moved: integers pass through"
JOINED = "all parts are on one scale: integers are copied side by side"

# kind → engine ("*": any other) → rule.
RULES: Mapping[str, Mapping[str, Rule]] = {
    "convolution": {"*": _INT8},
    "image": {
        "*": _IMAGE,
        "tensorrt": Rule(
            False, "reads the image: in INT8 it costs up to 4.5 dB, and three channels keep few lanes busy"
        ),
    },
    "depthwise": {
        "*": Rule(
            True,
            "depthwise: one scale a channel, since their weights differ most; bound by memory, not by arithmetic, so "
            "that float may be as fast",
        ),
        "tensorrt": Rule(
            True,
            "depthwise: one scale a channel; grouped INT8 kernels can be slower than FP16, so that it is the first to "
            "leave in float",
        ),
    },
    "grouped": {
        "*": Rule(True, "grouped: one scale an output channel; fewer inputs an output, so that INT8 pays less"),
        "tensorrt": Rule(True, "grouped: INT8 kernels exist for few group sizes, the others run slower than FP16"),
    },
    "grouped narrow": {
        "onnxruntime": Rule(
            False,
            "grouped, with fewer than 16 inputs a group and no plain depthwise one: ONNX Runtime's INT8 kernel takes "
            "1.3 to 6 times as long as the float one",
        ),
        "*": Rule(True, "grouped: one scale an output channel; fewer inputs an output, so that INT8 pays less"),
        "tensorrt": Rule(True, "grouped: INT8 kernels exist for few group sizes, the others run slower than FP16"),
    },
    "point": {"*": Rule(False, "works on one position a channel: too little work to pay for its quantizers")},
    "transposed": {
        "onnxruntime": _NO_KERNEL,
        "openvino": Rule(True, "a transposed convolution of what is never negative, one scale an output channel"),
        "tensorrt": _FEW_KERNELS,
    },
    "transposed signed": {
        "onnxruntime": _NO_KERNEL,
        "openvino": Rule(False, "a transposed convolution of values of both signs: OpenVINO runs it in float whatever"),
        "tensorrt": _FEW_KERNELS,
    },
    "transposed depthwise": {
        "onnxruntime": _NO_KERNEL,
        "openvino": Rule(False, "a depthwise transposed convolution: OpenVINO runs it in float whatever is written"),
        "tensorrt": _FEW_KERNELS,
    },
    "transposed groups": {
        "*": Rule(
            False, "a grouped transposed convolution: no axis of its weights counts the outputs, for scales of them"
        )
    },
    "computed": {"*": Rule(False, "its weights are computed, not constant")},
    "typed": {"*": Rule(False, "its weights are not float32: half precision is written after INT8, not before")},
    "inside": {"*": Rule(False, "inside a branch or a loop: what flows there cannot be observed from outside")},
    "scores": {
        "onnxruntime": Rule(
            False,
            "gives the scores, which stay float: without an INT8 output it would not run in INT8, and eight bits "
            "would decide between classes by rounding",
        ),
        "*": Rule(True, "gives the scores: reads integers, gives floats"),
    },
    "transposed scores": {
        "*": Rule(
            False, "a transposed convolution that gives the scores: in INT8 it costs 1 dB, three times what others do"
        )
    },
    "sum": {"*": _SUM},
    "concatenation": {
        "onnxruntime": Rule(
            True, "where a convolution reads it: joins integers; parts that go nowhere else take its scale"
        ),
        "*": Rule(True, "where a convolution reads it: all parts on one scale, so that it is a copy of integers"),
    },
    "prelu": {
        "onnxruntime": Rule(
            False,
            "ONNX Runtime has no INT8 PReLU: the convolution before it gives integers, the next one reads its own",
        ),
        "*": Rule(
            False, "computed in float behind its convolution; quantized once, where the next convolution reads it"
        ),
    },
    "batch norm": {"*": Rule(False, "not behind a convolution, so not folded: float, quantized where it is read")},
    "average": {"*": Rule(False, "an average of integers would be rounded twice; float, quantized where it is read")},
    "bilinear": {"*": Rule(False, "bilinear weights on integers round once more; float, quantized where it is read")},
    "matrix": {"*": Rule(False, "a matrix product: in these networks a gate of a few channels, too small to pay")},
    "pointwise": {"*": Rule(False, "a function of floats, next to no time; quantized where a convolution reads it")},
    "move": {"*": Rule(True, "only moves values: integers pass through it where its input and readers have them")},
}


def rule(kind: str, dialect: Dialect) -> Rule:
    """The rule for a kind of node: what `kind_of` says, "scores", "transposed scores" or "inside"."""
    found = RULES[kind]
    return found[dialect.engine] if dialect.engine in found else found["*"]


def can_run(kind: str, dialect: Dialect) -> bool:
    """Whether the engine has an INT8 kernel for a kind of convolution, whatever the rule prefers."""
    return kind not in ("computed", "typed", "transposed groups") and (kind, dialect.engine) != (
        "transposed",
        "onnxruntime",
    )
