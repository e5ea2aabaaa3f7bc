"""Max-unpooling (SegNet) without indices: in comparisons, which every engine has and runs fast, in any precision.

Exporters write max-pooling with int64 indices and a scatter by them. Where windows lie side by side, the place of the
largest value of each can be read from what was pooled, position by position (x0 to x3 for a window of 2 x 2, each a
slice with a stride of two):

    place    = max(1 * (x1 > x0), 2 * (x2 > max(x0, x1)), 3 * (x3 > max(x0, x1, x2)))
    mask     = enlarged(place) == number of the position in its window
    unpooled = enlarged(values) * mask                      enlarged: each value repeated over its window

The last value that is larger than all before it is the first of the largest, which torch takes. Each window keeps
exactly one value whatever `x` was rounded to, since its positions are compared with each other and not with what
max-pooling gave, which an engine may round otherwise: comparing with that lost values in OpenVINO's INT8 with bfloat16
around it. Exact for values that are finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseg.export.graph import keep_output
from edgeseg.export.pooling import REAL, Indices, NoFit, Pool, Scatter, Shape
from edgeseg.graph import Graph

if TYPE_CHECKING:
    import onnx


def unpooled(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The graph with its max-unpoolings in comparisons, and a note for each that stays as it was, saying why.

    `proto` has one output. Taken is MaxUnpool of ONNX, and what either exporter of torch makes of max_unpool2d, where
    its indices come from a max-pooling whose windows do not overlap (stride as kernel, no padding, no dilation, no
    incomplete windows) and all sizes are known. What else reads the indices still does. A graph without max-unpooling
    comes back as it came.
    """
    if not any(node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1] for node in proto.graph.node):
        return proto, ()
    writer = _Writer(proto)
    notes = []
    for node in writer.graph.nodes:
        try:
            if (found := writer.indices.scatter(node)) is not None:
                writer.rewrite(found)
        except NoFit as why:
            notes.append(f"max-unpooling {node.name} stays a scatter by indices, which engines run slowly: {why}")
    return writer.finish() if writer.added else proto, tuple(notes)


