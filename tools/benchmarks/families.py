"""Every family of edgeseg.zoo through `edgeseg build --int8 --rewrite all`: cost, accuracy and latency of each step.

Weights are by chance (edgeseg.zoo.chance) where none were trained: then agreement with the FP32 network's own decisions
says how much a step changes, on scores that lie closer together than a trained network's, and nothing about accuracy. A
network that was trained is measured against labels, too. It is trained with `tools/train_reference --network FAMILY`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import edgeseg.zoo
from edgeseg.console import Console
from edgeseg.data import Dataset, load_dataset, pick, read
from edgeseg.errors import BadInput, EdgesegError
from edgeseg.export.reference import torch_input
from edgeseg.intake import load
from edgeseg.pipeline import build
from edgeseg.pipeline.frames import prepared
from edgeseg.pipeline.rewriting import Budget, Wish
from edgeseg.rewrite.network import capture, macs_of, parameters_of
from edgeseg.spec import spec_for
from edgeseg.types import InputSpec, ModelSpec, OutputSpec, Torch
from edgeseg.zoo.chance import lively

MEAN, STD = (0.44, 0.43, 0.41), (0.21, 0.21, 0.21)
BACKEND = "onnxruntime"
STEPS = {"fp32": f"{BACKEND}-fp32", "rewritten": f"rewritten-{BACKEND}-fp32", "int8": f"rewritten-{BACKEND}-int8"}
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


def measure(
    trained: Sequence[Path],
    data: Path,
    work: Path,
    *,
    split: str,
    eval_split: str,
    size: tuple[int, int],
    speedup: float | None,
    share: float,
    samples: int,
    only: Sequence[str],
    paper: bool,
    say: Callable[[str], object],
    written: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """A row for each family, and one for each file of a trained network; see the module's first lines.

    `work`: a folder for weights. `written` is called with the document after every row.
    """
    torch.set_num_threads(1)
    dataset = load_dataset(data)
    if unknown := [name for name in only if name not in SMALL]:
        raise BadInput(f"there is no family '{unknown[0]}'; there are: {', '.join(SMALL)}")
    found: list[dict[str, Any]] = []
    # Times of layers are most of the work: a share of the operations needs none.
    wish = Wish(Budget("macs", share), timed=False) if speedup is None else Wish(Budget("speedup", speedup))
    document = {
        "schema": "edgeseg.families/2",
        "rows": found,
        "data": dataset.name,
        "size": list(size),
        "budget": str(wish.budget),
        "samples": samples,
        "frames": len(dataset.split(eval_split)),
        "paper": paper,
    }
    wanted = [(name, None) for name in only or ([] if trained else SMALL)] + [(file.stem, file) for file in trained]
    for name, file in wanted:
        started = time.perf_counter()
        row: dict[str, Any] = {"name": name, "trained": file is not None, "failure": None}
        try:
            model = file or by_chance(name, {} if paper else SMALL[name], dataset, split, size, work)
            row |= _built(model, data, split, eval_split, wish, samples)
        except EdgesegError as error:
            row["failure"] = str(error)
        found.append(row)
        say(f"{name}: {(row['failure'] or 'done').splitlines()[0]}, {time.perf_counter() - started:.0f} s")
        written(document)
    return document


def by_chance(
    name: str, arguments: dict[str, Any], dataset: Dataset, split: str, size: tuple[int, int], work: Path
) -> Path:
    """Writes NAME.pt and NAME.toml of a family with weights by chance, which has seen some frames."""
    arguments = {"classes": len(dataset.classes), **arguments}
    spec = ModelSpec(name, InputSpec(size, mean=MEAN, std=STD), OutputSpec(classes=dataset.classes))
    chosen = dataset.split(split)
    frames = prepared(read(chosen, pick(len(chosen), 4), color=spec.input.frame, labels=False), spec)
    torch.manual_seed(0)
    module = lively(getattr(edgeseg.zoo, name)(**arguments), torch.cat([torch_input(frame, spec) for frame in frames]))
    torch.save(module.state_dict(), work / f"{name}.pt")
    told = "".join(f"{key} = {json.dumps(value)}\n" for key, value in arguments.items())
    (work / f"{name}.toml").write_text(
        f'name = "{name}"\nfactory = "edgeseg.zoo:{name}"\n\n[factory_args]\n{told}\n'
        f"[input]\nsize = {list(size)}\nmean = {list(MEAN)}\nstd = {list(STD)}\n\n"
        f"[output]\nclasses = {json.dumps(dataset.classes)}\n",
        encoding="utf-8",
    )
    return work / f"{name}.pt"


def _built(model: Path, data: Path, split: str, eval_split: str, wish: Wish, samples: int) -> dict[str, Any]:
    """What a build says of its engines; without rewritten ones where nothing makes this network faster."""
    spec = spec_for(model, None)
    source = load(model, spec)
    if not isinstance(source, Torch):
        raise BadInput(f"{model} is no torch network: it cannot be rewritten")
    network = capture(source, spec.input.size).network
    row: dict[str, Any] = {
        "macs": macs_of(network, spec.input.size),
        "parameters": parameters_of(network),
        "size": list(spec.input.size),
    }
    for wanted in (wish, None):
        try:
            # Every engine is to be measured, whatever it loses, and all of the network is to run in INT8.
            report = build(
                model, data=data, split=split, eval_split=eval_split, precision="int8", backend=BACKEND,
                samples=samples, rewrite=wanted, max_miou_drop=100.0, console=Console(quiet=True),
            ).report  # fmt: skip
            break
        except BadInput as error:
            if wanted is None:
                raise
            row["not_rewritten"] = str(error)
    small = report["rewriting"] or {"macs": {"after": None}, "parameters": {"after": None}}
    engines = {engine["name"]: engine for engine in report["engines"]}
    names = STEPS if STEPS["int8"] in engines else {"fp32": STEPS["fp32"], "int8": f"{BACKEND}-int8"}
    kept = {step: engines[name] for step, name in names.items() if name in engines}
    return row | {
        "rewritten_macs": small["macs"]["after"],
        "rewritten_parameters": small["parameters"]["after"],
        "engines": dict(names),
        "rejected": report["rejected"],
        "chosen": report["chosen"],
        **{key: {step: engine[key] for step, engine in kept.items()} for key in ("miou", "agreement", "latency_ms")},
    }
