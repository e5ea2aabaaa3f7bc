"""Weights by chance with which a network behaves as a trained one does, to measure and test where none is trained.

Values neither grow nor vanish with depth, batch norms have seen images, and every class wins somewhere. Independent
weights alone make chaos of a deep network: each layer amplifies what was rounded before it, so that nothing can be said
of rounding. As in trained networks, kernels are therefore mixtures of a few patterns for each input channel, layers
keep much of what they get, and most values of a batch norm pass the ReLU after it.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from edgeseg.zoo.blocks import Bilinear

Kind = TypeVar("Kind", bound=nn.Module)
DEVIATION = 3.0  # of each class's scores
PATTERNS = 2  # for each input channel
REST = 0.15  # of a kernel that is no mixture of them, relative


@torch.no_grad()
def lively(network: Kind, images: Tensor, seed: int = 0) -> Kind:
    """The network itself, in evaluation mode, with new weights; the global generator is left as it was.

    `images`: float32 (N, 3, H, W), two or more, normalised as the network's inputs are. Transposed convolutions that
    start as bilinear up-sampling keep their weights. Raises ValueError for fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"batch norms need two images or more, came {len(images)}")
    generator = torch.Generator().manual_seed(seed)
    norms = []
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear | nn.ConvTranspose2d) and not isinstance(part, Bilinear):
            part.weight.copy_(_kernel(part, generator))
            if part.bias is not None:
                part.bias.copy_(torch.randn(part.bias.shape, generator=generator) * 0.1)
        elif isinstance(part, nn.BatchNorm2d):
            part.weight.copy_(torch.rand(part.weight.shape, generator=generator) * 0.8 + 0.6)
            part.bias.copy_(torch.randn(part.bias.shape, generator=generator) * 0.3 + 0.7)
            part.reset_running_stats()
            norms.append((part, part.momentum))
    network.eval()
    for norm, _ in norms:
        norm.train()
        norm.momentum = None  # the mean over all that it sees
    network(images)
    for norm, momentum in norms:
        norm.eval()
        norm.momentum = momentum
    _balance(network, images)
    return network


def _kernel(part: nn.Conv2d | nn.Linear | nn.ConvTranspose2d, generator: torch.Generator) -> Tensor:
    """Of the scale of He et al. 2015, "Delving Deep into Rectifiers", by which variances stay what they are."""
    shape = part.weight.shape
    if not isinstance(part, nn.Conv2d):
        taps = part.weight[0].numel()
        if isinstance(part, nn.ConvTranspose2d):
            taps = part.weight[:, 0].numel() // (part.stride[0] * part.stride[1])
        scale: float = (2 / taps) ** 0.5
        return torch.randn(shape, generator=generator) * scale
    outputs, inputs, *kernel = shape
    patterns = torch.randn(1, inputs, PATTERNS, *kernel, generator=generator)
    mixed: Tensor = (torch.randn(outputs, inputs, PATTERNS, 1, 1, generator=generator) * patterns).sum(
        2
    ) / PATTERNS**0.5
    mixed += torch.randn(shape, generator=generator) * REST
    mixed *= (1 / mixed[0].numel()) ** 0.5
    where = torch.arange(outputs)
    mixed[where, where % inputs, kernel[0] // 2, kernel[1] // 2] += 1
    return mixed


def _balance(network: nn.Module, images: Tensor) -> None:
    """Each class's scores to mean 0 and DEVIATION, by the last layer with a bias and the last of all."""
    layers: list[nn.Conv2d | nn.ConvTranspose2d] = []
    hooks = [
        part.register_forward_hook(lambda module, _inputs, _output: layers.append(module))
        for part in network.modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
    ]
    scores = cast(Tensor, network(images))
    for hook in hooks:
        hook.remove()
    last = layers[-1]
    biased = next(layer for layer in reversed(layers) if layer.bias is not None)
    assert biased.bias is not None
    mean, factor = scores.mean((0, 2, 3)), DEVIATION / scores.std((0, 2, 3)).clamp_min(1e-6)
    if last is biased:
        biased.bias.copy_((biased.bias - mean) * factor)
    else:
        biased.bias.sub_(mean)
    shape = (1, -1, 1, 1) if isinstance(last, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    last.weight.mul_(factor.view(shape))
