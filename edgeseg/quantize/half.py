"""OnnxModel → OnnxModel in half precision, for engines that take their precision from the types in the graph.

TensorRT from 10 on (strongly typed), TensorRT 11 and TensorRT-RTX compute each node in the type that its tensors have:
so weights become float16, one Cast stands behind the preprocessing, and what cannot be trusted to half precision
(half_rules.py) stays in float32 between two casts. Also the rest of a network whose convolutions are INT8: quantizers
then read and give float16, for which ONNX has them from opset 19 on.

The preprocessing stays in float32: it is pointwise and the cast is needed anyway, so that nothing is gained by an
earlier one, and the network's input is rounded once instead of two or three times. The scores stay in half precision up
to the decision, also where they are upsampled: they are the largest tensor of many networks, and bilinear weights
cost one more rounding of 2^-12, which decides between two classes only where they are equal for every purpose. A
threshold is rounded in that direction in which no score changes sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from edgeseg.errors import ModelError
from edgeseg.quantize.half_opset import raised
from edgeseg.quantize.half_rules import stay_float
from edgeseg.quantize.half_types import HALF, TypedGraph
from edgeseg.quantize.half_write import STEM, Writer
from edgeseg.types import OnnxModel

_QUANTIZERS_OPSET = 19


@dataclass(frozen=True, slots=True)
class Half:
    """`floats`: node → why it still computes in float32; nodes that only cast, or compute shapes, are not in it."""

    model: OnnxModel
    floats: dict[str, str]


def half(model: OnnxModel, *, largest: Mapping[str, float] | None = None, keep_float: Iterable[str] = ()) -> Half:
    """The model with its arithmetic in float16: FP32, or INT8 in the "tensorrt" dialect (raised to opset 19 or newer).

    `largest`: the largest magnitude of each tensor on real frames (`largest_seen` of the FP32 model): what comes
    within a factor of four of 65504 stays float32, as do sums that may pass it. `keep_float`: names of nodes that
    stay as well. A model that is in half precision already is returned as it is.

    Raises ModelError for a name that no node has, for a graph with INT8 in another dialect (int32 biases,
    FakeQuantize), and where the result would not be a valid ONNX graph.
    """
    import onnx

    proto = onnx.load_from_string(model.graph)
    quantized = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    if quantized:
        proto = raised(proto, _QUANTIZERS_OPSET)
    typed = TypedGraph(proto.SerializeToString())
    keep = set(keep_float)
    if unknown := sorted(keep - {node.name for node in typed.graph.nodes}):
        raise ModelError(f"float32 was wanted for nodes that the graph does not have: {', '.join(unknown)}")
    _refuse_other_dialects(typed)
    if any(output.startswith(STEM) for node in typed.graph.nodes for output in node.output):
        return Half(model, _as_found(typed))
    floats = stay_float(typed, largest or {}, keep)
    casts = {node.name for node in typed.graph.nodes if node.op_type == "Cast"}
    told = {name: why for name, why in floats.items() if name not in casts}
    graph = Writer(typed, floats).write()
    try:
        onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the graph cannot be written in half precision: {str(error).strip().splitlines()[0]}. Build it with "
            "--fp32, or export it without operators of your own"
        ) from error
    return Half(replace(model, graph=graph, precision="int8" if quantized else "fp16"), told)


def _as_found(typed: TypedGraph) -> dict[str, str]:
    return {
        node.name: "float32 in the graph that was given, which is in half precision already"
        for node in typed.graph.nodes
        if node.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear")
        and typed.is_data(node)
        and not any(typed.kinds.get(tensor) == HALF for tensor in (*node.input, *node.output))
    }


def _refuse_other_dialects(typed: TypedGraph) -> None:
    for node in typed.graph.nodes:
        integers = typed.kinds.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if node.op_type == "FakeQuantize" or integers == 6:  # TensorProto.INT32
            raise ModelError(
                f"half precision around INT8 was wanted, and node {node.name} ({node.op_type}) is written for another "
                'engine: quantize the model in the dialect "tensorrt"'
            )
