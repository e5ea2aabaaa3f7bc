"""The other ways to make a trained network cheaper, each given what ours is given, and a little more where it helps.

All start from the original's weights and are finished alike: batch norms re-estimated on the frames that ours is fitted
to, whichever of with and without is nearer to the original on the frames held out, norms folded, exact rewrites done.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeseg.distill.losses import as_logits
from edgeseg.distill.norm import fold
from edgeseg.export.outputs import pick
from edgeseg.pipeline.rewriting.students import Work, nearness
from edgeseg.rewrite.exact import exact
from edgeseg.rewrite.modules import assemble
from edgeseg.rewrite.network import Network, batchable, capture, conv_of, layers, macs_of, refusal, tidy
from edgeseg.rewrite.values import Choice, Conv, Fitted, Layer, Pair, Piece, macs
from edgeseg.types import Torch

STEPS = 250  # of iterative pruning, on the way to nothing: the more, the closer a budget is met
DEEPEST = 0.95  # of the channels of a layer, that pruning may take
AGAIN = 25  # Taylor: gradients are taken anew every so many steps
GRADIENTS = 16  # and from so many frames
TOGETHER = 16  # frames in a batch that re-estimates norms
MET = 1.01  # times the budget
FEW = 4  # inputs: those of an image. To decompose them saves next to nothing and costs much, so nobody does


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


Chain = tuple[tuple[Piece, ...], tuple[Tensor, ...]]  # pieces in the place of a convolution, and their weights
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


# Uniform depthwise separable


def separable(start: Start, shares: Sequence[float]) -> Iterator[Made]:
    """Every k x k convolution but the image's depthwise and pointwise: each channel's kernels by their best of rank 1."""
    clock = Clock()
    network = replaced(start.captured, start.size, _separated)
    yield done(start, Made("depthwise separable, SVD", None), network, clock)


def _separated(layer: Layer, weight: Tensor) -> Chain | None:
    conv = layer.conv
    if conv.inputs <= FEW:
        return None
    left, values, right = torch.linalg.svd(weight.double().flatten(2).transpose(0, 1), full_matrices=False)
    filters = right[:, 0].reshape(conv.inputs, 1, *conv.kernel)
    mixed = (left[:, :, 0] * values[:, :1]).T.reshape(conv.outputs, conv.inputs, 1, 1)
    pieces = (replace(conv, outputs=conv.inputs, groups=conv.inputs), Conv(conv.inputs, conv.outputs))
    return (pieces, (filters, mixed)) if macs(pieces, layer.size) < macs((conv,), layer.size) else None


# Tucker-2


def tucker(start: Start, shares: Sequence[float]) -> Iterator[Made]:
    """TensorLy's partial Tucker decomposition of every k x k convolution, ranks one fraction of the channels."""
    tensorly = importlib.import_module("tensorly")
    decompose = importlib.import_module("tensorly.decomposition").partial_tucker
    for share in shares:
        with tensorly.backend_context("pytorch"):  # ten times as fast as its NumPy backend here, and the same numbers
            made = guarded(Made("Tucker-2, TensorLy", share), partial(_tuckered, start, decompose, Clock()))
        yield made


def _tuckered(start: Start, decompose: Any, clock: Clock, made: Made) -> Made:
    assert made.asked is not None
    found = _decomposable(start.captured, start.size)
    fixed = start.work.whole.macs - sum(layer.macs for layer in found)
    aim, best = made.asked, None
    while True:
        fraction = _fraction(found, aim * start.work.whole.macs - fixed)
        ranks = {layer.name: _ranks(layer.conv, fraction) for layer in found}
        network = replaced(start.captured, start.size, partial(_tucked, decompose, ranks))
        note = f"ranks {fraction:.3f} of the channels"
        new = done(start, replace(made, note=note), network, clock)
        assert new.share is not None
        if best is not None and new.share > MET * made.asked:
            return best
        best = new
        if new.share >= 0.97 * made.asked or aim > 1.5 * made.asked:
            return best
        aim *= made.asked / new.share  # exact rewrites made it cheaper than was asked for: it may keep more


def _tucked(decompose: Any, ranks: Mapping[str, Pair], layer: Layer, weight: Tensor) -> Chain | None:
    outer, inner = ranks[layer.name]
    pieces = _tucker_pieces(layer.conv, outer, inner)
    if macs(pieces, layer.size) >= macs((layer.conv,), layer.size):
        return None
    (core, (last, first)), _ = decompose(weight.double(), rank=[outer, inner], modes=[0, 1], init="svd")
    if len(pieces) == 2:  # all channels of the input are kept
        return pieces, (torch.einsum("oikl,ci->ockl", core, first), last[:, :, None, None])
    return pieces, (first.T[:, :, None, None], core, last[:, :, None, None])


def _decomposable(network: Network, size: Pair) -> list[Layer]:
    found = layers(network, size)
    return [layer for layer in found if refusal(_conv(network, layer.name)) is None]


def _fraction(found: Sequence[Layer], budget: float) -> float:
    """The largest fraction of the channels at which all layers together keep to the budget, by bisection."""

    def cost(fraction: float) -> float:
        return sum(_tucker_macs(layer, fraction) for layer in found)

    if cost(0.0) > budget:
        raise ValueError("the budget is below what ranks of 1 need")
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low


def _tucker_macs(layer: Layer, fraction: float) -> float:
    pieces = _tucker_pieces(layer.conv, *_ranks(layer.conv, fraction))
    dense = macs((layer.conv,), layer.size)
    return layer.macs * min(macs(pieces, layer.size), dense) / dense


def _ranks(conv: Conv, fraction: float) -> Pair:
    """(outer, inner)."""
    inner = conv.inputs if conv.inputs <= FEW else max(1, round(fraction * conv.inputs))
    return max(1, round(fraction * conv.outputs)), inner


def _tucker_pieces(conv: Conv, outer: int, inner: int) -> tuple[Piece, ...]:
    last = (replace(conv, inputs=inner, outputs=outer), Conv(outer, conv.outputs))
    return last if inner == conv.inputs else (Conv(conv.inputs, inner), *last)


# Torch-Pruning


def pruned(name: str, title: str, *, globally: bool, **words: Any) -> Method:
    """Torch-Pruning: channels taken in many small steps, the importance `name(**words)` computed anew before each."""

    def method(start: Start, shares: Sequence[float]) -> Iterator[Made]:
        library = importlib.import_module("torch_pruning")
        estimate = getattr(library.importance, name)(**words)
        written = any(isinstance(part, nn.Conv2d) for part in start.source.module.modules())
        module = copy.deepcopy(start.source.module if written else start.captured).eval().requires_grad_(True)
        left = sorted(shares, reverse=True)
        clock = Clock()
        with _quiet():
            pruner = library.pruner.BasePruner(
                module,
                torch.zeros(1, 3, *start.size),
                importance=estimate,
                global_pruning=globally,
                pruning_ratio=DEEPEST,
                max_pruning_ratio=DEEPEST,
                iterative_steps=STEPS,
                ignored_layers=_heads(start.captured, module),
            )
        for step in range(STEPS):
            if "Taylor" in name and step % AGAIN == 0:
                _take_gradients(start, module)
            with _quiet():
                pruner.step()
            share = macs_of(module, start.size) / start.work.whole.macs  # type: ignore[arg-type]  # calls it, no more
            while left and share <= MET * left[0]:
                so_far = clock.read()
                made = Made(title, left.pop(0), note=f"{step + 1} steps")
                yield guarded(made, partial(_pruned, start, module, Clock(*so_far)))
                clock = Clock(*so_far)  # what finishing one of them took is not for the others
            if not left:
                return
        for share in left:
            yield Made(title, share, failure=f"not reached with {100 * DEEPEST:.0f} % of each layer's channels gone")

    return method


