"""The importance of an output, against second derivatives taken one by one and against divergences as they come."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.fisher import damage, importance
from edgeseg.rewrite.moments import Moments
from edgeseg.rewrite.network import Network, layers
from edgeseg.rewrite.observe import watching
from edgeseg.rewrite.values import Layer
from tests.rewrite import teachers
from tests.rewrite.networks import HABITS, conv, of

SMALL = (6, 7)
DRAWS = 400


def small(classes: int = 3) -> tuple[Network, tuple[Layer, ...], Tensor]:
    """Two layers, of which the first's outputs matter through a non-linearity, and differently."""
    network = teachers.network_of(
        of(lambda s, x: s.b(F.silu(s.a(x))), a=conv(3, 4, 3, padding=1), b=conv(4, classes, 3, stride=2)), SMALL
    )
    with torch.no_grad():
        b = network.get_submodule("b")
        assert isinstance(b, nn.Conv2d)
        b.weight.mul_(torch.tensor([0.1, 0.5, 1.0, 2.0]).view(1, 4, 1, 1))
    image = torch.randn(1, 3, *SMALL, generator=torch.Generator().manual_seed(0))
    return network, layers(network, SMALL), image


def curvature(network: Network, name: str, image: Tensor) -> Tensor:
    """Half the second derivative of KL(now, shifted), summed over the places of each output, a pixel: (Co)."""
    outputs: list[Tensor] = []
    with torch.no_grad(), watching(network, [name], lambda _n, _x, y: outputs.append(y)):
        now = logits(network, image).log_softmax(1)
    (y,) = outputs

    def divergence(shift: Tensor) -> Tensor:
        with watching(network, [name], lambda _n, _x, _y: y + shift.view_as(y)):
            then = logits(network, image).log_softmax(1)
        return F.kl_div(then, now, log_target=True, reduction="sum") / (now.shape[-1] * now.shape[-2])

    hessian = torch.autograd.functional.hessian(divergence, torch.zeros(y.numel()))  # type: ignore[no-untyped-call]
    found: Tensor = 0.5 * hessian.diagonal().view(y.shape[1], -1).sum(1)
    return found


def logits(network: Network, image: Tensor) -> Tensor:
    found = teachers.scores(network, image)
    return torch.cat([torch.zeros_like(found), found], 1) if found.shape[1] == 1 else found


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_importance_is_half_the_curvature_of_the_divergence(classes: int) -> None:
    network, both, image = small(classes)
    found = importance(network, both, [image], teachers.scores, draws=DRAWS)
    assert set(found) == {"a", "b"}
    for name, weights in found.items():
        wanted = curvature(network, name, image).double()
        assert weights.dtype == torch.float64
        assert float(wanted.max() / wanted.min()) > (5 if name == "a" else 1 - 1e-9)  # there is something to tell apart
        torch.testing.assert_close(weights, wanted, rtol=0.15, atol=0.02 * float(wanted.max()))


def test_noise_on_one_channel_diverges_as_predicted() -> None:
    """So the unit is right: nats a pixel for each unit of variance at each place."""
    network, both, image = small()
    weights = importance(network, both, [image], teachers.scores, draws=DRAWS)["a"]
    generator, deviation = torch.Generator().manual_seed(1), 0.05
    with torch.no_grad():
        now = logits(network, image).log_softmax(1)
        for channel in range(4):

            def shifted(_name: str, _x: Tensor, y: Tensor, channel: int = channel) -> Tensor:
                noise = torch.zeros_like(y)
                noise[:, channel] = deviation * torch.randn(y.shape[-2:], generator=generator)
                return y + noise

            total = 0.0
            with watching(network, ["a"], shifted):
                for _ in range(300):
                    then = logits(network, image).log_softmax(1)
                    total += float(F.kl_div(then, now, log_target=True, reduction="none").sum(1).mean())
            assert total / 300 == pytest.approx(float(weights[channel]) * deviation**2, rel=0.25)


def test_one_channel_is_two_of_which_the_first_is_nothing() -> None:
    network, both, image = small(1)
    one = importance(network, both, [image], teachers.scores, draws=DRAWS)
    two = importance(network, both, [image], logits, draws=DRAWS)
    for name in one:
        assert torch.equal(one[name], two[name])
        assert float(one[name].min()) > 0


