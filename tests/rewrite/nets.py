"""Small networks to rewrite exactly, and what it takes to see that a rewrite changed nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree

from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.network import Network, capture
from edgeseg.types import Torch

SIZE = (19, 26)
Applying = Callable[[Network, tuple[int, int]], Sequence[Change]]


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of the usual scale, and batch norms whose statistics, factors and shifts are far from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            bound = (part.weight.numel() / max(part.weight.shape[:2])) ** -0.5
            part.weight.data = torch.randn(part.weight.shape, generator=generator) * bound
            if part.bias is not None:
                part.bias.data = torch.randn(part.bias.shape, generator=generator)
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator))
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) * 3 + 0.2)
            part.weight.data = torch.randn(part.weight.shape, generator=generator) + 0.5
            part.bias.data = torch.randn(part.bias.shape, generator=generator)
    return module.eval()


def captured(module: nn.Module, size: tuple[int, int] = SIZE) -> Network:
    """In float64, so that what is left of a difference is no rounding."""
    return capture(Torch(module.eval(), "state_dict"), size).network.double()


def outputs(network: nn.Module, size: tuple[int, int] = SIZE, count: int = 2) -> list[Tensor]:
    """For random images, all that is returned."""
    generator = torch.Generator().manual_seed(7)
    images = [torch.randn(1, 3, *size, generator=generator, dtype=torch.float64) for _ in range(count)]
    with torch.no_grad():
        return [part.clone() for image in images for part in _pytree.tree_leaves(network(image))]


def unchanged(
    module: nn.Module, apply: Applying, size: tuple[int, int] = SIZE, tolerance: float = 1e-9
) -> tuple[Network, Sequence[Change]]:
    """The rewritten network and its changes, after asserting that its outputs are the old ones."""
    network = captured(lively(module), size)
    return network, same(network, apply, size, tolerance)


def same(network: Network, apply: Applying, size: tuple[int, int] = SIZE, tolerance: float = 1e-9) -> Sequence[Change]:
    before = outputs(network, size)
    changes = apply(network, size)
    after = outputs(network, size)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape
        assert float(old.std()) > 0 or old.numel() == 1, "an output that is constant shows nothing"
        assert float((old - new).abs().max()) <= tolerance * float(old.abs().max())
        assert bool((old.argmax(1) == new.argmax(1)).all())
    assert all(change.says and "\n" not in change.says for change in changes)
    return changes


def kinds(network: Network) -> list[str]:
    """Names of the classes of the modules that are called, in the order of the calls."""
    nodes = [node for node in network.graph.nodes if node.op == "call_module"]
    return [type(network.get_submodule(str(node.target))).__name__ for node in nodes]


def operations(network: Network) -> list[str]:
    """Names of the ATen operations, in order."""
    return [str(node.target).split(".")[1] for node in network.graph.nodes if node.op == "call_function"]


class Function(nn.Module):
    """A network written as a function of its input and its parts."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def net(forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> nn.Module:
    return Function(forward, **parts)


class Block(nn.Module):
    """A residual block of two convolutions with norms, the first dilated."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.na = nn.BatchNorm2d(channels)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.nb = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.na(self.a(x)))
        return F.relu(x + self.nb(self.b(y)))


class Down(nn.Module):
    """A strided convolution and a pooling side by side, under one norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs - inputs, 3, stride=2, padding=1, bias=False)
        self.n = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.n(torch.cat([self.c(x), F.max_pool2d(x, 2, ceil_mode=True)], 1)))


class Up(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.n = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.n(self.c(x)))


class Residual(nn.Module):
    """A compact residual encoder and decoder with transposed convolutions, sums and crops; any size from 16."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.d1, self.d2, self.d3 = Down(3, 8), Down(8, 16), Down(16, 24)
        self.b2 = nn.Sequential(Block(16, 1), Block(16, 2))
        self.b3 = nn.Sequential(Block(24, 1), Block(24, 4))
        self.u2, self.c2 = Up(24, 16), Block(16, 1)
        self.u1, self.c1 = Up(16, 8), Block(8, 1)
        self.head = nn.ConvTranspose2d(8, classes, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        a = self.d1(x)
        b = self.b2(self.d2(a))
        y = self.u2(self.b3(self.d3(b)))[..., : b.shape[-2], : b.shape[-1]]
        y = self.u1(self.c2(y + b))[..., : a.shape[-2], : a.shape[-1]]
        return torch.as_tensor(self.head(self.c1(y + a))[..., :height, :width])


class SmallUNet(nn.Module):
    """Nearest up-sampling to the size of the skip, as in U-Nets written for any size."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

        self.e1, self.e2, self.e3 = block(3, 8), block(8, 12), block(12, 16)
        self.d2, self.d1 = block(28, 12), block(20, 8)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.e1(x)
        b = self.e2(F.max_pool2d(a, 2))
        c = self.e3(F.max_pool2d(b, 2))
        b = self.d2(torch.cat([F.interpolate(c, size=b.shape[-2:], mode="nearest"), b], 1))
        a = self.d1(torch.cat([F.interpolate(b, size=a.shape[-2:], mode="nearest"), a], 1))
        return torch.as_tensor(self.head(a))
