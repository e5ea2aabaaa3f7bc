"""Every family of edgeseg.zoo: what it costs, and what rewriting and INT8 leave of its decisions and of its time.

Weights are by chance (edgeseg.zoo.chance) where none were trained: then mIoU is that with the FP32 network's own
decisions as labels, 100 % by definition, and says how much a step changes, not how good anything is. A network that was
trained is measured against labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edgeseg.zoo
from calibration import calibrate, load_recipe
from edgeseg import quantize
from edgeseg.backends import Engine, open_engine
from edgeseg.backends.onnxruntime import probe
from edgeseg.data import load_dataset, pick, read
from edgeseg.errors import BadInput, DatasetError, EdgesegError
from edgeseg.export import fuse, to_onnx
from edgeseg.export.outputs import pick as pick_output
from edgeseg.export.reference import torch_input
from edgeseg.intake import load
from edgeseg.measure.confusion import confusion, scores
from edgeseg.measure.latency import summarize
from edgeseg.pipeline.frames import prepared
from edgeseg.pipeline.network import dialect_for
from edgeseg.pipeline.rewriting.budgets import Whole, within
from edgeseg.pipeline.rewriting.outputs import only_scores
from edgeseg.pipeline.rewriting.wish import Budget
from edgeseg.rewrite.exact import exact
from edgeseg.rewrite.network import Network, capture, layers, macs_of, parameters_of, refusal, tidy
from edgeseg.rewrite.plan import plan
from edgeseg.rewrite.sequential import rescaled, rewritten
from edgeseg.spec import spec_for
from edgeseg.trials.candidates import candidates
from edgeseg.trials.race import race
from edgeseg.types import InputSpec, ModelSpec, OnnxModel, OutputSpec, Precision, Torch
from edgeseg.zoo.chance import lively

# At a quarter of the published widths, which a CPU can run; `paper` takes the factories' own.
SMALL: dict[str, dict[str, Any]] = {
    "patch_network": {"width": 12, "hidden": 50},
    "fcn32s": {"width": 16},
    "fcn16s": {"width": 16},
    "fcn8s": {"width": 16},
    "fcn_alexnet": {"width": 24},
    "segnet": {"width": 16},
    "unet": {},
    "unet_paper": {"width": 16},
    "fcn_resnet": {"width": 16},
    "resnext": {"width": 16, "width_per_group": 4, "groups": 32},
    "deeplabv3": {"width": 16},
    "deeplabv3plus": {"width": 8},
    "pspnet": {"width": 16},
    "googlenet": {"width": 16, "decoder": 32},
    "inception_v2": {"width": 8, "decoder": 32},
    "inception_v3": {"width": 8, "decoder": 32},
    "minigooglenet": {"width": 24, "decoder": 24},
}
SEPARABLE_ALREADY = ("deeplabv3plus",)
Frames = list[NDArray[np.uint8]]


def measure(
    trained: Sequence[Path],
    data: Path,
    *,
    split: str,
    eval_split: str,
    size: tuple[int, int],
    share: float,
    samples: int,
    eval_frames: int,
    rounds: int,
    only: Sequence[str],
    paper: bool,
    say: Callable[[str], object],
    written: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """A row for each family, and one for each file of a trained network; see the module's first lines.

    `written` is called with the document after every row.
    """
    torch.set_num_threads(1)
    dataset = load_dataset(data)
    unknown = [name for name in only if name not in SMALL]
    if unknown:
        raise BadInput(f"there is no family '{unknown[0]}'; there are: {', '.join(SMALL)}")
    rows: list[tuple[str, Path | None, ModelSpec, dict[str, Any]]] = []
    for name in only or SMALL:
        arguments = {"classes": len(dataset.classes), **({} if paper else SMALL[name])}
        spec = ModelSpec(
            name, InputSpec(size, mean=(0.44, 0.43, 0.41), std=(0.21,) * 3), OutputSpec(classes=dataset.classes)
        )
        rows.append((name, None, spec, arguments))
    for file in trained:
        spec = spec_for(file, None)
        spec = replace(spec, output=replace(spec.output, classes=spec.output.classes or dataset.classes))
        rows.append((spec.name, file, spec, {}))
    found: list[dict[str, Any]] = []
    document = {
        "schema": "edgeseg.families/1",
        "rows": found,
        "data": dataset.name,
        "size": list(size),
        "share": share,
        "rounds": rounds,
        "frames": {"fit": samples, "judged": eval_frames},
        "paper": paper,
    }
    for name, path, spec, arguments in rows:
        started = time.perf_counter()
        fit = _frames(dataset, split, spec, samples)
        seen, labels = _labelled(dataset, eval_split, spec, eval_frames)
        try:
            if path is None:
                torch.manual_seed(0)
                images = torch.cat([torch_input(frame, spec) for frame in fit[:4]])
                module: nn.Module = lively(getattr(edgeseg.zoo, name)(**arguments), images)
            else:
                source = load(path, spec)
                if not isinstance(source, Torch):
                    raise BadInput(f"{path} is no torch network: it cannot be rewritten")
                module = source.module
            rule, left = ("bottleneck", max(share, 0.95)) if name in SEPARABLE_ALREADY else ("separable", share)
            row = _row(module, spec, fit, seen, labels if path is not None else None, rule, left, rounds)
        except EdgesegError as error:
            row = {"failure": str(error)}
        row |= {"name": name, "trained": path is not None, "arguments": arguments, "failure": row.get("failure")}
        found.append(row)
        say(f"{name}: {row['failure'] or 'done'}, {time.perf_counter() - started:.0f} s")
        written(document)
    return document


def _row(
    module: nn.Module,
    spec: ModelSpec,
    fit: Frames,
    seen: Frames,
    labels: Frames | None,
    rule: str,
    share: float,
    rounds: int,
) -> dict[str, Any]:
    size = spec.input.size
    network = capture(Torch(module, "pickle"), size).network
    only_scores(network, spec.output.index)
    cost = {"macs": macs_of(network, size), "parameters": parameters_of(network)}
    exact(network, size)
    tidy(network)
    small, taken = _smaller(network, spec, fit, rule, share)
    graphs: dict[str, tuple[OnnxModel, Precision]] = {
        "fp32": (_graph(module, spec), "fp32"),
        "rewritten": (_graph(small, spec), "fp32"),
    }
    graphs["int8"] = (_int8(graphs["rewritten"][0], fit), "int8")
    engines = [_engine(name, *graph) for name, graph in graphs.items()]
    masks = {}
    for engine in engines:
        with open_engine(engine) as session:
            masks[engine.name] = [session.run(frame[None])[0].copy() for frame in seen]
    wanted = labels or masks["fp32"]
    times = race(engines, [frame[None] for frame in seen[:8]], rounds=rounds, limit_s=60.0)
    return {
        **cost,
        "rewritten_macs": macs_of(small, size),
        "rewritten_parameters": parameters_of(small),
        "rule": rule,
        "layers": taken,
        "miou": {name: _miou(given, wanted, spec) for name, given in masks.items()},
        "latency_ms": {name: summarize(found).to_json() for name, found in times.items()},
    }


def _smaller(network: Network, spec: ModelSpec, fit: Frames, rule: str, share: float) -> tuple[Network, int]:
    """By one rule, to a share of the operations; or the least that the rule can, if that is more."""
    size, images = spec.input.size, [torch_input(frame, spec) for frame in fit]
    allowed = []
    for layer in layers(network, size):
        conv = network.get_submodule(layer.name)
        assert isinstance(conv, nn.Conv2d)
        if refusal(conv) is None or (rule == "bottleneck" and conv.groups == 1 and layer.conv.depth <= 8192):
            allowed.append(layer)

    def logits(given: nn.Module, image: Tensor) -> Tensor:
        return torch.as_tensor(pick_output(given(image), spec.output.index)[0])

    offered = plan(network, allowed, images, logits, rules=[rule], look=2)
    whole = Whole(macs_of(network, size), parameters_of(network))
    for tried in sorted({share, *(0.8, 0.9, 0.95, 0.98, 1.0)}):
        if tried < share:
            continue
        try:
            chosen = within(Budget("macs", tried), whole, allowed, offered)
            break
        except BadInput:  # less than this rule can give
            continue
    taken = [layer for layer in allowed if layer.name in chosen.choices]
    if not taken:
        return network, 0
    small = rewritten(network, taken, chosen.choices, images, steps=4, importance=offered.importance)
    return rescaled(network, small, taken, images), len(taken)


def _graph(module: nn.Module, spec: ModelSpec) -> OnnxModel:
    return fuse(to_onnx(Torch(module, "pickle"), spec, quick=True).graph, spec)


def _int8(model: OnnxModel, fit: Frames) -> OnnxModel:
    dialect = dialect_for("onnxruntime")
    placement = quantize.place(quantize.Graph(model.graph), dialect)
    watched = probe(model.graph, sorted(placement.observed), (frame[None] for frame in fit))
    table = calibrate(watched, load_recipe("mse"), model=model.digest, data="")
    return quantize.quantize(model, table, dialect, placement=placement)


def _engine(name: str, model: OnnxModel, precision: Precision) -> Engine:
    return replace(candidates(model, "onnxruntime", precision)[0], name=name)


def _miou(given: Frames, wanted: Frames, spec: ModelSpec) -> float:
    names = spec.output.classes
    total = sum(confusion(mine, label, len(names), 255) for mine, label in zip(given, wanted, strict=True))
    return float(scores(np.asarray(total), names).miou)


def _frames(dataset: Any, split: str, spec: ModelSpec, count: int) -> Frames:
    chosen = dataset.split(split)
    return list(prepared(read(chosen, pick(len(chosen), count), color=spec.input.frame, labels=False), spec))


def _labelled(dataset: Any, split: str, spec: ModelSpec, count: int) -> tuple[Frames, Frames]:
    chosen = dataset.split(split)
    indices = pick(len(chosen), count)
    samples = list(read(chosen, indices, color=spec.input.frame))
    frames = list(prepared(read(chosen, indices, color=spec.input.frame, labels=False), spec))
    height, width = spec.input.size
    labels = []
    for sample in samples:
        if sample.label is None:
            raise DatasetError(f"{sample.name} of '{split}' has no label, and trained networks are judged by labels")
        rows = (np.arange(height) * sample.label.shape[0] // height)[:, None]
        labels.append(sample.label[rows, np.arange(width) * sample.label.shape[1] // width])
    return frames, labels
