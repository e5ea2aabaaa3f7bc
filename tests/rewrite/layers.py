"""Layers to be rewritten alone: kernels, and the moments of what they see on smooth, correlated maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeseg.rewrite.moments import Moments, Summing
from edgeseg.rewrite.values import Conv


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kernel_of(conv: Conv, seed: int = 0) -> Tensor:
    return random(conv.outputs, conv.inputs, *conv.kernel, seed=seed) / math.sqrt(conv.depth)


def maps(channels: int, count: int, seed: int = 1, side: int = 28) -> Tensor:
    """(count, channels, side, side): of some directions of the channels there is much more than of others."""
    mixing = random(channels, channels, seed=77) * torch.logspace(0, -1, channels)
    noise: Tensor = torch.einsum("ij,njhw->nihw", mixing, random(count, channels, side, side, seed=seed))
    smooth: Tensor = F.avg_pool2d(noise, 3, 1, 1) + 0.5
    return smooth


def moments_at(conv: Conv, weight: Tensor, x: Tensor) -> Moments:
    """At all positions of maps x (n, Ci, H, W), the targets being the layer's own outputs and a shift of 0.25."""
    sums = Summing()
    for image in x:
        patches = F.unfold(image[None], conv.kernel, conv.dilation, conv.padding, conv.stride)[0].T
        sums.add(patches, patches @ weight.flatten(1).T + 0.25)
    return sums.moments()