class _Writer:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graph = Graph(proto.SerializeToString())
        self.indices = Indices(self.graph)
        self.added: list[onnx.NodeProto] = []
        self._masks: dict[tuple[str, tuple[int, int]], str] = {}

    def rewrite(self, scatter: Scatter) -> None:
        """Compute the scatter's output by comparisons. Raises NoFit."""
        pool, apart = self.indices.pool(scatter.indices)
        if len(scatter.shape) != 4:
            raise NoFit("the size of its result is not known")
        rows, columns = scatter.shape[2:]
        wanted = rows * columns if scatter.flat else 0
        whole = pool.small[2] * pool.kernel[0]
        if (scatter.shape[:2], columns) != (pool.shape[:2], pool.shape[3]) or rows < whole:
            raise NoFit(f"it gives {_size(scatter.shape)}, and {_size(pool.shape)} was pooled: values change places")
        if apart != wanted and pool.planes > 1:
            raise NoFit("its indices count otherwise than it does")
        stem = f"edgeseg/unpool/{scatter.output}"
        mask = self._mask(pool)
        values = self.indices.shaped(scatter.values, pool.small)
        if values is None:
            small = self._ints(f"{stem}/small", *pool.small)
            values = self._node("Reshape", [scatter.values, small], f"{stem}/values")
        large = self._enlarge(values, pool, f"{stem}/large")
        right, below = columns - pool.small[3] * pool.kernel[1], rows - whole
        self._take_name(scatter.output)
        if right or below:
            inner = self._node("Mul", [large, mask], f"{stem}/whole")
            self._node("Pad", [inner, self._ints(f"{stem}/pads", 0, 0, 0, 0, 0, 0, below, right)], scatter.output)
        else:
            self._node("Mul", [large, mask], scatter.output)

    def _mask(self, pool: Pool) -> str:
        """1 where the value is that a window keeps, 0 elsewhere; made once for each pooling."""
        key = (pool.source, pool.kernel)
        if key in self._masks:
            return self._masks[key]
        stem = f"edgeseg/unpool/{pool.source}/{'x'.join(map(str, pool.kernel))}"
        parts = self._positions(pool, stem)
        largest, places = parts[0], []
        for number, part in enumerate(parts[1:], 1):
            larger = self._compared("Greater", part, largest, pool, f"{stem}/larger_{number}")
            if number > 1:
                value = self.graph.add_constant(f"{stem}/{number}", np.array(number, REAL[pool.kind]))
                larger = self._node("Mul", [larger, value], f"{stem}/place_{number}")
            places.append(larger)
            if number < len(parts) - 1:
                largest = self._node("Max", [largest, part], f"{stem}/largest_{number}")
        place = self._node("Max", places, f"{stem}/place") if len(places) > 1 else places[0]
        rows, columns = (size * step for size, step in zip(pool.small[2:], pool.kernel, strict=True))
        numbers = (np.arange(rows) % pool.kernel[0])[:, None] * pool.kernel[1] + np.arange(columns) % pool.kernel[1]
        constant = self.graph.add_constant(f"{stem}/numbers", numbers[None, None].astype(REAL[pool.kind]))
        large = self._enlarge(place, pool, f"{stem}/place/large")
        self._masks[key] = self._compared("Equal", large, constant, pool, f"{stem}/mask")
        return self._masks[key]

    def _positions(self, pool: Pool, stem: str) -> list[str]:
        """What is at each position of the windows, of the shape that pooling gives, rows first."""
        ends = [size * step for size, step in zip(pool.small[2:], pool.kernel, strict=True)]
        rest = [
            self._ints(f"{stem}/ends", *ends),
            self._ints(f"{stem}/axes", 2, 3),
            self._ints(f"{stem}/steps", *pool.kernel),
        ]
        at = [(row, column) for row in range(pool.kernel[0]) for column in range(pool.kernel[1])]
        starts = [self._ints(f"{stem}/starts_{number}", *start) for number, start in enumerate(at)]
        return [
            self._node("Slice", [pool.source, start, *rest], f"{stem}/position_{number}")
            for number, start in enumerate(starts)
        ]

    def _enlarge(self, source: str, pool: Pool, output: str) -> str:
        name = f"edgeseg/unpool/by_{'x'.join(map(str, pool.kernel))}"
        if self.graph.constant(name) is None:
            self.graph.add_constant(name, np.array([1, 1, *pool.kernel], np.float32))
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self._node("Resize", [source, "", name], output, **how)

    def _compared(self, op: str, one: str, other: str, pool: Pool, output: str) -> str:
        return self._node("Cast", [self._node(op, [one, other], f"{output}/true")], output, to=pool.kind)

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.added.append(helper.make_node(op, inputs, [output], f"{output}/{op.lower()}", **attributes))
        return output

    def _ints(self, name: str, *values: int) -> str:
        return self.graph.add_constant(name, np.array(values, np.int64))

    def _take_name(self, tensor: str) -> None:
        """Let what made the tensor make it under another name: nobody reads that any more."""
        node = self.graph.producer(tensor)
        assert node is not None
        node.output[list(node.output).index(tensor)] = f"edgeseg/unpool/{tensor}/scattered"

    def finish(self) -> onnx.ModelProto:
        import onnx

        proto = onnx.load_from_string(self.graph.finish(self.added))
        keep_output(proto, proto.graph.output[0].name)
        read = {name for node in proto.graph.node for name in node.input} | {proto.graph.output[0].name}
        bodies = any(found.HasField("g") or found.graphs for node in proto.graph.node for found in node.attribute)
        for node in proto.graph.node if not bodies else ():  # a body may read them too
            if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1] not in read:
                del node.output[1:]
        return proto


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape))
