"""Stacked and grouped convolutions, against chains run by torch's own operations and kernels of known structure."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeseg.rewrite.modules import assemble
from edgeseg.rewrite.moments import of_weights
from edgeseg.rewrite.rules import RULES, grouped, stacked
from edgeseg.rewrite.solve import share_of
from edgeseg.rewrite.values import Choice, Conv, Shuffle, Take
from tests.rewrite.effective import effective_of, runs_like
from tests.rewrite.layers import kernel_of, maps, moments_at, random

ALIGN = 4
CONVS = {
    "plain": Conv(8, 8, (3, 3), padding=(1, 1)),
    "stride": Conv(8, 16, (3, 3), (2, 2), (1, 1)),
    "dilation": Conv(16, 8, (3, 3), padding=(2, 2), dilation=(2, 2)),
    "large": Conv(8, 8, (5, 5), padding=(2, 2)),
    "large, strided": Conv(8, 8, (5, 5), (2, 2), (2, 2)),
    "large, dilated": Conv(4, 8, (5, 5), padding=(4, 4), dilation=(2, 2)),
    "large, uneven": Conv(4, 8, (7, 5), (1, 2), (3, 1), (1, 2)),
    "larger": Conv(4, 8, (7, 7), padding=(3, 3)),
    "valid": Conv(8, 8, (5, 5)),
    "not square": Conv(16, 16, (1, 3), padding=(0, 1)),
    "even": Conv(8, 8, (2, 4), padding=(1, 1)),
}
EVERY = [
    pytest.param(conv, choice, id=f"{name}, {choice.label}")
    for name, conv in CONVS.items()
    for rule in ("stacked", "grouped")
    for choice in RULES[rule].choices(conv, ALIGN)
]


def composed(conv: Conv, width: int) -> Tensor:
    """A 5 x 5 kernel that is a 3 x 3 after a 3 x 3, by the naive sum."""
    first, second = random(width, conv.inputs, 3, 3), random(conv.outputs, width, 3, 3, seed=1)
    kernel: Tensor = torch.zeros(conv.outputs, conv.inputs, 5, 5)
    for u in range(3):
        for v in range(3):
            for s in range(3):
                for t in range(3):
                    kernel[:, :, u + s, v + t] += second[:, :, u, v] @ first[:, :, s, t]
    return kernel / conv.depth


def hidden(conv: Conv, groups: int, width: int, seed: int = 0) -> Tensor:
    """A kernel that is grouped, up to the order of its inputs, with few channels that a dense 1 x 1 mixes."""
    kernel: Tensor = torch.zeros(conv.outputs, conv.inputs, *conv.kernel)
    shape = (width // groups, conv.inputs // groups, *conv.kernel)
    order = torch.randperm(conv.inputs, generator=torch.Generator().manual_seed(seed))
    for group, members in enumerate(order.view(groups, -1)):
        mixed = random(conv.outputs, width // groups, seed=group) @ random(*shape, seed=50 + group).flatten(1)
        kernel[:, members] = mixed.view(conv.outputs, *shape[1:])
    return kernel / math.sqrt(conv.depth)


def of(rule: str, conv: Conv, *ranks: int) -> Choice:
    """A choice of any ranks, also such as no layer is offered."""
    return Choice(rule, ranks, stacked._pieces(conv, *ranks) if rule == "stacked" else grouped._pieces(conv, *ranks))


@pytest.mark.parametrize(("conv", "choice"), EVERY)
def test_the_claimed_kernel_is_the_one_that_runs(conv: Conv, choice: Choice) -> None:
    weight = kernel_of(conv)
    moments = moments_at(conv, weight, maps(conv.inputs, 4, side=20))
    fitted = RULES[choice.rule].fit(choice, conv, moments, weight, 1)
    assert fitted.effective.dtype == torch.float64
    assert torch.allclose(effective_of(choice, fitted, conv), fitted.effective, atol=1e-9)
    for size in ((17, 22), (16, 13), (15, 15)):
        assert runs_like(choice, fitted, conv, random(2, conv.inputs, *size))
    x = random(3, conv.inputs, 15, 18, seed=5)
    bias = moments.bias(fitted.effective)
    wanted = F.conv2d(
        x.double(), fitted.effective.view_as(weight), bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )
    answer = assemble(choice, fitted, bias)(x)
    assert answer.shape == wanted.shape
    assert float((answer - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize(("conv", "choice"), EVERY)
def test_choices_save_and_keep_the_alignment(conv: Conv, choice: Choice) -> None:
    assert share_of(choice.pieces, conv) < 1
    inner = [piece for piece in choice.pieces[:-1] if isinstance(piece, Conv)]
    assert inner
    assert all(piece.outputs // piece.groups % ALIGN == piece.inputs // piece.groups % ALIGN == 0 for piece in inner)
    last = choice.pieces[-1]
    assert isinstance(last, Conv)
    assert last.outputs == conv.outputs


@pytest.mark.parametrize("rule", ["stacked", "grouped"])
@pytest.mark.parametrize(
    "conv",
    [Conv(64, 64, (1, 1)), Conv(64, 64, (3, 3), padding=(1, 1), groups=2), Conv(3, 4, (3, 3)), Conv(4, 4, (5, 5))],
    ids=["pointwise", "groups", "colours", "few"],
)
def test_no_choices_where_the_rule_does_not_apply(rule: str, conv: Conv) -> None:
    assert list(RULES[rule].choices(conv, 8)) == []


@pytest.mark.parametrize("kernel", [(3, 3), (4, 4), (5, 3), (6, 5), (1, 7)])
def test_only_odd_and_large_kernels_are_stacked(kernel: tuple[int, int]) -> None:
    assert not stacked.choices(Conv(64, 64, kernel), 8)


@pytest.mark.parametrize("align", [8, 16, 32])
def test_wider_alignment(align: int) -> None:
    conv = Conv(128, 128, (5, 5), padding=(2, 2))
    offered = [*stacked.choices(conv, align), *grouped.choices(conv, align)]
    assert len(stacked.choices(conv, align)) >= 2
    assert 2 <= len(grouped.choices(conv, align)) <= 4
    for choice in offered:
        for piece in choice.pieces:
            assert not isinstance(piece, Conv) or piece.outputs // piece.groups % align == 0


def test_a_large_layer_is_offered_a_shuffle() -> None:
    conv = Conv(64, 64, (3, 3), padding=(1, 1))
    (shuffled,) = [choice for choice in grouped.choices(conv, 8) if choice.ranks[2] > 1]
    take, first, shuffle, last = shuffled.pieces
    assert take == Take(64)
    assert shuffle == Shuffle(2)
    assert isinstance(first, Conv)
    assert isinstance(last, Conv)
    assert first.groups == last.groups == 2


@pytest.mark.parametrize("seen", [False, True], ids=["weights", "frames"])
def test_a_composed_kernel_is_found_again(seen: bool) -> None:
    conv = Conv(16, 24, (5, 5), padding=(2, 2))
    weight = composed(conv, 8)
    moments = moments_at(conv, weight, maps(16, 2)) if seen else of_weights(weight, None)
    choice = of("stacked", conv, 8)
    start = moments.unexplained(stacked.fit(choice, conv, moments, weight, 0).effective)
    assert start < 0.03
    assert moments.unexplained(stacked.fit(choice, conv, moments, weight, 20).effective) < 1e-3
    # A kernel without structure is not: the numbers above say something.
    other = kernel_of(conv)
    noise = of_weights(other, None)
    assert noise.unexplained(stacked.fit(of("stacked", conv, 8), conv, noise, other, 0).effective) > 0.2


@pytest.mark.parametrize(("groups", "width"), [(2, 8), (4, 8), (4, 16), (8, 16)])
@pytest.mark.parametrize("seen", [False, True], ids=["weights", "frames"])
def test_a_grouped_kernel_in_a_hidden_order_is_found_again(groups: int, width: int, seen: bool) -> None:
    conv = Conv(32, 32, (3, 3), padding=(1, 1))
    weight = hidden(conv, groups, width)
    moments = moments_at(conv, weight, maps(32, 4)) if seen else of_weights(weight, None)
    choice = of("grouped", conv, groups, width, 1)
    assert moments.unexplained(grouped.fit(choice, conv, moments, weight, 0).effective) < 1e-4
    plain = kernel_of(conv)
    none = of_weights(plain, None)
    assert none.unexplained(grouped.fit(choice, conv, none, plain, 0).effective) > 0.2


def test_a_shuffled_kernel_is_found_again() -> None:
    """The order of the inputs is known here: blocks of rank width / groups ** 2."""
    conv, groups, rank = Conv(16, 32, (3, 3), padding=(1, 1)), 2, 3
    weight = torch.cat(
        [
            torch.cat([random(16, rank, seed=2 * q + p) @ random(rank, 72, seed=9 + 2 * q + p) for p in range(2)], 1)
            for q in range(2)
        ]
    ).view(32, 16, 3, 3)
    moments = of_weights(weight, None)
    choice = of("grouped", conv, groups, groups**2 * rank, groups)
    # Inputs of one group have parts in the same directions within each half of the outputs.
    assert moments.unexplained(grouped.fit(choice, conv, moments, weight, 0).effective) < 1e-6


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("seen", [False, True], ids=["weights", "frames"])
def test_more_channels_never_fit_worse(steps: int, seen: bool) -> None:
    conv = Conv(8, 16, (5, 5), padding=(2, 2))
    weight = kernel_of(conv)
    moments = moments_at(conv, weight, maps(8, 2)) if seen else of_weights(weight, None)
    for rule, ranks in (
        ("stacked", [(2,), (4,), (8,), (12,)]),
        ("grouped", [(2, 4, 1), (2, 8, 1), (2, 16, 1), (2, 32, 1)]),
        ("grouped", [(4, 8, 1), (4, 16, 1), (4, 32, 1)]),
        ("grouped", [(2, 4, 2), (2, 8, 2), (2, 16, 2)]),
    ):
        left = [
            moments.unexplained(RULES[rule].fit(of(rule, conv, *rank), conv, moments, weight, steps).effective)
            for rank in ranks
        ]
        assert left == sorted(left, reverse=True)
        assert left[-1] < left[0]


def test_steps_and_frames_make_fits_better() -> None:
    conv = Conv(16, 16, (5, 5), padding=(2, 2))
    weight = kernel_of(conv)
    x = maps(16, 8)
    moments, held = moments_at(conv, weight, x[:6]), moments_at(conv, weight, x[6:])
    blind = of_weights(weight, None)
    for rule, ranks in (("stacked", (8,)), ("grouped", (2, 8, 1)), ("grouped", (2, 8, 2))):
        choice, fit = of(rule, conv, *ranks), RULES[rule].fit
        none = held.unexplained(fit(choice, conv, blind, weight, 0).effective)
        start = fit(choice, conv, moments, weight, 0).effective
        more = fit(choice, conv, moments, weight, 8).effective
        assert held.unexplained(start) < none
        assert moments.unexplained(more) < moments.unexplained(start)


def test_grouped_of_full_rank_is_the_layer() -> None:
    """Groups of 2 with as many features for each as there are outputs lose nothing."""
    conv = Conv(16, 8, (3, 3), padding=(1, 1))
    weight = kernel_of(conv)
    moments = of_weights(weight, None)
    fitted = grouped.fit(of("grouped", conv, 2, 16, 1), conv, moments, weight, 0)
    assert torch.allclose(fitted.effective, weight.double().flatten(1), atol=1e-9)


def test_one_group_of_weights_is_its_own_svd() -> None:
    """Without frames each group's best features are singular vectors of its part of the kernel."""
    conv = Conv(16, 24, (3, 3), padding=(1, 1))
    weight = kernel_of(conv)
    moments = of_weights(weight, None)
    fitted = grouped.fit(of("grouped", conv, 2, 16, 1), conv, moments, weight, 0)
    order = fitted.weights[0]
    assert isinstance(order, Tensor)
    assert sorted(order.tolist()) == list(range(16))
    lost = sum(
        float(torch.linalg.svdvals(weight.double()[:, part].flatten(1))[8:].square().sum()) for part in order.view(2, 8)
    )
    assert moments.unexplained(fitted.effective) == pytest.approx(lost / float(weight.double().square().sum()))


