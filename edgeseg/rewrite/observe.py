"""What the layers of a network see on real frames: patches of their inputs, and targets, at some positions of each.

Everything is taken from one frame at a time and added up, so memory does not depend on how many frames there are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.network import Network
from edgeseg.rewrite.values import Conv, Layer, Pair

POSITIONS = 256  # a layer and frame: neighbouring positions say nearly the same


def size_of(map_: Tensor) -> Pair:
    return (map_.shape[-2], map_.shape[-1])


def positions(name: str, frame: int, size: Pair, count: int = POSITIONS, seed: int = 0) -> Tensor:
    """Where to look: int64 (n), flat indices into a map of `size`, the same for each network that has such a layer."""
    every = size[0] * size[1]
    if every <= count:
        return torch.arange(every)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{frame}".encode()))
    return torch.randperm(every, generator=generator)[:count]


def patches(x: Tensor, conv: Conv, at: Tensor) -> Tensor:
    """The inputs (n, D) that make the outputs at flat positions `at` of an input (1, Ci, H, W)."""
    width = conv.after(size_of(x))[1]
    padded = F.pad(x[0], (conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0]))
    rows = (at // width)[:, None] * conv.stride[0] + torch.arange(conv.kernel[0]) * conv.dilation[0]
    columns = (at % width)[:, None] * conv.stride[1] + torch.arange(conv.kernel[1]) * conv.dilation[1]
    taken = padded[:, rows[:, :, None], columns[:, None, :]]  # (Ci, n, kh, kw)
    return taken.permute(1, 0, 2, 3).flatten(1)


def targets(y: Tensor, at: Tensor) -> Tensor:
    """The outputs (n, Co) at flat positions of a map (1, Co, h, w)."""
    return y[0].flatten(1)[:, at].T


@contextmanager
def watching(
    network: Network, names: Sequence[str], see: Callable[[str, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call `see(name, input, output)` at each call of the named modules; what it returns replaces the output."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        return lambda _module, inputs, output: see(name, inputs[0], output)

    hooks = [network.get_submodule(name).register_forward_hook(hook_for(name)) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def outputs_at(
    network: Network, layers: Sequence[Layer], frames: Sequence[Tensor], keep: Callable[[Tensor], Tensor], seed: int = 0
) -> Mapping[str, list[Tensor]]:
    """The targets (n, Co) of each layer's first call, frame by frame, at the positions that `positions` gives."""
    seen: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    frame = 0

    def see(name: str, _x: Tensor, y: Tensor) -> None:
        if len(seen[name]) == frame:
            seen[name].append(keep(targets(y, positions(name, frame, size_of(y), seed=seed))))

    with torch.no_grad(), watching(network, list(seen), see):
        for image in frames:
            network(image)
            frame += 1
    return seen
