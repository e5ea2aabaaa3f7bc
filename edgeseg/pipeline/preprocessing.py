"""A complete graph as it would be had its spec named another preprocessing: other constants in front, the same network.

`export.fuse` writes the preprocessing as nodes of known names, Cast → [Transpose] → [Gather] → Mul → Add. To see what
a network makes of another choice, these constants are changed; nothing is exported again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.types import FRAME, InputSpec

if TYPE_CHECKING:
    import onnx

FACTOR, SHIFT, ORDER, RECOLORED = (
    f"edgeseg/{name}" for name in ("factor", "shift", "channel_order", "frame_recolored")
)


def with_input(graph: bytes, spec: InputSpec, other: InputSpec) -> bytes:
    """The graph that `export.fuse` would have made of the same network with `other` as its input spec.

    `graph` was made by `export.fuse` with `spec`: frame uint8 (N, H, W, 3) in, mask out. Colour order, scale, mean and
    std may differ; the size and how frames are resized belong to what happens elsewhere. Raises ModelError for another
    size, or for a graph in which `export.fuse` has not written the preprocessing.
    """
    if other.size != spec.size:
        raise ModelError(
            f"a graph for frames of {spec.size} cannot become one for {other.size}: export the network again"
        )
    opened = Graph(graph)
    factor, shift = opened.constant(FACTOR), opened.constant(SHIFT)
    scaling = [node for node in opened.consumers(FACTOR) if node.op_type == "Mul"]
    if factor is None or shift is None or len(scaling) != 1 or not opened.consumers(FRAME):
        raise ModelError(
            f"the graph has no preprocessing under the names {FACTOR} and {SHIFT}: it was not made by edgeseg. "
            "Export the network again"
        )
    # as in export.fuse: (x / scale - mean) / std as one product and one sum, rounded to float32 once
    std, mean = np.array(other.std, np.float64), np.array(other.mean, np.float64)
    opened.replace_constant(FACTOR, (1.0 / (other.scale * std)).astype(np.float32).reshape(factor.shape))
    opened.replace_constant(SHIFT, (-mean / std).astype(np.float32).reshape(shift.shape))
    added = _reorder(opened, scaling[0], swapped=other.frame != other.color, axis=int(np.argmax(factor.shape)))
    return opened.finish(added)


def _reorder(graph: Graph, scaling: onnx.NodeProto, *, swapped: bool, axis: int) -> list[onnx.NodeProto]:
    """Let the channels be swapped, or not, in front of `scaling`; nodes to add."""
    from onnx import helper

    order = np.array([2, 1, 0] if swapped else [0, 1, 2], np.int64)
    if graph.constant(ORDER) is not None:
        graph.replace_constant(ORDER, order)
        return []
    if not swapped:
        return []
    before = next(tensor for tensor in scaling.input if tensor != FACTOR)
    graph.add_constant(ORDER, order)
    name = f"edgeseg/gather/{RECOLORED}"
    node = helper.make_node("Gather", [before, ORDER], [RECOLORED], name=name, axis=axis)
    graph.rewire(before, RECOLORED, [scaling])
    return [node]
