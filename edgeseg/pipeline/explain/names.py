"""From a node of the ONNX graph to the module of the source network that it came from, as far as names tell."""

from __future__ import annotations

import re

_OPERATOR = re.compile(r"^[A-Z][A-Za-z]*(_\d+)?$")
_MADE_UP = re.compile(r"^(onnx::|edgeseg/|/|val_|node_)")


def source_module(node: str, weights: str | None) -> str | None:
    """The module's name as `named_modules` gives it, from the node's scope or else from the name of its weights.

    >>> source_module("/up.0/pair/pair.3/Conv", "onnx::Conv_276")
    'up.0.pair.3'
    >>> source_module("/down.1/down.1.0/Conv_1", None), source_module("node_conv2d_1", "a.0.1.weight")
    ('down.1.0', 'a.0.1')
    >>> source_module("Conv_12", "W12") is None
    True
    """
    if weights and weights.endswith(".weight") and not _MADE_UP.match(weights):
        return weights.removesuffix(".weight")
    parts = [part for part in node.split("/") if part]
    if not node.startswith("/") or len(parts) < 2 or not _OPERATOR.match(parts[-1]):
        return None
    path: list[str] = []
    for part in parts[:-1]:  # a container's child repeats its name: /pair/pair.3
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)
