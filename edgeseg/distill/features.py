"""Inner values of two networks that ought to be the same: nodes of one name in both graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeseg.errors import ModelError

ACTIVATIONS = (
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "_prelu_kernel", "elu", "elu_", "celu", "selu",
    "gelu", "silu", "silu_", "mish", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "softplus", "tanh",
)  # fmt: skip


def choose(teacher: nn.Module, student: nn.Module, image: Tensor, count: int = 6) -> tuple[str, ...]:
    """Names of up to `count` activations to be matched, in the order of the graph, the last one always among them.

    Of the activations that both graphs hold under one name and that have one shape for `image` float32 (N, 3, H, W),
    those are taken after which the resolution changes, and of these a spread. Empty where one of the networks is no
    graph.
    """
    if not isinstance(teacher, fx.GraphModule) or not isinstance(student, fx.GraphModule):
        return ()
    ours, theirs = _shapes(student, image), _shapes(teacher, image)
    common = [name for name, shape in theirs.items() if ours.get(name) == shape]
    ends = [
        name
        for name, after in zip(common, [*common[1:], ""], strict=False)
        if not after or theirs[name][2:] != theirs[after][2:]
    ]
    if count < 1 or not ends:
        return ()
    if len(ends) <= count:
        return tuple(ends)
    if count == 1:
        return (ends[-1],)
    return tuple(ends[round(i * (len(ends) - 1) / (count - 1))] for i in range(count))


class _Shapes(fx.Interpreter):
    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.found: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.dim() == 4 and _is_activation(self.module, n):
            self.found[n.name] = tuple(value.shape)
        return value


def _shapes(network: fx.GraphModule, image: Tensor) -> dict[str, tuple[int, ...]]:
    interpreter = _Shapes(network)
    with torch.no_grad():
        interpreter.run(image)
    return interpreter.found


def _is_activation(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__module__ == "torch.nn.modules.activation"
    if node.op == "call_method":
        return str(node.target) in ACTIVATIONS
    schema = getattr(node.target, "_schema", None)
    name = str(schema.name if schema is not None else getattr(node.target, "__name__", ""))
    return node.op == "call_function" and name.removeprefix("aten::") in ACTIVATIONS


def tapped(network: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The network, with the same modules and weights, that returns (what it returned, the values of `names`).

    Raises ModelError if it is no graph or has no such node.
    """
    if not names:
        return _Alone(network)
    if not isinstance(network, fx.GraphModule):
        raise ModelError(f"features {', '.join(names)} can be matched in torch.fx graphs, not in a {_kind(network)}")
    graph = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    returned = graph.graph_copy(network.graph, mapped)
    nodes = {node.name: mapped[node] for node in network.graph.nodes if node in mapped}
    missing = [name for name in names if name not in nodes]
    if missing:
        raise ModelError(f"the network has no node named {', '.join(missing)}; name features that both graphs have")
    # In-place activations write into the value of the node before them, never into their own.
    graph.output((returned, tuple(nodes[name] for name in names)))
    return fx.GraphModule(network, graph, "Tapped")


class _Alone(nn.Module):
    """A network without features to be matched, called in the same way."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        return self.network(image), ()


def _kind(value: object) -> str:
    return type(value).__name__


def scores_of(returned: Any, output: int | str) -> tuple[Tensor, dict[int | str, Tensor]]:
    """The scores (N, C, H, W) among what a network returns, and its auxiliary ones by place or key.

    Auxiliary is what else has four dimensions and as many channels. Raises ModelError if there is no such output.
    """
    if isinstance(returned, Tensor):
        parts: dict[int | str, Any] = {0: returned}
        output = 0 if output == 0 or isinstance(output, str) else output
    elif isinstance(returned, dict):
        parts = dict(returned)
        if isinstance(output, int):
            output = [*parts][output] if 0 <= output < len(parts) else output
    elif isinstance(returned, tuple | list):
        parts = dict(enumerate(returned))
    else:
        raise ModelError(f"the network returns a {_kind(returned)}; a tensor, or several as tuple or dict, was wanted")
    scores = parts.get(output)
    if not isinstance(scores, Tensor) or scores.dim() != 4:
        raise ModelError(
            f"output {output!r} was wanted with scores (N, C, H, W); there are: {', '.join(map(str, parts))}"
        )
    others = {
        key: value
        for key, value in parts.items()
        if key != output and isinstance(value, Tensor) and value.dim() == 4 and value.shape[1] == scores.shape[1]
    }
    return scores, others
