"""What of a layer's inputs its moments are taken of: all of them, or a few mixtures where all would be too many.

The moments of a layer with D products an output are a matrix (D, D), which cannot be had for the heads of published
networks (3x3 of 2048 or 4096 channels, 7x7 of 512). Rules that begin with a 1x1 convolution to r channels need less:
which directions of the channels carry the layer's output follows from the moments (Ci, Ci) of the channels alone. Such
a layer is seen behind a fixed mixing to n > r of them, fitted as if it had n channels, and the 1x1 convolution found
for these takes the mixing in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.fisher import factors
from edgeseg.rewrite.moments import DEEPEST, Moments, Summing
from edgeseg.rewrite.network import Network
from edgeseg.rewrite.observe import POSITIONS, patches, positions, size_of, targets, watching
from edgeseg.rewrite.solve import principal
from edgeseg.rewrite.values import Choice, Conv, Fitted, Layer

MARGIN = 1.25  # mixtures for each channel that a rule keeps, enough to tell what it would leave unexplained
# To make up for what layers before it do wrong it needs others than the original's: on the CamVid U-Net at 0.167 of its
# operations 1.25 cost 0.7 points of likeness to the original, 1.5 cost 0.4, 2 cost 0.1.
AMPLE = 2.0


@dataclass(frozen=True, slots=True)
class View:
    """A layer as its moments see it.

    `conv` has as many inputs as are seen, n; `weight` (Co, n, kh, kw) is the layer's kernel on these, `mixing`
    float32 (n, Ci) makes them of the layer's own channels; None where they are these.
    """

    conv: Conv
    weight: Tensor
    mixing: Tensor | None = None

    def patches(self, x: Tensor, at: Tensor) -> Tensor:
        """What makes the outputs at flat positions `at`: (len(at), D of `conv`), of an input (1, Ci, H, W)."""
        if self.mixing is not None:
            x = F.conv2d(x, self.mixing[:, :, None, None])
        return patches(x, self.conv, at)

    def widened(self, made: Fitted) -> Fitted:
        """Weights that were fitted to what is seen, for the layer's own channels. `effective` stays what it was."""
        if self.mixing is None:
            return made
        first = made.weights[0]
        assert isinstance(first, Tensor)
        own = first.flatten(1).double() @ self.mixing.double()
        return replace(made, weights=(own[:, :, None, None], *made.weights[1:]))


def seen(conv: Conv, choices: Sequence[Choice], margin: float = MARGIN) -> int:
    """How many inputs of the layer, or mixtures of these, the choices are fitted to."""
    if conv.depth <= DEEPEST:
        return conv.inputs
    kept = 1
    for choice in choices:
        first = choice.pieces[0]
        assert isinstance(first, Conv)
        assert (first.taps, first.groups) == (1, 1), f"{choice.label} does not mix the channels first"
        core = choice.pieces[1]
        assert isinstance(core, Conv)
        # A depthwise core takes one filter of each mixture: several of them may be of the same direction.
        kept = max(kept, first.outputs if core.groups == 1 else first.outputs // 2)
    return min(max(ceil(margin * kept), kept + 1), DEEPEST // conv.taps)


def mixed(conv: Conv, weight: Tensor, channels: Moments, count: int, importance: Tensor | None = None) -> View:
    """The layer behind the `count` mixtures of its channels of which its outputs, by their importance (Co), lose least.

    `channels`: moments whose gram (Ci, Ci) is that of the layer's inputs. The mixtures are orthonormal, so that white
    noise stays white, and the kernel on them is the one nearest to the layer in what it gives.
    """
    gram = channels.gram.clone()
    gram.diagonal().add_(channels.ridge * float(gram.diagonal().mean()))
    scale = torch.ones(conv.outputs) if importance is None else factors(importance)
    square = torch.zeros_like(gram)
    by_tap = weight.detach().flatten(2).permute(2, 0, 1)  # (taps, Co, Ci), of which one at a time is made float64
    for kernel in by_tap:
        scaled = kernel.double() * scale[:, None]
        square += scaled.T @ scaled
    rows = principal(square, gram)[0][:count]
    basis, corner = torch.linalg.qr(rows.T)  # rows = corner^T basis^T
    onto = gram @ rows.T @ corner.T
    narrow = torch.stack([(kernel.double() @ onto).to(weight.dtype) for kernel in by_tap], 2)
    return View(replace(conv, inputs=count), narrow.view(conv.outputs, count, *conv.kernel), basis.T.float())


def views_of(
    network: Network,
    layers: Sequence[Layer],
    offered: Mapping[str, Sequence[Choice]],
    frames: Sequence[Tensor],
    importance: Mapping[str, Tensor],
    *,
    seed: int = 0,
) -> dict[str, View]:
    """How to look at each layer to fit any of the choices that it is offered. `frames`: as for `moments_of`."""
    counts = {layer.name: seen(layer.conv, offered.get(layer.name, ())) for layer in layers}
    sums = {layer.name: Summing() for layer in layers if counts[layer.name] < layer.conv.inputs}
    frame = 0

    def see(name: str, x: Tensor, _y: Tensor) -> None:
        sums[name].add_inputs(targets(x, positions(name, frame, size_of(x), POSITIONS // 2, seed)))

    if sums:
        with torch.no_grad(), watching(network, list(sums), see):
            for frame in range(0, len(frames), 2):
                network(frames[frame])
    views: dict[str, View] = {}
    for layer in layers:
        module = network.get_submodule(layer.name)
        assert isinstance(module, nn.Conv2d)
        name = layer.name
        views[name] = (
            mixed(layer.conv, module.weight, sums[name].moments(), counts[name], importance[name])
            if name in sums
            else View(layer.conv, module.weight)
        )
    return views


def moments_of(
    network: Network,
    views: Mapping[str, View],
    frames: Iterator[Tensor] | Sequence[Tensor],
    *,
    count: int = POSITIONS // 2,
    seed: int = 0,
) -> dict[str, tuple[Moments, Moments]]:
    """Moments of each layer in its own network, over even frames to fit to and over odd ones held out.

    `frames`: float32 (1, 3, H, W), `count` positions of each. The targets are the layer's own outputs.
    """
    sums = {name: (Summing(), Summing()) for name in views}
    frame = 0

    def see(name: str, x: Tensor, y: Tensor) -> None:
        at = positions(name, frame, size_of(y), count, seed)
        sums[name][frame % 2].add(views[name].patches(x, at), targets(y, at))

    with torch.no_grad(), watching(network, list(sums), see):
        for image in frames:
            network(image)
            frame += 1
    return {name: (fit.moments(), held.moments()) for name, (fit, held) in sums.items()}
