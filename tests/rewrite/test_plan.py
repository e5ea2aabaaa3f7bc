"""The table of options: what is predicted of one is what it then does, and what it costs is what it then costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from edgeseg.rewrite import plan as module
from edgeseg.rewrite.network import layers, macs_of, parameters_of
from edgeseg.rewrite.plan import Plan, plan
from edgeseg.rewrite.rules import RULES
from edgeseg.rewrite.sequential import rewritten
from edgeseg.rewrite.view import views_of
from tests.rewrite import teachers
from tests.rewrite.networks import conv, of

FRAMES = 10


@pytest.fixture(scope="module")
def planned() -> Plan:
    network = teachers.unet()
    return plan(
        network,
        teachers.rewritable(network),
        teachers.images(FRAMES),
        teachers.scores,
        rules=tuple(RULES),
        align=4,
    )


def places(values: list[float]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(values))


def test_predicted_damage_ranks_what_replacements_do(planned: Plan) -> None:
    """Each option put into the network alone, and the divergence then measured on other frames (Spearman)."""
    network, frames, held = teachers.unet(), teachers.images(FRAMES), teachers.images(4, seed=50)
    tried = planned.options[::2]
    measured = []
    for option in tried:
        student = rewritten(
            network,
            [option.layer],
            {option.layer.name: option.choice},
            frames,
            steps=0,
            importance=planned.importance,
        )
        measured.append(teachers.divergence(network, student, held))
    predicted = [option.damage for option in tried]
    assert len(tried) > 30
    assert len({option.layer.name for option in tried}) == 5
    rank = np.corrcoef(places(predicted), places(measured))[0, 1]
    assert rank > 0.85
    # which the unexplained variance alone would not do
    assert np.corrcoef(places([option.unexplained for option in tried]), places(measured))[0, 1] < rank - 0.1
    # and it is a divergence in nats, not only an order
    assert 0.5 < float(np.median(np.array(predicted) / np.array(measured))) < 2


def test_every_choice_of_every_rule_is_in_it(planned: Plan) -> None:
    for layer in teachers.rewritable(teachers.unet()):
        wanted = [choice for rule in RULES.values() for choice in rule.choices(layer.conv, 4)]
        assert [option.choice for option in planned.of(layer)] == wanted
        assert len(planned.importance[layer.name]) == layer.conv.outputs
    other = replace(planned.options[0].layer, name="other")
    assert planned.of(other) == ()
    for option in planned.options:
        assert option.damage >= 0
        assert 0 <= option.unexplained < 1


def test_costs_are_those_of_the_network_with_it() -> None:
    network = teachers.network_of(
        of(
            lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))),
            a=conv(3, 16, 3, padding=1, stride=2),
            b=conv(16, 12, 3, padding=2, dilation=2),
            c=conv(12, 5, 1),
        )
    )
    frames = teachers.images(4)
    some = teachers.rewritable(network)
    assert [layer.name for layer in some] == ["a", "b"]
    found = plan(network, some, frames, teachers.scores, rules=tuple(RULES))
    before, weights = macs_of(network, teachers.SIZE), parameters_of(network)
    assert {option.choice.rule for option in found.options} >= {"separable", "bottleneck", "factorised", "pruned"}
    for option in found.options:
        student = rewritten(
            network, some, {option.layer.name: option.choice}, frames, steps=0, importance=found.importance
        )
        assert before - macs_of(student, teachers.SIZE) == option.layer.macs - option.macs
        assert weights - parameters_of(student) == option.layer.conv.parameters - option.parameters
        assert option.macs < option.layer.macs


def test_a_layer_called_twice_costs_twice() -> None:
    network = teachers.network_of(
        of(lambda s, x: s.b(s.a(F.avg_pool2d(s.a(x), 2))), a=conv(3, 3, 3, padding=1), b=conv(3, 4, 1))
    )
    frames = teachers.images(4)
    (layer,) = teachers.rewritable(network)
    assert layer.calls == 2
    found = plan(network, [layer], frames, teachers.scores, rules=("separable",), align=1)
    assert found.options
    for option in found.options:
        student = rewritten(network, [layer], {layer.name: option.choice}, frames, steps=0, importance=found.importance)
        assert macs_of(network, teachers.SIZE) - macs_of(student, teachers.SIZE) == layer.macs - option.macs


def test_little_memory_takes_more_passes_and_gives_the_same(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    network = teachers.unet()
    some, done = teachers.rewritable(network), []
    views = views_of(network, some, {}, (), {})
    assert len(module._groups(views)) == 1
    monkeypatch.setattr(module, "AT_ONCE", 8 * 300 * 300)
    groups = module._groups(views)
    assert 1 < len(groups) < len(some)
    assert [name for group in groups for name in group] == [layer.name for layer in some]
    again = plan(
        network,
        some,
        teachers.images(FRAMES),
        teachers.scores,
        rules=tuple(RULES),
        align=4,
        on_layer=lambda: done.append(0),
    )
    assert again.options == planned.options
    assert len(done) == len(some)


def test_the_seed_decides(planned: Plan) -> None:
    network = teachers.unet()
    some, frames = teachers.rewritable(network), teachers.images(FRAMES)
    torch.manual_seed(5)
    again = plan(network, some, frames, teachers.scores, rules=("separable",), align=4)
    wanted = tuple(option for option in planned.options if option.choice.rule == "separable")
    assert again.options == wanted
    other = plan(network, some, frames, teachers.scores, rules=("separable",), align=4, seed=1)
    assert other.options != wanted


def test_nothing_to_rewrite() -> None:
    network = teachers.network_of(of(lambda s, x: s.a(x), a=conv(3, 5, 1)))
    assert layers(network, teachers.SIZE)
    assert teachers.rewritable(network) == []
    found = plan(network, [], teachers.images(4), teachers.scores, rules=tuple(RULES))
    assert found.options == ()
    assert found.importance == {}
