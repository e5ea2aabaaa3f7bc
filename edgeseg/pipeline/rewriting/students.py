"""Rewritten networks of one trained network: what its layers could become, and what became of them under a budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from edgeseg import intake
from edgeseg.console import Console
from edgeseg.data import Dataset, Reading, pick, read
from edgeseg.errors import BadInput, DatasetError, ModelError
from edgeseg.export.outputs import pick as pick_output
from edgeseg.export.reference import torch_input, torch_logits, torch_mask
from edgeseg.measure.confusion import confusion, scores
from edgeseg.pipeline.frames import prepared
from edgeseg.pipeline.rewriting.budgets import Chosen, Times, Whole, within
from edgeseg.pipeline.rewriting.outputs import only_scores
from edgeseg.pipeline.rewriting.wish import Budget, Wish
from edgeseg.rewrite.exact import OFFERED, exact
from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.network import Network, capture, layers, macs_of, parameters_of, refusal, tidy
from edgeseg.rewrite.observe import outputs_at
from edgeseg.rewrite.plan import Plan, plan
from edgeseg.rewrite.refine import refined
from edgeseg.rewrite.rules import RULES
from edgeseg.rewrite.sequential import rescaled, rewritten
from edgeseg.rewrite.values import Layer
from edgeseg.rewrite.walk import Store
from edgeseg.types import Mask, ModelSpec, Pixels

GRAPH = (
    "is an ONNX graph, and rewriting needs the network: give the state dict, TorchScript or .pt2 that it was exported "
    "from"
)
HELD = 16  # frames, of the same split, to decide between variants by
STEPS = 12  # of optimisation, where a layer is replaced for good
LOOK_STEPS = 0  # where options are only compared


class Images(Sequence[Tensor]):
    """Frames as a network takes them, float32 (1, 3, H, W), each made when it is asked for."""

    def __init__(self, frames: Sequence[Pixels], spec: ModelSpec) -> None:
        self.frames, self._spec = frames, spec

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __getitem__(self, index: int | slice) -> Tensor | Images:
        if isinstance(index, slice):
            return Images(self.frames[index], self._spec)
        return torch_input(self.frames[index], self._spec)

    def __iter__(self) -> Iterator[Tensor]:
        return (torch_input(frame, self._spec) for frame in self.frames)


@dataclass(frozen=True, slots=True)
class Work:
    """All that is known of a network before it is decided what becomes of it."""

    spec: ModelSpec
    teacher: Network  # after the exact rewrites
    layers: tuple[Layer, ...]  # those that an approximate rule may take
    left: tuple[tuple[str, str], ...]  # the others by name, and why
    exact: tuple[Change, ...]
    plan: Plan
    whole: Whole  # of the original
    fit: Images
    held: Images
    held_indices: frozenset[int]  # frames of the split that nothing may learn from: those, and those of the verdict
    masks: tuple[Mask, ...]  # of the teacher, for the frames held out
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Student:
    """A rewritten network, and how near it is to the original on the frames held out."""

    network: Network
    chosen: Chosen
    unexplained: Mapping[str, float]
    agreement: float  # mean over classes of the IoU of both decisions
    variant: str  # "fitted", "rescaled" or "refined": the nearest
    exact: tuple[Change, ...]  # what could be done to it once more, exactly


def prepare(
    model: Path,
    spec: ModelSpec,
    dataset: Dataset,
    split: str,
    wish: Wish,
    *,
    open_up: Callable[[Network], tuple[Network, list[Change]]] | None = None,
    judged: Collection[int] = (),
    trust_pickle: bool,
    console: Console,
) -> Work:
    """Load, capture, rewrite exactly, and find out what every option of every layer would do.

    `open_up`: more exact rewrites, which the approximate rules can build on. `judged`: frames of the split that the
    verdict is about, which are left out of everything here.
    """
    with console.step("capture") as step:
        source = intake.load(model, spec, trust_pickle=trust_pickle)
        if isinstance(source, intake.Onnx):
            raise BadInput(f"{model} {GRAPH}")
        captured = capture(source, spec.input.size)
        notes = list(captured.notes)
        if only_scores(captured.network, spec.output.index):
            notes.append("outputs other than the scores are not deployed, and what leads to them alone is left out")
        step.note = f"{source.form}; {macs_of(captured.network, spec.input.size) / 1e6:.1f} M operations"
    whole = Whole(macs_of(captured.network, spec.input.size), parameters_of(captured.network))
    teacher = captured.network
    with console.step("exact") as step:
        changes = exact(teacher, spec.input.size)
        if open_up is not None:
            teacher, more = open_up(teacher)
            changes += more
        tidy(teacher)
        step.note = f"{len(changes)} rewrites, {macs_of(teacher, spec.input.size) / 1e6:.1f} M operations left"
    fit, held, held_indices = _frames(dataset, split, spec, wish.samples, judged)
    found = layers(teacher, spec.input.size)
    refused = {layer.name: why for layer in found if (why := refusal(_conv(teacher, layer.name))) is not None}
    rewritable = tuple(layer for layer in found if layer.name not in refused)
    with console.step("options") as step, console.bar(len(rewritable), "options") as done:
        planned = plan(
            teacher,
            rewritable,
            fit,
            lambda network, image: _logits(network, image, spec),
            rules=wish.rules or tuple(RULES),
            align=wish.align,
            steps=LOOK_STEPS,
            seed=wish.seed,
            on_layer=done,
        )
        step.note = f"{len(planned.options)} of {len(rewritable)} layers, on {len(fit)} frames of '{split}'"
    with torch.no_grad():
        masks = tuple(_mask(teacher, image, spec) for image in held)
    return Work(
        spec=spec,
        teacher=teacher,
        layers=rewritable,
        left=(*captured.untouched, *refused.items()),
        exact=tuple(changes),
        plan=planned,
        whole=whole,
        fit=fit,
        held=held,
        held_indices=held_indices,
        masks=masks,
        notes=tuple(notes),
    )


def student(work: Work, budget: Budget, wish: Wish, *, times: Times | None, console: Console) -> Student:
    """Choose within the budget, and replace the layers chosen one after the other."""
    with console.step("choose") as step:
        chosen = within(budget, work.whole, work.layers, work.plan, bytes_each=wish.bytes_each, times=times)
        step.note = f"{len(chosen.choices)} of {len(work.layers)} layers for {budget}"
    unexplained: dict[str, float] = {}
    with console.step("fit") as step, console.bar(len(chosen.choices), "fit") as done:

        def on_layer(name: str, value: float) -> None:
            unexplained[name] = value
            done()

        taken = [layer for layer in work.layers if layer.name in chosen.choices]
        with Store() as store:
            wanted = outputs_at(work.teacher, taken, work.fit, store.keep, wish.seed)
            small = rewritten(
                work.teacher,
                work.layers,
                chosen.choices,
                work.fit,
                steps=STEPS,
                importance=work.plan.importance,
                seed=wish.seed,
                wanted=wanted,
                on_layer=on_layer,
            )
            other = rescaled(work.teacher, small, taken, work.fit, seed=wish.seed, wanted=wanted)
        variants = {"fitted": small, "rescaled": other}
        near = {name: nearness(work, network) for name, network in variants.items()}
        if wish.refine:
            first = variants[max(near, key=lambda name: near[name])]
            importance = work.plan.importance
            variants["refined"] = refined(work.teacher, first, taken, work.fit, importance=importance, seed=wish.seed)
            near["refined"] = nearness(work, variants["refined"])
        best = max(near, key=lambda name: near[name])
        network = variants[best]
        again = exact(network, work.spec.input.size)
        if times is None:
            again += OFFERED["split"](network, work.spec.input.size)
        tidy(network)
        step.note = (
            f"{100 * near[best]:.2f} % mean IoU with the original's decisions on {len(work.held)} frames ({best})"
        )
    return Student(network, chosen, unexplained, near[best], best, tuple(again))


def nearness(work: Work, network: Network) -> float:
    """How near its decisions are to the original's on the frames held out: mean IoU over classes, 0 to 1."""
    with torch.no_grad():
        given = [_mask(network, image, work.spec) for image in work.held]
    classes = max(2, len(work.spec.output.classes), *(1 + int(mask.max()) for mask in (*work.masks, *given)))
    total = np.zeros((classes, classes), np.int64)
    for mine, mask in zip(given, work.masks, strict=True):
        total += confusion(mine, mask, classes)
    return scores(total, [str(k) for k in range(classes)]).miou


