"""What moments see of a layer: the layer itself or, of one too wide, so much of it that a fit loses next to nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite import network as network_module
from edgeseg.rewrite import refine as refine_module
from edgeseg.rewrite import rule as rule_module
from edgeseg.rewrite import view as view_module
from edgeseg.rewrite.modules import assemble
from edgeseg.rewrite.moments import Moments, Summing
from edgeseg.rewrite.network import Network, layers, refusal
from edgeseg.rewrite.observe import patches, positions, targets, watching
from edgeseg.rewrite.plan import plan
from edgeseg.rewrite.refine import refined
from edgeseg.rewrite.rules import RULES
from edgeseg.rewrite.rules import bottleneck as bottleneck_module
from edgeseg.rewrite.sequential import fitted, rewritten
from edgeseg.rewrite.values import Conv, macs
from edgeseg.rewrite.view import View, mixed, moments_of, seen, views_of
from tests.rewrite import teachers
from tests.rewrite.layers import kernel_of, maps, moments_at, random
from tests.rewrite.networks import HABITS, conv, of

MIXING = ("bottleneck", "bottleneck-separable")
HEADS = {  # of published networks
    "PSPNet": Conv(4096, 512, (3, 3), padding=(1, 1)),
    "DeepLabV3": Conv(2048, 256, (3, 3), padding=(12, 12), dilation=(12, 12)),
    "FCN, fc6": Conv(512, 4096, (7, 7)),
}


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> int:
    """Layers of more than 150 products are too deep: 16 channels of 3x3 can be seen."""
    for module in (network_module, rule_module, view_module, bottleneck_module):
        monkeypatch.setattr(module, "DEEPEST", 150)
    return 150


def wide() -> Network:
    """Its layer "b" has 24 channels and 216 products."""
    return teachers.network_of(
        of(
            lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))),
            a=conv(3, 24, 5, padding=2),
            b=conv(24, 20, 3, padding=1),
            c=conv(20, 5, 1),
        )
    )


def channels_of(x: Tensor) -> Moments:
    """Of maps (n, C, H, W), all positions."""
    sums = Summing()
    for image in x:
        sums.add_inputs(image.flatten(1).T)
    return sums.moments()


def test_as_many_mixtures_as_channels_are_the_layer_itself() -> None:
    layer = Conv(12, 7, (3, 5), padding=(1, 2))
    weight, x = kernel_of(layer), maps(12, 4)
    view = mixed(layer, weight, channels_of(x), 12, torch.linspace(0.1, 3, 7).double())
    assert view.mixing is not None
    torch.testing.assert_close(view.mixing @ view.mixing.T, torch.eye(12), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.einsum("onhw,ni->oihw", view.weight, view.mixing), weight, rtol=0, atol=1e-5)


def test_channels_in_few_directions_need_few_mixtures() -> None:
    """Of 24 channels that 6 directions make, 6 mixtures give the layer's outputs, and 5 do not."""
    layer = Conv(24, 9, (3, 3), padding=(1, 1))
    weight = kernel_of(layer)
    x = torch.einsum("ij,njhw->nihw", random(24, 6, seed=5), maps(6, 4))
    channels = replace(channels_of(x), ridge=1e-5)
    view = mixed(layer, weight, channels, 6)
    assert view.mixing is not None
    assert (view.conv, view.weight.shape) == (Conv(6, 9, (3, 3), padding=(1, 1)), (9, 6, 3, 3))
    wanted = F.conv2d(x, weight, padding=1)
    found = F.conv2d(F.conv2d(x, view.mixing[:, :, None, None]), view.weight, padding=1)
    assert float((found - wanted).square().mean() / wanted.var()) < 1e-5
    fewer = mixed(layer, weight, channels, 5)
    assert fewer.mixing is not None
    found = F.conv2d(F.conv2d(x, fewer.mixing[:, :, None, None]), fewer.weight, padding=1)
    assert float((found - wanted).square().mean() / wanted.var()) > 1e-4


def test_outputs_that_matter_decide_what_is_seen() -> None:
    layer = Conv(16, 2, (3, 3), padding=(1, 1))
    weight, x = kernel_of(layer), maps(16, 4)
    wanted = F.conv2d(x, weight, padding=1)
    lost = []
    for matters in ([1.0, 1e-4], [1e-4, 1.0]):
        view = mixed(layer, weight, channels_of(x), 4, torch.tensor(matters).double())
        assert view.mixing is not None
        found = F.conv2d(F.conv2d(x, view.mixing[:, :, None, None]), view.weight, padding=1)
        lost.append((found - wanted).square().mean((0, 2, 3)) / wanted.var((0, 2, 3)))
    assert lost[0][0] < 0.7 * lost[1][0]
    assert lost[1][1] < 0.7 * lost[0][1]


