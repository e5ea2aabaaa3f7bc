"""Layers replaced one after the other, each fitted to what it really gets and to what the original gave there.

The inputs come from the network as far as it is rewritten, the targets from the original network at the same places,
so a layer also repairs what the layers before it did wrong (Zhang et al. 2016, "Accelerating very deep convolutional
networks for classification and detection": asymmetric reconstruction).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from edgeseg.rewrite.fisher import factors
from edgeseg.rewrite.modules import assemble
from edgeseg.rewrite.moments import Moments, Summing
from edgeseg.rewrite.network import Network
from edgeseg.rewrite.observe import outputs_at, positions, size_of, targets
from edgeseg.rewrite.rules import RULES
from edgeseg.rewrite.values import Choice, Conv, Fitted, Layer
from edgeseg.rewrite.view import AMPLE, View, mixed, seen
from edgeseg.rewrite.walk import IN_MEMORY, Store, walk

Targets = Mapping[str, Sequence[Tensor]]  # by layer: for each frame the outputs (n, Co) of the original


def fitted(
    choice: Choice, conv: Conv, moments: Moments, weight: Tensor, steps: int, importance: Tensor | None = None
) -> Fitted:
    """The weights of a choice by its rule, with outputs weighted by their importance (Co) where that is given."""
    fit = RULES[choice.rule].fit
    if importance is None:
        return fit(choice, conv, moments, weight, steps)
    factor = factors(importance)
    found = fit(choice, conv, moments.scaled(factor), weight * factor.to(weight.dtype)[:, None, None, None], steps)
    last = found.weights[-1]
    assert isinstance(last, Tensor)
    last = last / factor.to(last.dtype).view(-1, *[1] * (last.dim() - 1))
    return Fitted((*found.weights[:-1], last), found.effective / factor[:, None])


def rewritten(
    teacher: Network,
    layers: Sequence[Layer],
    choices: Mapping[str, Choice],
    frames: Sequence[Tensor],
    *,
    steps: int,
    importance: Mapping[str, Tensor],
    seed: int = 0,
    limit: int = IN_MEMORY,
    wanted: Targets | None = None,
    on_layer: Callable[[str, float], object] | None = None,
) -> Network:
    """A copy of the network in which each layer of `choices` is what was chosen for it.

    `wanted`: what `outputs_at` gives for these layers and frames, where it is known already.
    `frames`: float32 (1, 3, H, W), from which nothing but the networks' own outputs is learned. `on_layer(name, u)`:
    told of each layer when it is done, with the share of its targets' variance that is left unexplained.
    """
    student = copy.deepcopy(teacher)
    chosen = [layer for layer in layers if layer.name in choices]
    convs = {layer.name: layer.conv for layer in chosen}
    with Store(limit) as store:
        wanted = wanted or outputs_at(teacher, chosen, frames, store.keep, seed)
        for name, inputs in walk(student, list(convs), frames, limit=limit):
            conv, module = convs[name], student.get_submodule(name)
            assert isinstance(module, nn.Conv2d)
            choice, matters = choices[name], importance.get(name)
            view = _view(name, conv, module.weight, choice, inputs, matters, seed)
            sums = Summing()
            for frame, x in enumerate(inputs):
                at = positions(name, frame, conv.after(size_of(x)), seed=seed)
                sums.add(view.patches(x, at), wanted[name][frame])
            moments = sums.moments()
            made = fitted(choice, view.conv, moments, view.weight, steps, matters)
            student.set_submodule(name, assemble(choice, view.widened(made), moments.bias(made.effective)))
            if on_layer is not None:
                on_layer(name, moments.unexplained(made.effective))
    student.recompile()
    return student


def rescaled(
    teacher: Network,
    student: Network,
    layers: Sequence[Layer],
    frames: Sequence[Tensor],
    *,
    seed: int = 0,
    limit: int = IN_MEMORY,
    wanted: Targets | None = None,
) -> Network:
    """A copy of the student whose rewritten layers give each channel the mean and the variance that it has in the
    teacher: what re-estimating batch norms does. Least squares shrinks variances, layer after layer."""
    corrected = copy.deepcopy(student)
    with Store(limit) as store:
        wanted = wanted or outputs_at(teacher, layers, frames, store.keep, seed)
        for name, inputs in walk(corrected, [layer.name for layer in layers], frames, limit=limit):
            module = corrected.get_submodule(name)
            maps = (module(x) for x in inputs)
            got = torch.cat([targets(y, positions(name, k, size_of(y), seed=seed)) for k, y in enumerate(maps)])
            want = torch.cat(list(wanted[name]))
            scale = (want.std(0) / got.std(0).clamp_min(1e-6)).clamp(0.5, 2.0)
            last = module[-1] if isinstance(module, nn.Sequential) else module
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            last.weight.mul_(scale.view(-1, 1, 1, 1))
            last.bias.copy_((last.bias - got.mean(0)) * scale + want.mean(0))
    return corrected


def _view(
    name: str, conv: Conv, weight: Tensor, choice: Choice, inputs: Sequence[Tensor], matters: Tensor | None, seed: int
) -> View:
    count = seen(conv, [choice], AMPLE)
    if count == conv.inputs:
        return View(conv, weight)
    sums = Summing()
    for frame, x in enumerate(inputs):
        sums.add_inputs(targets(x, positions(name, frame, size_of(x), seed=seed)))
    return mixed(conv, weight, sums.moments(), count, matters)
