"""Batches: every frame once an epoch, changes that keep sizes and carry labels along, inputs as the spec says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeseg.distill.frames import augment, check, order, preparation, stack
from edgeseg.distill.values import AS_THEY_ARE, Augmentation
from edgeseg.errors import BadInput
from edgeseg.types import InputSpec
from tests.distill.making import frames


@pytest.mark.parametrize(("count", "batch", "world"), [(12, 3, 2), (7, 2, 1), (5, 4, 3), (1, 2, 2)])
def test_every_frame_comes_once_before_any_comes_again(count: int, batch: int, world: int) -> None:
    seen: list[int] = []
    for step in range(3 * count):
        for rank in range(world):
            chosen = order(count, step, batch, seed=4, rank=rank, world=world)
            assert len(chosen) == batch
            seen += chosen
    for epoch in range(len(seen) // count):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_order_follows_the_seed() -> None:
    assert order(50, 3, 8, seed=1) == order(50, 3, 8, seed=1)
    assert order(50, 3, 8, seed=1) != order(50, 3, 8, seed=2)
    first, second = (order(50, 3, 8, seed=1, rank=rank, world=2) for rank in (0, 1))
    assert not set(first) & set(second)


def only(**changes: object) -> Augmentation:
    parts = {name: getattr(AS_THEY_ARE, name) for name in ("flip", "crop", "brightness", "contrast", "color")}
    return Augmentation(**parts | changes)


def test_nothing_asked_changes_nothing() -> None:
    batch, labels = stack(frames(3)), torch.arange(3 * 16 * 24).view(3, 16, 24).to(torch.uint8)
    same, same_labels = augment(batch, labels, AS_THEY_ARE, np.random.default_rng(0))
    assert torch.equal(same, batch)
    assert same_labels is labels


def test_a_mirror_is_exact_for_frames_and_labels() -> None:
    batch, labels = stack(frames(3)), torch.randint(0, 200, (3, 32, 48), dtype=torch.uint8)
    mirrored, mirrored_labels = augment(batch, labels, only(flip=1.0), np.random.default_rng(0))
    assert torch.equal(mirrored, batch.flip(2))
    assert mirrored_labels is not None
    assert torch.equal(mirrored_labels, labels.flip(2))


def test_about_half_are_mirrored() -> None:
    batch = stack(frames(1) * 200)
    mirrored, _ = augment(batch, None, only(flip=0.5), np.random.default_rng(0))
    count = sum(torch.equal(one, batch[0].flip(1)) for one in mirrored)
    assert 70 < count < 130
    assert count + sum(torch.equal(one, batch[0]) for one in mirrored) == 200


def test_a_crop_enlarges_a_part_and_labels_follow() -> None:
    """A ramp of x stays a ramp: its slope tells the part's width, its start the place; labels show the same ramp."""
    ramp = torch.arange(0, 240, 10, dtype=torch.uint8).view(1, 1, 24, 1).expand(20, 16, 24, 3)
    labels = torch.arange(0, 240, 5, dtype=torch.uint8).view(1, 1, 48).expand(20, 32, 48)
    cropped, cropped_labels = augment(ramp, labels, only(crop=(0.5, 0.9)), np.random.default_rng(1))
    assert cropped.shape == ramp.shape
    assert cropped.dtype == torch.uint8
    assert cropped_labels is not None
    assert cropped_labels.shape == labels.shape
    slopes = (cropped[:, 8, 20, 0].double() - cropped[:, 8, 3, 0].double()) / 17 / 10
    assert float(slopes.min()) > 0.48
    assert float(slopes.max()) < 0.92
    assert float(slopes.max() - slopes.min()) > 0.2
    # a label's column is half as wide, so columns 2x and 2x + 1 lie left and right of the frame's column x
    pairs = cropped_labels[:, 16].double().view(20, 24, 2).mean(2)
    assert float((pairs[:, 2:-2] - cropped[:, 8, 2:-2, 0].double()).abs().max()) < 8


def test_colours_against_plain_arithmetic() -> None:
    batch = stack(frames(2))
    how = only(brightness=0.3, contrast=0.2, color=0.4)
    changed, _ = augment(batch, None, how, np.random.default_rng(7))
    random = np.random.default_rng(7)
    random.uniform(1, 1, size=2), random.random(2), random.uniform(-1, 1, (2, 2))
    gains = 1 + np.array([0.3, 0.2, 0.4]) * random.uniform(-1, 1, (2, 3))
    for frame, found, (bright, contrast, color) in zip(batch.numpy(), changed.numpy(), gains, strict=True):
        pixels = frame * bright
        mean = pixels.mean()
        for y, x in [(0, 0), (5, 7), (15, 23)]:
            grey = pixels[y, x].mean()
            expected = mean + ((grey - mean) + (pixels[y, x] - grey) * color) * contrast
            assert np.abs(found[y, x] - np.clip(expected, 0, 255)).max() <= 0.51


def test_the_same_chance_gives_the_same_frames() -> None:
    batch = stack(frames(2))
    one, two, other = (augment(batch, None, Augmentation(), np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_inputs_are_normalised_in_the_networks_order() -> None:
    spec = InputSpec((16, 24), color="rgb", frame="bgr", scale=128.0, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    batch = stack(frames(2))
    found = preparation(spec)(batch)
    assert found.shape == (2, 3, 16, 24)
    blue, green, red = (float(value) for value in batch[1, 3, 4])
    expected = [(red / 128 - 0.1) / 0.5, (green / 128 - 0.2) / 1.0, (blue / 128 - 0.3) / 2.0]
    assert found[1, :, 3, 4].tolist() == pytest.approx(expected, abs=1e-5)


def test_frames_that_do_not_fit_are_refused() -> None:
    some = frames(2)
    labels = [np.zeros((4, 4), np.uint8)]
    with pytest.raises(BadInput, match="one is empty"):
        check([], some, None)
    with pytest.raises(BadInput, match="1 labels for 2 frames"):
        check(some, some, labels)
    with pytest.raises(BadInput, match="float32"):
        check([some[0].astype(np.float32)], some, None)
    with pytest.raises(BadInput, match=r"are \(16, 24, 3\), those to judge by"):
        check(some, frames(1, size=(8, 8)), None)
    with pytest.raises(BadInput, match="one size"):
        stack([some[0], frames(1, size=(8, 8))[0]])


@pytest.mark.parametrize("wrong", [{"crop": (0.0, 1.0)}, {"crop": (1.0, 0.5)}, {"flip": 2.0}, {"color": 1.0}])
def test_wrong_augmentations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        only(**wrong)
