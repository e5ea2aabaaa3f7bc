"""Which nodes of a graph put values to the places that indices of max-pooling name, and what was pooled there.

MaxUnpool of ONNX, and the scatters that torch's exporters write for max_unpool2d. For unpool.py, which rewrites them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.export.graph import attribute
from edgeseg.graph import Graph

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

REAL = {1: np.float32, 10: np.float16}  # of TensorProto.DataType
_MOST_POSITIONS = 64  # of a window: each is a slice and a comparison
# Operators that leave the elements in their order, and only count them otherwise.
_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity"}


class NoFit(Exception):
    """Why an unpooling stays as it is."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A max-pooling of windows side by side."""

    source: str  # what it pools
    shape: Shape  # of that: (N, C, H, W)
    kernel: tuple[int, int]
    kind: int  # of its elements, of TensorProto.DataType

    @property
    def planes(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def small(self) -> Shape:
        """The shape of what it gives."""
        return (*self.shape[:2], self.shape[2] // self.kernel[0], self.shape[3] // self.kernel[1])


@dataclass(frozen=True, slots=True)
class Scatter:
    """Values put among zeros by indices. `flat`: the indices count over all planes, and not in each from 0."""

    values: str
    indices: str
    output: str
    shape: Shape  # of the output, (N, C, H, W)
    flat: bool


class Indices:
    """A graph that is asked for its indices of max-pooling."""

    def __init__(self, graph: Graph) -> None:
        import onnx

        self.graph = graph
        proto = graph.model
        self.shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
        self._kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            tensor = value.type.tensor_type
            self._kinds[value.name] = tensor.elem_type
            if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                self.shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)

    def scatter(self, node: onnx.NodeProto) -> Scatter | None:
        """What the node scatters, if it does that by indices of max-pooling; None otherwise.

        Raises NoFit where it does so among something else than zeros, or in a way that is not known.
        """
        if node.op_type not in ("MaxUnpool", "ScatterND", "ScatterElements") or not self._from_pooling(node.input[1]):
            return None
        if node.op_type == "MaxUnpool":
            if (small := self.shapes.get(node.input[1])) is not None:
                self.shapes.setdefault(node.input[0], small)  # behind another MaxUnpool onnx infers nothing
            return Scatter(node.input[0], node.input[1], node.output[0], self._enlarged(node), flat=True)
        zeros, indices, values = node.input
        data = self.shapes.get(zeros, ())
        shape, output = self._read_as(node.output[0])
        if not data:
            raise NoFit("its sizes are not fixed")
        if not self._zeros(zeros) or attribute(node, "reduction", b"none") != b"none":
            raise NoFit("what it puts values to is not known to be zeros")
        if node.op_type == "ScatterND":
            flat = self.shapes.get(indices, ())[-1:] == (1,)
            known = len(data) == 1 and flat
        else:
            axis = attribute(node, "axis", 0) % max(len(data), 1)
            flat = len(data) == 1
            in_planes = data[:2] == shape[:2] == self.shapes.get(indices, ())[:2] and len(data) == 3 and axis == 2
            known = flat or in_planes
        if not known:
            raise NoFit("its indices count along an axis that is not known")
        return Scatter(values, indices, output, shape, flat)

    def _zeros(self, tensor: str) -> bool:
        """Whether nothing but zeros is in a tensor, also where exporters compute it from one."""
        from onnx import numpy_helper

        while (value := self.graph.constant(tensor)) is None:
            node = self.graph.producer(tensor)
            if node is not None and node.op_type == "ConstantOfShape":
                return not any(numpy_helper.to_array(attr.t).any() for attr in node.attribute)
            if node is None or node.op_type not in _VIEWS | {"Expand", "Cast", "CastLike"}:
                return False
            tensor = node.input[0]
        return not value.any()

    def _from_pooling(self, tensor: str) -> bool:
        """Whether the tensor is computed from indices of max-pooling."""
        pending = [tensor]
        while pending:
            tensor = pending.pop()
            node = self.graph.producer(tensor)
            if node is None:
                continue
            if node.op_type == "MaxPool" and tensor in node.output[1:]:
                return True
            if node.op_type in _VIEWS | {"Add", "Sub", "Cast", "Concat", "Slice", "Gather", "Transpose"}:
                pending += node.input
        return False

    def _enlarged(self, node: onnx.NodeProto) -> Shape:
        """The output shape of a MaxUnpool; () if unknown."""
        if len(node.input) > 2 and node.input[2]:
            wanted = self.graph.constant(node.input[2])
            return () if wanted is None else tuple(int(size) for size in wanted)
        shape, kernel = self.shapes.get(node.input[1], ()), attribute(node, "kernel_shape", [])
        if len(shape) != 4 or len(kernel) != 2:
            return ()
        strides, pads = attribute(node, "strides", [1, 1]), attribute(node, "pads", [0] * 4)
        return *shape[:2], *((shape[2 + i] - 1) * strides[i] + kernel[i] - pads[i] - pads[i + 2] for i in (0, 1))

    def _read_as(self, tensor: str) -> tuple[Shape, str]:
        """The shape of four dimensions that the tensor is given by its only reader, and the name of the result."""
        shape = self.shapes.get(tensor, ())
        while len(shape) != 4:
            readers = self.graph.consumers(tensor)
            if len(readers) != 1 or readers[0].op_type not in _VIEWS or tensor in self.graph.outputs:
                return (), tensor
            tensor = readers[0].output[0]
            shape = self.shapes.get(tensor, ())
        return shape, tensor

    def shaped(self, tensor: str, shape: Shape) -> str | None:
        """The tensor itself, or what it is another view of, in this shape; None if there is no such."""
        while self.shapes.get(tensor) != shape:
            node = self.graph.producer(tensor)
            if node is None or node.op_type not in _VIEWS:
                return None
            tensor = node.input[0]
        return tensor

    def _behind_views(self, tensor: str) -> str:
        while (node := self.graph.producer(tensor)) is not None and node.op_type in _VIEWS:
            tensor = node.input[0]
        return tensor

    def pool(self, tensor: str) -> tuple[Pool, int]:
        """The max-pooling whose indices a tensor holds, and how far they are apart from one plane to the next.

        ONNX counts over all planes; torch's exporter subtracts what the first position of each plane is (from a
        max-pooling with a kernel of one), and its max_unpool2d adds the first position of each plane of its result.
        Raises NoFit.
        """
        tensor = self._behind_views(tensor)
        node = self.graph.producer(tensor)
        if node is None:
            raise NoFit("its indices are not those of a max-pooling")
        if node.op_type == "MaxPool" and list(node.output).index(tensor) == 1:
            pool = self._windows(node)
            return pool, pool.shape[2] * pool.shape[3]
        if node.op_type == "Sub":
            pool, apart = self.pool(node.input[0])
            if self.shapes.get(tensor) == pool.small and self._first_positions(node.input[1]) == pool.source:
                return pool, apart - pool.shape[2] * pool.shape[3]
        if node.op_type == "Add":
            for indices, more in (node.input, reversed(node.input)):
                added = self.graph.constant(more)
                if added is None:
                    continue
                pool, apart = self.pool(indices)
                step = _step(added, pool)
                if step is not None and self.shapes.get(tensor) == pool.small:
                    return pool, apart + step
        raise NoFit("its indices are computed in a way that is not known")

    def _windows(self, node: onnx.NodeProto) -> Pool:
        kernel, shape = tuple(attribute(node, "kernel_shape", ())), self.shapes.get(node.input[0], ())
        if len(kernel) != 2:
            raise NoFit("it does not pool images")
        if len(shape) != 4:
            raise NoFit("the size of what is pooled is not fixed")
        complete = all(size % step == 0 for size, step in zip(shape[2:], kernel, strict=True))
        if tuple(attribute(node, "strides", (1, 1))) != kernel:
            raise NoFit("the windows of its max-pooling overlap, or leave gaps")
        if any(attribute(node, "pads", (0,))) or (attribute(node, "ceil_mode", 0) and not complete):
            raise NoFit("its max-pooling pads")
        if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") and not complete:
            raise NoFit("its max-pooling pads")
        if set(attribute(node, "dilations", (1,))) != {1} or attribute(node, "storage_order", 0):
            raise NoFit("its max-pooling is dilated, or counts columns first")
        kind = self._kinds.get(node.input[0], 0)
        if kind not in REAL or not 1 < kernel[0] * kernel[1] <= _MOST_POSITIONS:
            raise NoFit(f"its max-pooling is not one of floats over 2 to {_MOST_POSITIONS} positions")
        return Pool(node.input[0], shape, (kernel[0], kernel[1]), kind)

    def _first_positions(self, tensor: str) -> str | None:
        """`x`, if the tensor is the index of the first position of every plane of `x`; None otherwise."""
        cut = self.graph.producer(tensor)
        if cut is None or cut.op_type != "Slice" or len(cut.input) < 4:
            return None
        starts, ends, axes, *steps = (self.graph.constant(name) for name in cut.input[1:])
        node = self.graph.producer(cut.input[0])
        if node is None or node.op_type != "MaxPool" or cut.input[0] not in node.output[1:]:
            return None
        wanted = (([0, 0], starts), ([1, 1], ends), ([2, 3], axes), *(([1, 1], step) for step in steps))
        single = set(attribute(node, "kernel_shape", ())) == set(attribute(node, "strides", (1,))) == {1}
        if not single or any(attribute(node, "pads", (0,))) or attribute(node, "storage_order", 0):
            return None
        if any(found is None or found.tolist() != numbers for numbers, found in wanted):
            return None
        return str(node.input[0])


def _step(added: NDArray[Any], pool: Pool) -> int | None:
    """How far apart the planes are put by a constant added to indices; None for one that does something else."""
    if (1,) * (4 - added.ndim) + added.shape != (*pool.shape[:2], 1, 1):
        return None
    values = added.ravel().astype(np.int64)
    step = int(values[1]) if values.size > 1 else 0
    return step if np.array_equal(values, np.arange(values.size) * step) else None
