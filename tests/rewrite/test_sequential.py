"""Layers replaced one after the other: exact where that is due, and better than each for itself where it is not."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.fisher import importance
from edgeseg.rewrite.modules import assemble
from edgeseg.rewrite.moments import Summing
from edgeseg.rewrite.network import Network
from edgeseg.rewrite.observe import outputs_at, patches, positions, watching
from edgeseg.rewrite.rules import RULES
from edgeseg.rewrite.sequential import fitted, rescaled, rewritten
from edgeseg.rewrite.values import Choice, Conv, Layer
from tests.rewrite import teachers
from tests.rewrite.layers import kernel_of, maps, moments_at, random
from tests.rewrite.networks import conv, of

FRAMES = 8


def cheapest(network: Network) -> dict[str, Choice]:
    """One filter a channel wherever possible: what shows differences."""
    return {layer.name: teachers.separated(layer.conv, 1) for layer in teachers.rewritable(network)}


def rewrite(network: Network, choices: Mapping[str, Choice], steps: int = 0, seed: int = 0, **more: object) -> Network:
    some = teachers.rewritable(network)
    weights = teachers.even(some)
    frames = teachers.images(FRAMES)
    return rewritten(network, some, choices, frames, steps=steps, importance=weights, seed=seed, **more)  # type: ignore[arg-type]


def test_full_rank_is_the_teacher() -> None:
    network, held = teachers.unet(), teachers.images(3, seed=60)
    choices = {layer.name: teachers.separated(layer.conv, layer.conv.taps) for layer in teachers.rewritable(network)}
    student = rewrite(network, choices)
    assert len(choices) == 5
    with torch.no_grad():
        for image in held:
            wanted = teachers.scores(network, image)
            torch.testing.assert_close(teachers.scores(student, image), wanted, rtol=0, atol=1e-3 * float(wanted.std()))
    # and the chains are really there
    for name in choices:
        chain = student.get_submodule(name)
        assert isinstance(chain, nn.Sequential)
        depthwise = chain[0]
        assert isinstance(depthwise, nn.Conv2d)
        assert depthwise.groups == depthwise.in_channels


def test_fitting_to_what_really_comes_in_is_better() -> None:
    """Against the same choices, each fitted to the original's own inputs, on frames that neither has seen."""
    network, frames, held = teachers.unet(), teachers.images(FRAMES), teachers.images(4, seed=60)
    choices = cheapest(network)
    some = teachers.rewritable(network)
    together = rewrite(network, choices)
    apart = copy.deepcopy(network)
    for layer in some:
        alone = rewritten(
            network, some, {layer.name: choices[layer.name]}, frames, steps=0, importance=teachers.even(some)
        )
        apart.set_submodule(layer.name, alone.get_submodule(layer.name))
    good, bad = teachers.difference(network, together, held), teachers.difference(network, apart, held)
    assert good < 0.9 * bad
    assert teachers.divergence(network, together, held) < teachers.divergence(network, apart, held)


def test_the_teacher_stays_as_it_was() -> None:
    network = teachers.unet()
    before, code = teachers.state(network), network.code
    student = rewrite(network, cheapest(network))
    assert teachers.same(teachers.state(network), before)
    assert network.code == code
    assert all(isinstance(network.get_submodule(name), nn.Conv2d) for name in cheapest(network))
    memory = {value.data_ptr() for value in network.state_dict().values()}
    assert not memory & {value.data_ptr() for value in student.state_dict().values()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert teachers.same(teachers.state(network), before)


def test_only_what_was_chosen_is_replaced() -> None:
    network = teachers.unet()
    name, choice = list(cheapest(network).items())[1]
    student = rewrite(network, {name: choice})
    for other, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and other != name:
            found = student.get_submodule(other)
            assert isinstance(found, nn.Conv2d)
            assert torch.equal(found.weight, module.weight)
    assert isinstance(student.get_submodule(name), nn.Sequential)
    nothing = rewrite(network, {})
    assert teachers.same(teachers.state(nothing), teachers.state(network))


def test_the_seed_decides() -> None:
    network = teachers.unet()
    choices = cheapest(network)
    torch.manual_seed(1)
    first = teachers.state(rewrite(network, choices, steps=3))
    torch.manual_seed(2)
    assert teachers.same(first, teachers.state(rewrite(network, choices, steps=3)))
    assert not teachers.same(first, teachers.state(rewrite(network, choices, steps=3, seed=1)))


def test_files_instead_of_memory_change_nothing() -> None:
    network = teachers.unet()
    choices = cheapest(network)
    wanted = teachers.state(rewrite(network, choices))
    for name, value in teachers.state(rewrite(network, choices, limit=0)).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-4)


