"""Agreement against counting by hand, and the choice of features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeseg.distill.features import choose, scores_of, tapped
from edgeseg.distill.losses import kl_divergence
from edgeseg.distill.score import Judge, agreement, confusion, decide
from edgeseg.distill.values import Distillation
from edgeseg.errors import BadInput, ModelError
from tests.distill.making import damaged, frames, graph, prepare, teacher

CPU = torch.device("cpu")


def test_a_confusion_matrix_counts() -> None:
    numbers = np.random.default_rng(0)
    theirs, ours = (torch.from_numpy(numbers.integers(0, 4, (2, 5, 6)).astype(np.uint8)) for _ in range(2))
    expected = np.zeros((5, 5), int)
    for a, b in zip(theirs.flatten().tolist(), ours.flatten().tolist(), strict=True):
        expected[a, b] += 1
    matrix = confusion(theirs, ours, 5)
    assert matrix.tolist() == expected.tolist()
    ious = [expected[c, c] / (expected[c].sum() + expected[:, c].sum() - expected[c, c]) for c in range(4)]
    assert agreement(matrix) == pytest.approx((np.mean(ious), np.trace(expected) / expected.sum()))


def test_a_rare_class_that_is_missed_costs_as_much_as_a_common_one() -> None:
    same, pixels = agreement(torch.tensor([[95, 0], [5, 0]]))
    assert same == pytest.approx(0.475)
    assert pixels == 0.95


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_one_channel_is_decided_by_its_threshold(threshold: float) -> None:
    logits = torch.logit(torch.tensor([0.1, 0.49, 0.51, 0.89, 0.91])).view(1, 1, 1, 5)
    assert decide(logits, threshold).flatten().tolist() == [int(p >= threshold) for p in (0.1, 0.49, 0.51, 0.89, 0.91)]


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_a_score_is_over_all_frames_however_they_come(classes: int, at_once: int) -> None:
    original = teacher(classes)
    student, held = damaged(original), frames(5, seed=2)
    judge = Judge(original, held, prepare, Distillation(), at_once, CPU)
    first = judge.score(student)
    images = prepare(torch.from_numpy(np.stack(held)))
    theirs, ours = original(images), student(images)
    matrix = confusion(decide(theirs, 0.5), decide(ours, 0.5), max(2, classes))
    assert (first.agreement, first.pixels) == pytest.approx(agreement(matrix))
    assert first.kl == pytest.approx(float(kl_divergence(ours, theirs)), rel=1e-4)
    glance = judge.glance(student)
    assert (glance.agreement, glance.pixels) == (first.agreement, first.pixels)
    assert judge.score(original).agreement == 1.0


def test_scores_of_another_shape_are_refused() -> None:
    judge = Judge(teacher(3), frames(1), prepare, Distillation(), 1, CPU)
    with pytest.raises(BadInput, match="of its own shape"):
        judge.score(teacher(2))


def test_features_are_the_last_activations_of_each_resolution() -> None:
    image = prepare(torch.from_numpy(np.stack(frames(1))))
    original = teacher()
    relus = [node.name for node in original.graph.nodes if "relu" in node.name]
    assert len(relus) == 4
    assert choose(original, damaged(original), image) == (relus[0], relus[3])
    assert choose(original, damaged(original), image, count=1) == (relus[3],)
    assert choose(original, nn.Identity(), image) == ()


class Narrow(nn.Module):
    """The names of the test network with fewer channels at half the resolution."""

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.relu(torch.cat([x, x, x[:, :2]], 1))
        return functional.relu(wide[:, :3, ::2, ::2])


def test_features_of_other_shapes_are_left_out() -> None:
    image = prepare(torch.from_numpy(np.stack(frames(1))))
    assert choose(teacher(), graph(Narrow()), image) == ("relu",)


def test_a_spread_of_features_with_the_last() -> None:
    class Deep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = functional.max_pool2d(functional.relu(x), 2)
            for _ in range(3):
                x = functional.interpolate(functional.relu(x), scale_factor=2.0)
            return functional.relu(x)

    image = torch.zeros(1, 3, 32, 32)
    names = choose(graph(Deep()), graph(Deep()), image, count=4)
    assert names == ("relu", "relu_2", "relu_4", "relu_6")


def test_tapped_networks_share_their_weights_and_return_the_same() -> None:
    network = teacher()
    image = prepare(torch.from_numpy(np.stack(frames(2))))
    both = tapped(network, ("relu", "relu_3"))
    returned, (first, last) = both(image)
    assert torch.equal(returned, network(image))
    assert torch.equal(first, functional.relu(network.get_submodule("first")(image)))
    assert last.shape == (2, 8, 8, 12)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert float(both(image)[0].abs().max()) == 0


def test_features_that_are_not_there_are_named() -> None:
    with pytest.raises(ModelError, match="no node named relu_9"):
        tapped(teacher(), ("relu", "relu_9"))
    with pytest.raises(ModelError, match="Identity"):
        tapped(nn.Identity(), ("relu",))


def test_outputs_by_place_and_key() -> None:
    a, b, other = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2), torch.zeros(1, 8, 2, 2)
    assert scores_of(a, 0) == (a, {})
    assert scores_of(a, "out") == (a, {})
    scores, more = scores_of((b, other, a), 2)
    assert scores is a
    assert list(more) == [0]
    scores, more = scores_of({"out": a, "aux": b, "inner": other}, "out")
    assert scores is a
    assert list(more) == ["aux"]
    assert scores_of({"aux": b, "out": a}, 1)[0] is a
    for returned, output in (((a,), 1), ({"out": a}, "aux"), (torch.zeros(3), 0), ("text", 0)):
        with pytest.raises(ModelError):
            scores_of(returned, output)
