"""OnnxParser and its errors: what each release refuses in an ONNX graph.

Texts and codes are those of the parser's public source and, for TensorRT-RTX, of the real module (test_double.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.tensorrt.double import faults
from tests.tensorrt.double.graphs import Tensors, attribute
from tests.tensorrt.double.network import Network, report

if TYPE_CHECKING:
    import onnx

    from tests.tensorrt.double.classes import Library

# The newest ONNX operator set that is documented: onnx-tensorrt docs/operators.md of 8.5 and 10.0, NVIDIA's "ONNX Opset
# Guide" of 11. No release refuses a
# newer number as such, it reads its nodes by an older meaning; the double refuses, so that nobody relies on luck.
OPSETS = (((8,), 17), ((10,), 20), ((11,), 25))
# Operators of the standard that no release imports (the same document).
_NOT_IMPORTED = """BitShift Compress ConcatFromSequence Det DynamicQuantizeLinear Hardmax ImageDecoder MatMulInteger
ConvInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial Optional OptionalGetElement OptionalHasElement QLinearConv
QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
SequenceMap SplitToSequence StringConcat StringNormalizer StringSplit TfIdfVectorizer Unique"""
_LAYER_TYPES = "Float, Half, BFloat16, FP8, E8M0, FP4, Int4, Int8, Int64, Int32, or Bool"


@dataclass(eq=False)
class Error:
    """Behind ParserError."""

    _code: str
    text: str
    where: str
    index: int = -1
    name: str = ""
    operator: str = ""
    wrapper: Any = None

    def code(self) -> str:
        return self._code

    def desc(self) -> str:
        return self.text

    def node(self) -> int:
        return self.index

    def node_name(self) -> str:
        return self.name

    def node_operator(self) -> str:
        return self.operator

    def func(self) -> str:
        return self.where

    def file(self) -> str:
        return "ModelImporter.cpp"

    def line(self) -> int:
        return 0

    def local_function_stack(self) -> list[str]:
        return []

    def local_function_stack_size(self) -> int:
        return 0


class Parser:
    """Behind OnnxParser."""

    def __init__(self, library: Library, network: Network, logger: Any) -> None:
        self.library, self.network, self.logger = library, network, logger
        self.errors: list[Error] = []
        # NATIVE_INSTANCENORM is on by default from 10.0.
        self.flags = 1 if library.rtx or library.version >= (10,) else 0

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Error | None:
        return self.errors[index] if 0 <= index < len(self.errors) else None

    def clear_errors(self) -> None:
        self.errors.clear()

    def set_flag(self, flag: Any) -> None:
        self.flags |= 1 << flag.value

    def clear_flag(self, flag: Any) -> None:
        self.flags &= ~(1 << flag.value)

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> flag.value & 1)

    def supports_operator(self, name: str) -> bool:
        return _imported(name)

    def parse_from_file(self, model: str) -> bool:
        from pathlib import Path

        return self.parse(Path(model).read_bytes())

    def parse(self, model: bytes, path: str | None = None) -> bool:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        faults.crash("parse")
        if self.network.num_layers:
            return self._refuse(Error("INVALID_VALUE", "Parse was called with a non-empty network definition", "parse"))
        if not self.network.explicit_batch:
            return self._refuse(
                Error(
                    "INVALID_GRAPH",
                    "Assertion failed: !_importer_ctx.network()->hasImplicitBatchDimension() && "
                    '"This version of the ONNX parser only supports TensorRT INetworkDefinitions with an explicit '
                    "batch dimension. Please ensure the network was created using the EXPLICIT_BATCH "
                    'NetworkDefinitionCreationFlag."',
                    "importModel",
                )
            )
        try:
            proto = onnx.ModelProto.FromString(model)
        except DecodeError:
            return self._refuse(
                Error(
                    "MODEL_DESERIALIZE_FAILED",
                    "Assertion failed: model->ParseFromCodedStream(&codedInput): Failed to parse the ONNX model.",
                    "deserializeOnnxModel",
                )
            )
        if not proto.graph.node and not proto.graph.output:
            return True  # as the real one: nothing was wrong with it
        tensors = Tensors(proto)
        for found in refusals(proto, tensors, self.library):
            self._refuse(found)
        if self.errors:
            return False
        if any(_zero_type(node, tensors) == "UINT8" for node in proto.graph.node):
            report(
                self.library,
                self.logger,
                "WARNING",
                "TensorRT supports QuantizeLinear/DequantizeLinear with UINT8 zero_point only on DLA. "
                "Defaulting to INT8 instead.",
            )
        self.network.fill(proto, tensors)
        return True

    def _refuse(self, error: Error) -> bool:
        self.errors.append(error)
        if error.index >= 0:
            report(self.library, self.logger, "ERROR", f"While parsing node number {error.index} [{error.operator}]:")
        report(self.library, self.logger, "ERROR", f"In function {error.where}: {error.text}")
        return False


def refusals(model: onnx.ModelProto, tensors: Tensors, library: Library) -> Iterator[Error]:
    """What the parser has against a graph: every operator that it does not know, else the first thing in a node."""
    modern = library.rtx or library.version >= (10,)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    newest = 99 if library.rtx else [number for since, number in OPSETS if library.version >= since][-1]
    if opset > newest:
        yield Error(
            "UNSUPPORTED_GRAPH", f"ONNX opset {opset} is newer than {newest}, the newest documented one.", "importModel"
        )
    outputs = {value.name for value in model.graph.output}
    unknown = False
    for index, node in enumerate(model.graph.node):
        if _imported(node.op_type) and node.domain in ("", "ai.onnx"):
            continue
        unknown = True
        text = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
        if modern:
            yield _at(index, node)("INVALID_NODE", text, "checkFallbackPluginImporter")
        else:
            yield _at(index, node)("UNSUPPORTED_NODE", f"Assertion failed: {text}", "importFallbackPluginImporter")
            return
    if unknown:
        return
    for index, node in enumerate(model.graph.node):
        error = _at(index, node)
        for found in (
            *_quantizers(node, tensors, opset, library, error),
            *_bytes(node, tensors, outputs, library, error),
        ):
            yield found
            return


def _at(index: int, node: onnx.NodeProto) -> Callable[[str, str, str], Error]:
    return lambda code, text, where: Error(code, text, where, index, node.name, node.op_type)


def _quantizers(node: onnx.NodeProto, tensors: Tensors, opset: int, library: Library, error: Any) -> Iterator[Error]:
    from onnx import numpy_helper

    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    zero = tensors.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is not None and numpy_helper.to_array(zero).any():
        yield error(
            "INVALID_NODE",
            "Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported.",
            "buildZeroPointTensor" if library.rtx else "QuantDequantLinearHelper",
        )
    if _zero_type(node, tensors) == "UINT8" and not library.rtx and library.version < (10, 11):
        yield error(
            "UNSUPPORTED_NODE",
            "Assertion failed: zeroPoint data type is INT8: TensorRT only supports symmetric quantization in INT8.",
            "QuantDequantLinearHelper",
        )
    if node.op_type == "DequantizeLinear" and tensors.dtype(node.input[0]) in ("INT32", "INT64"):
        yield error(
            "INVALID_NODE",
            f"Invalid Node - {node.name}\n{node.name}: input has type Int32 but must have type FP8, Int4, or Int8.",
            "parseNode",
        )
    # ONNX gives FP16 scales from opset 19 on; TensorRT-RTX takes them below, too, which ONNX Runtime does not.
    if tensors.dtype(node.input[1]) == "HALF" and opset < 19 and not library.rtx:
        yield error(
            "INVALID_NODE",
            "Assertion failed: scale.type == FLOAT: FP16 scales need opset 19.",
            "QuantDequantLinearHelper",
        )


def _bytes(node: onnx.NodeProto, tensors: Tensors, outputs: set[str], library: Library, error: Any) -> Iterator[Error]:
    """uint8 is a type of network inputs and outputs, next to a Cast, and of nothing else."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return
    floats = ("FLOAT", "HALF")
    for name in node.input:
        if tensors.dtype(name) != "UINT8" or name in tensors.constants:
            continue
        if node.op_type != "Cast":
            yield error(
                "INVALID_NODE",
                f"Invalid Node - {node.name}\n{node.name}: first input has type UInt8 but must have type "
                f"{_LAYER_TYPES}.",
                "parseNode",
            )
        elif not library.rtx and tensors.dtype(node.output[0]) not in floats:
            yield error(
                "INVALID_NODE",
                f"Invalid Node - {node.name}\n{node.name}: uint8 conversions are only supported for {{kFLOAT, kHALF}}.",
                "parseNode",
            )
    for name in node.output:
        if tensors.dtype(name) != "UINT8":
            continue
        if name not in outputs:
            yield error(
                "UNSUPPORTED_NODE",
                "Assertion failed: legalUINT8: TensorRT does not support UINT8 types for intermediate tensors.",
                "parseNode",
            )
        elif node.op_type != "Cast" or (not library.rtx and tensors.dtype(node.input[0]) not in floats):
            yield error(
                "INVALID_NODE",
                f"Invalid Node - {node.name}\n{node.name}: uint8 conversions are only supported for {{kFLOAT, kHALF}}.",
                "parseNode",
            )


def _zero_type(node: onnx.NodeProto, tensors: Tensors) -> str:
    """The type of the integers that a Q or DQ makes or takes; "" for another node."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return ""
    if len(node.input) > 2 and node.input[2]:
        return tensors.dtype(node.input[2])
    unsigned = 2
    return "UINT8" if node.op_type == "QuantizeLinear" and attribute(node, "output_dtype", unsigned) == unsigned else ""


def _imported(operator: str) -> bool:
    from onnx import defs

    return operator not in _NOT_IMPORTED.split() and any(schema.name == operator for schema in _schemas(defs))


_known: list[Any] = []


def _schemas(defs: Any) -> list[Any]:
    if not _known:
        _known.extend(schema for schema in defs.get_all_schemas() if schema.domain == "")
    return _known
