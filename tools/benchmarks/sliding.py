"""A window classifier at every pixel beside the network that has none of its double work: operations and time.

Cireşan et al., NIPS 2012 (edgeseg.zoo.patch). In torch, on one thread; windows go in batches, the best of several,
and the time of all of them is that of a batch times the number of batches: all of them would take minutes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeseg.measure.latency import interleave
from edgeseg.zoo.patch import PatchNetwork, fully_convolutional, window_classifier

BATCHES = (1, 16, 64)


@torch.no_grad()
def measure(size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """The document edgeseg.sliding/1, for the paper's network with weights by chance and an image of (H, W)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    height, width = size
    classifier, window = window_classifier()
    network = PatchNetwork(fully_convolutional(classifier, (window, window), dense=True), window)
    image, windows = torch.rand(1, 3, height, width), {count: torch.rand(count, 3, window, window) for count in BATCHES}
    runs: dict[str, Callable[[], object]] = {"image": lambda: network(image)}
    for count, batch in windows.items():
        runs[str(count)] = lambda batch=batch: classifier(batch)  # type: ignore[misc]
    times: Mapping[str, Any] = interleave(runs, rounds=rounds, warmup=1)
    ms = {name: statistics.median(samples) / 1e6 for name, samples in times.items()}
    pixels = height * width
    each = {count: ms[str(count)] / count for count in BATCHES}
    best = min(each, key=lambda count: each[count])
    return {
        "schema": "edgeseg.sliding/1",
        "size": list(size),
        "window": window,
        "rounds": rounds,
        "image_gmac": _macs(network, image) / 1e9,
        "windows_gmac": _macs(classifier, windows[1]) * pixels / 1e9,
        "image_ms": ms["image"],
        "windows_ms": each[best] * pixels,
        "batch": best,
    }


def _macs(module: nn.Module, image: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        module(image)
    return int(counter.get_total_flops()) // 2
