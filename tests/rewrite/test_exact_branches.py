"""Convolutions side by side made one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.exact import branches
from tests.rewrite.nets import kinds, net, operations, unchanged

apply = branches.apply


def test_heads_become_slices_of_one() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.s(x)
        return {"a": m.a(y), "b": F.relu(m.b(y)), "c": m.c(y)}

    module = net(
        forward,
        s=nn.Conv2d(3, 8, 3),
        a=nn.Conv2d(8, 4, 3, padding=1),
        b=nn.Conv2d(8, 5, 3, padding=1, bias=False),
        c=nn.Conv2d(8, 6, 3, padding="same"),
    )
    network, changes = unchanged(module, apply)
    assert (kinds(network), operations(network).count("slice")) == (["Conv2d", "Conv2d"], 3)
    assert changes[0].layers == ("a", "b", "c")
    assert changes[0].macs_before == changes[0].macs_after == 15 * 8 * 9 * 17 * 24


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "relu": F.relu,
    "leaky": lambda x: F.leaky_relu(x, 0.2),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_concatenated_needs_no_slices(activation: str) -> None:
    act = ACTIVATIONS[activation]

    parts = {name: nn.Conv2d(3, 4, (3, 5), 2, (1, 2), 1) for name in "abc"}

    def forward(m: Any, x: Tensor) -> Any:
        # called in another order than they are concatenated in
        c, a, b = act(m.c(x)), act(m.a(x)), act(m.b(x))
        half = x[:, :, ::2, ::2]
        return m.d(torch.cat([half, a, b, c, half * 2], 1))

    module = net(forward, **parts, d=nn.Conv2d(18, 3, 1))
    network, changes = unchanged(module, apply, (20, 26))
    assert kinds(network) == ["Conv2d", "Conv2d"]
    assert len([target for target in operations(network) if "relu" in target]) == (activation != "nothing")
    assert changes[0].layers == ("a", "b", "c")


def test_a_concatenation_of_nothing_else_goes() -> None:
    module = net(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 5, 3))
    network, _ = unchanged(module, apply)
    assert (kinds(network), operations(network)) == (["Conv2d"], [])


def test_different_activations_before_the_concatenation_take_slices() -> None:
    module = net(lambda m, x: torch.cat([m.a(x).relu(), m.b(x).tanh()], 1), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 5, 3))
    network, changes = unchanged(module, apply)
    assert (kinds(network), sorted(operations(network))) == (["Conv2d"], ["cat", "relu", "slice", "slice", "tanh"])
    assert len(changes) == 1


def test_apart_in_the_concatenation_take_slices() -> None:
    module = net(
        lambda m, x: torch.cat([m.a(x), x, m.b(x)], 1), a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(3, 5, 3, padding=1)
    )
    network, _ = unchanged(module, apply)
    assert operations(network).count("slice") == 2


@pytest.mark.parametrize(
    "second",
    [
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(3, 4, 3, padding=1, stride=2),
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.Conv2d(3, 3, 3, padding=1, groups=3),
        nn.Conv2d(3, 4, 3),
    ],
    ids=str,
)
def test_different_geometries_are_left(second: nn.Conv2d) -> None:
    _, changes = unchanged(net(lambda m, x: (m.a(x), m.b(x)), a=nn.Conv2d(3, 4, 3, padding=1), b=second), apply)
    assert changes == []


def test_one_after_the_other_or_of_different_inputs_are_left() -> None:
    module = net(lambda m, x: (m.a(x), m.b(m.a(x))), a=nn.Conv2d(3, 3, 3, padding=1), b=nn.Conv2d(3, 3, 3, padding=1))
    _, changes = unchanged(module, apply)
    assert changes == []


def test_one_module_called_twice_is_left() -> None:
    module = net(lambda m, x: (m.a(x), m.b(x), m.b(x * 2)), a=nn.Conv2d(3, 3, 3), b=nn.Conv2d(3, 3, 3))
    _, changes = unchanged(module, apply)
    assert changes == []