@pytest.mark.parametrize(
    "layer", [Conv(16, 9, (3, 3), (2, 1), (1, 2), (1, 2)), Conv(16, 9, (5, 1), (1, 1), (0, 0), (2, 1))], ids=str
)
def test_patches_of_mixtures(layer: Conv) -> None:
    weight, x = kernel_of(layer), maps(16, 3)
    view = mixed(layer, weight, channels_of(x), 5)
    assert view.mixing is not None
    at = torch.tensor([3, 0, 40])
    wanted = F.unfold(
        torch.einsum("ni,bihw->bnhw", view.mixing, x[:1]), layer.kernel, layer.dilation, layer.padding, layer.stride
    )
    torch.testing.assert_close(view.patches(x[:1], at), wanted[0].T[at])
    plain = View(layer, weight)
    assert torch.equal(plain.patches(x[:1], at), patches(x[:1], layer, at))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_heads_of_published_networks_are_offered_what_can_be_fitted(head: Conv) -> None:
    for name, rule in RULES.items():
        offered = rule.offered(head, 8)
        assert bool(offered) == (name in MIXING)
        for choice in offered:
            count = seen(head, [choice])
            first = choice.pieces[0]
            assert isinstance(first, Conv)
            assert count * head.taps <= 9216
            if name == "bottleneck":
                assert first.outputs < count
            assert macs(choice.pieces, (64, 64)) < 0.72 * macs((head,), (64, 64))
    module = nn.Conv2d(head.inputs, head.outputs, head.kernel, bias=False, device="meta")
    module.weight = nn.Parameter(torch.zeros(1))
    assert refusal(module) is None


def test_layers_that_fit_are_offered_all_and_seen_as_they_are() -> None:
    layer = Conv(1024, 64, (3, 3))
    for rule in RULES.values():
        assert list(rule.offered(layer, 8)) == list(rule.choices(layer, 8))
    assert seen(layer, RULES["bottleneck"].offered(layer, 8)) == 1024
    assert seen(Conv(1025, 64, (3, 3)), RULES["bottleneck"].offered(Conv(1025, 64, (3, 3)), 8)) < 1024


def test_a_wide_layer_is_predicted_as_if_all_of_it_were_seen(monkeypatch: pytest.MonkeyPatch, shallow: int) -> None:
    network, frames = wide(), teachers.images(10)
    some = [layer for layer in teachers.rewritable(network) if layer.name == "b"]
    behind = plan(network, some, frames, teachers.scores, rules=tuple(RULES), align=2)
    assert {option.choice.rule for option in behind.options} == set(MIXING)
    count = seen(some[0].conv, [option.choice for option in behind.options])
    for module in (rule_module, view_module, bottleneck_module):
        monkeypatch.setattr(module, "DEEPEST", 10_000)
    whole = {
        option.choice: option for option in plan(network, some, frames, teachers.scores, rules=MIXING, align=2).options
    }
    both = [option for option in behind.options if option.choice in whole]
    assert len(both) >= 4
    for option in both:
        first = option.choice.pieces[0]
        assert isinstance(first, Conv)
        loss = 1.05 if first.outputs < 2.2 * count else 1.25  # filters of many more mixtures than are seen lose some
        assert option.damage < loss * whole[option.choice].damage
        assert (option.macs, option.parameters) == (whole[option.choice].macs, whole[option.choice].parameters)


def test_views_are_made_of_the_frames_that_are_fitted_to(shallow: int) -> None:
    network, frames = wide(), teachers.images(6)
    some = [layer for layer in teachers.rewritable(network) if layer.name == "b"]
    offered = {"b": RULES["bottleneck"].offered(some[0].conv, 2)}
    matters = teachers.even(some)
    view = views_of(network, some, offered, frames, matters)["b"]
    held = [frame if at % 2 == 0 else 1 - frame for at, frame in enumerate(frames)]
    assert view.mixing is not None
    assert view.conv.inputs == len(view.mixing) <= shallow // 9
    again = views_of(network, some, offered, held, matters)["b"].mixing
    assert again is not None
    assert torch.equal(again, view.mixing)
    fit = [1 - frame if at % 2 == 0 else frame for at, frame in enumerate(frames)]
    other = views_of(network, some, offered, fit, matters)["b"].mixing
    assert other is not None
    assert not torch.allclose(other, view.mixing, atol=1e-3)


@pytest.mark.parametrize("rule", MIXING)
def test_a_wide_layer_is_replaced_by_what_was_fitted(shallow: int, rule: str) -> None:
    """What is said to be left unexplained is what the chain leaves, on the layer's own channels."""
    network, frames = wide(), teachers.images(8)
    some = [layer for layer in teachers.rewritable(network) if layer.name == "b"]
    choice = RULES[rule].offered(some[0].conv, 2)[-1]
    told: list[float] = []
    student = rewritten(
        network,
        some,
        {"b": choice},
        frames,
        steps=2,
        importance=teachers.even(some),
        on_layer=lambda _name, value: told.append(value),
    )
    first = student.get_submodule("b")[0]  # type: ignore[index]
    assert isinstance(first, nn.Conv2d)
    assert first.in_channels == 24
    left: list[Tensor] = []
    wanted: list[Tensor] = []

    def see(name: str, x: Tensor, y: Tensor) -> None:
        at = positions(name, len(wanted), (y.shape[-2], y.shape[-1]))
        wanted.append(targets(y, at))
        left.append(wanted[-1] - targets(student.get_submodule("b")(x), at))

    with torch.no_grad(), watching(network, ["b"], see):
        for image in frames:
            network(image)
    residual, every = torch.cat(left), torch.cat(wanted)
    assert told == [pytest.approx(float(residual.square().mean() / every.var(0, correction=0).mean()), rel=1e-2)]
    assert float(residual.mean(0).abs().max()) < 1e-3 * float(every.std())  # the bias is the best one
    assert told[0] < 0.5


