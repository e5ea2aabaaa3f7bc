"""What the double asks of an ONNX graph: types and lengths of its tensors, and which kind of layer a node becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

# ONNX TensorProto.DataType → DataType of TensorRT; 64-bit floats become 32-bit ones.
DTYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF", 11: "FLOAT", 16: "BF16"}
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "DepthToSpace", "SpaceToDepth")
_POINTWISE = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "And", "Or", "Equal", "Greater", "Less", "Where")
_ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Elu", "Selu", "Softplus")
_UNARY = ("Exp", "Log", "Sqrt", "Abs", "Neg", "Floor", "Ceil", "Round", "Erf", "Not", "Sign")
KINDS = {
    **dict.fromkeys(_MOVES, "SHUFFLE"),
    **dict.fromkeys(_POINTWISE, "ELEMENTWISE"),
    **dict.fromkeys(_ACTIVATIONS, "ACTIVATION"),
    **dict.fromkeys(_UNARY, "UNARY"),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), "POOLING"),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"), "REDUCE"),
    **dict.fromkeys(("MatMul", "Gemm"), "MATRIX_MULTIPLY"),
    **dict.fromkeys(("ArgMax", "ArgMin", "TopK"), "TOPK"),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization", "LayerNormalization"), "NORMALIZATION"),
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "Resize": "RESIZE",
    "Upsample": "RESIZE",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "Cast": "CAST",
    "Concat": "CONCATENATION",
    "Softmax": "SOFTMAX",
    "Slice": "SLICE",
    "Split": "SLICE",
    "Constant": "CONSTANT",
    "Gather": "GATHER",
    "BatchNormalization": "SCALE",
    "PRelu": "PARAMETRIC_RELU",
    "Shape": "SHAPE",
    "Pad": "SLICE",
}


class Tensors:
    """Types and lengths of every tensor of a graph that is not a constant, as shape inference finds them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        inferred = onnx.shape_inference.infer_shapes(_inferable(model))
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]
        self._seen: dict[str, tuple[tuple[int, ...], str]] = {}
        for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
            kind = value.type.tensor_type
            lengths = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
            self._seen[value.name] = lengths, DTYPES.get(kind.elem_type, "FLOAT")
        for name, tensor in self.constants.items():
            self._seen[name] = tuple(tensor.dims), DTYPES.get(tensor.data_type, "FLOAT")
        for node in model.graph.node:
            for name in node.output:
                if name:
                    self._seen.setdefault(name, ((), "FLOAT"))

    def names(self) -> Iterable[str]:
        return self._seen.keys()

    def of(self, name: str) -> tuple[tuple[int, ...], str]:
        return self._seen[name]

    def dtype(self, name: str) -> str:
        return self._seen[name][1] if name in self._seen else "FLOAT"

    def constant(self, name: str) -> onnx.TensorProto | None:
        return self.constants.get(name)

    def folded(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether an input is weights of the layer instead of a tensor that it reads."""
        return name in self.constants and node.op_type not in ("QuantizeLinear", "DequantizeLinear")


def _inferable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph, or as opset 19 one with FP16 scales from before that, which shape inference refuses."""
    import onnx

    half = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    early = any(entry.version < 19 for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if not early or not any(n.op_type == "DequantizeLinear" and n.input[1] in half for n in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for entry in copy.opset_import:
        entry.version = 19 if entry.domain in ("", "ai.onnx") else entry.version
    return copy


def with_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A copy of the graph whose inputs have these lengths, and whose outputs tell none."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        if value.name in shapes:
            value.type.tensor_type.ClearField("shape")
            for length in shapes[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = length
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    del copy.graph.value_info[:]
    return copy


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
