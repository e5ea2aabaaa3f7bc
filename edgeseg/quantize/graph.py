"""An ONNX graph that can be asked who makes a tensor and who reads it, and that can be rewired.

Only what the writers of Q/DQ and FakeQuantize need. Works on a copy: the model that is given stays as it was.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx


class Graph:
    """A mutable view of one ModelProto with an index of producers and consumers that is kept up to date."""

    def __init__(self, serialized: bytes) -> None:
        import onnx

        self.model: onnx.ModelProto = onnx.load_from_string(serialized)
        self._weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                tensor = onnx.TensorProto()
                tensor.CopyFrom(node.attribute[0].t)
                self._weights[node.output[0]] = tensor
        self._index()

    def _index(self) -> None:
        self._producer: dict[str, onnx.NodeProto] = {}
        self._consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            for output in node.output:
                self._producer[output] = node
            for tensor in dict.fromkeys(node.input):
                self._consumers[tensor].append(node)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """In topological order, as ONNX demands."""
        return list(self.model.graph.node)

    @property
    def outputs(self) -> set[str]:
        return {output.name for output in self.model.graph.output}

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return self._producer.get(tensor)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        return self._consumers.get(tensor, [])

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """The value of an initializer or Constant, None for a tensor that is computed."""
        from onnx import numpy_helper

        found = self._weights.get(tensor)
        return None if found is None else numpy_helper.to_array(found)

    def add_constant(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.model.graph.initializer.append(tensor)
        self._weights[name] = tensor
        return name

    def rewire(self, old: str, new: str, readers: list[onnx.NodeProto]) -> None:
        """Let these nodes read `new` wherever they read `old`."""
        for node in readers:
            for position, tensor in enumerate(node.input):
                if tensor == old:
                    node.input[position] = new

    def finish(self, added: list[onnx.NodeProto]) -> bytes:
        """The model with the nodes added, in topological order, without constants that nobody reads any more."""
        import onnx

        graph = self.model.graph
        pending = [*graph.node, *added]
        known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
        by_output = {output: node for node in pending for output in node.output}
        ordered: list[onnx.NodeProto] = []
        done: set[int] = set()
        for root in pending:
            stack = [root]
            while stack:
                node = stack[-1]
                if id(node) in done:
                    stack.pop()
                    continue
                waiting = [
                    by_output[tensor]
                    for tensor in node.input
                    if tensor not in known and id(by_output[tensor]) not in done
                ]
                if waiting:
                    stack.extend(waiting)
                    continue
                done.add(id(node))
                ordered.append(node)
                stack.pop()
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del graph.node[:]
        graph.node.extend(nodes)
        read = {tensor for node in graph.node for tensor in node.input} | self.outputs
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.value_info[:]
        self._index()
        serialized: bytes = self.model.SerializeToString()
        return serialized
