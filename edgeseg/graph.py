"""An ONNX graph that can be asked who makes a tensor and who reads it, and that can be rewired.

For the writers of Q/DQ and FakeQuantize, and to cut a graph. Works on a copy: the model given stays as it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
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
        names: set[str] = set()
        for node in self.model.graph.node:  # foreign graphs need not name their nodes, nor name them apart
            if not node.name or node.name in names:
                node.name = f"{node.op_type}/{node.output[0]}"
            names.add(node.name)
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

        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)  # ascontiguousarray has no scalars
        self.model.graph.initializer.append(tensor)
        self._weights[name] = self.model.graph.initializer[-1]
        return name

    def replace_constant(self, name: str, value: NDArray[Any]) -> None:
        """Give an initializer another value."""
        from onnx import numpy_helper

        self._weights[name].CopyFrom(numpy_helper.from_array(value, name))

    def upto(self, tensor: str) -> bytes:
        """The model that computes this tensor, float32, and nothing else."""
        import onnx

        needed: set[int] = set()
        pending = [tensor]
        while pending:
            node = self._producer.get(pending.pop())
            if node is not None and id(node) not in needed:
                needed.add(id(node))
                pending.extend(_reads([node]))
        nodes = [node for node in self.model.graph.node if id(node) in needed]
        read = set(_reads(nodes))
        kept = onnx.GraphProto(name=self.model.graph.name)
        kept.node.extend(nodes)
        kept.input.extend(self.model.graph.input)
        kept.initializer.extend(weights for weights in self.model.graph.initializer if weights.name in read)
        kept.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, [*"nchw"]))
        model = onnx.ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import, graph=kept)
        serialized: bytes = model.SerializeToString()
        return serialized

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
        read = set(_reads(graph.node)) | self.outputs
        used = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in read]
        del graph.node[:]
        graph.node.extend(used)
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.value_info[:]
        self._index()
        serialized: bytes = self.model.SerializeToString()
        return serialized


def _reads(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """What nodes read, those inside the branches of an If or the body of a Loop included."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _reads(inner.node)
                yield from (output.name for output in inner.output)
