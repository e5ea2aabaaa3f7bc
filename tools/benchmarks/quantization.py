"""INT8 of edgeseg beside ONNX Runtime's quantizer, NNCF and nvidia-modelopt: the same models, frames and machine.

For each model: every way of quantizing runs in a child process of its own, on the frames that our sampler picks; what
comes out is judged on labelled frames that nothing was calibrated on, all engines of the CPU's runtimes race in turns,
and what calibrating costs is measured apart, for a row of numbers of frames. What a TensorRT graph loses is measured
without a GPU: ONNX Runtime runs its nodes as they are written.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import ROOT, Outcome, missing, run
from benchmarks.peers import LOOK, Row, Setup, documents, export, prepare, quantized, say, speed
from benchmarks.quantization_aims import NNCF_TITLES, aims
from benchmarks.quantization_costs import COSTS, Effort, costs, interpreter
from benchmarks.recipes import BUNDLE, RECIPES, TENSORRT, Job
from edgeseg.backends import Engine
from edgeseg.backends.base import Settings
from edgeseg.backends.onnxruntime import AS_WRITTEN
from edgeseg.bundle import read_bundle
from edgeseg.console import Console
from edgeseg.data import Dataset, fit, load_dataset, pick, read
from edgeseg.errors import BadInput, CannotTell, DatasetError, EdgesegError
from edgeseg.evaluation import accuracies, class_names
from edgeseg.pipeline.sampling import sampled
from edgeseg.segmenter import engine_of
from edgeseg.trials.race import race
from edgeseg.types import OnnxModel

OURS = ("edgeseg-onnxruntime", "edgeseg-openvino")
FLOORS = tuple(f"{name}-floor" for name in OURS)  # the same builds with --max-miou-drop
PEERS = tuple(name for name in RECIPES if name not in OURS and name != "ort-conv")
WAYS = (*OURS, *FLOORS, *PEERS, *TENSORRT)


@dataclass(frozen=True, slots=True)
class Words:
    """What was asked for."""

    data: Path
    split: str
    eval_split: str
    samples: int
    rounds: int
    repeats: int  # of what is timed in children
    memory: tuple[int, ...]  # numbers of frames besides `samples`
    floor: float  # points of mIoU
    macs: float  # share of the operations that a separable rewrite keeps; 0: none is made
    limit_gb: float
    limit_s: float
    modelopt: str  # an interpreter that has nvidia-modelopt
    only: tuple[str, ...]  # ways, by name; empty: all; without any of OURS: what these cost, and no more
    quick: bool = False

    @property
    def effort(self) -> Effort:
        return Effort(self.samples, self.memory, self.repeats, self.limit_gb, self.limit_s, self.modelopt)

    def wanted(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if not self.only or name in self.only)


def measure(
    models: Sequence[Path], words: Words, work: Path, written: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """The document edgeseg.quantization/1: rows, costs and aims of each model and of its separable rewrite.

    `written` is called with it after every network: a run takes hours, and what is measured should outlive its end.
    """
    if unknown := sorted(set(words.only) - set(WAYS) - set(COSTS)):
        raise BadInput(f"there is no way {', '.join(unknown)}; there are: {', '.join(dict.fromkeys((*WAYS, *COSTS)))}")
    if set(words.only) - set(COSTS) and not words.wanted(OURS):
        raise BadInput(f"FP32, with which all are compared, comes with {' or '.join(OURS)}: name one of them in --only")
    if words.eval_split == words.split:
        raise DatasetError(f"'{words.split}' is calibrated on: say another --eval-split")
    found: list[dict[str, Any]] = []
    document = {
        "schema": "edgeseg.quantization/1",
        "words": {**asdict(words), "data": str(words.data)},
        "models": found,
    }
    for at, model in enumerate(models):
        say(f"\n{model}")
        found.append(_attempt(model, model.stem, words, work / f"{at}"))
        written(document)
        if words.macs:
            found.append(_separable(model, words, work / f"{at}-separable"))
            written(document)
    return document


def _separable(model: Path, words: Words, work: Path) -> dict[str, Any]:
    title = f"{model.stem}, separable"
    say(f"\n{title}")
    try:
        small = separable(model, words, work.with_suffix(".pt2"))
    except CannotTell as error:
        return {"model": title, "failure": str(error)}
    return _attempt(small, title, words, work)


def _attempt(model: Path, title: str, words: Words, work: Path) -> dict[str, Any]:
    """One model that fails does not take the others with it."""
    work.mkdir()
    try:
        return of_model(model, title, words, work)
    except EdgesegError as error:
        say(f"  {error}")
        return {"model": title, "failure": str(error)}


def separable(model: Path, words: Words, out: Path) -> Path:
    """The depthwise-separable rewrite of a network, as `edgeseg rewrite` makes it. Raises CannotTell with its words."""
    command = [sys.executable, "-m", "edgeseg", "rewrite", str(model), "--data", str(words.data), "-o", str(out)]
    command += ["--split", words.split, "--eval-split", words.eval_split, "--rules", "separable", "--untimed"]
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)
    done = subprocess.run(
        [*command, "--macs", f"{words.macs:g}", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if not out.exists():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CannotTell(f"edgeseg rewrite made no network: {last[:300]}")
    return out


def of_model(model: Path, title: str, words: Words, work: Path) -> dict[str, Any]:
    dataset = load_dataset(words.data)
    judged = dataset.split(words.eval_split)
    if not judged.has_labels:
        raise DatasetError(f"split '{words.eval_split}' needs labels")
    told = {"eval_split": words.eval_split, **({"quick": True} if words.quick else {})}
    setup = prepare(work, model, None, words.data, words.split, words.samples, **told)
    names = class_names(setup.spec, dataset)
    if not names:
        raise DatasetError("neither the model's spec nor the data set names the classes")
    say("export ...")
    graph, store = export(setup)
    setup, indices = _same_frames(replace(setup, limit_gb=words.limit_gb), graph, dataset, words)
    document: dict[str, Any] = {
        "model": title,
        "failure": "",
        "network": setup.spec.name,
        "calibration": {"split": words.split, "frames": setup.count, "indices": list(indices[: setup.count])},
        "evaluation": {"split": words.eval_split, "frames": len(judged)},
        "rows": _rows(setup, graph, store, indices, dataset, names, words) if words.wanted(OURS) else [],
        "costs": costs(setup, graph, indices, words.wanted(COSTS), words.effort),
    }
    return {**document, "aims": [aim.to_json() for aim in aims(document, words.floor, words.samples)]}


def _rows(
    setup: Setup,
    graph: Path,
    store: Path,
    indices: Sequence[int],
    dataset: Dataset,
    names: tuple[str, ...],
    words: Words,
) -> list[dict[str, Any]]:
    """Accuracy and latency of what every way makes."""
    rows = quantized(setup, graph, store, setup.spec, words.wanted(OURS + PEERS))
    rows += [row for name in words.wanted(FLOORS) for row in _floor(name, setup, store, words)]
    raced = sum(row.engine is not None for row in rows)
    rows += [_emulated(name, setup, graph, indices, words) for name in words.wanted(tuple(TENSORRT))]
    opened = [row.engine for row in rows if row.engine is not None]
    engines = [replace(engine, name=str(at)) for at, engine in enumerate(opened)]
    judged = dataset.split(words.eval_split)
    say(f"{len(engines)} engines on {len(judged)} frames of '{words.eval_split}' ...")
    accuracy = accuracies(
        engines,
        setup.spec,
        read(judged, color=setup.spec.input.frame),
        classes=max(len(names), 2),
        ignore_index=dataset.ignore_index,
        console=Console(),
        use_cache=False,
    )
    say(f"race: {words.rounds} rounds ...")
    frames = np.load(setup.frames)
    batches = [frame[None] for frame in frames[pick(len(frames), LOOK)]]
    times = race(engines[:raced], batches, rounds=words.rounds)
    return compared(documents(rows, engines, accuracy, times, names))


def _same_frames(setup: Setup, graph: Path, dataset: Dataset, words: Words) -> tuple[Setup, tuple[int, ...]]:
    """The frames that our build picks by default, for everybody: stored at the network's size, and their indices.

    As many as the largest number asked for, the first `samples` of them those of a build.
    """
    split = dataset.split(words.split)
    fp32 = OnnxModel(graph.read_bytes(), setup.spec)
    indices: list[int] = []
    for count in sorted({words.samples, *words.memory}, key=lambda count: (count != words.samples, count)):
        reading, _ = sampled(split, count, setup.spec, fp32=fp32, use_cache=False, console=Console())
        indices += [index for index in reading.indices if index not in indices]
    frames = [
        fit(sample.pixels, setup.spec.input.size, setup.spec.input.resize)
        for sample in read(split, indices, color=setup.spec.input.frame, labels=False)
    ]
    np.save(setup.frames, np.stack(frames))
    return replace(setup, count=min(words.samples, len(frames))), tuple(indices)


def _floor(name: str, setup: Setup, store: Path, words: Words) -> list[Row]:
    """What a build hands over that may lose only so many points, or its refusal."""
    recipe = RECIPES[name.removesuffix("-floor")]
    title = f"edgeseg, --max-miou-drop {words.floor:g}"
    row = Row(title, recipe.backend)
    if absent := missing(recipe.needs):
        return [replace(row, outcome=Outcome(0.0, failure=absent))]
    say(f"{title} for {recipe.backend} ...")
    folder = setup.work / name
    told = {**setup.build, "precision": "int8", "backend": recipe.backend, "max_miou_drop": words.floor}
    done = run(Job(name.removesuffix("-floor"), str(folder), build=told), cache=store, timeout_s=words.limit_s)
    if done.failure:
        return [replace(row, outcome=done)]
    bundle = read_bundle(folder / BUNDLE)
    chosen = bundle.variant()
    row.notes.append(f"handed over: {chosen.name}; " + " ".join(map(str, bundle.verdict.get("reasons", ()))))
    return [replace(row, outcome=done, engine=engine_of(bundle, chosen))]


def _emulated(name: str, setup: Setup, graph: Path, indices: Sequence[int], words: Words) -> Row:
    """A graph for TensorRT, in an engine that runs its nodes one by one as they are written."""
    recipe = TENSORRT[name]
    row = Row(recipe.title, recipe.backend)
    python, absent = interpreter(recipe, words.modelopt)
    if absent:
        return replace(row, outcome=Outcome(0.0, failure=absent))
    say(f"{recipe.title} for {recipe.backend} ...")
    folder = setup.work / name
    job = Job(
        name, str(folder), str(graph), str(setup.frames), setup.count, words.limit_gb, setup.build, tuple(indices)
    )
    done = run(job, timeout_s=words.limit_s, python=python)
    say(f"  {done.failure or f'{done.seconds:.1f} s'}")
    row = replace(row, outcome=done)
    if done.failure:
        return row
    settings: Settings = {
        "optimization": AS_WRITTEN,
        "decision": "graph",
        "threshold": setup.spec.output.score_threshold,
    }
    files = {"graph.onnx": (folder / "graph.onnx").read_bytes()}
    return replace(row, engine=Engine(name, "onnxruntime", "int8", "graph.onnx", files, settings))


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `speed_fp32` and `speed_nncf`: times as fast as FP32 and as NNCF's default on the same runtime."""
    for row in rows:
        same = [other for other in rows if other["runtime"] == row["runtime"] and "samples_ns" in other]
        rivals = {
            "speed_fp32": [other for other in same if other["precision"] == "fp32"],
            "speed_nncf": [other for other in same if other["recipe"].startswith(NNCF_TITLES.get(row["runtime"], "?"))],
        }
        for key, found in rivals.items():
            row[key] = None
            if "samples_ns" in row and found:
                best = min(found, key=lambda other: statistics.median(other["samples_ns"]))
                row[key] = speed(best["samples_ns"], row["samples_ns"])
    return rows
