"""Batch norm put into a network and folded again: nothing changes by either."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeseg.distill.norm import fold, insert
from tests.distill.making import damaged, frames, graph, prepare, teacher


def images(count: int = 6) -> list[Tensor]:
    return [prepare(torch.from_numpy(frame[None])) for frame in frames(count)]


def test_the_output_stays() -> None:
    network = damaged(teacher())
    changed, norms = insert(network, images())
    assert sorted(norms.values()) == ["deep.1", "first", "twice"]  # not the head, and of the chain the last
    for image in images(8):
        torch.testing.assert_close(changed(image), network(image), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fold(changed, norms)(image), network(image), rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_the_outputs() -> None:
    network = teacher()
    changed, norms = insert(network, images())
    (name,) = (norm for norm, conv in norms.items() if conv == "twice")
    seen: list[Tensor] = []
    network.get_submodule("twice").register_forward_hook(lambda _, __, value: seen.append(value.double()))
    for image in images():
        network(image)
    assert len(seen) == 12  # both calls of each image
    values = torch.cat(seen).movedim(1, 0).flatten(1)
    norm = changed.get_submodule(name)
    torch.testing.assert_close(norm.get_buffer("running_mean"), values.mean(1).float())
    torch.testing.assert_close(norm.get_buffer("running_var"), values.var(1, unbiased=False).float())


def test_what_was_learned_is_folded() -> None:
    """Other weights, shifts and statistics: the folded network computes what the norms compute in eval mode."""
    changed, norms = insert(teacher(), images())
    generator = torch.Generator().manual_seed(5)
    for name in norms:
        norm = changed.get_submodule(name)
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert isinstance(value, Tensor)
            with torch.no_grad():
                value.mul_(1 + 0.5 * torch.rand(value.shape, generator=generator)).add_(0.1)
    folded = fold(changed, norms)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    (image,) = images(1)
    assert float((folded(image) - teacher()(image)).abs().max()) > 0.1
    torch.testing.assert_close(folded(image), changed(image), rtol=1e-4, atol=1e-4)
    twice = folded.get_submodule("twice")
    assert isinstance(twice, nn.Conv2d)
    assert twice.bias is not None  # it had none


def test_networks_given_are_left_alone() -> None:
    network = teacher()
    before = copy.deepcopy(network.state_dict())
    code = network.code
    changed, norms = insert(network, images())
    norms_before = copy.deepcopy(changed.state_dict())
    fold(changed, norms)
    for old, new in ((before, network.state_dict()), (norms_before, changed.state_dict())):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert network.code == code


class Odd(nn.Module):
    """What a norm cannot follow: a convolution whose second call ends a chain and whose first does not, one that is
    followed directly, one of two names, one that leads to the output past others."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Conv2d(3, 3, 1)
        self.inner = nn.Conv2d(3, 3, 1)
        self.last = nn.Conv2d(3, 3, 1)
        self.tied = nn.Conv2d(3, 3, 1)
        self.same = nn.Conv2d(3, 3, 1)
        self.same.weight = self.tied.weight
        self.plain = nn.Conv2d(3, 3, 1)
        self.direct = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.both(x))
        x = functional.relu(self.inner(self.both(x)))
        x = functional.relu(self.tied(x))
        x = functional.relu(self.same(x))
        x = functional.relu(self.plain(x))
        return functional.interpolate(self.last(x) + functional.relu(self.direct(x)), scale_factor=2.0)


def test_where_a_norm_cannot_be_there_is_none() -> None:
    network = graph(Odd())
    changed, norms = insert(network, images(2))
    assert sorted(norms.values()) == ["inner", "plain"]
    (image,) = images(1)
    torch.testing.assert_close(fold(changed, norms)(image), network(image), rtol=1e-4, atol=1e-5)


def test_dead_outputs_do_no_harm() -> None:
    network = teacher()
    with torch.no_grad():
        network.get_submodule("first").weight[0] = 0  # type: ignore[operator]
    changed, norms = insert(network, images())
    (image,) = images(1)
    torch.testing.assert_close(fold(changed, norms)(image), network(image), rtol=1e-4, atol=1e-5)


def test_a_network_without_places_stays() -> None:
    alone = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 2, 1)))
    changed, norms = insert(alone, images(1))
    assert norms == {}
    assert torch.equal(changed(images(1)[0]), alone(images(1)[0]))


@pytest.mark.parametrize("mode", [False, True])
def test_folding_takes_running_statistics_whatever_the_mode(mode: bool) -> None:
    network = teacher()
    changed, norms = insert(network, images())
    changed.train(mode)
    (image,) = images(1)
    torch.testing.assert_close(fold(changed, norms)(image), network(image), rtol=1e-4, atol=1e-5)
