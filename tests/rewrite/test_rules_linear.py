"""The linear rules, against chains run by torch's own operations and kernels whose structure is known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeseg.rewrite.moments import Moments, Summing, of_weights
from edgeseg.rewrite.rules import RULES, bottleneck, separable
from edgeseg.rewrite.solve import share_of
from edgeseg.rewrite.values import Choice, Conv, Fork
from tests.rewrite.effective import effective_of, runs_like

NAMES = ("separable", "separable-forked", "bottleneck", "bottleneck-separable", "factorised")
CONVS = {
    "plain": Conv(16, 16, (3, 3), padding=(1, 1)),
    "stride": Conv(16, 24, (3, 3), (2, 2), (1, 1)),
    "uneven stride": Conv(16, 32, (3, 3), (2, 1), (0, 1)),
    "dilation": Conv(24, 16, (3, 3), padding=(2, 2), dilation=(2, 2)),
    "not square": Conv(16, 24, (3, 5), padding=(1, 2), dilation=(1, 2)),
    "valid": Conv(32, 16, (3, 3)),
    "much padding": Conv(16, 16, (3, 3), padding=(2, 2)),
    "one row": Conv(16, 16, (1, 5), padding=(0, 2)),
    "even": Conv(16, 16, (2, 4), (2, 2)),
    "colours": Conv(3, 16, (3, 3), padding=(1, 1)),
    "first, strided": Conv(3, 32, (5, 5), (2, 2), (2, 2)),
    "pointwise": Conv(64, 32, (1, 1), (2, 2)),
}
EVERY = [
    pytest.param(conv, choice, id=f"{name}, {choice.label}")
    for name, conv in CONVS.items()
    for rule in NAMES
    for choice in RULES[rule].choices(conv, 8)
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products wait for one another on several threads, on a busy machine for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kernel_of(conv: Conv, seed: int = 0) -> Tensor:
    return random(conv.outputs, conv.inputs, *conv.kernel, seed=seed) * float(conv.depth**-0.5)


def moments_of(conv: Conv, weight: Tensor, rows: int = 4000, seed: int = 1) -> Moments:
    """Of patches of smooth, correlated maps, as those within networks are: few directions carry most."""
    channels, side = conv.inputs, 40
    mixing = random(channels, channels, seed=7) * torch.logspace(0, -2, channels)
    sums = Summing()
    for frame in range(1000):
        noise = random(channels, side * side, seed=100 * seed + frame)
        smooth = F.avg_pool2d((mixing @ noise).view(1, channels, side, side), 3, 1, 1) + 0.5
        unfolded = F.unfold(smooth, conv.kernel, conv.dilation, conv.padding, conv.stride)[0].T
        sums.add(unfolded, unfolded @ weight.flatten(1).T)
        rows -= len(unfolded)
        if rows <= 0:
            break
    summed, flat = sums.moments(), weight.double().flatten(1)
    cross = flat @ summed.gram  # again in float64, for the exact cases
    return replace(summed, cross=cross, power=(cross * flat).sum(1))


def of(name: str, ranks: tuple[int, ...], conv: Conv) -> Choice:
    """A choice of any ranks, also such as no layer is offered."""
    if name == "separable":
        return Choice(name, ranks, (separable._depthwise(conv, *ranks), separable._pointwise(conv, *ranks)))
    if name == "separable-forked":
        fork = Fork((separable._depthwise(conv, 1),) * ranks[0])
        return Choice(name, ranks, (fork, separable._pointwise(conv, *ranks)))
    if name == "bottleneck":
        return Choice(name, ranks, bottleneck._pieces(conv, *ranks))
    if name == "bottleneck-separable":
        from edgeseg.rewrite.rules import bottleneck_separable

        return Choice(name, ranks, bottleneck_separable._pieces(conv, *ranks))
    from edgeseg.rewrite.rules import factorised

    return Choice(name, ranks, factorised._cheaper(conv, *ranks))


@pytest.mark.parametrize(("conv", "choice"), EVERY)
def test_pieces_compute_the_effective_kernel_at_every_pixel(conv: Conv, choice: Choice) -> None:
    weight = kernel_of(conv)
    for moments in (of_weights(weight, None), moments_of(conv, weight)):
        fitted = RULES[choice.rule].fit(choice, conv, moments, weight, 2)
        assert fitted.effective.dtype == torch.float64
        assert fitted.effective.shape == (conv.outputs, conv.depth)
        assert runs_like(choice, fitted, conv, random(2, conv.inputs, 17, 14, seed=3))
    assert effective_of(choice, fitted, conv) == pytest.approx(fitted.effective, abs=1e-9)


@pytest.mark.parametrize(("conv", "choice"), EVERY)
def test_choices_save_and_end_in_all_outputs(conv: Conv, choice: Choice) -> None:
    last = choice.pieces[-1]
    assert isinstance(last, Conv)
    assert last.outputs == conv.outputs
    assert share_of(choice.pieces, conv) < 0.8
    # By hand, from what each piece does at each output pixel of an image so large that borders do not count.
    size, total = (2048, 2048), 0
    for piece in choice.pieces:
        parts = piece.convs if isinstance(piece, Fork) else (piece,)
        for part in parts:
            assert isinstance(part, Conv)
            after = part.after(size)
            total += after[0] * after[1] * part.outputs * (part.inputs // part.groups) * part.kernel[0] * part.kernel[1]
        size = after
    out = conv.after((2048, 2048))
    dense = out[0] * out[1] * conv.outputs * conv.inputs * conv.kernel[0] * conv.kernel[1]
    assert share_of(choice.pieces, conv) == pytest.approx(total / dense, rel=0.05)


@pytest.mark.parametrize("align", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("conv", [Conv(64, 96, (3, 3)), Conv(160, 160, (5, 5)), Conv(16, 16, (3, 3)), Conv(256, 64)])
def test_ranks_are_aligned_few_and_different(conv: Conv, align: int) -> None:
    for name in NAMES:
        offered = RULES[name].choices(conv, align)
        assert len(offered) <= 5
        assert len({choice.label for choice in offered}) == len(offered)
        assert all(choice.rule == name for choice in offered)
        if name not in ("separable", "separable-forked"):
            sides = {conv.inputs, conv.outputs}
            assert all(rank % align == 0 or rank in sides for choice in offered for rank in choice.ranks)


@pytest.mark.parametrize(
    ("conv", "names"),
    [
        (Conv(64, 64, (3, 3), groups=2), ()),
        (Conv(64, 64, (3, 3), groups=64), ()),
        (Conv(64, 64), ("bottleneck",)),
        (Conv(8, 8), ()),
        (Conv(64, 64, (1, 7)), ("separable", "separable-forked", "bottleneck", "bottleneck-separable")),
        (Conv(64, 64, (3, 3)), NAMES),
        (Conv(1, 1, (3, 3)), ()),
    ],
)
def test_rules_apply_where_they_should(conv: Conv, names: tuple[str, ...]) -> None:
    assert tuple(name for name in NAMES if RULES[name].choices(conv, 8)) == names


def test_few_channels_are_not_halved_again() -> None:
    for width in (8, 16, 24, 32):
        conv = Conv(width, width, (3, 3))
        for name in ("bottleneck", "bottleneck-separable", "factorised"):
            assert all(min(choice.ranks) >= width / 2 for choice in RULES[name].choices(conv, 4))


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("separable", (9,)),
        ("separable-forked", (9,)),
        ("bottleneck", (6, 5)),
        ("bottleneck-separable", (54,)),
        ("factorised", (15,)),
    ],
)
@pytest.mark.parametrize("data", [False, True])
def test_full_rank_is_the_convolution(name: str, ranks: tuple[int, ...], data: bool) -> None:
    conv = Conv(6, 5, (3, 3), padding=(1, 1))
    weight = kernel_of(conv)
    moments = moments_of(conv, weight) if data else of_weights(weight, None)
    fitted = RULES[name].fit(of(name, ranks, conv), conv, moments, weight, 0)
    assert fitted.effective == pytest.approx(weight.double().flatten(1), abs=1e-4 if data else 1e-6)
    assert moments.unexplained(fitted.effective) < 1e-8


def structured(name: str, ranks: tuple[int, ...], conv: Conv) -> Tensor:
    """A kernel that the rule can represent exactly, made of random factors."""
    i, o, (kh, kw) = conv.inputs, conv.outputs, conv.kernel
    if name.startswith("separable"):
        kernel = torch.einsum("oib,ibuv->oiuv", random(o, i, ranks[0]), random(i, ranks[0], kh, kw, seed=1))
    elif name == "bottleneck":
        r1, r2 = ranks
        core = random(r2, r1, kh, kw, seed=2)
        kernel = torch.einsum("ob,bauv,ai->oiuv", random(o, r2), core, random(r1, i, seed=1))
    elif name == "bottleneck-separable":
        filters = random(ranks[0], kh, kw, seed=2)
        kernel = torch.einsum("oa,auv,ai->oiuv", random(o, *ranks), filters, random(*ranks, i, seed=1))
    else:
        kernel = torch.einsum("oav,aiu->oiuv", random(o, *ranks, kw), random(*ranks, i, kh, seed=1))
    norm: Tensor = kernel.norm()
    return kernel / norm


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("separable", (1,)),
        ("separable", (3,)),
        ("separable-forked", (2,)),
        ("bottleneck", (4, 5)),
        ("bottleneck", (4, 16)),
        ("bottleneck", (12, 4)),
        ("factorised", (6,)),
    ],
)
@pytest.mark.parametrize("data", [False, True])
def test_structure_is_found_without_a_step(name: str, ranks: tuple[int, ...], data: bool) -> None:
    conv = Conv(12, 16, (3, 3), padding=(1, 1))
    weight = structured(name, ranks, conv)
    moments = moments_of(conv, weight) if data else of_weights(weight, None)
    fitted = RULES[name].fit(of(name, ranks, conv), conv, moments, weight, 0)
    assert moments.unexplained(fitted.effective) < 1e-9
    assert fitted.effective == pytest.approx(weight.double().flatten(1), abs=1e-4)


def test_structure_of_a_bottleneck_with_filters_is_approached() -> None:
    """CP has no closed form, and local optima."""
    conv = Conv(12, 16, (3, 3))
    weight = structured("bottleneck-separable", (6,), conv)
    moments = of_weights(weight, None)
    choice = of("bottleneck-separable", (6,), conv)
    lost = [
        moments.unexplained(RULES[choice.rule].fit(choice, conv, moments, weight, n).effective) for n in (0, 5, 100)
    ]
    assert lost[0] > lost[1] > lost[2]
    assert lost[2] < 0.02


@pytest.mark.parametrize("conv", [CONVS["plain"], CONVS["not square"], CONVS["colours"], Conv(8, 40, (3, 3), (2, 2))])
def test_steps_never_make_it_worse(conv: Conv) -> None:
    weight = kernel_of(conv)
    moments = moments_of(conv, weight)
    for name in NAMES:
        for choice in RULES[name].choices(conv, 8):
            lost = [
                moments.unexplained(RULES[name].fit(choice, conv, moments, weight, steps).effective)
                for steps in (0, 1, 4, 12)
            ]
            # The ridge is part of what is minimised, and not of what is left unexplained.
            assert all(after <= before + 1e-4 for before, after in itertools.pairwise(lost)), (choice.label, lost)


@pytest.mark.parametrize("name", NAMES)
def test_frames_beat_the_weights_on_other_frames(name: str) -> None:
    conv = Conv(32, 32, (3, 3), padding=(1, 1))
    weight = kernel_of(conv)
    seen, held = moments_of(conv, weight, seed=1), moments_of(conv, weight, seed=2)
    for choice in RULES[name].choices(conv, 8):
        blind = RULES[name].fit(choice, conv, of_weights(weight, None), weight, 5)
        fitted = RULES[name].fit(choice, conv, seen, weight, 0)
        assert held.unexplained(fitted.effective) < 0.7 * held.unexplained(blind.effective), choice.label


@pytest.mark.parametrize("filters", [1, 2, 5])
def test_separable_without_data_is_the_svd_of_each_channel(filters: int) -> None:
    """Eckart and Young: what is lost are the singular values left out."""
    conv = Conv(5, 7, (3, 3))
    weight = kernel_of(conv)
    fitted = separable.fit(of("separable", (filters,), conv), conv, of_weights(weight, None), weight, 0)
    dropped = [torch.linalg.svdvals(weight[:, i].double().flatten(1))[filters:].square().sum() for i in range(5)]
    lost = (fitted.effective - weight.double().flatten(1)).square().sum()
    assert float(lost) == pytest.approx(float(sum(dropped)), rel=1e-4)


def test_stacked_and_forked_are_the_same_kernel() -> None:
    conv = CONVS["not square"]
    weight = kernel_of(conv)
    moments = moments_of(conv, weight)
    one, other = (
        separable.fit(of(name, (3,), conv), conv, moments, weight, 3) for name in ("separable", "separable-forked")
    )
    assert torch.equal(one.effective, other.effective)


def test_pointwise_pair_is_the_best_of_its_rank() -> None:
    """Without data: the truncated SVD; with data: nothing of the same rank that is tried explains more."""
    conv = Conv(24, 16, (1, 1), (2, 2))
    weight = kernel_of(conv)
    choice = of("bottleneck", (24, 8), conv)
    fitted = bottleneck.fit(choice, conv, of_weights(weight, None), weight, 0)
    u, s, v = torch.linalg.svd(weight.double().flatten(1), full_matrices=False)
    assert fitted.effective == pytest.approx((u[:, :8] * s[:8]) @ v[:8], abs=1e-6)
    moments = moments_of(conv, weight)
    best = moments.unexplained(bottleneck.fit(choice, conv, moments, weight, 0).effective)
    assert best < moments.unexplained(fitted.effective)


@pytest.mark.parametrize("name", NAMES)
def test_targets_of_another_scale_are_followed(name: str) -> None:
    """Outputs that matter more are fitted better, and with equal factors nothing changes but the scale."""
    conv = Conv(16, 16, (3, 3))
    weight = kernel_of(conv)
    moments = moments_of(conv, weight)
    choice = RULES[name].choices(conv, 8)[0]
    plain = RULES[name].fit(choice, conv, moments, weight, 3).effective
    same = torch.full((16,), 1e-3, dtype=torch.float64)
    small = RULES[name].fit(choice, conv, moments.scaled(same), weight, 3).effective
    assert small * 1e3 == pytest.approx(plain, abs=1e-6)
    factor = torch.ones(16, dtype=torch.float64)
    factor[3] = 30
    chosen = RULES[name].fit(choice, conv, moments.scaled(factor), weight, 3).effective / factor[:, None]
    assert moments.residual(chosen)[3] < 0.9 * moments.residual(plain)[3]


@pytest.mark.parametrize("name", NAMES)
def test_dead_channels_and_outputs_do_no_harm(name: str) -> None:
    """A ReLU that never fires: columns of zeros in gram, a kernel that is zero, an output that never changes."""
    conv = Conv(16, 16, (3, 3))
    weight = kernel_of(conv)
    weight[:, 5] = 0
    weight[2] = 0
    moments = moments_of(conv, weight)
    alive = torch.ones(conv.depth, dtype=torch.float64)
    alive[3 * 9 : 6 * 9] = 0
    gram, cross = moments.gram * alive * alive[:, None], moments.cross * alive
    power = ((weight.double().flatten(1) @ gram) * weight.double().flatten(1)).sum(1)
    moments = Moments(moments.rows, moments.mean_x * alive, moments.mean_y, gram, cross, power)
    for choice in RULES[name].choices(conv, 8):
        effective = RULES[name].fit(choice, conv, moments, weight, 3).effective
        assert bool(effective.isfinite().all())
        assert effective[2].abs().max() < 1e-6
        assert moments.unexplained(effective) < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_inputs_that_never_change(name: str) -> None:
    conv = Conv(16, 16, (3, 3))
    weight = kernel_of(conv)
    nothing = torch.zeros(conv.depth, dtype=torch.float64)
    outputs = torch.zeros(16, dtype=torch.float64)
    moments = Moments(100, nothing, outputs, torch.diag(nothing), torch.zeros(16, conv.depth).double(), outputs)
    for choice in RULES[name].choices(conv, 8):
        assert bool(RULES[name].fit(choice, conv, moments, weight, 2).effective.isfinite().all())


def test_fitting_changes_nothing_that_it_was_given() -> None:
    conv = Conv(16, 16, (3, 3))
    weight = kernel_of(conv)
    moments = moments_of(conv, weight)
    before = [tensor.clone() for tensor in (weight, moments.gram, moments.cross, moments.power)]
    for name in NAMES:
        for choice in RULES[name].choices(conv, 8):
            RULES[name].fit(choice, conv, moments, weight, 2)
    after = (weight, moments.gram, moments.cross, moments.power)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
