"""What every method starts from, what it gives, and how all peers are finished alike.

Batch norms are re-estimated on the frames that ours is fitted to, whichever of with and without is nearer to the
original on the frames held out is taken, norms are folded, and exact rewrites done.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from edgeseg.distill.norm import fold
from edgeseg.pipeline.rewriting.students import Work, nearness
from edgeseg.rewrite.exact import exact
from edgeseg.rewrite.network import Network, batchable, capture, macs_of, tidy
from edgeseg.rewrite.values import Pair
from edgeseg.types import Torch

TOGETHER = 16  # frames in a batch that re-estimates norms
MET = 1.01  # times the budget


@dataclass(slots=True)
class Made:
    """What a method made of the network for one budget, or why it did not. Shares are of the multiplications."""

    method: str
    asked: float | None  # None: the method has one share of its own
    seed: int = 0
    network: Network | None = None
    share: float | None = None
    wall_s: float | None = None  # from the trained network and the frames to this one
    cpu_s: float | None = None
    parts_s: dict[str, float] = field(default_factory=dict)
    note: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """What every peer starts from."""

    source: Torch  # as its author wrote it, batch norms and all
    captured: Network  # the same as a graph, nothing folded
    work: Work
    together: int  # frames that the network takes at once

    @property
    def size(self) -> Pair:
        return self.work.spec.input.size

    @property
    def images(self) -> list[Tensor]:
        return list(self.work.fit)


Method = Callable[[Start, Sequence[float]], Iterator[Made]]


def start_of(source: Torch, work: Work) -> Start:
    captured = capture(source, work.spec.input.size).network
    return Start(source, captured, work, TOGETHER if batchable(captured, work.spec.input.size) else 1)


class Clock:
    """Seconds since it was made, by the wall and of the processor, and those that it was given to begin with."""

    def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
        self._wall, self._cpu = time.perf_counter() - wall, time.process_time() - cpu

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


# Finishing, the same for all


def finished(start: Start, network: Network) -> tuple[Network, str]:
    """The better of with and without re-estimated norms, on the frames held out; then what is exact."""
    fresh = copy.deepcopy(network)
    tried = {"as they were": network}
    if reestimate(fresh, start.images, start.together):
        tried["re-estimated"] = fresh
    near = {name: nearness(start.work, one) for name, one in tried.items()}
    best = max(near, key=lambda name: near[name])
    chosen = folded(tried[best])
    exact(chosen, start.size)
    tidy(chosen)
    if len(tried) == 1:
        return chosen, "no batch norms"
    told = ", ".join(f"{name} {100 * value:.1f} %" for name, value in near.items())
    return chosen, f"norms {best} (mean IoU with the original's decisions on the frames held out: {told})"


def reestimate(network: nn.Module, images: Sequence[Tensor], together: int) -> bool:
    """Give the batch norms the statistics of `images` (1, 3, H, W), in place; False if there is no batch norm."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in np.array_split(np.arange(len(images)), -(-len(images) // together)) if norms else ():
            network(torch.cat([images[k] for k in batch]))  # about equally many in each: all batches count alike
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
    return bool(norms)


def folded(network: Network) -> Network:
    """A copy with the norms behind chains of convolutions folded; those behind a convolution are for `exact`."""
    pairs: dict[str, str] = {}
    targets = [str(node.target) for node in network.graph.nodes]
    for node in network.graph.nodes:
        if node.op != "call_module" or not isinstance(network.get_submodule(str(node.target)), nn.BatchNorm2d):
            continue
        before = node.all_input_nodes[0]
        chain = network.get_submodule(str(before.target)) if before.op == "call_module" else None
        alone = len(before.users) == 1 and all(targets.count(str(one.target)) == 1 for one in (node, before))
        if alone and isinstance(chain, nn.Sequential) and isinstance(chain[-1], nn.Conv2d):
            pairs[str(node.target)] = f"{before.target}.{len(chain) - 1}"
    return fold(network, pairs)


def done(start: Start, made: Made, network: Network, clock: Clock) -> Made:
    found, note = finished(start, network)
    share = macs_of(found, start.size) / start.work.whole.macs
    wall, cpu = clock.read()
    return replace(
        made, network=found, share=share, note=", ".join(filter(None, (made.note, note))), wall_s=wall, cpu_s=cpu
    )


def guarded(made: Made, make: Callable[[Made], Made]) -> Made:
    """What `make` gives, or the reason why it gives nothing."""
    try:
        return make(made)
    except Exception as error:  # other people's libraries can raise anything
        return replace(made, failure=reason(error))


def reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
