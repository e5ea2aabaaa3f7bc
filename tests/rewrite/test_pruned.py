"""Channel pruning: which inputs stay, against exhaustive and naive searches, and the kernel that is fitted to them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeseg.rewrite.modules import assemble
from edgeseg.rewrite.moments import Moments, of_weights
from edgeseg.rewrite.rules import pruned
from edgeseg.rewrite.rules.pruned import PRUNED
from edgeseg.rewrite.solve import share_of
from edgeseg.rewrite.values import Choice, Conv, Fitted, Take
from tests.rewrite.effective import effective_of, runs_like
from tests.rewrite.layers import kernel_of, maps, moments_at, random

CONVS = {
    "plain": Conv(16, 16, (3, 3), padding=(1, 1)),
    "stride": Conv(16, 24, (3, 3), (2, 2), (1, 1)),
    "dilation": Conv(16, 8, (3, 3), padding=(2, 2), dilation=(2, 2)),
    "uneven": Conv(16, 8, (5, 2), (1, 2), (2, 0), (2, 1)),
    "pointwise": Conv(24, 8, (1, 1)),
}


def of(conv: Conv, count: int) -> Choice:
    return Choice("pruned", (count,), (Take(count), replace(conv, inputs=count)))


def pruned_to(conv: Conv, count: int, moments: Moments, weight: Tensor) -> Fitted:
    return pruned.fit(of(conv, count), conv, moments, weight, 0)


def kept(fitted: Fitted) -> list[int]:
    index = fitted.weights[0]
    assert isinstance(index, Tensor)
    assert index.dtype == torch.int64
    found: list[int] = index.tolist()
    return found


def best_on(conv: Conv, channels: tuple[int, ...], moments: Moments) -> float:
    """What least squares on these channels leaves unexplained, by a solver of its own."""
    rows = torch.tensor([channel * conv.taps + tap for channel in channels for tap in range(conv.taps)])
    effective = torch.zeros(conv.outputs, conv.depth, dtype=torch.float64)
    effective[:, rows] = torch.linalg.lstsq(moments.gram[rows][:, rows], moments.cross[:, rows].T).solution.T
    return moments.unexplained(effective)


@pytest.mark.parametrize("name", CONVS)
def test_the_claimed_kernel_is_the_one_that_runs(name: str) -> None:
    conv = CONVS[name]
    weight = kernel_of(conv)
    moments = moments_at(conv, weight, maps(conv.inputs, 3, side=16))
    offered = PRUNED.choices(conv, 4)
    assert offered
    for choice in offered:
        fitted = PRUNED.fit(choice, conv, moments, weight, 0)
        assert fitted.effective.dtype == torch.float64
        assert kept(fitted) == sorted(set(kept(fitted)))
        assert len(kept(fitted)) == choice.ranks[0]
        assert torch.allclose(effective_of(choice, fitted, conv), fitted.effective, atol=1e-9)
        x = random(3, conv.inputs, 15, 18)
        assert runs_like(choice, fitted, conv, x)
        bias = moments.bias(fitted.effective)
        wanted = F.conv2d(x.double(), fitted.effective.view_as(weight), bias, conv.stride, conv.padding, conv.dilation)
        assert float((assemble(choice, fitted, bias)(x) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_choices() -> None:
    conv = Conv(64, 64, (3, 3), padding=(1, 1))
    assert [choice.ranks for choice in PRUNED.choices(conv, 8)] == [(40,), (32,), (24,), (16,)]
    assert [choice.ranks for choice in PRUNED.choices(conv, 32)] == [(32,)]
    for choice in PRUNED.choices(conv, 8):
        assert choice.pieces == of(conv, choice.ranks[0]).pieces
        assert share_of(choice.pieces, conv) < 0.72
    assert [choice.ranks for choice in PRUNED.choices(Conv(16, 64, (3, 3)), 8)] == [(8,)]
    for conv in (Conv(64, 64, (3, 3), groups=2), Conv(3, 64, (3, 3)), Conv(8, 64, (3, 3))):
        assert not PRUNED.choices(conv, 8)


@pytest.mark.parametrize("ridge", [1e-6, 1e-4])
def test_dead_and_copied_channels_cost_nothing(ridge: float) -> None:
    conv = Conv(16, 24, (3, 3), padding=(1, 1))
    weight = kernel_of(conv)
    x = maps(16, 6)
    dead, copies = [0, 7, 11], {3: 2, 9: 2, 14: 5}
    x[:, dead] = 0
    for copy, source in copies.items():
        x[:, copy] = 2 * x[:, source]
    moments = replace(moments_at(conv, weight, x), ridge=ridge)
    fitted = pruned_to(conv, 10, moments, weight)
    assert moments.unexplained(fitted.effective) < 10 * ridge * ridge + 1e-7
    chosen = set(kept(fitted))
    assert not chosen & set(dead)
    for same in ({2, 3, 9}, {5, 14}):
        assert len(chosen & same) == 1
    assert chosen >= {1, 4, 6, 8, 10, 12, 13, 15}
    # With one channel less something is lost.
    assert moments.unexplained(pruned_to(conv, 9, moments, weight).effective) > 1e-4


def test_without_frames_the_strongest_weights_stay() -> None:
    conv = CONVS["plain"]
    weight = (
        kernel_of(conv)
        * torch.linspace(0.2, 2, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(3))][:, None, None]
    )
    moments = of_weights(weight, None)
    fitted = pruned_to(conv, 8, moments, weight)
    strongest = weight.square().sum((0, 2, 3)).topk(8).indices
    assert kept(fitted) == sorted(strongest.tolist())
    wanted = torch.zeros_like(weight)
    wanted[:, strongest] = weight[:, strongest]
    assert torch.allclose(fitted.effective, wanted.double().flatten(1), atol=1e-6)


def test_each_round_takes_the_channel_that_explains_most() -> None:
    conv = Conv(10, 6, (3, 1), padding=(1, 0))
    weight = kernel_of(conv)
    moments = replace(moments_at(conv, weight, maps(10, 6)), ridge=1e-9)
    chosen: tuple[int, ...] = ()
    for count in range(1, 8):
        left = [channel for channel in range(10) if channel not in chosen]
        chosen = (*chosen, min(left, key=lambda channel: best_on(conv, (*chosen, channel), moments)))
        fitted = pruned_to(conv, count, moments, weight)
        assert set(kept(fitted)) == set(chosen)
        assert moments.unexplained(fitted.effective) == pytest.approx(best_on(conv, chosen, moments), rel=1e-4)


def test_near_to_the_best_of_all_subsets() -> None:
    conv = Conv(10, 8, (3, 3), padding=(1, 1))
    weight = kernel_of(conv)
    moments = moments_at(conv, weight, maps(10, 6))
    every = sorted(best_on(conv, channels, moments) for channels in itertools.combinations(range(10), 5))
    found = moments.unexplained(pruned_to(conv, 5, moments, weight).effective)
    assert found < 1.15 * every[0]
    assert found < every[len(every) // 20]


def test_more_channels_never_fit_worse() -> None:
    conv = CONVS["plain"]
    weight = kernel_of(conv)
    moments = moments_at(conv, weight, maps(16, 4))
    left = [moments.unexplained(pruned_to(conv, count, moments, weight).effective) for count in range(1, 17)]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 1e-6
    assert left[0] > 0.3


def test_the_order_of_ranks_does_not_matter() -> None:
    """The factorisation is shared between ranks; another set of moments starts anew."""
    conv = CONVS["plain"]
    weight = kernel_of(conv)
    x = maps(16, 4)
    up, down = (
        {count: pruned_to(conv, count, moments, weight) for count in counts}
        for counts in ((4, 8, 12), (12, 8, 4))
        for moments in [moments_at(conv, weight, x)]
    )
    for count in up:
        assert kept(up[count]) == kept(down[count])
        assert torch.allclose(up[count].effective, down[count].effective)
    other = moments_at(conv, weight, x.flip(1))
    assert kept(pruned_to(conv, 8, other, weight)) != kept(up[8])


def test_outputs_that_matter_decide() -> None:
    conv = Conv(16, 2, (3, 3), padding=(1, 1))
    weight = kernel_of(conv)
    weight[0, :8] *= 0.01
    weight[1, 8:] *= 0.01
    moments = moments_at(conv, weight, random(4, 16, 28, 28))
    factor = torch.tensor([1.0, 0.01], dtype=torch.float64)
    for scale, wanted in ((factor, range(8, 16)), (factor.flip(0), range(8))):
        scaled = weight * scale.float()[:, None, None, None]
        assert kept(pruned_to(conv, 8, moments.scaled(scale), scaled)) == list(wanted)


def test_single_precision_agrees_with_double(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeseg.rewrite import solve

    conv = Conv(48, 16, (5, 5), padding=(2, 2))
    weight = kernel_of(conv)
    x = maps(48, 3)
    x[:, 5] = x[:, 4]
    moments = moments_at(conv, weight, x)
    single = pruned_to(conv, 16, moments, weight)
    monkeypatch.setattr(solve, "DOUBLE", 10_000)
    double = pruned_to(conv, 16, replace(moments, gram=moments.gram.clone()), weight)
    assert moments.unexplained(single.effective) == pytest.approx(moments.unexplained(double.effective), rel=0.02)


def test_singular_moments() -> None:
    conv = CONVS["plain"]
    weight = kernel_of(conv)
    moments = moments_at(conv, weight, maps(16, 1, side=8))
    assert moments.rows < conv.depth
    assert moments.unexplained(pruned_to(conv, 12, moments, weight).effective) < 0.1
    silent = replace(moments, gram=torch.zeros_like(moments.gram), cross=torch.zeros_like(moments.cross))
    assert bool(pruned_to(conv, 8, silent, weight).effective.isfinite().all())
    broken = replace(moments, gram=torch.full_like(moments.gram, torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        pruned_to(conv, 8, broken, weight)
