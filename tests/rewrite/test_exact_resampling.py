"""Convolutions and up-sampling: 1x1 moved before it, phases at low resolution, transposed as ordinary convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.exact import phase, pointwise, transposed
from tests.rewrite.nets import captured, kinds, lively, net, operations, outputs, same, unchanged

UPS: dict[str, Callable[[Tensor], Tensor]] = {
    "nearest x2": partial(F.interpolate, scale_factor=2),
    "nearest to 45x50": partial(F.interpolate, size=(45, 50)),
    "nearest-exact": partial(F.interpolate, size=(45, 50), mode="nearest-exact"),
    "bilinear": partial(F.interpolate, scale_factor=2, mode="bilinear"),
    "bilinear, corners aligned": partial(F.interpolate, size=(45, 27), mode="bilinear", align_corners=True),
    "bicubic": partial(F.interpolate, size=(22, 60), mode="bicubic"),
    "bilinear, antialiased": partial(F.interpolate, size=(45, 50), mode="bilinear", antialias=True),
}


@pytest.mark.parametrize("up", UPS)
def test_1x1_moves_before(up: str) -> None:
    module = net(lambda m, x: m.b(UPS[up](F.relu(m.a(x)))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 1, groups=2))
    network, changes = unchanged(module, pointwise.apply)
    assert operations(network)[0] == "relu"
    assert "upsample" in operations(network)[1]
    assert list(network.graph.nodes)[-2].op == "call_function"  # the up-sampling now comes last
    assert changes[0].macs_after == 16 * 17 * 24 < changes[0].macs_before


def test_1x1_moves_before_nearest_with_what_is_pointwise() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.c(F.relu(m.b(F.leaky_relu(F.interpolate(x, scale_factor=2), 0.1))))

    module = net(forward, b=nn.Conv2d(3, 8, 1), c=nn.Conv2d(8, 4, 1, bias=False))
    network, changes = unchanged(module, pointwise.apply)
    assert operations(network) == ["leaky_relu", "relu", "upsample_nearest2d"]
    assert len(changes) == 2


def test_the_first_of_a_chain_moves_before() -> None:
    module = net(lambda m, x: m.b(F.interpolate(x, scale_factor=2)), b=nn.Conv2d(3, 4, 3, padding=1))
    network = captured(lively(module))
    chain = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.Conv2d(2, 4, 1))
    network.b = chain.double()
    changes = same(network, pointwise.apply)
    assert kinds(network) == ["Conv2d", "Sequential"]
    assert changes[0].macs_before == 6 * 38 * 52
    assert changes[0].macs_after == 6 * 19 * 26


def test_1x1_over_a_concatenation_is_split() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        low = F.relu(m.b(x))
        parts = [x, F.interpolate(low, size=(19, 26), mode="bilinear"), m.a(x), F.interpolate(low, size=(19, 26))]
        return m.c(torch.cat(parts, 1))

    module = net(forward, a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 6, 3, stride=3), c=nn.Conv2d(17, 4, 1))
    network, changes = unchanged(module, pointwise.apply)
    assert changes[0].macs_after == 4 * 5 * 19 * 26 + 2 * 4 * 6 * 6 * 8 < changes[0].macs_before
    assert operations(network).count("add") == 2


def also_read(m: Any, x: Tensor) -> Any:
    up = F.interpolate(x, scale_factor=2)
    return m.b(up) + up.mean(1, keepdim=True)


LEFT = {
    "up-sampled is needed too": net(also_read, b=nn.Conv2d(3, 4, 1)),
    "with a stride": net(lambda m, x: m.b(F.interpolate(x, scale_factor=2)), b=nn.Conv2d(3, 4, 1, stride=2)),
    "with padding": net(lambda m, x: m.b(F.interpolate(x, scale_factor=2)), b=nn.Conv2d(3, 4, 1, padding=1)),
    "3x3": net(lambda m, x: m.b(F.interpolate(x, scale_factor=2)), b=nn.Conv2d(3, 4, 3, padding=1)),
    "down-sampling": net(lambda m, x: m.b(F.interpolate(x, size=(9, 13))), b=nn.Conv2d(3, 4, 1)),
    "as large": net(lambda m, x: m.b(F.interpolate(x, size=(19, 26))), b=nn.Conv2d(3, 4, 1)),
    "after relu after bilinear": net(
        lambda m, x: m.b(F.relu(F.interpolate(x, scale_factor=2, mode="bilinear"))), b=nn.Conv2d(3, 4, 1)
    ),
    "more channels than are up-sampled": net(
        lambda m, x: m.b(torch.cat([F.interpolate(x[..., ::2, ::2], size=(19, 26)), x], 1)), b=nn.Conv2d(6, 4, 1)
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_no_1x1_after_an_up_sampling_is_left(case: str) -> None:
    _, changes = unchanged(LEFT[case], pointwise.apply)
    assert changes == []


# Phases

FORMS = {"transposed": phase.apply, "interleave": phase.interleave}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("factor", "options"),
    [
        (2, {"kernel_size": 3, "padding": 1}),
        (2, {"kernel_size": 3, "padding": 1, "groups": 2, "bias": False}),
        (2, {"kernel_size": 3, "padding": 0}),
        (2, {"kernel_size": 3, "padding": 2}),
        (2, {"kernel_size": (5, 3), "padding": (2, 1)}),
        (2, {"kernel_size": 5, "padding": 1}),
        (2, {"kernel_size": 4, "padding": (1, 3)}),
        (4, {"kernel_size": 3, "padding": 2, "dilation": 2}),
        (3, {"kernel_size": 3, "padding": 1}),
        (3, {"kernel_size": 5, "padding": 2}),
        (4, {"kernel_size": (3, 5), "padding": (1, 0)}),
        ((2, 3), {"kernel_size": 3, "padding": 1}),
        ((1, 2), {"kernel_size": 3, "padding": 1}),
    ],
    ids=str,
)
def test_phases(form: str, factor: int | tuple[int, int], options: dict[str, Any]) -> None:
    module = net(
        lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=factor)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 6, **options)
    )
    network, changes = unchanged(module, FORMS[form], (11, 14))
    assert kinds(network) == ["Conv2d", "ConvTranspose2d" if form == "transposed" else "Conv2d"]
    assert "upsample_nearest2d" not in operations(network)
    assert changes[0].macs_after < changes[0].macs_before


def test_phases_of_3x3_are_4_ninths() -> None:
    module = net(lambda m, x: m.b(F.interpolate(x, scale_factor=2)), b=nn.Conv2d(3, 6, 3, padding=1))
    _, changes = unchanged(module, phase.apply)
    assert changes[0].macs_after * 9 == changes[0].macs_before * 4


@pytest.mark.parametrize("form", FORMS)
def test_phases_against_a_loop(form: str) -> None:
    module = lively(net(lambda m, x: m.b(F.interpolate(x, scale_factor=2)), b=nn.Conv2d(3, 2, 3, padding=1)))
    conv = module.get_submodule("b")
    assert isinstance(conv, nn.Conv2d)
    network = captured(module, (4, 5))
    FORMS[form](network, (4, 5))
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        found, weight = network(x)[0], conv.weight.double()
    for row in range(8):
        for column in range(10):
            value = torch.as_tensor(conv.bias).detach().double().clone()
            for u in range(3):
                for v in range(3):
                    i, j = row + u - 1, column + v - 1
                    if 0 <= i < 8 and 0 <= j < 10:
                        value += weight[:, :, u, v] @ x[0, :, i // 2, j // 2]
            assert float((found[:, row, column] - value).abs().max()) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_phases_of_a_part_of_a_concatenation(form: str) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        low = m.a(x)
        parts = [x, F.interpolate(low, scale_factor=2), F.relu(x), F.interpolate(low, size=(20, 28))]
        return m.b(torch.cat(parts, 1))

    module = net(forward, a=nn.Conv2d(3, 5, 3, stride=2, padding=1), b=nn.Conv2d(16, 7, 3, padding=1))
    network, changes = unchanged(module, FORMS[form], (20, 28))
    second = "ConvTranspose2d" if form == "transposed" else "Conv2d"
    assert kinds(network) == ["Conv2d", "Conv2d", second, second]
    assert operations(network).count("add") == 2
    assert changes[0].macs_after < changes[0].macs_before


NO_PHASES = {
    "dilated: as many taps as before": net(
        lambda m, x: m.b(F.interpolate(x, scale_factor=2)), b=nn.Conv2d(3, 4, 3, padding=2, dilation=2)
    ),
    "22 to 45": net(lambda m, x: m.b(F.interpolate(x, size=(45, 60))), b=nn.Conv2d(3, 4, 3, padding=1)),
    "bilinear": net(lambda m, x: m.b(F.interpolate(x, scale_factor=2, mode="bilinear")), b=nn.Conv2d(3, 4, 3)),
    "with a stride": net(lambda m, x: m.b(F.interpolate(x, scale_factor=2)), b=nn.Conv2d(3, 4, 3, stride=2)),
    "reflected": net(
        lambda m, x: m.b(F.interpolate(x, scale_factor=2)), b=nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    ),
    "more padding than window": net(
        lambda m, x: m.b(F.interpolate(x, scale_factor=2)), b=nn.Conv2d(3, 4, 3, padding=3)
    ),
    "groups over a concatenation": net(
        lambda m, x: m.b(F.interpolate(torch.cat([x, x.flip(2)], 1), scale_factor=1) + torch.cat([x, x], 1)),
        b=nn.Conv2d(6, 4, 3, groups=2),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", NO_PHASES)
def test_no_phases_where_they_are_not_exact_or_save_nothing(case: str, form: str) -> None:
    _, changes = unchanged(NO_PHASES[case], FORMS[form], (22, 30))
    assert changes == []


def test_phases_of_the_named_alone() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.b(F.interpolate(m.a(F.interpolate(x, scale_factor=2)), scale_factor=2))

    module = net(forward, a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 4, 3, padding=1))
    network, changes = unchanged(module, lambda network, size: phase.apply(network, size, {"b"}))
    assert [change.layers for change in changes] == [("b",)]
    assert kinds(network) == ["Conv2d", "ConvTranspose2d"]


# Transposed convolutions

GEOMETRIES = [
    {"kernel_size": kernel, "stride": stride, "padding": padding, "output_padding": extra}
    for kernel, stride, padding, extra in [
        (2, 2, 0, 0),
        (3, 2, 1, 1),
        (3, 2, 0, 0),
        (3, 2, 1, 0),
        (4, 2, 1, 0),
        (4, 4, 0, 3),
        (1, 2, 0, 1),
        (2, 3, 1, 2),
        (5, 3, 4, 1),
        (7, 2, 3, 1),
        (8, 4, 2, 0),
        (3, 1, 1, 0),
        (4, 1, 0, 0),
        ((3, 4), (2, 1), (1, 2), (1, 0)),
        ((2, 3), (2, 3), (0, 0), (0, 1)),
    ]
]


@pytest.mark.parametrize("options", [*GEOMETRIES, {"kernel_size": 3, "dilation": 2, "padding": 1}], ids=str)
def test_transposed(options: dict[str, Any]) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.s(x)
        return m.a(y), m.b(y), m.c(y)

    module = net(
        forward,
        s=nn.Conv2d(3, 6, 1),
        a=nn.ConvTranspose2d(6, 4, **options),
        b=nn.ConvTranspose2d(6, 4, groups=2, bias=False, **options),
        c=nn.ConvTranspose2d(6, 6, groups=6, **options),
    )
    network, changes = unchanged(module, transposed.apply, (9, 12))
    assert kinds(network) == ["Conv2d"] * 4
    assert len(changes) == 3


def test_transposed_of_kernel_and_stride_2_is_1x1_of_as_many_multiplications() -> None:
    network, changes = unchanged(nn.Sequential(nn.ConvTranspose2d(3, 5, 2, 2)), transposed.apply)
    conv = network.get_submodule("0_conv")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.kernel_size, conv.out_channels, operations(network)) == ((1, 1), 20, ["pixel_shuffle"])
    assert changes[0].macs_before == changes[0].macs_after


def test_transposed_called_twice_stays_one_module() -> None:
    module = net(lambda m, x: m.a(x).mean((2, 3)) + m.a(x[:, :, 4:]).amax((2, 3)), a=nn.ConvTranspose2d(3, 5, 3, 2, 1))
    network, changes = unchanged(module, transposed.apply)
    assert (kinds(network), len(changes)) == (["Conv2d", "Conv2d"], 1)
    assert sum(isinstance(part, nn.Conv2d) for part in network.modules()) == 1


def test_transposed_with_stride_and_dilation_is_left() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(3, 5, 3, 2, dilation=2))
    network, changes = unchanged(module, transposed.apply)
    assert (kinds(network), changes) == (["ConvTranspose2d"], [])


def test_several_images_at_once_still_pass() -> None:
    module = nn.Sequential(
        nn.ConvTranspose2d(3, 5, (3, 4), (2, 3)), nn.Upsample(scale_factor=2), nn.Conv2d(5, 4, 3, padding=1)
    )
    network = captured(lively(module), (7, 9))
    transposed.apply(network, (7, 9))
    phase.interleave(network, (7, 9))
    images = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    with torch.no_grad():
        together, alone = network(images), torch.cat([network(image[None]) for image in images])
    assert bool(torch.allclose(together, alone))
    assert len(outputs(network, (7, 9))) == 2
