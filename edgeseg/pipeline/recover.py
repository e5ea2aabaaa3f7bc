"""Quantization-aware distillation for some minutes: the INT8 network learns from the FP32 one, and gives its weights
back to the FP32 graph, from which the writer makes the same INT8 graph again. Needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from calibration import ScaleTable
from edgeseg import distill, quantize
from edgeseg import recover as student_of
from edgeseg.backends.onnxruntime import inference_session
from edgeseg.distill.frames import check
from edgeseg.distill.losses import as_logits
from edgeseg.distill.score import decide
from edgeseg.distill.values import Augmentation, Distillation, Distilled, Progress, Score, Stopped
from edgeseg.errors import ModelError
from edgeseg.recover.interpreter import try_out
from edgeseg.types import FRAME, MASK, OnnxModel, Pixels

SAME = 0.999  # share of pixels to which the network that learns and the one that is deployed give one class
COMPARED = 8  # held-out frames on which that is measured
MILD = Augmentation(0.5, (0.8, 1.0), 0.1, 0.1, 0.1)  # ranges are fixed: colours far from the data's only saturate


@dataclass(frozen=True, slots=True)
class Recovered:
    """What came of it. `quantize(model, table, dialect, placement=…)`, without further biases, is the INT8 graph."""

    model: OnnxModel  # an FP32 graph; what was learned if it was kept, else the one given with the biases given
    before: Score  # of the INT8 network on held-out frames, by the FP32 network's decisions
    after: Score  # of the best that training came by, kept or not
    kept: bool
    steps: int
    seconds: float
    stopped: Stopped
    same: float  # share of pixels, 0 to 1, to which `model` as it is deployed gives the class that was judged here
    history: tuple[Progress, ...]
    notes: tuple[str, ...]  # for people


def recover(
    model: OnnxModel,
    table: ScaleTable,
    dialect: quantize.Dialect,
    *,
    frames: Sequence[Pixels],
    held_out: Sequence[Pixels],
    minutes: float,
    seed: int = 0,
    steps: int | None = None,
    placement: quantize.Placement | None = None,
    biases: Mapping[str, NDArray[np.float32]] | None = None,
    options: Distillation | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
) -> Recovered:
    """Train the INT8 network that `dialect` makes of `model` to give the FP32 one's scores, by fake quantization.

    frames: uint8 (H, W, 3) at the network's size, read one batch at a time; held_out: others that decide what is kept,
    of the train split too. `placement`, `biases`: as they are given to the writer. `minutes` is for everything;
    with `steps` so many are made, and the same seed gives the same weights. `checkpoint`, Ctrl-C: as for distill().
    `options`: how to learn, instead of what learning() says.

    Raises ModelError for a graph with operators that are not translated (named), without scores, or that torch runs
    differently than ONNX Runtime, all before anything is trained; BadInput for frames that do not fit.
    """
    began = time.perf_counter()
    check(frames, held_out, None)
    placement = placement or quantize.place(quantize.Graph(model.graph), dialect)
    teacher = student_of.network(model.graph)
    given = student_of.every_bias(model, biases)
    written = deployed(model, table, dialect, placement, given)
    student = student_of.student(
        model, written.graph, dialect.weight_bits, bias=given, teacher=teacher, frames=np.stack([held_out[0]])
    )
    output = model.spec.output
    chosen = options or learning(minutes, seed=seed, steps=steps, bits=dialect.weight_bits)
    chosen = replace(chosen, probabilities=output.activation == "probabilities", threshold=output.threshold)
    compared = list(held_out[:COMPARED])
    for what, network, graph in (("FP32", teacher, model), ("INT8", student, written)):
        share = same_labels(network, graph, compared)
        if share < enough(share, graph, compared):
            raise ModelError(
                f"recovery runs the {what} graph in torch, where {100 * share:.2f} % of all pixels get the class that "
                f"ONNX Runtime gives them; at least {100 * SAME} % are wanted. Build without --recover"
            )
    if chosen.steps is None and checkpoint is None:  # a checkpoint is continued by a run of the same options only
        left = chosen.minutes - (time.perf_counter() - began) / 60
        chosen = replace(chosen, minutes=max(left, 1e-6))
    found = distill.distill(
        teacher, student, frames, chosen, prepare=_as_they_are, held_out=held_out, on_progress=on_progress,
        checkpoint=checkpoint, device=device,
    )  # fmt: skip
    return _given_back(found, model, table, dialect, placement, biases, compared)


def learning(minutes: float, *, seed: int = 0, steps: int | None = None, bits: int = 8) -> Distillation:
    """How a network with weights of so many bits learns.

    Weights are trained in units of their channel's size, and the learning rate is a part of the grid that they are
    rounded to, which halves with every bit: a rate that fits 3 bits takes 8-bit weights away from where they were
    good. Measured on a U-Net in one minute on one core: 3 bits kept most at 3e-3 (of 3e-4, 1e-3, 3e-3, 1e-2), and
    8 bits lost by it.
    """
    return Distillation(
        minutes=minutes,
        steps=steps,
        seed=seed,
        learning_rate=3e-3 * 2.0 ** (3 - bits),
        weight_decay=0.0,
        label_weight=0.0,
        feature_weight=0.5,
        augmentation=MILD,
    )


def deployed(
    model: OnnxModel,
    table: ScaleTable,
    dialect: quantize.Dialect,
    placement: quantize.Placement | None = None,
    biases: Mapping[str, NDArray[np.float32]] | None = None,
) -> OnnxModel:
    """The INT8 graph of a dialect; FakeQuantize written as the QuantizeLinear and DequantizeLinear that it is."""
    return quantize.quantize(model, table, replace(dialect, fake=False), placement=placement, bias=biases)


def same_labels(network: fx.GraphModule, graph: OnnxModel, frames: Sequence[Pixels]) -> float:
    """The share of pixels, 0 to 1, to which a translated network and its graph in ONNX Runtime give one class.

    ONNX Runtime computes node by node, nothing fused: what the graph says. Raises ModelError for a node that torch
    cannot run.
    """
    output = graph.spec.output
    ours = []
    with student_of.exactly(network):
        for frame in frames:
            scores = try_out(network, torch.from_numpy(frame[None]))
            ours.append(decide(as_logits(scores, output.activation == "probabilities"), output.threshold).numpy())
    return float(np.mean(np.concatenate(ours) == _masks(graph, frames, "off")))


def enough(share: float, graph: OnnxModel, frames: Sequence[Pixels]) -> float:
    """Of how many pixels the classes must be the same: SAME, or as many as ONNX Runtime has in common with itself.

    Where many values lie next to the border of two codes, even its own fused kernels decide otherwise for some.
    """
    if share >= SAME:
        return SAME
    return min(SAME, float(np.mean(_masks(graph, frames, "all") == _masks(graph, frames, "off"))))


def _masks(graph: OnnxModel, frames: Sequence[Pixels], optimization: str) -> NDArray[Any]:
    session = inference_session(graph.graph, optimization)
    return np.concatenate([session.run([MASK], {FRAME: frame[None]})[0] for frame in frames])


def _given_back(
    found: Distilled,
    model: OnnxModel,
    table: ScaleTable,
    dialect: quantize.Dialect,
    placement: quantize.Placement,
    biases: Mapping[str, NDArray[np.float32]] | None,
    compared: Sequence[Pixels],
) -> Recovered:
    """The FP32 graph with what was learned, if that is the better one and is deployed as it was judged."""
    assert isinstance(found.student, fx.GraphModule)
    notes = list(found.notes)
    learned = student_of.with_weights(model, found.student)
    graph = deployed(learned, table, dialect, placement)
    same = same_labels(found.student, graph, compared)
    kept = found.kept == "after"
    if kept and same < (wanted := enough(same, graph, compared)):
        notes.append(
            f"what was learned is not kept: as INT8 graph it gives {100 * same:.2f} % of all pixels the class that "
            f"was judged, and at least {100 * wanted:.2f} % are wanted"
        )
        kept = False
    elif kept and same < SAME:
        notes.append(
            f"ONNX Runtime gives {100 * same:.2f} % of all pixels the class that was judged, as few as two ways to "
            "compute the INT8 graph have in common: many values lie next to the border of two codes"
        )
    return Recovered(
        model=learned if kept else student_of.with_biases(model, biases or {}),
        before=found.before,
        after=found.after,
        kept=kept,
        steps=found.steps,
        seconds=found.seconds,
        stopped=found.stopped,
        same=same,
        history=found.history,
        notes=tuple(notes),
    )


def _as_they_are(frames: torch.Tensor) -> torch.Tensor:
    """The graph prepares its frames itself."""
    return frames