def test_a_wide_layer_is_tuned_on_fewer_patches(shallow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, frames = wide(), teachers.images(8)
    some = [layer for layer in teachers.rewritable(network) if layer.name == "b"]
    choices = {"b": RULES["bottleneck"].offered(some[0].conv, 2)[0]}
    student = rewritten(network, some, choices, frames, steps=0, importance=teachers.even(some))
    monkeypatch.setattr(refine_module, "ELEMENTS", 216 * 600)
    counts: list[int] = []
    tune = refine_module._tune
    layer = network.get_submodule("b")
    assert isinstance(layer, nn.Conv2d)
    weight, bias = layer.weight, layer.bias

    def count(chain: nn.Sequential, windows: Tensor, wanted: Tensor, *rest: object, **more: object) -> None:
        counts.append(len(windows))
        torch.testing.assert_close(F.conv2d(windows, weight, bias).flatten(1), wanted)
        tune(chain, windows, wanted, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(refine_module, "_tune", count)
    found = refined(network, student, some, frames, importance=teachers.even(some))
    assert counts == [600]
    held = teachers.images(4, seed=70)
    assert teachers.difference(network, found, held) < teachers.difference(network, student, held)


def test_a_fit_behind_all_mixtures_is_that_of_the_layer() -> None:
    """Turning the channels changes nothing of what a bottleneck can reach."""
    layer = Conv(12, 10, (3, 3), padding=(1, 1))
    weight, x = kernel_of(layer), maps(12, 5)
    view = mixed(layer, weight, channels_of(x), 12)
    assert view.mixing is not None
    turned = torch.einsum("ni,bihw->bnhw", view.mixing, x)
    direct, behind = moments_at(layer, weight, x), moments_at(view.conv, view.weight, turned)
    for choice in RULES["bottleneck"].choices(layer, 2):
        one = fitted(choice, layer, direct, weight, 3)
        other = fitted(choice, view.conv, behind, view.weight, 3)
        assert behind.unexplained(other.effective) == pytest.approx(direct.unexplained(one.effective), rel=2e-2)
        chain = assemble(choice, view.widened(other), behind.bias(other.effective))
        wanted = F.conv2d(x, weight, torch.full((10,), 0.25), padding=1)
        left = float((chain(x) - wanted).square().mean() / wanted.var((0, 2, 3)).mean())
        assert left == pytest.approx(behind.unexplained(other.effective), rel=2e-2)


def test_moments_are_of_even_frames_and_of_odd_ones() -> None:
    network, frames = teachers.unet(), teachers.images(5)
    some = teachers.rewritable(network)[:2]
    found = moments_of(network, views_of(network, some, {}, frames, {}), frames, count=10_000)
    module = network.get_submodule(some[1].name)
    assert isinstance(module, nn.Conv2d)
    x: list[Tensor] = []
    y: list[Tensor] = []

    def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x.append(inputs[0])
        y.append(output)

    hook = module.register_forward_hook(record)
    with torch.no_grad():
        for image in frames:
            network(image)
    hook.remove()
    for moments, which in zip(found[some[1].name], ([0, 2, 4], [1, 3]), strict=True):
        rows = torch.cat([F.unfold(x[k], 3, padding=1)[0].T for k in which]).double()
        wanted = torch.cat([y[k][0].flatten(1).T for k in which]).double()
        assert moments.rows == len(rows)
        torch.testing.assert_close(moments.mean_x, rows.mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments.gram, rows.T.cov(correction=0), rtol=1e-4, atol=1e-4)
        centred = wanted - wanted.mean(0)
        torch.testing.assert_close(moments.cross, centred.T @ (rows - rows.mean(0)) / len(rows), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(moments.power, centred.square().mean(0), rtol=1e-4, atol=1e-4)
        # the layer itself leaves nothing unexplained, and its own bias is the best one
        own = module.weight.double().flatten(1)
        assert moments.unexplained(own) < 1e-4
        assert module.bias is not None
        torch.testing.assert_close(moments.bias(own), module.bias.double(), rtol=1e-3, atol=1e-3)


def test_all_calls_of_a_layer_count() -> None:
    network = teachers.network_of(HABITS["twice"], (20, 24))
    (layer,) = layers(network, (20, 24))
    assert layer.calls == 2
    frames = teachers.images(2, size=(20, 24))
    found = moments_of(network, views_of(network, [layer], {}, frames, {}), frames, count=10_000)
    assert [moments.rows for moments in found[layer.name]] == [layer.positions] * 2