def _conv(network: Network, name: str) -> nn.Conv2d:
    module = network.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def _frames(
    dataset: Dataset, split: str, spec: ModelSpec, samples: int, judged: Collection[int]
) -> tuple[Images, Images, frozenset[int]]:
    """Frames spread over the split: to fit to, and others held out; and all that nothing may learn from."""
    chosen = dataset.split(split)
    left = [index for index in range(len(chosen)) if index not in judged]
    count = min(len(left), samples + HELD)
    if count < 4:
        spared = f", {len(judged)} of them for the verdict" if judged else ""
        raise DatasetError(f"rewriting needs at least 4 frames; '{split}' has {len(chosen)}{spared}")
    indices = [left[k] for k in pick(len(left), count)]
    every = max(2, round(count / min(HELD, count // 4)))
    held = indices[every - 1 :: every]
    if count - len(held) > samples:  # no more to fit to than was asked for
        held = [indices[k] for k in pick(count, count - samples)]
    fit = [index for index in indices if index not in set(held)]
    return (
        Images(_all(read(chosen, fit, color=spec.input.frame, labels=False), spec), spec),
        Images(_all(read(chosen, held, color=spec.input.frame, labels=False), spec), spec),
        frozenset((*held, *judged)),
    )


def _all(reading: Reading, spec: ModelSpec) -> list[Pixels]:
    return list(prepared(reading, spec))


def _scores(network: Network, image: Tensor, spec: ModelSpec) -> Tensor:
    found, _ = pick_output(network(image), spec.output.index)
    if not found.is_floating_point():
        raise ModelError("the network returns a class map; rewriting needs its scores: leave the ArgMax to edgeseg")
    logits: Tensor = found if found.dim() == 4 else found.unsqueeze(1)
    return logits


def _logits(network: Network, image: Tensor, spec: ModelSpec) -> Tensor:
    """The scores as what a softmax, or of one channel a sigmoid, makes the network's probabilities of."""
    found = _scores(network, image, spec)
    if not bool((found < inf).all()):  # minus infinity is how a class is ruled out
        raise ModelError("the network's scores are not finite on a frame: see that its weights are, and input.scale")
    if spec.output.activation != "probabilities":
        return found
    return found.logit(1e-6) if found.shape[1] == 1 else found.clamp_min(1e-6).log()


def _mask(network: Network, image: Tensor, spec: ModelSpec) -> Mask:
    return np.asarray(torch_mask(torch_logits(_scores(network, image, spec), spec), spec).numpy()[0])
