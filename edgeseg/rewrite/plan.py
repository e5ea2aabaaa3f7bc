"""What each layer could become, and what each of these would cost in accuracy: the table that a choice is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from edgeseg.rewrite.exact.pointwise import below
from edgeseg.rewrite.fisher import Scores, damage, importance
from edgeseg.rewrite.network import Network
from edgeseg.rewrite.rules import RULES
from edgeseg.rewrite.sequential import fitted
from edgeseg.rewrite.values import Choice, Conv, Layer, macs, parameters
from edgeseg.rewrite.view import View, moments_of, views_of

AT_ONCE = 1 << 29  # bytes of second moments held at a time; more layers are seen in another pass over the frames


@dataclass(frozen=True, slots=True)
class Option:
    """One row: a layer, what it may become, and what is predicted of that alone."""

    layer: Layer
    choice: Choice
    damage: float  # KL divergence from the original, nats a pixel
    unexplained: float  # share of the layer's variance, on positions held out
    macs: int  # multiplications for one image, all calls
    parameters: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All options of all layers, and how much a unit of variance at each output of each layer matters."""

    options: tuple[Option, ...]
    importance: Mapping[str, Tensor]

    def of(self, layer: Layer) -> tuple[Option, ...]:
        return tuple(option for option in self.options if option.layer == layer)


def plan(
    network: Network,
    layers: Sequence[Layer],
    frames: Sequence[Tensor],
    scores: Scores,
    *,
    rules: Sequence[str],
    align: int = 8,
    steps: int = 0,
    look: int = 8,
    seed: int = 0,
    on_layer: Callable[[], object] | None = None,
) -> Plan:
    """Fit every choice of every layer alone, and predict its damage.

    `frames`: float32 (1, 3, H, W), unlabelled; `look` of them are used for gradients. `steps` of optimisation a choice:
    the ranking needs few. `align`: ranks are multiples of it, as the target likes them.
    """
    weights = importance(network, layers, [frames[k] for k in range(min(look, len(frames)))], scores, seed=seed)
    options: list[Option] = []
    moved = below(network, (frames[0].shape[-2], frames[0].shape[-1]))
    offered = {
        layer.name: [choice for rule in rules for choice in RULES[rule].offered(layer.conv, align)] for layer in layers
    }
    views = views_of(network, layers, offered, frames, weights, seed=seed)
    for group in _groups(views):
        seen = moments_of(network, {name: views[name] for name in group}, frames, seed=seed)
        for layer in (layer for layer in layers if layer.name in group):
            fit, held = seen.pop(layer.name)
            view, matters = views[layer.name], weights[layer.name]
            for choice in offered[layer.name]:
                found = fitted(choice, view.conv, fit, view.weight, steps, matters)
                times = layer.positions / _positions(layer)
                spared = _spared(choice, layer, *moved.get(layer.name, (0.0, 0)))
                left = held.residual(found.effective)
                options.append(
                    Option(
                        layer,
                        choice,
                        damage(left, matters),
                        float(left.sum() / held.power.sum().clamp_min(1e-30)),
                        round((macs(choice.pieces, layer.size) - spared) * times),
                        parameters(choice.pieces),
                    )
                )
            if on_layer is not None:
                on_layer()
    return Plan(tuple(options), weights)


def _spared(choice: Choice, layer: Layer, share: float, most: int) -> float:
    """Operations of a first 1x1 convolution that are not needed once it is moved before the up-sampling."""
    first = choice.pieces[0]
    if not isinstance(first, Conv) or first.taps > 1 or first.groups > 1 or first.stride != (1, 1):
        return 0.0
    return share * first.parameters * prod(layer.size) if first.outputs <= most else 0.0


def _positions(layer: Layer) -> int:
    height, width = layer.conv.after(layer.size)
    return height * width


def _groups(views: Mapping[str, View]) -> list[list[str]]:
    """Names of layers whose moments fit into memory together."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, view in views.items():
        size = 2 * 8 * view.conv.depth * (view.conv.depth + view.conv.outputs)
        if groups[-1] and used + size > AT_ONCE:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups
