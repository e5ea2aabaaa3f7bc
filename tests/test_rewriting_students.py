"""What is found out of a network before it is decided what becomes of it, and networks within a budget."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeseg.data import load_dataset, read
from edgeseg.errors import BadInput, DatasetError, ModelError
from edgeseg.export.reference import torch_input
from edgeseg.pipeline.rewriting import students
from edgeseg.pipeline.rewriting.recovery import _learning, recovered
from edgeseg.pipeline.rewriting.students import Work, nearness, prepare, student
from edgeseg.pipeline.rewriting.wish import Budget
from edgeseg.rewrite.fisher import importance
from edgeseg.rewrite.network import macs_of
from edgeseg.types import ModelSpec
from tests import models, rewriting
from tests.quantize import making
from tests.rewrite import teachers


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students")
    rewriting.network(folder)
    rewriting.street(folder)
    rewriting.pictures(folder / "pictures", 14)
    return folder


@pytest.fixture(scope="module")
def work(place: Path) -> Work:
    return prepared(place)


def prepared(place: Path, spec: ModelSpec | None = None, data: str = "dataset.toml", **more: Any) -> Work:
    split = "train" if data.endswith(".toml") else "all"
    return prepare(
        more.pop("model", place / "net.pt2"),
        spec or rewriting.named(),
        load_dataset(place / data),
        split,
        more.pop("wish", rewriting.UNTIMED),
        trust_pickle=False,
        console=rewriting.QUIET,
        **more,
    )


def pixels(images: students.Images) -> list[bytes]:
    return [frame.tobytes() for frame in images.frames]


def test_everything_is_known(work: Work) -> None:
    assert [layer.name for layer in work.layers] == ["first.0", "deep.0", "wide.0"]
    assert [name for name, _ in work.left] == ["head"]
    assert "already pointwise" in dict(work.left)["head"]
    assert {change.rule for change in work.exact}  # batch norms are folded, at least
    assert work.whole.macs == macs_of(work.teacher, rewriting.SIZE)
    assert {option.layer.name for option in work.plan.options} == {layer.name for layer in work.layers}
    assert len(work.masks) == len(work.held)
    with torch.no_grad():
        for image, mask in zip(work.held, work.masks, strict=True):
            np.testing.assert_array_equal(work.teacher(image)[0].argmax(0).numpy(), mask)
    assert nearness(work, work.teacher) == 1.0


def test_images_are_made_when_they_are_asked_for(work: Work) -> None:
    assert len(work.fit) + len(work.held) == 14
    first = torch_input(work.fit.frames[0], work.spec)
    assert torch.equal(work.fit[0], first)
    assert torch.equal(next(iter(work.fit)), first)
    assert torch.equal(work.fit[-1], list(work.fit)[-1])
    part = work.fit[1:3]
    assert len(part) == 2
    assert torch.equal(part[0], work.fit[1])


def test_frames_held_out_are_not_fitted_to(work: Work) -> None:
    assert not set(pixels(work.fit)) & set(pixels(work.held))
    assert len(work.held_indices) == len(work.held) >= 2


@pytest.mark.parametrize("count", [4, 5, 7, 14])
@pytest.mark.parametrize("judged", [(), (0, 3)])
def test_frames_of_the_verdict_are_in_neither(place: Path, count: int, judged: tuple[int, ...]) -> None:
    folder = rewriting.pictures(place / f"pictures{count}", count)
    dataset = load_dataset(folder)
    spec = rewriting.SPEC
    if count - len(judged) < 4:
        with pytest.raises(DatasetError, match=rf"at least 4 frames; 'all' has {count}, 2 of them for the verdict"):
            students._frames(dataset, "all", spec, 48, judged)
        return
    fit, held, indices = students._frames(dataset, "all", spec, 48, judged)
    assert len(fit) + len(held) + len(judged) == count
    assert len(held) >= 1
    assert len(fit) >= 3
    assert set(judged) <= indices
    every = [frame.tobytes() for frame in students._frames(dataset, "all", spec, 48, ())[0].frames]
    every += [frame.tobytes() for frame in students._frames(dataset, "all", spec, 48, ())[1].frames]
    assert len(set(every)) == count
    assert not set(pixels(fit)) & set(pixels(held))
    taboo = [sample.pixels.tobytes() for sample in read(dataset.split("all"), judged, labels=False)]
    assert not set(taboo) & set(pixels(fit) + pixels(held))


def test_what_is_learned_in_recovery_is_neither(place: Path, work: Work) -> None:
    """Neither what decides between variants, nor the verdict's."""
    dataset = load_dataset(place / "dataset.toml")
    frames, labels = _learning(dataset, "train", work, labels=False)
    assert labels is None
    assert len(frames) == 14 - len(work.held)
    assert not {frame.tobytes() for frame in frames} & set(pixels(work.held))
    frames, labels = _learning(dataset, "train", replace(work, held_indices=frozenset((1, 2, 7))), labels=True)
    assert labels is not None
    assert len(frames) == len(labels) == 11
    assert {label.shape for label in labels} == {rewriting.SIZE}


def test_labels_that_there_are_not(place: Path, work: Work) -> None:
    with pytest.raises(DatasetError, match="split 'all' has none"):
        _learning(load_dataset(place / "pictures"), "all", work, labels=True)


def test_samples_are_a_limit(place: Path) -> None:
    dataset = load_dataset(rewriting.pictures(place / "many", 40))
    fit, held, _ = students._frames(dataset, "all", rewriting.SPEC, 4, ())
    assert len(fit) == 4
    assert len(held) == students.HELD
    assert not set(pixels(fit)) & set(pixels(held))
    for samples in (8, 12, 20):
        fit, held, _ = students._frames(dataset, "all", rewriting.SPEC, samples, ())
        assert len(fit) <= samples
        assert len(held) <= students.HELD


def test_too_few_frames(place: Path) -> None:
    rewriting.pictures(place / "few", 3)
    with pytest.raises(DatasetError, match="at least 4 frames; 'all' has 3"):
        prepared(place, data="few")


def test_a_graph_is_refused_with_advice(place: Path) -> None:
    """Also one whose name does not say what it is."""
    path = place / "graph.pt2"
    path.write_bytes(making.plain_network())
    with pytest.raises(BadInput, match=r"graph.pt2 is an ONNX graph.*give the state dict, TorchScript or .pt2"):
        prepared(place, model=path)


class Decided(rewriting.Street):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


def test_a_class_map_is_refused_with_advice(place: Path) -> None:
    path = rewriting.network(place / "decided", models.seeded(Decided))
    with pytest.raises(ModelError, match="leave the ArgMax to edgeseg"):
        prepared(place, model=path)


def test_scores_that_are_no_numbers_are_refused(place: Path, tmp_path: Path) -> None:
    made = models.seeded(rewriting.Street)
    with torch.no_grad():
        made.get_parameter("deep.0.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(ModelError, match="scores are not finite on a frame"):
        prepared(place, model=rewriting.network(tmp_path, made))


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_student_keeps_to_its_budget(work: Work, share: float) -> None:
    before = teachers.state(work.teacher)
    found = student(work, Budget("macs", share), rewriting.UNTIMED, times=None, console=rewriting.QUIET)
    assert macs_of(found.network, rewriting.SIZE) <= share * work.whole.macs
    assert set(found.unexplained) == set(found.chosen.choices)
    assert found.agreement == pytest.approx(nearness(work, found.network), abs=1e-3)
    assert 0.3 < found.agreement <= 1
    assert teachers.same(teachers.state(work.teacher), before)
    for name in found.chosen.choices:
        assert not isinstance(found.network.get_submodule(name), nn.Conv2d)


def test_less_is_farther_and_the_seed_decides(work: Work) -> None:
    made = [
        student(work, Budget("macs", share), rewriting.UNTIMED, times=None, console=rewriting.QUIET)
        for share in (1.0, 0.5, 0.5, 0.2)
    ]
    assert made[0].chosen.choices == {}
    assert made[0].agreement == 1.0
    assert made[1].chosen.damage < made[3].chosen.damage
    assert made[1].agreement > made[3].agreement
    assert teachers.same(teachers.state(made[1].network), teachers.state(made[2].network))


def test_the_better_of_rescaled_and_not_is_taken(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_teacher: Any, small: Any, *_: Any, **__: Any) -> Any:
        other = copy.deepcopy(small)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        return other

    monkeypatch.setattr(students, "rescaled", broken)
    found = student(work, Budget("macs", 0.4), rewriting.UNTIMED, times=None, console=rewriting.QUIET)
    assert found.variant != "rescaled"
    assert found.agreement > 0.3


def test_refining_is_kept_only_if_it_is_nearer(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(refine: bool) -> students.Student:
        wish = replace(rewriting.UNTIMED, refine=refine)
        return student(work, Budget("macs", 0.4), wish, times=None, console=rewriting.QUIET)

    plain, refined = made(False), made(True)
    assert plain.variant in ("fitted", "rescaled")
    assert refined.agreement > plain.agreement  # here there is something to gain
    assert refined.variant == "refined"
    assert refined.agreement == pytest.approx(nearness(work, refined.network), abs=1e-3)

    def spoiled(_teacher: Any, small: Any, *_: Any, **__: Any) -> Any:
        other = copy.deepcopy(small)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.neg_()
        return other

    monkeypatch.setattr(students, "refined", spoiled)
    again = made(True)
    assert (again.variant, again.agreement) == (plain.variant, plain.agreement)


def test_classes_that_the_original_never_decided_for(place: Path) -> None:
    """Without names of classes their number is not known; a student may decide for one that no frame had."""
    unnamed = prepared(place, rewriting.SPEC, data="pictures")
    masks = tuple(np.minimum(mask, 2).astype(np.uint8) for mask in unnamed.masks)
    assert max(int(mask.max()) for mask in unnamed.masks) > 2
    assert 0 < nearness(replace(unnamed, masks=masks), unnamed.teacher) < 1


@pytest.mark.parametrize("classes", [1, 5])
def test_probabilities_matter_as_their_logits_do(place: Path, classes: int) -> None:
    """The same network with and without what ends it must have the same importance."""
    make = (lambda: models.OneChannel(sigmoid=False)) if classes == 1 else (lambda: rewriting.Street(classes=5))

    class Ended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = models.seeded(make)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return torch.sigmoid(y) if classes == 1 else y.softmax(1)

    plain = rewriting.network(place / f"plain{classes}", models.seeded(make))
    ended = rewriting.network(place / f"ended{classes}", Ended().eval())
    logits = prepared(place, rewriting.SPEC, model=plain, data="pictures")
    spec = replace(rewriting.SPEC, output=replace(rewriting.SPEC.output, activation="probabilities"))
    probabilities = prepared(place, spec, model=ended, data="pictures")
    for name, weights in logits.plan.importance.items():
        torch.testing.assert_close(probabilities.plan.importance[f"inner.{name}"], weights, rtol=0.05, atol=1e-9)


def test_a_look_at_gradients_needs_no_labels(work: Work) -> None:
    found = importance(work.teacher, work.layers, list(work.fit)[:2], teachers.scores)
    assert set(found) == set(work.plan.importance)


@pytest.mark.parametrize("labels", [False, True])
def test_recovery_keeps_the_better_and_says_so(place: Path, work: Work, labels: bool, tmp_path: Path) -> None:
    wish = replace(rewriting.UNTIMED, minutes=0.03, labels=labels, checkpoint=tmp_path / "net.recovery")
    small = student(work, Budget("macs", 0.3), wish, times=None, console=rewriting.QUIET)
    before = teachers.state(small.network)
    dataset = load_dataset(place / "dataset.toml")
    network, row = recovered(work, small.network, dataset, "train", wish, rewriting.QUIET)
    assert teachers.same(teachers.state(small.network), before)
    assert row["kept"] in ("before", "after")
    assert (row["frames"], row["labels"], row["minutes"]) == (14 - len(work.held), labels, 0.03)
    assert row["steps"] >= 0
    best = max(row["before"], row["after"]) if row["kept"] == "after" else row["before"]
    assert nearness(work, network) >= row["before"] - 1e-3
    assert nearness(work, network) == pytest.approx(best, abs=5e-3)
