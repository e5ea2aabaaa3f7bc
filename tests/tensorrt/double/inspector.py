"""EngineInspector: the layers that an ONNX graph becomes, and how each release writes them down.

Fusion is the least that shows: Q/DQ and an activation go into their convolution, and what changes precision between
two layers is a reformat. Keys as NVIDIA documents them: "Format/Datatype" up to 10, "Format" and "DataType" from 11.0,
"Metadata" from 8.6.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.tensorrt.double import faults
from tests.tensorrt.double.graphs import Tensors, producers

if TYPE_CHECKING:
    import onnx

    from tests.tensorrt.double.classes import Library
    from tests.tensorrt.double.plan import Plan

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_WORDS = {"INT8": "Int8", "HALF": "FP16", "FLOAT": "FP32", "BF16": "BF16", "UINT8": "UInt8", "INT32": "Int32"}
_SHORT = {"INT8": "Int8", "HALF": "Half", "FLOAT": "Float", "BF16": "BFloat16", "UINT8": "UInt8", "INT32": "Int32"}


@dataclass(frozen=True)
class Row:
    """One layer of a built engine."""

    name: str
    kind: str
    operation: str  # "ParameterType"
    nodes: tuple[str, ...]
    computes: str  # the member of DataType that it computes in
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]  # name, DataType, lengths
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    weights: int = 0


class Inspector:
    """Behind EngineInspector."""

    def __init__(self, library: Library, plan: Plan) -> None:
        self.library, self.plan = library, plan
        self.execution_context: Any = None

    def get_engine_information(self, layer_format: Any) -> str:
        rows = [self._told(row) for row in layers_of(self.plan)]
        if layer_format.name == "JSON":
            model = _tensors(self.plan)
            bindings = [*model.inputs, *(value.name for value in _model(self.plan).graph.output)]
            return json.dumps({"Layers": rows, "Bindings": bindings}, indent=1)
        names = [row if isinstance(row, str) else row["Name"] for row in rows]
        return "Layers:\n" + "\n".join(map(str, names)) + "\n"

    def get_layer_information(self, layer_index: int, layer_format: Any) -> str:
        rows = layers_of(self.plan)
        if not 0 <= layer_index < len(rows):
            return ""
        told = self._told(rows[layer_index])
        return json.dumps(told) if layer_format.name == "JSON" else str(told)

    def _told(self, row: Row) -> str | dict[str, Any]:
        if self.plan.verbosity != "DETAILED":
            return row.name if self.plan.verbosity == "LAYER_NAMES_ONLY" else ""
        version = self.library.version
        told: dict[str, Any] = {
            "Name": row.name,
            "LayerType": row.kind,
            "Inputs": [self._tensor(*tensor) for tensor in row.inputs],
            "Outputs": [self._tensor(*tensor) for tensor in row.outputs],
            "ParameterType": row.operation,
            "TacticName": f"double_{_WORDS[row.computes].lower()}_tactic",
        }
        if row.operation == "Convolution":
            told["Weights"] = {"Type": _SHORT[row.computes], "Count": row.weights}
        if self.library.rtx or version >= (8, 6):
            told["Metadata"] = "\x1e".join(f"[ONNX Layer: {node}]" for node in row.nodes)
        return told

    def _tensor(self, name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
        told: dict[str, Any] = {"Name": name, "Location": "Device", "Dimensions": list(shape)}
        if self.library.rtx or self.library.version >= (11,):
            told["Format"], told["DataType"] = "Row major linear", _SHORT.get(dtype, dtype.title())
        elif self.library.version >= (10, 9):
            told["Format/Datatype"] = _SHORT.get(dtype, dtype.title())
        else:
            told["Format/Datatype"] = f"Row major linear {_WORDS.get(dtype, dtype.title())} format"
        return told


@lru_cache(maxsize=8)
def layers_of(plan: Plan) -> tuple[Row, ...]:
    return tuple(_rows(plan))


def _model(plan: Plan) -> onnx.ModelProto:
    import onnx

    model: onnx.ModelProto = onnx.ModelProto.FromString(plan.graph)
    return model


@lru_cache(maxsize=8)
def _tensors(plan: Plan) -> Tensors:
    return Tensors(_model(plan))


def _rows(plan: Plan) -> list[Row]:
    model, tensors = _model(plan), _tensors(plan)
    made = producers(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    inside: set[str] = set()  # outputs of nodes that went into another layer
    rows = []

    def tensor(name: str, dtype: str = "") -> tuple[str, str, tuple[int, ...]]:
        shape, own = tensors.of(name)
        return name, dtype or own, shape

    for node in model.graph.node:
        if node.output[0] in inside or node.op_type == "Constant":
            continue
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if node.input[0] not in tensors.constants:  # a change of precision that no neighbour took in
                kind = "INT8" if node.op_type == "QuantizeLinear" else tensors.dtype(node.output[0])
                rows.append(
                    Row(
                        node.name,
                        "Reformat",
                        "Reformat",
                        (node.name,),
                        kind,
                        (tensor(node.input[0]),),
                        (tensor(node.output[0], kind),),
                    )
                )
            continue
        behind = [made[name] for name in node.input if name in made and made[name].op_type == "DequantizeLinear"]
        taken_in = {name for dq in behind for name in dq.output}
        rows = [row for row in rows if row.outputs[0][0] not in taken_in]
        computes = _computes(plan, node, tensors, quantized=len(behind) > 1 and node.op_type in _CONVOLUTIONS)
        fused, last = [node], node
        if node.op_type in _CONVOLUTIONS:
            after = readers.get(node.output[0], [])
            if len(after) == 1 and after[0].op_type in ("Relu", "Clip", "LeakyRelu"):
                last = after[0]
                fused.append(last)
                inside.add(last.output[0])
        source = behind[0].input[0] if behind and computes == "INT8" else node.input[0] if node.input else ""
        names = [*(dq.name for dq in behind), *(n.name for n in fused)]
        moving = (
            [(tensor(source, computes if computes == "INT8" else _carried(plan, tensors, source, computes)))]
            if source in tensors.names()
            else []
        )
        weights = node.input[1] if node.op_type in _CONVOLUTIONS else ""
        origin = made[weights].input[0] if weights in made else weights
        constant = tensors.constant(origin)
        rows.append(
            Row(
                " + ".join(names) if node.op_type in _CONVOLUTIONS else node.name,
                *_kinds(node),
                tuple(names),
                computes,
                tuple(moving),
                (tensor(last.output[0], _carried(plan, tensors, last.output[0], computes)),),
                int(np.prod(constant.dims, dtype=np.int64)) if constant is not None else 0,
            )
        )
    return rows


def _kinds(node: onnx.NodeProto) -> tuple[str, str]:
    if node.op_type in _CONVOLUTIONS:
        return ("CaskConvolution" if node.op_type == "Conv" else "CaskDeconvolutionV2"), "Convolution"
    named = {
        "Resize": "Resize",
        "ArgMax": "TopK",
        "Concat": "Concatenation",
        "MaxPool": "Pooling",
        "Softmax": "SoftMax",
    }
    if node.op_type == "Cast":
        return "Reformat", "Reformat"
    return named.get(node.op_type, "PointWiseV2"), named.get(node.op_type, "PointWise")


def _computes(plan: Plan, node: onnx.NodeProto, tensors: Tensors, *, quantized: bool) -> str:
    if faults.asked("PRECISION") == "fp32":
        return "FLOAT"
    if quantized and (plan.strongly_typed or "INT8" in plan.flags):
        return "INT8"
    if node.name in plan.precisions and "OBEY_PRECISION_CONSTRAINTS" in plan.flags:
        return plan.precisions[node.name]
    own = tensors.dtype(node.input[0]) if node.input else "FLOAT"
    if own == "FLOAT" and not plan.strongly_typed and "FP16" in plan.flags:
        return "HALF"
    return own if own in _WORDS else "INT32"


def _carried(plan: Plan, tensors: Tensors, name: str, computes: str) -> str:
    """The type of a tensor next to a layer: floats as the layer computes, others as they are."""
    own = tensors.dtype(name)
    return ("HALF" if computes == "HALF" else own) if own in ("FLOAT", "HALF") else own
