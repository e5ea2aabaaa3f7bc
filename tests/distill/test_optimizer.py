"""How weights move: the schedule, what is decayed, the average, and what is remembered of it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from edgeseg.distill.optimizer import adamw, follow, moments, rate, remember, set_rate, trained
from edgeseg.distill.values import Distillation
from tests.distill.making import teacher


def test_rate_rises_and_falls() -> None:
    assert rate(0.05, 0.1) == pytest.approx(0.5)
    assert rate(0.1, 0.1) == 1.0
    assert rate(0.55, 0.1) == pytest.approx(0.5)
    assert rate(1.0, 0.1) == pytest.approx(0.0)
    assert rate(0.325, 0.1) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert 0 < rate(0.0, 0.1) < 0.05  # the first step is a step
    assert rate(0.0, 0.0) == 1.0


def test_layers_are_trained_each_once() -> None:
    network = teacher()
    network.register_parameter("extra", nn.Parameter(torch.ones(2)))
    found = trained(network)
    assert sorted(found) == [
        "deep.0.weight", "deep.1.bias", "deep.1.weight", "first.bias", "first.weight", "head.bias", "head.weight",
        "twice.weight",
    ]  # fmt: skip
    assert all(parameter.requires_grad for parameter in found.values())
    assert not network.get_parameter("extra").requires_grad


def test_tied_weights_are_trained_once() -> None:
    tied = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    tied[1].weight = tied[0].weight
    assert sorted(trained(tied)) == ["0.bias", "0.weight", "1.bias"]


def test_biases_are_not_decayed() -> None:
    weights = trained(teacher())
    optimizer = adamw(weights, Distillation(weight_decay=0.1))
    set_rate(optimizer, 0.5)
    before = {name: value.detach().clone() for name, value in weights.items()}
    for value in weights.values():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    for name, value in weights.items():
        expected = before[name] * (1 if name.endswith("bias") else 1 - 0.5 * 0.1)
        torch.testing.assert_close(value.detach(), expected)


def test_what_is_remembered_goes_on_as_it_would_have() -> None:
    def steps(weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for value in weights.values():
                value.grad = torch.randn(value.shape, generator=generator)
            optimizer.step()

    network = teacher()
    weights = trained(network)
    optimizer = adamw(weights, Distillation())
    steps(weights, optimizer, range(3))
    other = copy.deepcopy(network)
    others = trained(other)
    second = adamw(others, Distillation())
    remember(second, others, moments(optimizer, weights))
    steps(weights, optimizer, range(3, 6))
    steps(others, second, range(3, 6))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_average_follows() -> None:
    averaged, current = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    follow(averaged, current, step=1000, decay=0.9)
    assert float(averaged["a"]) == pytest.approx(0.1)
    follow(averaged, current, step=1, decay=0.9)  # young: keeps 2 / 11
    assert float(averaged["a"]) == pytest.approx(0.1 * 2 / 11 + 9 / 11)
    follow(averaged, {"a": torch.full((1,), 5.0)}, step=10, decay=0.0)
    assert float(averaged["a"]) == 5.0