def test_what_is_told_of_each_layer() -> None:
    network = teachers.unet()
    told: dict[str, float] = {}
    choices = cheapest(network)
    student = rewrite(network, choices, on_layer=told.__setitem__)
    assert list(told) == list(choices)  # in the order of the network
    # of the last layer: by what comes out of it, at the positions that were fitted to
    name, frames = list(choices)[-1], teachers.images(FRAMES)
    (layer,) = (layer for layer in teachers.rewritable(network) if layer.name == name)
    wanted, given = (torch.cat(outputs_at(n, [layer], frames, lambda y: y)[name]) for n in (network, student))
    left = (wanted - given).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert told[name] == pytest.approx(float(left), rel=1e-2)
    assert 0.01 < told[name] < 1


@pytest.mark.parametrize("steps", [0, 4])
def test_a_layer_called_twice_becomes_one_chain_called_twice(steps: int) -> None:
    network = teachers.network_of(
        of(lambda s, x: s.b(F.relu(s.a(F.relu(s.a(x))))), a=conv(3, 3, 3, padding=1), b=conv(3, 4, 1))
    )
    (layer,) = teachers.rewritable(network)
    full = rewrite(network, {"a": teachers.separated(layer.conv, 9)}, steps=steps)
    some = rewrite(network, {"a": teachers.separated(layer.conv, 2)}, steps=steps)
    held = teachers.images(2, seed=60)
    assert teachers.difference(network, full, held) < 1e-6
    assert 1e-6 < teachers.difference(network, some, held) < 0.5
    assert str(some.code).count("self.a(") == 2


def layer_with(name: str) -> tuple[Conv, Choice]:
    conv_ = Conv(16, 24, (5, 5), padding=(2, 2)) if name == "stacked" else Conv(16, 24, (3, 3), (1, 2), (1, 1))
    return conv_, RULES[name].choices(conv_, 8)[0]


@pytest.mark.parametrize("steps", [0, 6])
@pytest.mark.parametrize("name", RULES)
def test_outputs_that_matter_more_are_fitted_better(name: str, steps: int) -> None:
    conv_, choice = layer_with(name)
    weight = kernel_of(conv_)
    moments = moments_at(conv_, weight, maps(conv_.inputs, 4))
    matters = torch.ones(conv_.outputs, dtype=torch.float64)
    matters[:6] = 50.0
    alike = fitted(choice, conv_, moments, weight, steps)
    found = fitted(choice, conv_, moments, weight, steps, matters)
    assert float((moments.residual(found.effective) * matters).sum()) < float(
        (moments.residual(alike.effective) * matters).sum()
    )
    # what it is said to compute is what the chain computes
    chain = assemble(choice, found, moments.bias(found.effective))
    x = random(2, conv_.inputs, 13, 12, seed=5)
    wanted = F.conv2d(
        x.double(),
        found.effective.view_as(weight.double()),
        moments.bias(found.effective),
        conv_.stride,
        conv_.padding,
        conv_.dilation,
    )
    with torch.no_grad():
        torch.testing.assert_close(chain(x).double(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20, 1e20])
def test_outputs_that_all_matter_alike_are_fitted_as_without(value: float) -> None:
    conv_, choice = layer_with("bottleneck")
    weight = kernel_of(conv_)
    moments = moments_at(conv_, weight, maps(conv_.inputs, 4))
    alike = fitted(choice, conv_, moments, weight, 0)
    found = fitted(choice, conv_, moments, weight, 0, torch.full((24,), value, dtype=torch.float64))
    torch.testing.assert_close(found.effective, alike.effective, rtol=1e-4, atol=1e-5)


def test_outputs_that_do_not_matter_at_all_stay_finite() -> None:
    conv_, choice = layer_with("separable")
    weight = kernel_of(conv_)
    moments = moments_at(conv_, weight, maps(conv_.inputs, 4))
    matters = torch.zeros(24, dtype=torch.float64)
    matters[3] = 1e-9
    found = fitted(choice, conv_, moments, weight, 2, matters)
    assert bool(found.effective.isfinite().all())
    assert moments.unexplained(found.effective) < 1


