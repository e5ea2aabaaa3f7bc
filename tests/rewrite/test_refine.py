"""Tuning behind the non-linearity: it sees what the layer sees, gains where there is something, and never loses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.modules import assemble
from edgeseg.rewrite.network import Network
from edgeseg.rewrite.observe import patches, targets, watching
from edgeseg.rewrite.refine import _activation, _tune, refined
from edgeseg.rewrite.rules import RULES
from edgeseg.rewrite.sequential import fitted, rewritten
from edgeseg.rewrite.values import Choice, Conv
from tests.rewrite import teachers
from tests.rewrite.layers import kernel_of, maps, moments_at
from tests.rewrite.networks import conv, of

LAYERS = {
    "plain": Conv(8, 12, (3, 3), padding=(1, 1)),
    "stride, dilation": Conv(8, 12, (3, 3), (2, 1), (2, 1), (1, 2)),
    "large": Conv(8, 12, (5, 5), (2, 2), (2, 2)),
}
EVERY = [
    pytest.param(conv_, choice, id=f"{name}, {choice.label}")
    for name, conv_ in LAYERS.items()
    for rule in RULES.values()
    for choice in rule.choices(conv_, 4)[:1]
]


def chain_of(conv_: Conv, choice: Choice) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A fitted chain, a map that it may be called with, and windows and targets of other maps."""
    weight, x = kernel_of(conv_), maps(conv_.inputs, 5)
    moments = moments_at(conv_, weight, x[:4])
    found = fitted(choice, conv_, moments, weight, 0)
    chain = assemble(choice, found, moments.bias(found.effective))
    windows, wanted = [], []
    for image in x[:4]:
        y = F.conv2d(
            image[None], weight, torch.full((conv_.outputs,), 0.25), conv_.stride, conv_.padding, conv_.dilation
        )
        every = torch.arange(0, y.shape[-2] * y.shape[-1], 2)
        windows.append(patches(image[None], conv_, every).reshape(-1, conv_.inputs, *conv_.kernel))
        wanted.append(targets(y, every))
    return chain, x[4:], torch.cat(windows), torch.cat(wanted)


def tune(chain: nn.Sequential, windows: Tensor, wanted: Tensor, **more: Any) -> None:
    given: dict[str, Any] = {"steps": 30, "learning_rate": 1e-3} | more
    activation, importance = given.pop("activation", F.relu), given.pop("importance", torch.ones(wanted.shape[1]))
    _tune(chain, windows, wanted, activation, importance, generator=torch.Generator().manual_seed(0), **given)


