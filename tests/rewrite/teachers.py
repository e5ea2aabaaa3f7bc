"""Small networks as they come to be rewritten, frames for them, and what two of them differ by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.exact import exact
from edgeseg.rewrite.network import Network, capture, layers, refusal, tidy
from edgeseg.rewrite.rules import separable
from edgeseg.rewrite.values import Choice, Conv, Layer
from edgeseg.types import Torch
from tests import models

SIZE = (24, 32)


def network_of(make: Callable[[], nn.Module], size: tuple[int, int] = SIZE) -> Network:
    """Captured, with batch norms folded."""
    network = capture(Torch(models.seeded(make), "pickle"), size).network
    exact(network, size)
    tidy(network)
    return network


@cache
def unet() -> Network:
    """Not to be changed: all tests share it."""
    return network_of(models.UNet)


def images(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> list[Tensor]:
    """float32 (1, 3, H, W)."""
    return [image[None] for image in models.image(models.frames(count, size, seed))]


def rewritable(network: Network, size: tuple[int, int] = SIZE) -> list[Layer]:
    found: list[Layer] = []
    for layer in layers(network, size):
        module = network.get_submodule(layer.name)
        assert isinstance(module, nn.Conv2d)
        if refusal(module) is None:
            found.append(layer)
    return found


def separated(conv: Conv, filters: int) -> Choice:
    """Depthwise separable with so many filters a channel; as many as taps are the layer itself."""
    pieces = (separable._depthwise(conv, filters), separable._pointwise(conv, filters))
    return Choice("separable", (filters,), pieces)


def scores(network: Network, image: Tensor) -> Tensor:
    return torch.as_tensor(network(image))


def even(layers_: Sequence[Layer]) -> dict[str, Tensor]:
    """All outputs matter alike."""
    return {layer.name: torch.ones(layer.conv.outputs, dtype=torch.float64) for layer in layers_}


@torch.no_grad()
def divergence(teacher: Network, student: Network, frames: Sequence[Tensor]) -> float:
    """KL(teacher, student) in nats a pixel."""
    total = 0.0
    for image in frames:
        wanted, given = scores(teacher, image).log_softmax(1), scores(student, image).log_softmax(1)
        total += float(F.kl_div(given, wanted, log_target=True, reduction="none").sum(1).mean())
    return total / len(frames)


@torch.no_grad()
def difference(teacher: Network, student: Network, frames: Sequence[Tensor]) -> float:
    """Of the scores, as a fraction of their variance."""
    off = sum(float((scores(teacher, image) - scores(student, image)).square().sum()) for image in frames)
    whole = torch.cat([scores(teacher, image) for image in frames])
    return off / float((whole - whole.mean((0, 2, 3), keepdim=True)).square().sum())


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
