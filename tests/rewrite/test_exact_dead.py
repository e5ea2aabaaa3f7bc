"""Dead channels go, whatever lies between; living ones stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.exact import dead
from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.network import Network
from tests.rewrite.nets import SIZE, captured, kinds, lively, net, same

Module = nn.Conv2d | nn.ConvTranspose2d


def silence(part: nn.Module, outputs: Sequence[int], bias: float = 0.0) -> None:
    """Outputs that are the same number everywhere."""
    assert isinstance(part, Module)
    if isinstance(part, nn.ConvTranspose2d):
        part.weight.data[:, outputs] = 0
    else:
        part.weight.data[outputs] = 0
    if part.bias is not None:
        part.bias.data[outputs] = bias


def ignore(part: nn.Module, inputs: Sequence[int]) -> None:
    """Inputs that are read with zero weights."""
    assert isinstance(part, Module)
    if isinstance(part, nn.ConvTranspose2d):
        part.weight.data[inputs] = 0
    else:
        part.weight.data[:, inputs] = 0


def check(module: nn.Module, size: tuple[int, int] = SIZE) -> tuple[Network, Sequence[Change]]:
    network = captured(module, size)
    return network, same(network, dead.apply, size)


def outs(network: Network, name: str) -> int:
    part = network.get_submodule(name)
    assert isinstance(part, Module)
    assert part.weight.shape[1 if isinstance(part, nn.ConvTranspose2d) else 0] == part.out_channels
    return part.out_channels


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "max pool": partial(F.max_pool2d, kernel_size=3, stride=2, padding=1),
    "average pool": partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1),
    "bilinear": partial(F.interpolate, size=(30, 44), mode="bilinear"),
    "reflect": partial(F.pad, pad=(1, 1, 2, 2), mode="reflect"),
    "zeros": partial(F.pad, pad=(1, 1, 2, 2)),
    "crop": lambda x: x[..., 1:9, 3:],
    "relu, cat": lambda x: torch.cat([F.relu(x), x], 1)[:, :],
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("reader", ["conv", "transposed"])
def test_channels_of_zeros_go(between: str, reader: str) -> None:
    inputs = 16 if "cat" in between else 8
    b = nn.Conv2d(inputs, 4, 3, padding=1) if reader == "conv" else nn.ConvTranspose2d(inputs, 4, 3, 2)
    module = lively(net(lambda m, x: m.b(BETWEEN[between](m.a(x))), a=nn.Conv2d(3, 8, 3), b=b))
    silence(module.get_submodule("a"), [1, 4, 7])
    network, changes = check(module)
    assert outs(network, "a") == 5
    assert changes[0].macs_after < changes[0].macs_before
    assert changes[0].layers == ("a", "b")
    assert "3 of 8" in changes[0].says


def test_channels_that_nothing_reads_go() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = F.relu(m.a(x))
        return m.b(torch.cat([x, y], 1)), m.c(F.max_pool2d(y, 2))

    module = net(
        forward,
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(11, 4, 3, padding=1),
        c=nn.ConvTranspose2d(8, 4, 2, 2),
    )
    lively(module)
    ignore(module.get_submodule("b"), [0, 3, 4, 5])  # of which 0 is the image's, and 3 is channel 0 of a
    ignore(module.get_submodule("c"), [1, 2, 3])
    network, changes = check(module)
    assert outs(network, "a") == 6
    assert changes[0].layers == ("a", "b", "c")


def test_nothing_is_taken_that_one_of_two_needs() -> None:
    module = net(
        lambda m, x: m.b(m.a(x)) + m.c(m.a(x).relu()),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 4, 1),
        c=nn.Conv2d(8, 4, 1),
    )
    lively(module)
    ignore(module.get_submodule("b"), [0, 1])
    ignore(module.get_submodule("c"), [2, 3])
    assert check(module)[1] == []


def test_transposed_convolutions_are_narrowed() -> None:
    module = lively(net(lambda m, x: m.b(m.a(x).relu()), a=nn.ConvTranspose2d(3, 8, 3, 2), b=nn.Conv2d(8, 4, 3)))
    silence(module.get_submodule("a"), [0, 5], bias=-1.0)
    network, _ = check(module)
    assert outs(network, "a") == 6


@pytest.mark.parametrize(("padding", "left"), [(0, 6), (1, 8)])
def test_constant_channels_go_into_the_bias_unless_it_pads(padding: int, left: int) -> None:
    module = net(
        lambda m, x: m.b(F.relu(m.a(x))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 3, padding=padding, bias=False)
    )
    silence(lively(module).get_submodule("a"), [2, 3], bias=1.5)
    network, changes = check(module)
    assert outs(network, "a") == left
    assert len(changes) == (left < 8)


def test_a_constant_that_is_padded_with_zeros_is_none() -> None:
    module = net(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 3))
    silence(lively(module).get_submodule("a"), [2, 3], bias=1.5)
    assert check(module)[1] == []
    module = net(lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 2, 1)), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 3))
    silence(lively(module).get_submodule("a"), [2, 3], bias=1.5)
    assert check(module)[1] == []


def test_negative_constants_are_zero_behind_relu() -> None:
    module = net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 3, padding=1))
    silence(lively(module).get_submodule("a"), [2, 3], bias=-1.5)
    assert outs(check(module)[0], "a") == 6


def test_norms_and_depthwise_convolutions_between_are_narrowed() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.b(F.relu(m.n(m.d(m.a(x)))))

    module = net(
        forward,
        a=nn.Conv2d(3, 8, 1, bias=False),
        d=nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        n=nn.BatchNorm2d(8),
        b=nn.Conv2d(8, 4, 3),
    )
    silence(lively(module).get_submodule("a"), [0, 6])
    network, changes = check(module)
    depthwise, norm = network.get_submodule("d"), network.get_submodule("n")
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert (outs(network, "a"), depthwise.groups, norm.num_features) == (6, 6, 6)
    assert changes[0].layers == ("a", "d", "n", "b")


def test_dead_channels_die_through_several_layers() -> None:
    parts = {name: nn.Conv2d(3 if name == "a" else 8, 8, 3, padding=1) for name in "abcd"}
    module = lively(net(lambda m, x: m.d(m.c(m.b(m.a(x).relu()).relu()).relu()), **parts))
    ignore(module.get_submodule("d"), [0, 1, 2])
    weight = module.get_submodule("c").weight
    assert isinstance(weight, Tensor)
    weight.data[3:, :4] = 0  # of b's channels 0 to 3, only c's dead channels need anything
    network, changes = check(module)
    assert [outs(network, name) for name in "abcd"] == [8, 4, 5, 8]
    assert len(changes) == 2


def test_channels_that_a_slice_or_an_index_leaves_out_go() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return y[:, 2:5], y.index_select(1, m.i), m.n(y[:, 4:6])

    module = net(forward, a=nn.Conv2d(3, 8, 3), n=nn.BatchNorm2d(2))
    module.register_buffer("i", torch.tensor([6, 2]))
    network, changes = check(lively(module))
    assert outs(network, "a") == 5
    assert "3 of 8" in changes[0].says


KEPT: dict[str, Callable[[Any, Tensor], Any]] = {
    "an output": lambda m, x: m.a(x),
    "a residual sum": lambda m, x: m.b(m.a(x) + m.c(x)),
    "groups": lambda m, x: m.g(m.a(x)),
    "an order of its own": lambda m, x: m.b(F.pixel_shuffle(m.a(x).repeat(1, 4, 1, 1), 2)),
    "called twice": lambda m, x: m.b(m.a(x)) + m.b(m.a(x.flip(2))),
    "its reader called twice": lambda m, x: m.b(m.a(x)) + m.b(m.c(x)),
    "softmax": lambda m, x: m.b(m.a(x).softmax(1)),
}


@pytest.mark.parametrize("case", KEPT)
def test_channels_stay_that_cannot_be_taken_alone(case: str) -> None:
    convs = {
        "a": nn.Conv2d(3, 8, 3),
        "b": nn.Conv2d(8, 4, 3),
        "c": nn.Conv2d(3, 8, 3),
        "g": nn.Conv2d(8, 4, 3, groups=2),
    }
    module = lively(net(KEPT[case], **convs))
    silence(module.get_submodule("a"), [0, 1])
    network, changes = check(module)
    assert changes == []
    assert outs(network, "a") == 8


def test_a_branch_of_zeros_is_not_added() -> None:
    module = net(lambda m, x: m.b(x + F.relu(m.a(x))), a=nn.Conv2d(3, 3, 3, padding=1), b=nn.Conv2d(3, 4, 3))
    silence(lively(module).get_submodule("a"), [0, 1, 2], bias=-0.1)
    network, changes = check(module)
    assert (kinds(network), len(changes)) == (["Conv2d"], 1)


def test_one_channel_is_left_of_a_convolution_that_is_dead_altogether() -> None:
    module = net(
        lambda m, x: m.b(torch.cat([F.relu(m.a(x)), x], 1)), a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Conv2d(9, 4, 3)
    )
    silence(lively(module).get_submodule("a"), range(6), bias=-0.1)
    assert outs(check(module)[0], "a") == 1


def test_what_no_output_needs_goes() -> None:
    module = lively(net(lambda m, x: (m.a(x), m.b(x)), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 5, 3)))
    network = captured(module)
    end = next(node for node in network.graph.nodes if node.op == "output")
    end.args = (end.args[0][0],)
    network.recompile()
    changes = same(network, dead.apply)
    assert [(change.layers, change.macs_after) for change in changes] == [(("b",), 0)]
    assert kinds(network) == ["Conv2d"]


def test_only_the_named() -> None:
    module = lively(
        net(lambda m, x: m.c(m.b(m.a(x))), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3), c=nn.Conv2d(4, 4, 3))
    )
    silence(module.get_submodule("a"), [1])
    silence(module.get_submodule("b"), [1, 2])
    network = captured(module)
    same(network, lambda network, size: dead.apply(network, size, {"b"}))
    assert (outs(network, "a"), outs(network, "b")) == (4, 2)
