"""Replaced layers, each tuned to what comes out behind its non-linearity: a short local optimisation, layer by layer.

Least squares treats all errors of a layer alike, also those that the ReLU behind it removes. Here all factors of a
layer's chain are tuned by gradients so that the activation behind the layer is the original's (Zhang et al. 2016,
"Accelerating very deep convolutional networks", section 3.3), on the inputs that the rewritten network really gives it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from edgeseg.rewrite.fisher import relative
from edgeseg.rewrite.network import Network
from edgeseg.rewrite.observe import outputs_at, patches, positions, size_of
from edgeseg.rewrite.values import Layer
from edgeseg.rewrite.walk import IN_MEMORY, Store, walk

aten = torch.ops.aten
ACTIVATIONS = ("relu", "relu6", "hardtanh", "leaky_relu", "elu", "silu", "hardswish", "gelu", "sigmoid", "tanh")
ROWS = 4096  # patches to tune on
ELEMENTS = 1 << 26  # of all patches together, 256 MB: fewer of a wide layer
BATCH = 512


def refined(
    teacher: Network,
    student: Network,
    layers: Sequence[Layer],
    frames: Sequence[Tensor],
    *,
    importance: Mapping[str, Tensor],
    steps: int = 60,
    learning_rate: float = 1e-3,
    seed: int = 0,
    limit: int = IN_MEMORY,
    on_layer: Callable[[], object] | None = None,
) -> Network:
    """A copy of the student whose rewritten `layers` are tuned in turn; a layer that does not gain stays as it was.

    Three quarters of the patches are tuned on, the rest decides. Layers called several times are left.
    """
    tuned = copy.deepcopy(student)
    once = [layer for layer in layers if layer.calls == 1]
    convs = {layer.name: layer.conv for layer in once}
    generator = torch.Generator().manual_seed(seed)
    with Store(limit) as store:
        wanted = outputs_at(teacher, once, frames, store.keep, seed)
        for name, inputs in walk(tuned, list(convs), frames, limit=limit):
            conv = convs[name]
            sizes = [conv.after(size_of(x)) for x in inputs]
            at = [positions(name, k, size, seed=seed) for k, size in enumerate(sizes)]
            y = torch.cat(wanted[name])
            rows = torch.randperm(len(y), generator=generator)[: min(ROWS, ELEMENTS // conv.depth)]
            windows = torch.empty(len(rows), conv.depth)
            start = 0
            for x, where in zip(inputs, at, strict=True):
                here = (rows >= start) & (rows < start + len(where))
                windows[here] = patches(x, conv, where[rows[here] - start])
                start += len(where)
            module = tuned.get_submodule(name)
            assert isinstance(module, nn.Sequential)
            _tune(
                module,
                windows.view(-1, conv.inputs, *conv.kernel),
                y[rows],
                _activation(tuned, name),
                importance[name].float(),
                steps=steps,
                learning_rate=learning_rate,
                generator=generator,
            )
            if on_layer is not None:
                on_layer()
    return tuned


def _activation(network: Network, name: str) -> Callable[[Tensor], Tensor]:
    """What is applied to the layer's output and to nothing else; the identity if that is not one simple function."""
    (node,) = (node for node in network.graph.nodes if node.op == "call_module" and node.target == name)
    users: list[fx.Node] = list(node.users)
    if len(users) == 1 and users[0].op == "call_function" and users[0].all_input_nodes == [node]:
        user = users[0]
        target = user.target
        if getattr(getattr(target, "_schema", None), "name", "").removeprefix("aten::") in ACTIVATIONS:
            return lambda y: target(y, *user.args[1:], **user.kwargs)  # type: ignore[operator]
    return lambda y: y


def _tune(
    chain: nn.Sequential,
    windows: Tensor,
    wanted: Tensor,
    activation: Callable[[Tensor], Tensor],
    importance: Tensor,
    *,
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
) -> None:
    """Adam over the chain's weights, in place, on windows (n, Ci, kh, kw) and targets (n, Co)."""
    local = copy.deepcopy(chain)
    for part in local.modules():
        if isinstance(part, nn.Conv2d):  # a window holds just what one output needs
            part.stride, part.padding, part.dilation = (1, 1), (0, 0), (1, 1)
    weight = relative(importance)
    goal = activation(wanted)

    def loss(rows: Tensor | slice) -> Tensor:
        return ((activation(local(windows[rows]).flatten(1)) - goal[rows]).square() * weight).mean()

    split = 3 * len(windows) // 4
    if not split:  # a single row, and none to decide by
        return
    with torch.enable_grad():
        parameters = [parameter.requires_grad_() for parameter in local.parameters()]
        optimiser = torch.optim.Adam(parameters, learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        with torch.no_grad():
            before = float(loss(slice(split, None)))
        for _ in range(steps):
            optimiser.zero_grad()
            loss(torch.randint(split, (BATCH,), generator=generator)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        if float(loss(slice(split, None))) < before:
            for mine, found in zip(chain.parameters(), local.parameters(), strict=True):
                mine.copy_(found)
