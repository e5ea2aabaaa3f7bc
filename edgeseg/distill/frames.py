"""Batches of frames: which ones at which step, changed at random, and as the network wants them.

Everything random follows from (seed, step, rank), so a run that is continued sees what it would have seen. Frames stay
uint8 until they are in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeseg.distill.values import Augmentation
from edgeseg.errors import BadInput
from edgeseg.types import InputSpec, Mask, Pixels

Prepare = Callable[[Tensor], Tensor]  # uint8 (N, H, W, 3) to float32 (N, 3, H, W), on the same device


def preparation(spec: InputSpec) -> Prepare:
    """What makes a network's input of frames: colour order, scale and normalisation by its spec."""

    def prepare(frames: Tensor) -> Tensor:
        pixels = frames.movedim(3, 1).float()
        if spec.frame != spec.color:
            pixels = pixels.flip(1)
        mean, std = (torch.tensor(part, device=frames.device).view(1, 3, 1, 1) for part in (spec.mean, spec.std))
        return ((pixels / spec.scale - mean) / std).contiguous()

    return prepare


def check(frames: Sequence[Pixels], held_out: Sequence[Pixels], labels: Sequence[Mask] | None) -> None:
    """Raises BadInput unless there are frames of one size to learn from, others to judge by, and a label for each."""
    if not len(frames) or not len(held_out):
        raise BadInput("learning from a teacher needs frames to learn from and others to judge by; one is empty")
    if labels is not None and len(labels) != len(frames):
        raise BadInput(f"there are {len(labels)} labels for {len(frames)} frames; give one for each, or none")
    for what, frame in (("to learn from", frames[0]), ("to judge by", held_out[0])):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise BadInput(f"frames {what} must be uint8 (H, W, 3), got {frame.dtype} {frame.shape}")
    if frames[0].shape != held_out[0].shape:
        raise BadInput(f"frames to learn from are {frames[0].shape}, those to judge by {held_out[0].shape}")


def order(count: int, step: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> list[int]:
    """Which of `count` frames a rank takes in a step: all frames once, in random order, before any comes again."""
    first = (step * world + rank) * batch
    chosen: list[int] = []
    for position in range(first, first + batch):
        epoch, place = divmod(position, count)
        chosen.append(int(np.random.default_rng((seed, 0, epoch)).permutation(count)[place]))
    return chosen


def stack(arrays: Sequence[Pixels] | Sequence[Mask]) -> Tensor:
    """uint8 (N, ...) of arrays of one size. Raises BadInput for several sizes."""
    if len({array.shape for array in arrays}) > 1:
        raise BadInput(f"frames, and labels, must have one size; there are {sorted({a.shape for a in arrays})}")
    return torch.from_numpy(np.stack(arrays))


def augment(
    frames: Tensor, labels: Tensor | None, how: Augmentation, random: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """Frames uint8 (N, H, W, 3) mirrored, cropped, resized to what they were and with other colours, each by chance.

    Labels uint8 (N, h, w), of another resolution if need be, go the same way, nearest. Both stay uint8.
    """
    count = len(frames)
    side = random.uniform(*how.crop, size=count)
    mirrored = np.where(random.random(count) < how.flip, -1.0, 1.0)
    shift = (1 - side)[:, None] * random.uniform(-1, 1, (count, 2))
    gains = 1 + np.array([how.brightness, how.contrast, how.color]) * random.uniform(-1, 1, (count, 3))
    pixels = frames.movedim(3, 1).float()
    if bool((side < 1).any()) or bool((mirrored < 0).any()):
        theta = np.zeros((count, 2, 3))
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * mirrored, side, shift
        place = torch.from_numpy(theta).float().to(frames.device)
        pixels = _sample(pixels, place, "bilinear")
        if labels is not None:
            labels = _sample(labels[:, None].float(), place, "nearest")[:, 0].to(torch.uint8)
    if bool((gains != 1).any()):
        bright, contrast, color = torch.from_numpy(gains).float().to(frames.device).T.reshape(3, count, 1, 1, 1)
        pixels = pixels * bright
        grey = pixels.mean(1, keepdim=True)
        mean = grey.mean((2, 3), keepdim=True)
        pixels = mean + (grey - mean) * contrast + (pixels - grey) * contrast * color
    return pixels.round().clamp(0, 255).to(torch.uint8).movedim(1, 3), labels


def _sample(values: Tensor, place: Tensor, mode: str) -> Tensor:
    grid = functional.affine_grid(place, list(values.shape), align_corners=False)
    return functional.grid_sample(values, grid, mode=mode, padding_mode="border", align_corners=False)