def test_more_frames_are_their_mean() -> None:
    network, both, image = small()
    frames = [image, -image, image.flip(3)]
    alone = [importance(network, both, [frame], teachers.scores, draws=DRAWS) for frame in frames]
    together = importance(network, both, frames, teachers.scores, draws=DRAWS)
    for name, found in together.items():
        mean = torch.stack([weights[name] for weights in alone]).mean(0)
        torch.testing.assert_close(found, mean, rtol=0.1, atol=0.02 * float(mean.max()))


def test_all_calls_of_a_layer_count() -> None:
    """Shifts of all calls at once are the sum of what each does."""
    size = (10, 12)
    network = teachers.network_of(HABITS["twice"], size)
    (layer,) = layers(network, size)
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    found = importance(network, [layer], [image], teachers.scores, draws=DRAWS)["a"]

    calls: list[Tensor] = []
    with torch.no_grad(), watching(network, ["a"], lambda _n, _x, y: calls.append(y)):
        now = teachers.scores(network, image).log_softmax(1)
    sizes = [y.numel() for y in calls]

    def divergence(shift: Tensor) -> Tensor:
        parts = iter(shift.split(sizes))  # type: ignore[no-untyped-call]
        with watching(network, ["a"], lambda _n, _x, y: y + next(parts).view_as(y)):
            then = teachers.scores(network, image).log_softmax(1)
        return F.kl_div(then, now, log_target=True, reduction="sum") / (now.shape[-1] * now.shape[-2])

    hessian = torch.autograd.functional.hessian(divergence, torch.zeros(sum(sizes)))  # type: ignore[no-untyped-call]
    first, second = (part.view(3, -1).sum(1) for part in hessian.diagonal().split(sizes))
    assert float(first.min()) > 0
    assert float(second.min()) > 0
    wanted = 0.5 * (first + second)
    torch.testing.assert_close(found, wanted.double(), rtol=0.15, atol=0.02 * float(wanted.max()))


def test_it_is_drawn_by_the_seed_and_leaves_the_network_alone() -> None:
    network, both, image = small()
    before, kept = teachers.state(network), image.clone()
    torch.manual_seed(1)
    first = importance(network, both, [image], teachers.scores, seed=3)
    torch.manual_seed(2)
    again = importance(network, both, [image], teachers.scores, seed=3)
    other = importance(network, both, [image], teachers.scores, seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["a"], other["a"])
    assert teachers.same(before, teachers.state(network))
    assert torch.equal(image, kept)
    assert not image.requires_grad
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():  # also where somebody has switched gradients off
        assert torch.equal(importance(network, both, [image], teachers.scores, seed=3)["a"], first["a"])


def written(self: Any, x: Tensor) -> Tensor:
    """Numbers, rows and other kinds of numbers written into a map."""
    y = self.a(x)
    y[:, 0] = 5
    y[:, 1] = torch.arange(y.shape[-1])
    y[:, 2:4, 3] = y[:, 2:3, 2].double()
    return torch.as_tensor(self.b(y))


RARE = {name: HABITS[name] for name in ("no grad", "in place", "changes its input", "attention", "buffers")}
RARE["written"] = of(written, a=conv(3, 4, 3), b=conv(4, 4, 3))


@pytest.mark.parametrize("name", RARE)
def test_rare_habits(name: str) -> None:
    size = (20, 24)
    network = teachers.network_of(RARE[name], size)
    found = importance(network, layers(network, size), teachers.images(1, size=size), teachers.scores)
    assert found
    for weights in found.values():
        assert bool(weights.isfinite().all())
        assert float(weights.sum()) > 0


def test_a_channel_that_nothing_looks_at_does_not_matter() -> None:
    network, both, image = small()
    b = network.get_submodule("b")
    assert isinstance(b, nn.Conv2d)
    with torch.no_grad():
        b.weight[:, 2] = 0
    weights = importance(network, both, [image], teachers.scores)["a"]
    assert float(weights[2]) == 0
    assert int((weights > 0).sum()) == 3


def test_damage_is_what_is_left_unexplained_times_what_it_matters() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    kernel, other = (torch.randn(3, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    y = x @ kernel.T
    centred, gone = x - x.mean(0), y - y.mean(0)
    moments = Moments(
        500, x.mean(0), y.mean(0), centred.T @ centred / 500, gone.T @ centred / 500, gone.square().mean(0)
    )
    weights = torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64)
    off = (gone - centred @ other.T).square().mean(0)
    assert damage(moments.residual(other), weights) == pytest.approx(float(2 * off[0] + off[2] / 2))
    assert damage(moments.residual(kernel), weights) == pytest.approx(0, abs=1e-9)
    assert damage(moments.residual(other), 0 * weights) == 0