def statistics(network: Network, some: list[Layer], frames: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation of each output of each layer, at the positions that are looked at."""
    seen = outputs_at(network, some, frames, lambda y: y)
    return {name: (torch.cat(parts).mean(0), torch.cat(parts).std(0)) for name, parts in seen.items()}


def test_rescaled_has_the_teachers_means_and_deviations() -> None:
    network, frames = teachers.unet(), teachers.images(FRAMES)
    some = teachers.rewritable(network)
    student = rewrite(network, cheapest(network))
    before = teachers.state(student)
    found = rescaled(network, student, some, frames)
    assert teachers.same(teachers.state(student), before)
    wanted, was, now = (statistics(n, some, frames) for n in (network, student, found))
    shrunk = 0
    for layer in some:
        (mean, deviation), (old_mean, old), (new_mean, new) = (s[layer.name] for s in (wanted, was, now))
        shrunk += int((old < 0.95 * deviation).sum())
        torch.testing.assert_close(new_mean, mean, rtol=1e-3, atol=1e-3 * float(deviation.max()))
        ratio = new / deviation
        assert float(ratio.min()) > 0.99 or float((old / deviation).min()) < 0.5  # beyond twice it is not stretched
        assert float(ratio.max()) < 1.01
        assert not torch.allclose(old_mean, new_mean, rtol=1e-4) or not torch.allclose(old, new, rtol=1e-4)
    assert shrunk > 10  # least squares shrinks, so there was something to do


def test_rescaling_the_teacher_changes_nothing() -> None:
    network, frames = teachers.unet(), teachers.images(4)
    some = teachers.rewritable(network)
    found = rescaled(network, network, some, frames)
    for name, value in teachers.state(network).items():
        torch.testing.assert_close(teachers.state(found)[name], value, rtol=1e-4, atol=1e-4)


def test_a_dead_output_stays_finite() -> None:
    network, frames = teachers.unet(), teachers.images(4)
    student = copy.deepcopy(network)
    some = teachers.rewritable(network)
    dead = student.get_submodule(some[1].name)
    assert isinstance(dead, nn.Conv2d)
    with torch.no_grad():
        dead.weight[2] = 0
    found = rescaled(network, student, some, frames)
    assert all(bool(value.isfinite().all()) for value in found.state_dict().values())
    mean, deviation = statistics(found, some, frames)[some[1].name]
    assert float(deviation[2]) == 0
    assert float(mean[2]) == pytest.approx(float(statistics(network, some, frames)[some[1].name][0][2]), abs=1e-3)


def test_what_is_fitted_to() -> None:
    """The second of two layers, by hand: its inputs are the student's, its targets the teacher's."""
    network = teachers.network_of(
        of(lambda s, x: s.b(F.relu(s.a(x))), a=conv(3, 6, 3, padding=1), b=conv(6, 4, 3, padding=1))
    )
    frames = teachers.images(3)
    first, second = teachers.rewritable(network)
    choices = {"a": teachers.separated(first.conv, 1), "b": teachers.separated(second.conv, 2)}
    weights = importance(network, [first, second], frames, teachers.scores)
    student = rewritten(network, [first, second], choices, frames, steps=2, importance=weights, seed=3)
    sums = Summing()
    with torch.no_grad():
        for frame, image in enumerate(frames):
            at = positions("b", frame, teachers.SIZE, seed=3)
            inputs: list[Tensor] = []
            with watching(student, ["b"], lambda _n, x, _y, inputs=inputs: inputs.append(x)):  # type: ignore[misc]
                student(image)
            sums.add(patches(inputs[0], second.conv, at), teachers.scores(network, image)[0].flatten(1)[:, at].T)
    moments = sums.moments()
    module = network.get_submodule("b")
    assert isinstance(module, nn.Conv2d)
    made = fitted(choices["b"], second.conv, moments, module.weight, 2, weights["b"])
    wanted = assemble(choices["b"], made, moments.bias(made.effective))
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(student.get_submodule("b").state_dict()[name], value, rtol=1e-3, atol=1e-4)