def loss_of(
    conv_: Conv,
    chain: nn.Sequential,
    windows: Tensor,
    wanted: Tensor,
    activation: Callable[[Tensor], Tensor] = F.relu,
    importance: Tensor | None = None,
) -> float:
    """On the rows held out, by the chain's effective kernel: what it answers for a single window in the middle."""
    held = slice(3 * len(windows) // 4, None)
    rows, goal = windows[held], wanted[held]
    reach = conv_.dilation[0] * (conv_.kernel[0] - 1) + 1, conv_.dilation[1] * (conv_.kernel[1] - 1) + 1
    image = torch.zeros(len(rows), conv_.inputs, *reach)
    image[:, :, :: conv_.dilation[0], :: conv_.dilation[1]] = rows
    padded = F.pad(image, [conv_.stride[1] * 4] * 2 + [conv_.stride[0] * 4] * 2)
    with torch.no_grad():
        whole = chain(padded)
    # the output whose patch begins where the image does: padding in front is taken off again
    top, left = ((4 * s + p) // s for s, p in zip(conv_.stride, conv_.padding, strict=True))
    assert all((4 * s + p) % s == 0 for s, p in zip(conv_.stride, conv_.padding, strict=True))
    given = whole[:, :, top, left]
    weight = torch.ones(goal.shape[1]) if importance is None else (importance / importance.mean()).clamp(1e-2, 1e2)
    return float(((activation(given) - activation(goal)).square() * weight).mean())


@pytest.mark.parametrize(("conv_", "choice"), EVERY)
def test_windows_are_what_the_chain_sees(conv_: Conv, choice: Choice) -> None:
    """On one map of the layer, with its borders: the chain on windows answers as the chain on the map."""
    chain, x, _, _ = chain_of(conv_, choice)
    with torch.no_grad():
        y = chain(x)
    every = torch.arange(y.shape[-2] * y.shape[-1])
    windows = patches(x, conv_, every).reshape(-1, conv_.inputs, *conv_.kernel)
    seen: list[Tensor] = []

    def spy(values: Tensor) -> Tensor:
        seen.append(values.detach().clone())
        return values

    tune(chain, windows, targets(y, every), activation=spy, steps=1)
    held = slice(3 * len(windows) // 4, None)
    torch.testing.assert_close(seen[1], targets(y, every)[held], rtol=1e-4, atol=1e-4)  # the first is the goal


@pytest.mark.parametrize(("conv_", "choice"), EVERY)
def test_what_is_kept_is_never_worse_on_rows_held_out(conv_: Conv, choice: Choice) -> None:
    chain, _, windows, wanted = chain_of(conv_, choice)
    before, state = loss_of(conv_, chain, windows, wanted), teachers.state(chain)
    tune(chain, windows, wanted)
    after = loss_of(conv_, chain, windows, wanted)
    changed = not teachers.same(teachers.state(chain), state)
    assert after < before if changed else after == before
    if choice.rule in ("separable", "bottleneck-separable"):
        assert changed  # least squares does not know of the ReLU: something is gained


@pytest.mark.parametrize("rate", [1.0, 1e6, float("nan")])
def test_a_careless_learning_rate_changes_nothing(rate: float) -> None:
    conv_ = LAYERS["plain"]
    chain, _, windows, wanted = chain_of(conv_, RULES["separable"].choices(conv_, 4)[0])
    state = teachers.state(chain)
    if rate != rate:
        windows = windows.clone()
        windows[0] = rate  # a frame that is no number
    tune(chain, windows, wanted, learning_rate=1.0 if rate != rate else rate)
    assert teachers.same(teachers.state(chain), state)


def test_what_matters_more_is_tuned_more() -> None:
    conv_ = LAYERS["plain"]
    matters = torch.tensor([1.0] * 6 + [1e-3] * 6)
    chain, _, windows, wanted = chain_of(conv_, RULES["separable"].choices(conv_, 4)[0])
    other, *_ = chain_of(conv_, RULES["separable"].choices(conv_, 4)[0])
    tune(chain, windows, wanted, importance=matters, steps=60)
    tune(other, windows, wanted, importance=matters.flip(0), steps=60)
    first, second = (loss_of(conv_, c, windows, wanted, importance=matters) for c in (chain, other))
    assert first < second


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_few_rows(rows: int) -> None:
    conv_ = LAYERS["plain"]
    chain, _, windows, wanted = chain_of(conv_, RULES["separable"].choices(conv_, 4)[0])
    before = loss_of(conv_, chain, windows[:rows], wanted[:rows])
    tune(chain, windows[:rows], wanted[:rows])
    assert all(bool(value.isfinite().all()) for value in chain.state_dict().values())
    assert loss_of(conv_, chain, windows[:rows], wanted[:rows]) <= before


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (F.relu, F.relu),
    "relu6": (F.relu6, F.relu6),
    "leaky": (lambda y: F.leaky_relu(y, 0.3), lambda y: F.leaky_relu(y, 0.3)),
    "hardtanh": (lambda y: F.hardtanh(y, -0.5, 0.25), lambda y: F.hardtanh(y, -0.5, 0.25)),
    "silu": (F.silu, F.silu),
    "gelu": (lambda y: F.gelu(y, approximate="tanh"), lambda y: F.gelu(y, approximate="tanh")),
    "elu": (F.elu, F.elu),
    "hardswish": (F.hardswish, F.hardswish),
    "sigmoid": (torch.sigmoid, torch.sigmoid),
    "in place": (lambda y: F.relu_(y), F.relu),
    "none of them": (lambda y: y.abs(), lambda y: y),
    "used twice": (lambda y: F.relu(y) + y, lambda y: y),
    "with another": (lambda y: torch.maximum(y, 0 * y), lambda y: y),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_behind_a_layer(name: str) -> None:
    apply, wanted = ACTIVATIONS[name]
    network = teachers.network_of(of(lambda s, x: s.b(apply(s.a(x))), a=conv(3, 4, 3), b=conv(4, 3, 1)))
    y = torch.linspace(-8, 8, 24).view(2, 12)
    before = y.clone()
    torch.testing.assert_close(_activation(network, "a")(y), wanted(y.clone()))
    assert torch.equal(y, before)
    assert torch.equal(_activation(network, "b")(y), y)


def shrunk(steps: int = 0) -> tuple[Network, Network]:
    network = teachers.unet()
    some = teachers.rewritable(network)
    choices = {layer.name: teachers.separated(layer.conv, 1) for layer in some}
    student = rewritten(network, some, choices, teachers.images(8), steps=steps, importance=teachers.even(some))
    return network, student


def tuned(network: Network, student: Network, **more: Any) -> Network:
    some = teachers.rewritable(network)
    return refined(network, student, some, teachers.images(8), importance=teachers.even(some), **more)


def test_a_network_gains_and_the_others_stay() -> None:
    network, student = shrunk()
    before = teachers.state(network), teachers.state(student)
    done: list[int] = []
    found = tuned(network, student, on_layer=lambda: done.append(0))
    for one, was in zip((network, student), before, strict=True):
        assert teachers.same(teachers.state(one), was)
    assert len(done) == 5
    held = teachers.images(4, seed=70)
    assert teachers.difference(network, found, held) < teachers.difference(network, student, held)
    assert all(not parameter.requires_grad for parameter in found.parameters())
    assert teachers.same(teachers.state(found), teachers.state(tuned(network, student)))
    assert not teachers.same(teachers.state(found), teachers.state(tuned(network, student, seed=1)))


def test_each_layer_is_tuned_on_what_those_before_it_give_now() -> None:
    """The inputs of the last layer are those of the network that is being tuned."""
    network, student = shrunk()
    last = teachers.rewritable(network)[-1]
    seen: list[Tensor] = []

    def see(_name: str, x: Tensor, _y: Tensor) -> None:
        seen.append(x)

    found = tuned(network, student)
    image = teachers.images(1)[0]
    with torch.no_grad():
        for one in (student, found):
            with watching(one, [last.name], see):
                one(image)
    assert not torch.allclose(seen[0], seen[1], rtol=1e-3)


def test_an_exact_student_stays_as_good() -> None:
    network = teachers.unet()
    some = teachers.rewritable(network)
    choices = {layer.name: teachers.separated(layer.conv, 9) for layer in some}
    student = rewritten(network, some, choices, teachers.images(4), steps=0, importance=teachers.even(some))
    found = tuned(network, student)
    held = teachers.images(2, seed=70)
    assert teachers.difference(network, found, held) < 1e-5


def test_layers_called_twice_are_left() -> None:
    network = teachers.network_of(
        of(lambda s, x: s.b(F.relu(s.a(F.relu(s.a(x))))), a=conv(3, 3, 3, padding=1), b=conv(3, 4, 3))
    )
    some = teachers.rewritable(network)
    choices = {layer.name: teachers.separated(layer.conv, 1) for layer in some}
    student = rewritten(network, some, choices, teachers.images(4), steps=0, importance=teachers.even(some))
    found = tuned(network, student)
    assert teachers.same(teachers.state(found.get_submodule("a")), teachers.state(student.get_submodule("a")))
    assert not teachers.same(teachers.state(found.get_submodule("b")), teachers.state(student.get_submodule("b")))
