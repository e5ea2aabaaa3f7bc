"""How weights move: AdamW with a warm-up and a cosine, and a moving average of the weights beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgeseg.distill.values import Distillation

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights and biases of convolutions, linear layers and batch norms, each once; they get gradients, all else
    gets none."""
    found: dict[str, nn.Parameter] = {}
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    seen: set[int] = set()
    for name, module in network.named_modules():
        if isinstance(module, LAYERS):
            for part, parameter in module.named_parameters(name, recurse=False):
                if parameter.is_floating_point() and id(parameter) not in seen:
                    seen.add(id(parameter))
                    parameter.requires_grad_(True)
                    found[part] = parameter
    return found


def rate(fraction: float, warmup: float) -> float:
    """The learning rate, as a part of its highest, at a fraction of the run: a line up, then half a cosine down to 0
    (Loshchilov and Hutter 2017)."""
    if fraction < warmup:
        return max(fraction / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (fraction - warmup) / (1 - warmup))))


def adamw(weights: Mapping[str, nn.Parameter], options: Distillation) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with decay for kernels alone; `set_rate` gives it its learning rate."""
    kernels = [parameter for parameter in weights.values() if parameter.ndim > 1]
    others = [parameter for parameter in weights.values() if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=options.learning_rate)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def moments(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """What AdamW remembers, by the names of the weights, on the CPU."""
    return {
        name: {key: value.detach().cpu().clone() for key, value in optimizer.state[parameter].items()}
        for name, parameter in weights.items()
        if parameter in optimizer.state
    }


def remember(
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, nn.Parameter],
    remembered: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Give AdamW back what `moments` took."""
    optimizer.state.clear()
    for name, parts in remembered.items():
        device = weights[name].device
        optimizer.state[weights[name]] = {
            key: value.clone() if key == "step" else value.to(device, copy=True) for key, value in parts.items()
        }


@torch.no_grad()
def follow(averaged: Mapping[str, Tensor], current: Mapping[str, Tensor], step: int, decay: float) -> None:
    """Move an average of weights towards what they are after `step` steps; a young average forgets faster."""
    kept = min(decay, (1 + step) / (10 + step))
    for name, value in averaged.items():
        value.lerp_(current[name], 1 - kept)
