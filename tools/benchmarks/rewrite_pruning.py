"""Torch-Pruning with more steps than is usual, so that it meets each budget and its importance is never stale."""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from benchmarks.rewrite_making import MET, Clock, Made, Method, Start, done, guarded, reestimate
from edgeseg.distill.losses import as_logits
from edgeseg.export.outputs import pick
from edgeseg.rewrite.network import Network, capture, macs_of
from edgeseg.types import Torch

STEPS = 500  # of iterative pruning, on the way to nothing: the more, the closer a budget is met
DEEPEST = 0.95  # of the channels of a layer, that pruning may take
AGAIN = 50  # Taylor: gradients are taken anew every so many steps
GRADIENTS = 16  # and from so many frames


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Whatever a library prints goes to stderr, its warnings nowhere."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
