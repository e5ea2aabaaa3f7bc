"""Linear layers as convolutions."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.exact import linear
from tests.rewrite.nets import captured, kinds, lively, net, operations, outputs, unchanged

apply = linear.apply


def test_over_flattened_maps() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((3, 5)), nn.Flatten(), nn.Linear(60, 9), nn.ReLU(), nn.Linear(9, 5)
    )
    network, changes = unchanged(module, apply)
    assert kinds(network) == ["Conv2d", "Conv2d", "Conv2d"]
    first, second = (network.get_submodule(f"{name}_conv") for name in ("3", "5"))
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert (first.kernel_size, second.kernel_size) == ((3, 5), (1, 1))
    assert [(change.macs_before, change.macs_after) for change in changes] == [(540, 540), (45, 45)]


def test_the_order_of_the_flattened() -> None:
    """Against a sum written out: weights come channel by channel, each row by row."""
    module = lively(net(lambda m, x: m.a(F.adaptive_avg_pool2d(x, (2, 3)).flatten(1)), a=nn.Linear(18, 2)))
    network = captured(module)
    apply(network, (19, 26))
    conv, full = network.get_submodule("a_conv"), module.get_submodule("a")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(full, nn.Linear)
    for channel in range(3):
        for row in range(2):
            for column in range(3):
                index = channel * 6 + row * 3 + column
                assert bool((conv.weight[:, channel, row, column] == full.weight[:, index].double()).all())


def test_over_channels_moved_last() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.b(F.gelu(m.a(m.s(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return cast(Tensor, y)

    module = net(forward, s=nn.Conv2d(3, 4, 3), a=nn.Linear(4, 8), b=nn.Linear(8, 5, bias=False))
    network, changes = unchanged(module, apply)
    assert (kinds(network), operations(network)) == (["Conv2d"] * 3, ["gelu"])
    assert changes[0].macs_before == changes[0].macs_after == 32 * 17 * 24


def test_over_tokens() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.s(x)
        tokens = m.a(y.flatten(2).transpose(1, 2))
        return cast(Tensor, tokens.transpose(1, 2).reshape(y.shape[0], -1, *y.shape[2:]))

    network, changes = unchanged(net(forward, s=nn.Conv2d(3, 4, 3), a=nn.Linear(4, 8)), apply)
    assert (kinds(network), operations(network), len(changes)) == (["Conv2d"] * 2, [], 1)


def test_over_means_as_in_squeeze_and_excitation() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.s(x)
        gate = torch.sigmoid(m.b(F.relu(m.a(y.mean((2, 3))))))
        return cast(Tensor, y * gate[:, :, None, None])

    module = net(forward, s=nn.Conv2d(3, 4, 3), a=nn.Linear(4, 2), b=nn.Linear(2, 4))
    network, changes = unchanged(module, apply)
    assert (kinds(network), len(changes)) == (["Conv2d"] * 3, 2)


def test_one_layer_called_twice_stays_one() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.s(x).permute(0, 2, 3, 1)
        return cast(Tensor, m.a(torch.tanh(m.a(y))).permute(0, 3, 1, 2))

    network, changes = unchanged(net(forward, s=nn.Conv2d(3, 4, 3), a=nn.Linear(4, 4)), apply)
    assert (kinds(network), len(changes)) == (["Conv2d"] * 3, 2)
    assert sum(isinstance(part, nn.Conv2d) for part in network.modules()) == 2


def test_several_images_at_once_still_pass() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 9))
    network, _ = unchanged(module, apply)
    images = torch.randn(3, 3, 19, 26, dtype=torch.float64)
    with torch.no_grad():
        together, alone = network(images), torch.cat([network(image[None]) for image in images])
    assert bool(torch.allclose(together, alone))


def test_over_rows_it_is_left() -> None:
    """A linear layer along the columns of a map, and one over positions: neither is a convolution over channels."""
    module = net(lambda m, x: m.b(m.a(x).flatten(2)), a=nn.Linear(26, 7), b=nn.Linear(7 * 19, 5))
    network, changes = unchanged(module, apply)
    assert (kinds(network), changes) == (["Linear", "Linear"], [])


def test_two_dimensions_swapped_are_not_the_channels_moved_last() -> None:
    module = net(lambda m, x: m.a(x.permute(0, 3, 2, 1)), a=nn.Linear(3, 7))
    network, changes = unchanged(module, apply)
    assert (kinds(network), changes) == (["Linear"], [])
    assert outputs(network)[0].shape == (1, 26, 19, 7)
