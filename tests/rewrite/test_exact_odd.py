"""Kernels of even size made odd: the same outputs, whatever stride, padding and dilation."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from edgeseg.rewrite.exact import OFFERED, odd
from tests.rewrite import nets

EVEN: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 4, "padding": 1},
    {"kernel_size": 4, "padding": 2, "stride": 2},
    {"kernel_size": 4, "padding": 1, "stride": 2},
    {"kernel_size": 4, "padding": 3, "dilation": 2},
    {"kernel_size": (2, 3), "padding": (0, 1)},
    {"kernel_size": (6, 2), "stride": (3, 1), "padding": (2, 0)},
    {"kernel_size": 2, "groups": 2, "dilation": 3, "stride": 2},
    {"kernel_size": 4, "stride": 4, "bias": False},
]


@pytest.mark.parametrize("size", [(19, 26), (24, 32)])
@pytest.mark.parametrize("how", EVEN, ids=str)
def test_even_kernels_are_odd_ones_with_zeros(how: dict[str, Any], size: tuple[int, int]) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, **how), nn.ReLU(), nn.Conv2d(6, 3, 1)
    )
    network, changes = nets.unchanged(module, odd.apply, size)
    assert len(changes) == 1
    assert changes[0].macs_after > changes[0].macs_before
    kernels = [part.kernel_size for part in network.modules() if isinstance(part, nn.Conv2d)]
    assert all(side % 2 for kernel in kernels for side in kernel)


def test_a_layer_called_twice_and_one_that_is_not_to_be_touched() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 2, padding=1), nn.Conv2d(3, 4, 4)

        def forward(self, x: Any) -> Any:
            return self.b(self.a(self.a(x).relu()))

    network, changes = nets.unchanged(Twice(), odd.apply)
    assert [change.layers for change in changes] == [("a",), ("b",)]
    assert nets.kinds(network) == ["Conv2d"] * 3
    _, changes = nets.unchanged(Twice(), lambda network, size: odd.apply(network, size, only=["b"]))
    assert [change.layers for change in changes] == [("b",)]


def test_odd_kernels_stay_and_it_is_on_offer() -> None:
    _, changes = nets.unchanged(nn.Sequential(nn.Conv2d(3, 4, (3, 5)), nn.ReLU(), nn.Conv2d(4, 3, 1)), odd.apply)
    assert not changes
    assert OFFERED["odd"] is odd.apply
