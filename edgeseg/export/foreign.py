"""Any plain network graph, brought to what the rest of this stage expects, or refused by name.

Idempotent: a graph that edgeseg exported itself passes through unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgeseg.errors import ModelError
from edgeseg.export import graph as g
from edgeseg.export.opset import raised
from edgeseg.export.outputs import MAIN
from edgeseg.types import ModelSpec

if TYPE_CHECKING:
    import onnx

Layout = Literal["NCHW", "NHWC"]
FREE = ("batch", "height", "width")  # the names of the dimensions of a dynamic graph


def settle(proto: onnx.ModelProto, spec: ModelSpec, *, dynamic: bool, notes: list[str]) -> onnx.ModelProto:
    """One float input of three channels at the spec's size, batch 1 (`dynamic`: free), one output, opset 13 or newer.

    What was a guess is added to `notes`. Raises ModelError for a graph that is something else.
    """
    proto = raised(proto)
    layout = layout_of(proto)
    image = proto.graph.input[0]
    dims = g.shape_of(image) or [None] * 4
    spatial = (2, 3) if layout == "NCHW" else (1, 2)
    fixed = [dims[axis] for axis in spatial]
    if dynamic and any(isinstance(size, int) for size in fixed):
        raise ModelError(
            f"a dynamic graph was asked for, but this one is fixed to {_size(fixed)}: "
            "export it with dynamic axes (height, width), or build it static"
        )
    if any(isinstance(now, int) and now != asked for now, asked in zip(fixed, spec.input.size, strict=True)):
        raise ModelError(
            f"the graph takes an input of {_size(fixed)} and the spec says {_size(spec.input.size)}: "
            "set input.size in the spec, or export the graph at the other size"
        )
    batch, height, width = FREE if dynamic else (1, *spec.input.size)
    g.set_dims(image, [batch, 3, height, width] if layout == "NCHW" else [batch, height, width, 3])
    g.keep_output(proto, _scores(proto, spec, notes))
    g.forget_shapes(proto)
    return proto


def layout_of(proto: onnx.ModelProto) -> Layout:
    """Where the three channels of the graph's only input are. Raises ModelError for any other input."""
    import onnx

    inputs = list(proto.graph.input)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(f"wanted a graph with one input, the image; this one has {len(inputs)} ({names})")
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
        name = onnx.TensorProto.DataType.Name(kind)
        raise ModelError(
            f"wanted a graph of a float image, input '{inputs[0].name}' is {name}: export the network without "
            "pre-processing; edgeseg adds its own from the spec"
        )
    dims = g.shape_of(inputs[0]) or [None] * 4
    if len(dims) == 4:
        if dims[1] == 3 or (not isinstance(dims[1], int) and not isinstance(dims[3], int)):
            return "NCHW"
        if dims[3] == 3:
            return "NHWC"
        if not isinstance(dims[1], int):
            return "NCHW"
    raise ModelError(
        f"wanted an image input (N, 3, H, W) or (N, H, W, 3), '{inputs[0].name}' is "
        f"({', '.join('?' if dim is None else str(dim) for dim in dims)}): edgeseg takes colour images, three channels"
    )


def _scores(proto: onnx.ModelProto, spec: ModelSpec, notes: list[str]) -> str:
    names = [str(value.name) for value in proto.graph.output]
    index = spec.output.index
    if len(names) == 1:
        return names[0]
    if index == 0:
        chosen = next((name for name in MAIN if name in names), names[0])
        notes.append(f"of the outputs {', '.join(names)}, {chosen} is taken (output.index in the spec says otherwise)")
        return chosen
    if isinstance(index, int) and index < len(names):
        return names[index]
    if index in names:
        return str(index)
    raise ModelError(f"output.index in the spec is {index!r}, but the graph has the outputs {', '.join(names)}")


def _size(size: object) -> str:
    return " x ".join(str(part) for part in size) if isinstance(size, (list, tuple)) else str(size)
