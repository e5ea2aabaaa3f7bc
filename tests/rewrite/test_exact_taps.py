"""Taps that see nothing but padding: gone, and nothing else."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from edgeseg.rewrite.exact import taps
from edgeseg.rewrite.network import macs_of
from edgeseg.zoo.deeplab import ASPP
from tests.rewrite import nets


def kernels(network: nn.Module) -> list[tuple[int, ...]]:
    return [part.kernel_size for part in network.modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ({"kernel_size": 3, "padding": 36, "dilation": 36}, (1, 1)),
        ({"kernel_size": 3, "padding": 24, "dilation": 24}, (1, 3)),
        ({"kernel_size": 3, "padding": 19, "dilation": 19}, (1, 3)),
        ({"kernel_size": 5, "padding": 20, "dilation": 10}, (3, 5)),
        ({"kernel_size": 5, "padding": "same", "dilation": 13}, (3, 3)),
        ({"kernel_size": 3, "padding": 40, "dilation": 40, "groups": 4, "bias": False}, (1, 1)),
        ({"kernel_size": 3, "padding": 28, "dilation": 28, "stride": 2}, (1, 1)),
    ],
    ids=str,
)
def test_what_is_left_of_a_kernel(how: dict[str, Any], wanted: tuple[int, int]) -> None:
    network, changes = nets.unchanged(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, **how)), taps.apply)
    (change,) = changes
    assert kernels(network)[-1] == wanted
    sides = how["kernel_size"]
    assert change.macs_after * sides * sides == change.macs_before * wanted[0] * wanted[1]


@pytest.mark.parametrize("seed", range(30))
def test_any_layer(seed: int) -> None:
    """The same result, and no tap left at both ends that could go."""
    chance = random.Random(seed)
    size = chance.randint(3, 9), chance.randint(3, 9)
    kernel, rate = (chance.choice([1, 2, 3, 4, 5]), chance.choice([3, 5])), (chance.randint(1, 6), chance.randint(2, 9))
    least = [max(0, -((size[axis] - rate[axis] * (kernel[axis] - 1) - 1) // 2)) for axis in (0, 1)]
    padding = least[0] + chance.randint(0, 6), least[1] + chance.randint(0, 6)
    conv = nn.Conv2d(4, 8, kernel, chance.choice([1, 2]), padding, rate, chance.choice([1, 2]))
    network, changes = nets.unchanged(nn.Sequential(nn.Conv2d(3, 4, 1), conv), taps.apply, size)
    assert taps.apply(network, size) == []
    assert all(change.macs_after < change.macs_before for change in changes)


def test_the_head_of_deeplab_on_a_small_map() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.aspp = nn.Conv2d(3, 8, 1), ASPP(8, 4, (12, 24, 36))

        def forward(self, x: torch.Tensor) -> Any:
            return self.aspp(self.stem(x))

    size = (23, 30)
    network = nets.captured(nets.lively(Head()), size)
    whole = macs_of(network.float(), size)
    changes = nets.same(network.double(), taps.apply, size)
    assert [change.layers[0].split(".")[-2] for change in changes] == ["2", "3"]
    assert kernels(network).count((1, 3)) == 1
    saved = sum(change.macs_before - change.macs_after for change in changes)
    assert saved == (6 + 8) * 8 * 4 * 23 * 30 == whole - macs_of(network.float(), size)


def test_a_layer_of_two_sizes_keeps_what_either_needs() -> None:
    def run(self: Any, x: torch.Tensor) -> Any:
        return self.a(x), self.a(nn.functional.max_pool2d(x, 4))

    module = nets.net(run, a=nn.Conv2d(3, 3, 3, padding=8, dilation=8))
    _, changes = nets.unchanged(module, taps.apply, (24, 24))
    assert not changes
    _, changes = nets.unchanged(nets.net(run, a=nn.Conv2d(3, 3, 3, padding=30, dilation=30)), taps.apply, (24, 24))
    assert len(changes) == 1


def test_nothing_to_cut_and_nothing_that_may_be() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=36, dilation=36))
    _, changes = nets.unchanged(module, lambda network, size: taps.apply(network, size, only=["0"]))
    assert not changes