def _pruned(start: Start, module: nn.Module, clock: Clock, made: Made) -> Made:
    still = copy.deepcopy(module).requires_grad_(False)
    return done(start, made, capture(Torch(still, "pickle"), start.size).network, clock)


def _heads(captured: Network, module: nn.Module) -> list[nn.Module]:
    """The layers that make the outputs, whose channels are the classes."""
    names: set[str] = set()
    seen: set[fx.Node] = set()
    pending = [node for node in captured.graph.nodes if node.op == "output"]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source in seen:
                continue
            seen.add(source)
            made = captured.get_submodule(str(source.target)) if source.op == "call_module" else None
            if isinstance(made, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                names.add(str(source.target))
            else:
                pending.append(source)
    known = dict(module.named_modules())
    missing = names - set(known)
    if missing:
        raise ValueError(f"the network has no module '{min(missing)}', which makes its outputs")
    return [known[name] for name in sorted(names)]


def _take_gradients(start: Start, module: nn.Module) -> None:
    """Re-estimate the norms, and leave the gradients of the cross entropy with the original's decisions."""
    spec = start.work.spec
    images = start.images[:GRADIENTS]
    reestimate(module, images, start.together)
    module.zero_grad()
    for image in images:
        with torch.no_grad():
            wanted, _ = pick(start.work.teacher(image), spec.output.index)
        given, _ = pick(module(image), spec.output.index)
        ours, theirs = (as_logits(part, spec.output.activation == "probabilities") for part in (given, wanted))
        if ours.shape[1] == 1:
            loss = functional.binary_cross_entropy_with_logits(ours, (theirs > 0).float())
        else:
            loss = functional.cross_entropy(ours, theirs.argmax(1))
        loss.backward()  # type: ignore[no-untyped-call]


# Shared


def replaced(
    network: Network,
    size: Pair,
    choose: Callable[[Layer, Tensor], Chain | None],
) -> Network:
    """A copy with chains in the place of the k x k convolutions for which `choose` gives pieces and weights."""
    changed = copy.deepcopy(network)
    for layer in _decomposable(changed, size):
        module = _conv(changed, layer.name)
        chosen = choose(layer, module.weight.detach())
        if chosen is None:
            continue
        pieces, weights = chosen
        bias = module.bias.detach() if module.bias is not None else torch.zeros(layer.conv.outputs)
        fitted = Fitted(weights, torch.empty(0))
        changed.set_submodule(layer.name, assemble(Choice("peer", (), pieces), fitted, bias))
    changed.recompile()
    return changed


def _conv(network: Network, name: str) -> nn.Conv2d:
    module = network.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    assert conv_of(module).groups >= 1
    return module


def guarded(made: Made, make: Callable[[Made], Made]) -> Made:
    """What `make` gives, or the reason why it gives nothing."""
    try:
        return make(made)
    except Exception as error:  # other people's libraries can raise anything
        return replace(made, failure=reason(error))


def reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Whatever a library prints goes to stderr, its warnings nowhere."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


PEERS: dict[str, tuple[str, tuple[str, ...], Method]] = {  # name: title, packages, method
    "separable": ("depthwise separable, SVD", (), separable),
    "tucker": ("Tucker-2, TensorLy", ("tensorly",), tucker),
    "l2": (
        "Torch-Pruning, group L2, global",
        ("torch_pruning",),
        pruned("GroupMagnitudeImportance", "Torch-Pruning, group L2, global", globally=True),
    ),
    "l2-uniform": (
        "Torch-Pruning, group L2, uniform",
        ("torch_pruning",),
        pruned("GroupMagnitudeImportance", "Torch-Pruning, group L2, uniform", globally=False),
    ),
    "taylor": (
        "Torch-Pruning, group Taylor, global",
        ("torch_pruning",),
        # Without the normalisation to each group's mean, its default: with it, global Taylor takes whole layers and
        # is worse on the frames held out (0.4 of the operations of the U-Net: agreement 11 instead of 18 %).
        pruned("GroupTaylorImportance", "Torch-Pruning, group Taylor, global", globally=True, normalizer=None),
    ),
}
