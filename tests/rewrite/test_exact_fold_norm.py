"""Batch norms folded: equal before and after wherever that is possible, and left where it is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.exact import fold_norm
from edgeseg.rewrite.network import capture
from edgeseg.types import Torch
from tests.rewrite.nets import captured, kinds, lively, net, operations, same, unchanged

apply = fold_norm.apply


def plain(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2)},
        {"kernel_size": 3, "dilation": 3, "padding": 3},
        {"kernel_size": 3, "padding": "same", "groups": 4},
        {"kernel_size": 3, "padding": 1, "groups": 8},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 5, "padding": 2, "padding_mode": "circular"},
        {"kernel_size": 2, "padding": "same"},
    ],
    ids=str,
)
def test_into_the_convolution_before(options: dict[str, Any], bias: bool) -> None:
    module = plain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, bias=bias, **options), nn.BatchNorm2d(16))
    network, changes = unchanged(module, apply)
    assert kinds(network) == ["Conv2d", "Conv2d"]
    assert [change.layers for change in changes] == [("1", "2")]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_into_the_transposed_convolution_before(groups: int, bias: bool) -> None:
    up = nn.ConvTranspose2d(8, 12, (3, 4), (2, 3), (1, 0), (1, 2), groups, bias)
    network, changes = unchanged(plain(nn.Conv2d(3, 8, 1), up, nn.BatchNorm2d(12)), apply)
    assert kinds(network) == ["Conv2d", "ConvTranspose2d"]
    assert changes[0].macs_before == changes[0].macs_after == 8 * 12 // groups * 12 * 19 * 26


def test_into_the_linear_layer_before() -> None:
    module = plain(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(27, 9), nn.BatchNorm1d(9))
    network, changes = unchanged(module, apply)
    assert kinds(network) == ["Linear"]
    assert "batch_norm" not in operations(network)
    assert len(changes) == 1


def test_arithmetic_with_constants_is_folded_too() -> None:
    module = net(
        lambda m, x: 2 - (m.a(x) * m.k.weight.reshape(1, 6, 1, 1) + m.k.bias.reshape(6, 1, 1) - 0.5) / 3,
        a=nn.Conv2d(3, 6, 3, padding=1),
        k=nn.BatchNorm2d(6),
    )
    network, _ = unchanged(module, apply)
    assert kinds(network) == ["Conv2d"]
    assert operations(network) == []


def test_sums_of_two_maps_are_no_constants() -> None:
    module = net(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1))
    network, changes = unchanged(module, apply)
    assert (len(changes), operations(network)) == (0, ["add"])


def test_constants_that_widen_the_result_stay() -> None:
    module = lively(net(lambda m, x: m.a(x) * m.k, a=nn.Conv2d(3, 6, 1)))
    module.register_buffer("k", torch.rand(6, 1, 1, dtype=torch.float64))
    network = capture(Torch(module, "state_dict"), (9, 9)).network
    assert apply(network, (9, 9)) == []
    assert network(torch.zeros(1, 3, 9, 9)).dtype == torch.float64


def test_constants_that_differ_along_columns_stay() -> None:
    module = net(lambda m, x: m.a(x) * torch.arange(26.0), a=nn.Conv2d(3, 6, 1))
    network, changes = unchanged(module, apply)
    assert (len(changes), "mul" in operations(network)) == (0, True)


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "nearest": partial(F.interpolate, scale_factor=2),
    "bilinear": partial(F.interpolate, size=(31, 50), mode="bilinear"),
    "bicubic": partial(F.interpolate, size=(31, 50), mode="bicubic", align_corners=True),
    "reflect": partial(F.pad, pad=(1, 2, 3, 0), mode="reflect"),
    "replicate": partial(F.pad, pad=(1, 2, 3, 0), mode="replicate"),
    "crop": lambda x: x[..., 2:17, :20],
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "average": partial(F.avg_pool2d, kernel_size=2),
    "adaptive": partial(F.adaptive_avg_pool2d, output_size=(4, 5)),
}


@pytest.mark.parametrize("move", MOVES)
def test_across_what_commutes(move: str) -> None:
    module = net(lambda m, x: m.n(MOVES[move](m.a(x))), a=nn.Conv2d(3, 6, 3), n=nn.BatchNorm2d(6))
    network, changes = unchanged(module, apply)
    assert kinds(network) == ["Conv2d"]
    assert len(changes) == 1


STOPS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": partial(F.pad, pad=(1, 1, 1, 1)),
    "relu": F.relu,
    "padded average": partial(F.avg_pool2d, kernel_size=3, padding=1),
    "maximum": partial(F.max_pool2d, kernel_size=2),  # of factors, some are negative
    "shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
}


@pytest.mark.parametrize("stop", STOPS)
def test_not_across_what_does_not(stop: str) -> None:
    module = net(lambda m, x: m.n(STOPS[stop](m.a(x))), a=nn.Conv2d(3, 6, 3), n=nn.BatchNorm2d(6))
    network, changes = unchanged(module, apply)
    assert kinds(network) == ["Conv2d", "BatchNorm2d"]
    assert changes == []


def test_across_a_maximum_with_positive_factors() -> None:
    module = net(lambda m, x: m.n(F.max_pool2d(m.a(x), 3, 2, 1)), a=nn.Conv2d(3, 6, 3), n=nn.BatchNorm2d(6))
    lively(module)
    norm = module.get_submodule("n")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data.abs_()
    network = captured(module)
    assert len(same(network, apply)) == 1
    assert kinds(network) == ["Conv2d"]


def test_a_result_that_something_else_needs_is_left() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return cast(Tensor, F.relu(m.n(y)) + y)

    network, changes = unchanged(net(forward, a=nn.Conv2d(3, 6, 3), n=nn.BatchNorm2d(6)), apply)
    assert kinds(network) == ["Conv2d", "BatchNorm2d"]
    assert changes == []


def test_over_a_concatenation() -> None:
    module = net(
        lambda m, x: m.n(torch.cat([m.a(x), m.b(x)], 1)),
        a=nn.Conv2d(3, 4, 3, padding=1),
        b=nn.Conv2d(3, 5, 1, bias=False),
        n=nn.BatchNorm2d(9),
    )
    network, changes = unchanged(module, apply)
    assert kinds(network) == ["Conv2d", "Conv2d"]
    assert changes[0].layers == ("a", "b", "n")


def test_over_a_concatenation_of_which_only_a_part_is_a_convolution() -> None:
    module = net(
        lambda m, x: F.relu(m.n(torch.cat([F.max_pool2d(x, 2), m.a(x)], 1))),
        a=nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False),
        n=nn.BatchNorm2d(8),
    )
    network, changes = unchanged(module, apply, (20, 26))
    assert kinds(network) == ["BatchNorm2d", "Conv2d"] or kinds(network) == ["Conv2d", "BatchNorm2d"]
    assert "the rest of it kept" in changes[0].says
    assert sum(part.num_features for part in network.modules() if isinstance(part, nn.BatchNorm2d)) == 3


def test_over_a_concatenation_without_a_convolution_nothing_happens() -> None:
    module = net(lambda m, x: m.n(torch.cat([F.relu(x), x], 1)), n=nn.BatchNorm2d(6))
    network, changes = unchanged(module, apply)
    assert (kinds(network), changes) == (["BatchNorm2d"], [])


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(6, 8, 3, groups=2),
        nn.Conv2d(6, 8, (3, 1), stride=2, bias=False),
        nn.Conv2d(6, 6, 3, groups=6, dilation=2),
        nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    ],
    ids=str,
)
def test_into_the_convolution_after(reader: nn.Conv2d) -> None:
    module = net(lambda m, x: m.b(m.n(F.relu(m.a(x)))), a=nn.Conv2d(3, 6, 3), n=nn.BatchNorm2d(6), b=reader)
    network, changes = unchanged(module, apply)
    assert kinds(network) == ["Conv2d", "Conv2d"]
    assert changes[0].layers == ("b", "n")


def test_into_all_that_read_it_over_a_concatenation() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.n(F.relu(x))
        return cast(Tensor, m.b(torch.cat([x, y], 1)) + m.c(y))

    module = net(forward, n=nn.BatchNorm2d(3), b=nn.Conv2d(6, 4, 3), c=nn.Conv2d(3, 4, 3))
    network, changes = unchanged(module, apply)
    assert (kinds(network), len(changes)) == (["Conv2d", "Conv2d"], 1)


def test_not_into_a_convolution_that_pads_with_zeros() -> None:
    module = plain(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1))
    network, changes = unchanged(module, apply)
    assert (kinds(network), changes) == (["BatchNorm2d", "Conv2d"], [])


def test_that_would_indeed_be_wrong() -> None:
    """The fold that is refused above, done by hand: right inside, wrong at the border."""
    module = lively(plain(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1))).double()
    norm, conv = module.get_submodule("0"), module.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(conv, nn.Conv2d)
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    scale = norm.weight / (torch.as_tensor(norm.running_var) + norm.eps).sqrt()
    shift = norm.bias - torch.as_tensor(norm.running_mean) * scale
    bias = torch.as_tensor(conv.bias) + (conv.weight.sum((2, 3)) * shift).sum(1)
    folded = F.conv2d(x, conv.weight * scale[:, None, None], bias, padding=1)
    difference = (folded - module(x)).detach().abs()
    assert float(difference[..., 1:-1, 1:-1].max()) < 1e-12
    assert float(difference.max()) > 0.1


def test_a_factor_alone_goes_into_a_padded_convolution() -> None:
    module = net(
        lambda m, x: m.b(F.relu(x) * 0.3) + m.c(F.relu(x) * 2), b=nn.Conv2d(3, 8, 3, padding=1), c=nn.Conv2d(3, 8, 1)
    )
    network, changes = unchanged(module, apply)
    assert (len(changes), operations(network).count("mul")) == (2, 0)
    up = net(lambda m, x: m.b(F.relu(x) * 0.3), b=nn.ConvTranspose2d(3, 8, 3, 2, 1))
    network, changes = unchanged(up, apply)
    assert (len(changes), operations(network)) == (1, ["relu"])


def test_not_into_a_transposed_convolution_after_it() -> None:
    network, changes = unchanged(plain(nn.ReLU(), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 8, 2, 2)), apply)
    assert (kinds(network), changes) == (["BatchNorm2d", "ConvTranspose2d"], [])


def test_a_convolution_called_twice_with_one_norm_is_folded_once() -> None:
    module = net(
        lambda m, x: m.n(m.a(x)) - m.n(m.a(x.flip(2))).flip(2) * 2, a=nn.Conv2d(3, 4, 3, padding=1), n=nn.BatchNorm2d(4)
    )
    network, changes = unchanged(module, apply)
    assert kinds(network) == ["Conv2d", "Conv2d"]
    assert (len(changes), len([part for part in network.modules() if isinstance(part, nn.Conv2d)])) == (1, 1)


def test_a_convolution_called_twice_with_two_norms_becomes_two() -> None:
    module = net(
        lambda m, x: m.n(m.a(x)) + m.o(m.a(x.flip(2))),
        a=nn.Conv2d(3, 4, 3, padding=1),
        n=nn.BatchNorm2d(4),
        o=nn.BatchNorm2d(4),
    )
    network, changes = unchanged(module, apply)
    assert kinds(network) == ["Conv2d", "Conv2d"]
    assert (len(changes), len([part for part in network.modules() if isinstance(part, nn.Conv2d)])) == (2, 2)


def test_a_convolution_called_once_with_a_norm_and_once_without() -> None:
    module = net(lambda m, x: m.n(m.a(x)) + m.a(x.flip(2)), a=nn.Conv2d(3, 4, 3, padding=1), n=nn.BatchNorm2d(4))
    network, _ = unchanged(module, apply)
    assert kinds(network) == ["Conv2d", "Conv2d"]


def test_a_norm_called_for_two_convolutions_is_folded_into_both() -> None:
    module = net(
        lambda m, x: m.n(m.a(x)) + m.n(m.b(x)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), n=nn.BatchNorm2d(4)
    )
    network, changes = unchanged(module, apply)
    assert (kinds(network), len(changes)) == (["Conv2d", "Conv2d"], 2)


def test_norm_after_norm_and_norms_without_factors() -> None:
    module = plain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    network, changes = unchanged(module, apply)
    assert (kinds(network), len(changes)) == (["Conv2d"], 2)
    bare = nn.BatchNorm2d(3, affine=False)
    bare.running_mean = torch.tensor([0.3, -2.0, 1.0])
    network = captured(net(lambda m, x: m.n(F.relu(x)) * 3 + 1, n=bare))
    assert len(same(network, apply)) == 2
    assert (kinds(network), operations(network)) == (["BatchNorm2d"], ["relu"])


def test_only_the_named() -> None:
    module = plain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    network, changes = unchanged(module, lambda network, size: apply(network, size, {"4"}))
    assert [change.layers for change in changes] == [("3", "4")]
    assert kinds(network) == ["Conv2d", "BatchNorm2d", "Conv2d"]
