"""What is asked of a captured network: its convolutions, what they cost, whether it takes several images at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils.flop_counter import FlopCounterMode

from edgeseg.rewrite.capture import Captured as Captured
from edgeseg.rewrite.capture import Network as Network
from edgeseg.rewrite.capture import alike
from edgeseg.rewrite.capture import capture as capture
from edgeseg.rewrite.capture import tidy as tidy
from edgeseg.rewrite.moments import DEEPEST
from edgeseg.rewrite.tracing import plain_values
from edgeseg.rewrite.values import Conv, Layer

NARROW = 32  # channels of a 1x1 convolution, on either side, of which no rule could leave out enough to be worth it
FEWEST = 16  # channels, of which moments can be taken together with all taps: fewer are not worth it


@dataclass(slots=True)
class _Seen:
    sizes: list[tuple[int, int]] = field(default_factory=list)
    positions: int = 0


def layers(network: Network, size: tuple[int, int]) -> tuple[Layer, ...]:
    """All Conv2d modules in the order of their first calls, found by running one image of zeros (1, 3, H, W).

    Those inside a chain that a rule put in place are among them, by their path. One that is never called is not.
    """
    seen: dict[str, _Seen] = {}
    modules = {name: part for name, part in network.named_modules() if isinstance(part, nn.Conv2d)}

    def record(name: str, given: Any, result: Any) -> None:
        entry = seen.setdefault(name, _Seen())
        entry.sizes.append((int(given[0].shape[-2]), int(given[0].shape[-1])))
        entry.positions += prod(result.shape[-2:])

    with _hooked(modules, record):
        _run(network, torch.zeros(1, 3, *size))
    return tuple(
        Layer(name, conv_of(modules[name]), max(found.sizes, key=prod), found.positions, len(found.sizes))
        for name, found in seen.items()
    )


def conv_of(module: nn.Conv2d) -> Conv:
    """The convolution without its weights. Only for zero padding in numbers, which capture() sees to."""
    assert module.padding_mode == "zeros", module.padding_mode
    return Conv(
        module.in_channels,
        module.out_channels,
        _pair(module.kernel_size),
        _pair(module.stride),
        _pair(module.padding),
        _pair(module.dilation),
        module.groups,
    )


def refusal(module: nn.Conv2d) -> str | None:
    """Why no approximate rule can take this convolution; None if one may."""
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return f"its padding is {module.padding!r}, mode {module.padding_mode!r}: capture the network first"
    conv = conv_of(module)
    if conv.groups > 1:
        return "already depthwise" if conv.groups == conv.inputs else f"already in {conv.groups} groups"
    if conv.taps == 1 and min(conv.inputs, conv.outputs) <= NARROW:
        return "already pointwise, and narrow"
    if conv.inputs > DEEPEST or conv.taps > DEEPEST // FEWEST:
        return f"too wide: {conv.inputs} channels and {conv.taps} taps, at most {DEEPEST} and {DEEPEST // FEWEST}"
    if not all(bool(part.isfinite().all()) for part in module.parameters()):
        return "its weights are not finite"
    return None


def batchable(network: Network, size: tuple[int, int]) -> bool:
    """Whether two images stacked give what each of them gives alone. False where a batch of 1 is part of the graph."""
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    alone = [_tensors(_run(network, image[None])) for image in images]
    try:
        together = _tensors(_run(network, images))
    except (RuntimeError, IndexError, ValueError):  # whatever an operation says to a batch that it does not take
        return False
    if any(part.dim() == 0 or len(part) != 2 for part in together):
        return False
    return all(alike([part[at : at + 1] for part in together], alone[at]) for at in (0, 1))


def macs_of(network: Network, size: tuple[int, int]) -> int:
    """Multiplications for one image, found by running one of zeros (1, 3, H, W).

    One for every product of a weight and an input that a convolution or a matrix product is defined by, padding
    counted: as in edgeseg.measure.profile. Chains that rules put in place and calls left untouched are counted too.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        _run(network, torch.zeros(1, 3, *size))
    return int(counter.get_total_flops()) // 2


def parameters_of(network: Network) -> int:
    """Numbers in the parameters: weights, biases, factors of batch norms; no statistics, no buffers."""
    return sum(parameter.numel() for parameter in network.parameters())


def _run(network: Network, images: Tensor) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return network(images)


def _tensors(returned: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(plain_values(returned)) if isinstance(leaf, Tensor)]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


@contextmanager
def _hooked(modules: dict[str, nn.Conv2d], record: Any) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda _module, given, result: record(name, given, result)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
