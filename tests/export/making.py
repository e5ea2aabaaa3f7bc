"""What the tests of this stage share: networks exported once, and a slow count of agreement."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeseg.export import Exported, fuse, to_onnx
from edgeseg.export.graph import opened
from edgeseg.types import InputSpec, Mask, ModelSpec, OnnxModel, OutputSpec, Torch
from tests import models

NAMES = tuple("abcde")
HALF = InputSpec(models.SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
SPEC = ModelSpec("tiny", HALF, OutputSpec(classes=NAMES))


@dataclass(frozen=True)
class Made:
    model: Torch
    exported: Exported
    fused: OnnxModel


def made(name: str, quick: bool = False) -> Made:
    """One of the networks of tests.models, exported and fused; the work is done once."""
    return _made(name, quick)


@functools.cache
def _made(name: str, quick: bool) -> Made:
    model = Torch(models.seeded(models.ALL[name]), "state_dict")
    exported = to_onnx(model, SPEC, quick=quick)
    return Made(model, exported, fuse(exported.graph, SPEC))


@dataclass(frozen=True)
class Count:
    pixels: int
    equal: int
    band_pixels: int
    band_equal: int


def agreement(reference: Mask, other: Mask) -> Count:
    """Pixel by pixel: in the band if any pixel within 2 rows and columns has another class."""
    height, width = reference.shape
    band = np.zeros(reference.shape, bool)
    for y in range(height):
        for x in range(width):
            around = reference[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
            band[y, x] = (around != reference[y, x]).any()
    same = reference == other
    return Count(same.size, int(same.sum()), int(band.sum()), int((same & band).sum()))


def graph_of(
    nodes: list[onnx.NodeProto],
    *,
    weights: dict[str, NDArray[Any]] | None = None,
    shape: tuple[int | str, ...] = ("n", 3, "h", "w"),
    kind: int = TensorProto.FLOAT,
    out: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
) -> bytes:
    """A foreign graph of the input "x"."""
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, out, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())


def proto_of(graph: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(graph)


def ops(graph: bytes) -> set[str]:
    return {node.op_type for node in proto_of(graph).graph.node}


def masks(model: OnnxModel, frames: NDArray[np.uint8], name: str = "mask") -> NDArray[Any]:
    return opened(model.graph)(frames)[name]


def changed(model: OnnxModel, change: Callable[[onnx.ModelProto], None]) -> OnnxModel:
    """The same model after something was done to its graph."""
    proto = proto_of(model.graph)
    change(proto)
    return OnnxModel(proto.SerializeToString(), model.spec)


def weight(proto: onnx.ModelProto, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
            return
    raise AssertionError(f"no initializer {name}")