@pytest.mark.parametrize("rule", ["stacked", "grouped"])
def test_dead_channels_and_singular_moments(rule: str) -> None:
    """Inputs that are always 0 or copies, and fewer patches than elements, give finite weights that fit."""
    conv = Conv(16, 16, (5, 5), padding=(2, 2))
    weight = kernel_of(conv)
    x = maps(16, 1, side=12)
    x[:, 3] = 0
    x[:, 5] = x[:, 4]
    moments = moments_at(conv, weight, x)
    assert moments.rows < conv.depth
    for choice in RULES[rule].choices(conv, 8):
        fitted = RULES[rule].fit(choice, conv, moments, weight, 2)
        assert bool(fitted.effective.isfinite().all())
        assert moments.unexplained(fitted.effective) < 0.5
    silent = replace(moments, gram=torch.zeros_like(moments.gram), cross=torch.zeros_like(moments.cross))
    for choice in RULES[rule].choices(conv, 8):
        assert bool(RULES[rule].fit(choice, conv, silent, weight, 1).effective.isfinite().all())


def test_large_layers_are_fitted_in_single_precision() -> None:
    conv = Conv(48, 16, (5, 5), padding=(2, 2))
    weight = kernel_of(conv)
    moments = moments_at(conv, weight, maps(48, 3))
    for choice in (of("stacked", conv, 16), of("grouped", conv, 2, 32, 1)):
        fitted = RULES[choice.rule].fit(choice, conv, moments, weight, 1)
        assert runs_like(choice, fitted, conv, random(1, 48, 9, 11))
        assert moments.unexplained(fitted.effective) < 0.2
