"""Through a network layer by layer instead of frame by frame: all frames reach a layer before any goes past it.

So a layer can be replaced by what fits its real inputs, which come from the layers replaced before it. What lies
between two layers is kept in memory up to a limit, beyond it in files that the system pages in and out.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from edgeseg.rewrite.network import Network

IN_MEMORY = 1 << 30  # bytes of activations; more goes to a temporary folder


class Store:
    """Keeps tensors: the first `limit` bytes in memory, the rest in files that go with the store. Use in `with`."""

    def __init__(self, limit: int = IN_MEMORY) -> None:
        self._left = limit
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def keep(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        if size <= self._left:
            self._left -= size
            return tensor
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="edgeseg-")
        self._count += 1
        file = Path(self._folder.name) / str(self._count)
        kept = torch.from_file(str(file), shared=True, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)
        kept.copy_(tensor)
        file.unlink()  # the mapping holds it; the space is free once the tensor is gone
        return kept

    def release(self, tensor: Tensor) -> None:
        """What is kept in memory and no longer needed makes room again."""
        if tensor.untyped_storage().filename is None:
            self._left += tensor.numel() * tensor.element_size()


def walk(
    network: Network, names: Sequence[str], frames: Sequence[Tensor], *, limit: int = IN_MEMORY
) -> Iterator[tuple[str, list[Tensor]]]:
    """For each named module, in the order of their first calls: its name and its inputs, one for each frame.

    The module may be replaced before the next one is asked for; what follows then sees what the new one gives.
    `frames`: float32 (1, 3, H, W). No gradients.
    """
    nodes = list(network.graph.nodes)
    last = {used: node for node in nodes for used in node.all_input_nodes}
    ends: dict[fx.Node, list[fx.Node]] = defaultdict(list)  # by node: the values that it is the last to use
    for used, node in last.items():
        ends[node].append(used)
    waiting, start = set(names), 0
    values: list[dict[fx.Node, Any]] = [{} for _ in frames]
    with Store(limit) as store, torch.no_grad():
        for at, node in enumerate(nodes):
            if node.op != "call_module" or node.target not in waiting:
                continue
            waiting.remove(node.target)
            for frame, known in zip(frames, values, strict=True):
                _advance(network, nodes[start:at], frame, known, ends, store)
            yield str(node.target), [known[node.args[0]] for known in values]
            start = at


def _advance(
    network: Network,
    nodes: Sequence[fx.Node],
    frame: Tensor,
    known: dict[fx.Node, Any],
    ends: Mapping[fx.Node, Sequence[fx.Node]],
    store: Store,
) -> None:
    """Compute `nodes` for one frame, and keep only what a later node needs."""
    kept = {node for node, value in known.items() if isinstance(value, Tensor) and node.op != "placeholder"}
    interpreter = fx.Interpreter(network, garbage_collect_values=False)
    interpreter.env = known
    for node in nodes:
        known[node] = frame if node.op == "placeholder" else interpreter.run_node(node)
        for used in ends.get(node, ()):
            value = known.pop(used)
            if used in kept:
                store.release(value)
    for node in nodes:
        if isinstance(known.get(node), Tensor) and node.op != "placeholder":
            known[node] = store.keep(known[node])
