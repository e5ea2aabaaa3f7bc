"""Whole runs on small networks: they recover, keep the better, are reproducible, and learn what they are asked to."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeseg.distill import Distillation
from edgeseg.distill.values import AS_THEY_ARE
from edgeseg.errors import BadInput, ModelError
from tests.distill.making import SIZE, damaged, frames, graph, prepare, teacher
from tests.distill.running import SHORT, run, same, weights


@pytest.mark.parametrize("norm", ["none", "frozen", "updating"])
def test_a_damaged_student_recovers(norm: Any) -> None:
    original = teacher()
    student = damaged(original)
    given = weights(student), weights(original)
    found = run(replace(SHORT, norm=norm), student, teacher=original)
    assert found.kept == "after"
    assert found.stopped == "finished"
    assert found.steps == 24
    assert found.after.agreement > found.before.agreement + 0.05
    assert found.after.kl < 0.7 * found.before.kl
    assert same(given[0], weights(student))  # the networks given stay as they are
    assert same(given[1], weights(original))
    assert not found.student.training
    assert not any(parameter.requires_grad for parameter in found.student.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.student.modules())
    # what is said of it is true of it
    again = run(replace(SHORT, steps=1, learning_rate=1e-9), found.student, teacher=original)
    assert again.before.agreement == pytest.approx(found.after.agreement, abs=1e-3)
    assert again.before.kl == pytest.approx(found.after.kl, rel=1e-3)


def test_integers_stay_and_so_does_what_is_no_layer() -> None:
    found = run()
    assert found.student.get_buffer("order").dtype == torch.int64
    assert found.student.get_buffer("order").tolist() == list(range(8))


@pytest.mark.parametrize("classes", [1, 3])
def test_other_heads_and_plain_modules(classes: int) -> None:
    """Neither needs to be a graph; then there are no features."""

    class Plain(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)  # type: ignore[no-any-return]

    original = teacher(classes)
    found = run(replace(SHORT, norm="updating"), Plain(damaged(original)), teacher=Plain(original))
    assert found.after.kl < found.before.kl
    assert found.notes == ("batch norm is put into torch.fx graphs only; trained without",)


def test_training_that_harms_is_not_kept() -> None:
    original = teacher()
    student = damaged(original, 0.02)
    found = run(replace(SHORT, learning_rate=5.0, feature_weight=0), student, teacher=original)
    assert found.kept == "before"
    assert found.after.agreement < found.before.agreement
    assert same(weights(found.student), weights(student))


def test_the_best_on_the_way_is_kept() -> None:
    """At a careless learning rate it goes up and down: what comes back is the best that was judged."""
    found = run(replace(SHORT, learning_rate=3e-2, steps=36))
    assert len(found.history) == 12
    judged = [progress.score.agreement for progress in found.history if progress.score]
    assert found.after.agreement == pytest.approx(max(judged), abs=2e-3)


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two, other = run(), run(), run(replace(SHORT, seed=1))
    assert same(weights(one.student), weights(two.student))
    assert [p.loss for p in one.history] == [p.loss for p in two.history]
    assert not same(weights(one.student), weights(other.student))


def test_frames_one_by_one_teach_what_a_batch_teaches() -> None:
    together, apart = run(replace(SHORT, steps=3, at_once=4)), run(replace(SHORT, steps=3, at_once=1))
    pairs = zip(weights(together.student).values(), weights(apart.student).values(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


class ForOne(nn.Module):
    """A graph captured for one image holds its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).view(1, 3, *SIZE)  # type: ignore[no-any-return]


class Mixing(ForOne):
    """It takes two images, and gives their mean twice."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.mean(0, keepdim=True).expand_as(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [ForOne, Mixing])
def test_graphs_for_one_image_get_one_at_a_time(kind: type[ForOne]) -> None:
    torch.manual_seed(0)
    original = graph(kind())
    found = run(replace(SHORT, steps=6), damaged(original), teacher=original)
    assert found.steps == 6


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.aux = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.out(x), "aux": self.aux(functional.avg_pool2d(x, 2))}


def test_auxiliary_outputs_learn_too() -> None:
    torch.manual_seed(0)
    original = graph(Two())
    student = damaged(original, 1.0)

    def distance(network: nn.Module) -> float:
        image = prepare(torch.from_numpy(np.stack(frames(2))))
        return float((network(image)["aux"] - original(image)["aux"]).square().mean())

    longer = replace(SHORT, output="out", steps=40, learning_rate=0.02)
    with_it = run(longer, student, teacher=original)
    without = run(replace(longer, auxiliary_weight=0.0, weight_decay=0.0), student, teacher=original)
    assert distance(with_it.student) < 0.7 * distance(student)
    assert distance(without.student) == pytest.approx(distance(student), rel=1e-5)


def test_labels_alone_teach_and_ignored_ones_do_not() -> None:
    original = teacher()
    student, seen = damaged(original), frames(16)
    options = replace(
        SHORT, steps=30, batch=16, augmentation=AS_THEY_ARE, logit_weight=0, feature_weight=0, weight_decay=0
    )
    with torch.no_grad():
        decided = original(prepare(torch.from_numpy(np.stack(seen)))).argmax(1).to(torch.uint8)
    labels = decided.numpy()

    def wrong(network: nn.Module) -> float:
        scores: Tensor = network(prepare(torch.from_numpy(np.stack(seen))))
        return float(functional.cross_entropy(scores, decided.long()))

    taught: list[float] = []
    run(
        options,
        student,
        teacher=original,
        frames=seen,
        labels=list(labels),
        on_progress=lambda p: taught.append(p.loss),
    )
    assert taught[0] == pytest.approx(options.label_weight * wrong(student), rel=1e-4)  # a batch is all frames
    assert taught[-1] < 0.8 * taught[0]
    untaught = run(options, student, teacher=original, frames=seen, labels=list(np.full_like(labels, 255)))
    assert untaught.kept == "before"
    assert untaught.after.kl == pytest.approx(untaught.before.kl, rel=1e-5)


def test_probabilities_in_the_network() -> None:
    class Sigmoid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).sigmoid()  # type: ignore[no-any-return]

    torch.manual_seed(0)
    original = graph(Sigmoid())
    found = run(replace(SHORT, probabilities=True, threshold=0.4), damaged(original, 1.0), teacher=original)
    assert found.after.kl < 0.7 * found.before.kl


def test_features_help_or_are_named() -> None:
    assert run(replace(SHORT, features=("relu_3",))).after.agreement > 0
    with pytest.raises(ModelError, match="no node named nothing"):
        run(replace(SHORT, features=("nothing",)))


def test_frames_are_asked_for_as_they_are_needed() -> None:
    class Lazy:
        def __init__(self) -> None:
            self.held, self.most, self.asked = 0, 0, 0

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> Any:
            self.asked += 1
            return frames(1, seed=index)[0]

    lazy = Lazy()
    run(replace(SHORT, steps=3), frames=lazy)
    assert lazy.asked <= 1 + 3 * 4 + 1


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"steps": 0}, {"minutes": 0.0}, {"learning_rate": float("nan")}, {"average": 1.0}, {"seed": -1},
     {"feature_weight": -1.0}, {"threshold": 0.0}, {"warmup": 1.0}],
)  # fmt: skip
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Distillation(**wrong)


def test_only_layers_are_trained() -> None:
    network = copy.deepcopy(teacher())
    network.register_parameter("extra", nn.Parameter(torch.ones(3)))
    found = run(SHORT, damaged(network), teacher=teacher())
    assert same({"extra": torch.ones(3)}, {"extra": found.student.get_parameter("extra").detach()})
