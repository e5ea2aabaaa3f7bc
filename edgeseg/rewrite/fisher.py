"""How much each output of each layer matters to the network's answer, without labels.

The labels that the network itself would draw give the Fisher information of its layers' outputs: the expected square
of the gradient of log p(label) (Martens 2020, "New insights and perspectives on the natural gradient method"). Half of
it times the variance that a rewrite leaves unexplained estimates the KL divergence that the rewrite alone would cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeseg.rewrite.network import Network
from edgeseg.rewrite.observe import watching
from edgeseg.rewrite.values import Layer

Scores = Callable[[Network, Tensor], Tensor]  # network, image (1, 3, H, W) → logits (1, C, h, w)


def importance(
    network: Network,
    layers: Sequence[Layer],
    frames: Sequence[Tensor],
    scores: Scores,
    *,
    draws: int = 2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """For each layer the weight (Co), float64, of a unit of variance at each of its outputs, in nats a pixel."""
    sums = {layer.name: torch.zeros(layer.conv.outputs, dtype=torch.float64) for layer in layers}
    generator = torch.Generator().manual_seed(seed)
    pixels = 0

    def see(name: str, _x: Tensor, y: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            sums[name].add_(gradient.square().sum((0, 2, 3)).double())

        y.register_hook(add)  # type: ignore[no-untyped-call]

    with torch.enable_grad(), watching(network, list(sums), see):
        for image in frames:
            logits = scores(network, image.clone().requires_grad_())  # so that every output has a gradient
            if logits.shape[1] == 1:
                logits = torch.cat([torch.zeros_like(logits), logits], 1)
            flat = logits.permute(0, 2, 3, 1).flatten(0, 2)
            with torch.no_grad():
                drawn = torch.multinomial(flat.softmax(1), draws, replacement=True, generator=generator)
            for k in range(draws):
                loss = F.cross_entropy(flat, drawn[:, k], reduction="sum")
                loss.backward(retain_graph=k + 1 < draws)  # type: ignore[no-untyped-call]
            pixels += draws * len(flat)
    positions = {layer.name: layer.positions for layer in layers}
    # The sum over positions, divided by how many there were, is a mean; times positions a pixel it is a sum again.
    return {name: 0.5 * total / pixels for name, total in sums.items() if positions[name]}


def factors(importance: Tensor) -> Tensor:
    """What to scale each output (Co) by, so that its squared error counts as its importance relative to the mean."""
    return relative(importance).sqrt()


def relative(importance: Tensor) -> Tensor:
    """Importance (Co) relative to its mean, within bounds: no output is given up, none rules alone."""
    return (importance / importance.mean().clamp_min(1e-30)).clamp(1e-2, 1e2)


def damage(residual: Tensor, weights: Tensor) -> float:
    """Predicted KL divergence from the original, nats a pixel, of one layer that leaves this variance (Co)."""
    return float((residual * weights).sum())
