"""The networks of edgeseg.zoo, tiny, with lively weights, and what is done to every one of them. Each is made once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edgeseg.zoo
from edgeseg import quantize
from edgeseg.backends import open_engine
from edgeseg.errors import MissingOnMachine
from edgeseg.export import Exported, fuse, to_onnx, torch_reference
from edgeseg.pipeline.network import dialect_for
from edgeseg.pipeline.rewriting.budgets import Whole, within
from edgeseg.pipeline.rewriting.wish import Budget
from edgeseg.rewrite.exact import exact
from edgeseg.rewrite.network import Network, capture, layers, macs_of, parameters_of, refusal, tidy
from edgeseg.rewrite.plan import plan
from edgeseg.rewrite.sequential import rescaled, rewritten
from edgeseg.trials.candidates import candidates
from edgeseg.types import InputSpec, ModelSpec, OnnxModel, OutputSpec, Precision, Torch
from edgeseg.zoo.chance import lively
from tests import models
from tests.quantize.making import table_of

SIZE = (72, 88)  # a stride of 8 leaves 9 x 11, one of 32 leaves 3 x 3
NAMES = tuple("abcde")
Masks = NDArray[np.uint8]


def spec_of(classes: int = len(NAMES), size: tuple[int, int] = SIZE) -> ModelSpec:
    names = ("no", "yes") if classes == 1 else NAMES[:classes]
    return ModelSpec("tiny", InputSpec(size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)), OutputSpec(classes=names))


def frames(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return models.frames(count, size, seed)


def images(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> list[Tensor]:
    """float32 (1, 3, H, W) as the networks take them."""
    return [image[None] for image in models.image(frames(count, seed, size)[..., ::-1].copy())]


def network(name: str, **arguments: Any) -> nn.Module:
    """Of edgeseg.zoo, with lively weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = getattr(edgeseg.zoo, name)(**({"classes": len(NAMES)} | arguments))
    return lively(made, torch.cat(images(4, seed=5)))


@dataclass(frozen=True)
class Made:
    """A network, its graph, and what torch says to some frames."""

    module: nn.Module
    exported: Exported
    model: OnnxModel
    frames: NDArray[np.uint8]
    expected: Masks


def exported(module: nn.Module, classes: int = len(NAMES)) -> Made:
    spec, given = spec_of(classes), Torch(module, "state_dict")
    found = to_onnx(given, spec, quick=True)
    seen = frames(3, seed=9)
    reference = torch_reference(given, spec)
    return Made(module, found, fuse(found.graph, spec), seen, np.stack([reference(frame) for frame in seen]))


def masks(model: OnnxModel, backend: str, seen: NDArray[np.uint8], precision: Precision = "fp32") -> Masks:
    """What an engine answers. Skips where the backend is not installed."""
    try:
        engine = candidates(model, backend, precision)[0]
    except MissingOnMachine as error:
        pytest.skip(str(error))
    with open_engine(engine) as session:
        return np.concatenate([session.run(frame[None]) for frame in seen])


def int8(model: OnnxModel, backend: str) -> OnnxModel:
    dialect = dialect_for(backend)
    placement = quantize.place(quantize.Graph(model.graph), dialect)
    return quantize.quantize(model, table_of(model), dialect, placement=placement)


def agreement(one: Masks, other: Masks) -> float:
    assert one.shape == other.shape
    return float((one == other).mean())


def teacher(module: nn.Module, size: tuple[int, int] = SIZE) -> Network:
    """Captured, after the exact rewrites."""
    found = capture(Torch(module, "pickle"), size).network
    exact(found, size)
    tidy(found)
    return found


def rewritten_to(given: Network, share: float, rule: str, size: tuple[int, int] = SIZE) -> tuple[Network, int]:
    """Rewritten to that share of the operations by one rule; and how many layers were."""
    fit = images(6, seed=1, size=size)
    allowed = []
    for layer in layers(given, size):
        module = given.get_submodule(layer.name)
        assert isinstance(module, nn.Conv2d)
        if refusal(module) is None or (rule == "bottleneck" and module.groups == 1):
            allowed.append(layer)
    found = plan(given, allowed, fit, scores, rules=[rule], look=2, align=4)
    whole = Whole(macs_of(given, size), parameters_of(given))
    chosen = within(Budget("macs", share), whole, allowed, found)
    taken = [layer for layer in allowed if layer.name in chosen.choices]
    small = rewritten(given, taken, chosen.choices, fit, steps=0, importance=found.importance)
    return rescaled(given, small, taken, fit), len(taken)


def scores(given: Any, image: Tensor) -> Tensor:
    return torch.as_tensor(given(image))


@functools.cache
def made(name: str, **arguments: Any) -> Made:
    return exported(network(name, **arguments), arguments.get("classes", len(NAMES)))


def kinds(graph: bytes) -> list[str]:
    return [node.op_type for node in quantize.Graph(graph).nodes]


def distinct(found: Masks) -> Sequence[int]:
    return [int(value) for value in np.unique(found)]
