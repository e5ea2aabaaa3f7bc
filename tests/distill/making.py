"""Small networks as torch.fx graphs, and frames, for the tests of recovery."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeseg.types import Pixels

SIZE = (16, 24)


class Net(nn.Module):
    """Chains of convolutions, a skip, one convolution used twice, and a head at half the size."""

    def __init__(self, classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.deep = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.Conv2d(width, width, 1)
        )
        self.twice = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.head = nn.Conv2d(2 * width, classes, 1)
        self.order: Tensor
        self.register_buffer("order", torch.arange(width))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        y = functional.relu(self.deep(functional.max_pool2d(x, 2)))
        y = functional.relu(self.twice(functional.relu(self.twice(y))))
        y = y.index_select(1, self.order)
        y = functional.interpolate(y, size=SIZE, mode="nearest")
        return self.head(torch.cat([x, y], 1))  # type: ignore[no-any-return]


class Leaves(fx.Tracer):
    """Chains stay one module, as a rewrite puts them into a graph."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Sequential) or super().is_leaf_module(m, module_qualified_name)


def graph(module: nn.Module) -> fx.GraphModule:
    traced = fx.GraphModule(module, Leaves().trace(module)).eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(False)
    return traced


def teacher(classes: int = 3, seed: int = 0) -> fx.GraphModule:
    torch.manual_seed(seed)
    made = Net(classes)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return graph(made)


def damaged(network: fx.GraphModule, amount: float = 0.4, seed: int = 1) -> fx.GraphModule:
    """A copy with noise on all kernels but the head's."""
    generator = torch.Generator().manual_seed(seed)
    student = copy.deepcopy(network)
    with torch.no_grad():
        for name, value in student.named_parameters():
            if value.ndim > 1 and not name.startswith("head"):
                value.add_(torch.randn(value.shape, generator=generator) * value.std() * amount)
    return student


def frames(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> list[Pixels]:
    """Smooth random colours: something to tell apart in each."""
    numbers = np.random.default_rng(seed)
    coarse = torch.from_numpy(numbers.integers(0, 256, (count, 3, 4, 6))).float()
    fine = functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255).to(torch.uint8)
    return [np.ascontiguousarray(frame) for frame in fine.movedim(1, 3).numpy()]


def prepare(batch: Tensor) -> Tensor:
    assert batch.dtype == torch.uint8
    return batch.movedim(3, 1).float() / 127.5 - 1
