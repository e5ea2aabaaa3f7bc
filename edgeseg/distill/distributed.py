"""Several processes that learn together, as torchrun starts them: gradients are averaged, the first one decides."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all, and where it computes."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


def started() -> tuple[int, int]:
    """Which process this is, and of how many, by what torchrun says; (0, 1) without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")), world) if world > 1 else (0, 1)


_joinings = itertools.count()  # the same in all processes: each joins as often as the others


@functools.cache
def _store() -> Any:
    """Where the processes find each other, by MASTER_ADDR and MASTER_PORT; one for as long as the process lives."""
    from torch.distributed.rendezvous import rendezvous  # absent where torch was built without torch.distributed

    store, _, _ = next(rendezvous("env://"))
    return store


@contextmanager
def joined(device: torch.device | None = None) -> Iterator[Ranks]:
    """The process's place by the environment that torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK); alone without it.

    NCCL on GPUs, Gloo on CPUs. A process group that exists already is used and left.
    """
    if device is None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local % torch.cuda.device_count()) if torch.cuda.is_available() else None
    device = device or torch.device("cpu")
    ours = False
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Under names of its own each time: what an earlier group left there would be taken for this one's.
        store = dist.PrefixStore(f"edgeseg/{next(_joinings)}", _store())  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=started()[1])
        ours = True
    if not (dist.is_available() and dist.is_initialized()):
        yield Ranks(0, 1, device)
        return
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if ours:
            dist.destroy_process_group()


def agree(fraction: float, interrupted: bool, ranks: Ranks) -> tuple[float, bool]:
    """The first process's fraction of the run, and whether any was interrupted: the same everywhere."""
    if ranks.world == 1:
        return fraction, interrupted
    both = torch.tensor(
        [fraction if ranks.first else 0.0, float(interrupted)], dtype=torch.float64, device=ranks.device
    )
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return float(both[0]), bool(both[1] > 0)


def average(tensors: Iterable[Tensor], ranks: Ranks) -> None:
    """Each tensor becomes its mean over the processes, in one exchange."""
    parts = list(tensors)
    if ranks.world == 1 or not parts:
        return
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    flat /= ranks.world
    for part, mean in zip(parts, torch.split(flat, [part.numel() for part in parts]), strict=True):
        part.copy_(mean.view_as(part))


def from_first(value: Any, ranks: Ranks) -> Any:
    """What the first process has, tensors on the CPU among it, for all of them."""
    if ranks.world == 1:
        return value
    carried = [value if ranks.first else None]
    dist.broadcast_object_list(carried, src=0, device=ranks.device if ranks.device.type == "cuda" else None)
    return carried[0]
