"""A run on small networks in a line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeseg.distill import Distillation, Distilled, distill
from tests.distill.making import damaged, frames, prepare, teacher

SHORT = Distillation(steps=24, batch=4, learning_rate=3e-3)


def run(options: Distillation = SHORT, student: nn.Module | None = None, **more: Any) -> Distilled:
    original = more.pop("teacher", None) or teacher()
    student = student or damaged(original)
    arguments: dict[str, Any] = {"prepare": prepare, "held_out": frames(4, seed=9), "device": torch.device("cpu")}
    return distill(original, student, more.pop("frames", frames(16)), options, **arguments | more)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
