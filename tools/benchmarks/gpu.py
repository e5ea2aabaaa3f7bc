"""One network in every way to run it on a GPU: torch, ONNX Runtime, TensorRT and TensorRT-RTX, measured in turns.

    tools/bench gpu net.pt net.edgeseg --data dataset.toml -o table.json

torch runs model files (.pt, .pt2); TensorRT runs bundles, and model files where torch can be imported, which become a
bundle first. All ways of one network take turns, frame by frame, so that heat and neighbours hit all alike: frame in
(NumPy, uint8) to mask out (NumPy, uint8), with transfers; on the device alone by CUDA events; each engine's session
beside the bare execute_async_v3 loop on the same engine; power while one way runs alone. Engines are built anew, into a
cache of this run's own.

torch and TensorRT may live in two Pythons of one machine: TensorRT 8.6 needs Python 3.10 or older, and nothing in its
half imports torch. Measure each half in its own and join them, anywhere:

    python3     tools/bench gpu net.pt      --data dataset.toml --only torch    -o a.json
    python3.10  tools/bench gpu net.edgeseg --data dataset.toml --only tensorrt -o b.json --trt no-external-tactics
    python3     tools/bench gpu --join a.json b.json -o table.json

A host without a network: build the bundle elsewhere (`edgeseg build net.pt --data dataset.toml --backend onnxruntime`),
and bring it, the data set, this repository, and a Python 3.10 with TensorRT 8.6 and the packages numpy below 2.3, onnx,
onnxruntime, click, tomli, opencv-python-headless and cuda-bindings 12 (nvidia-ml-py for power): unpacked wheels in one
folder on PYTHONPATH will do, with TensorRT's own folder on LD_LIBRARY_PATH. Where cuBLAS and cuDNN are not installed,
say --trt no-external-tactics.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_ways import LIBRARIES, Pair, Way, onnxruntime_ways, tensorrt_ways, torch_ways
from edgeseg.backends import get
from edgeseg.backends.tensorrt import driver
from edgeseg.backends.tensorrt.cuda import open_device
from edgeseg.backends.tensorrt.options import option_from
from edgeseg.data import Dataset, fit, load_dataset, read
from edgeseg.documents import read_documents
from edgeseg.errors import BadInput, CannotTell, MissingOnMachine
from edgeseg.evaluation import class_names
from edgeseg.intake import load
from edgeseg.measure.confusion import scores
from edgeseg.measure.evaluate import evaluate
from edgeseg.measure.latency import InTurn, interleave, summarize
from edgeseg.measure.nvml import Nvml
from edgeseg.pipeline.again import Known, known
from edgeseg.spec import read_spec
from edgeseg.types import Frames, ModelSpec, Torch

SCHEMA = "edgeseg.bench.gpu/1"
HALVES = ("torch", "tensorrt")
RACED_FRAMES = 16
WARMUP = 20


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 700  # a p99 needs 662
    eval_frames: int = 200
    power_s: float = 3.0


def measure(
    models: Sequence[Path],
    data: Path,
    *,
    spec: Path | None,
    split: str,
    eval_split: str,
    only: str | None,
    trt: Sequence[str],
    effort: Effort,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The document. Raises MissingOnMachine where there is no GPU, or nothing that was asked for can run on it."""
    halves = HALVES if only is None else (only,)
    asked = dict(option_from(text) for text in trt)
    gpu = driver.gpu()
    absent = missing(halves)
    dataset = load_dataset(data)
    rows = []
    before = os.environ.get("EDGESEG_CACHE")
    with tempfile.TemporaryDirectory(prefix="edgeseg-bench-") as name:
        os.environ["EDGESEG_CACHE"] = str(Path(name) / "cache")  # nothing in it: every build is one
        try:
            for model in models:
                job = _Job(
                    model, spec, data, dataset, split, eval_split, halves, asked, absent, effort, Path(name), say
                )
                rows.append(_model(job))
        finally:
            os.environ.pop("EDGESEG_CACHE")
            if before is not None:
                os.environ["EDGESEG_CACHE"] = before
    return {
        "schema": SCHEMA,
        "gpu": {
            "name": gpu.name,
            "compute_capability": list(gpu.compute_capability),
            "driver_cuda": gpu.driver,
            "memory_bytes": gpu.memory,
        },
        "libraries": libraries(halves),
        "options": asked,
        "missing": absent,
        "rounds": effort.rounds,
        "models": rows,
    }


def missing(halves: Sequence[str]) -> dict[str, str]:
    """What cannot be measured here, and why. Raises MissingOnMachine if that is everything that was asked for."""
    found: dict[str, str] = {}
    if "torch" in halves:
        try:
            import torch

            if not torch.cuda.is_available():
                found["torch"] = f"torch {torch.__version__} finds no GPU: install a build for CUDA, see pytorch.org"
        except ImportError as error:
            found["torch"] = f"torch cannot be imported ({error}): pip install torch"
    if "tensorrt" in halves:
        for library in LIBRARIES:
            try:
                get(library).version()
            except MissingOnMachine as error:
                found[library] = str(error)
    wanted = {*(LIBRARIES if "tensorrt" in halves else ()), *(("torch",) if "torch" in halves else ())}
    if wanted <= set(found):
        raise MissingOnMachine("nothing to measure on this GPU: " + "; ".join(f"{k}: {v}" for k, v in found.items()))
    return found


def libraries(halves: Sequence[str]) -> dict[str, str]:
    """Versions of what was measured."""
    found = {}
    if "torch" in halves:
        try:
            import torch

            cuda, cudnn = torch.version.cuda, torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
            found["torch"] = f"{torch.__version__}, CUDA {cuda}, cuDNN {cudnn}"
        except ImportError:
            pass  # told among what is missing
    if "tensorrt" in halves:
        for library in LIBRARIES:
            try:
                found[library] = get(library).version()
            except MissingOnMachine:
                continue
        with open_device() as device:
            found["cuda"] = device.package
    return found


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The halves of one machine as one document. Raises BadInput for parts that do not belong together."""
    for part in parts:
        if part.get("schema") != SCHEMA:
            raise BadInput(f"a part has the schema {part.get('schema')!r}, wanted {SCHEMA!r}: write it with -o")
    if len(names := {part["gpu"]["name"] for part in parts}) > 1:
        raise BadInput(f"the parts were measured on different GPUs: {', '.join(sorted(names))}")
    models: dict[str, dict[str, Any]] = {}
    for part in parts:
        for row in part["models"]:
            have = models.setdefault(row["model"], {**row, "rows": [], "overhead": []})
            if have["size"] != row["size"]:
                raise BadInput(
                    f"'{row['model']}' has frames of {have['size']} in one part, of {row['size']} in another"
                )
            if have["evaluation"] != row["evaluation"]:
                raise BadInput(f"'{row['model']}' was evaluated on other frames in one part than in another")
            twice = {way["way"] for way in have["rows"]} & {way["way"] for way in row["rows"]}
            if twice:
                raise BadInput(f"'{row['model']}' was measured twice as {', '.join(sorted(twice))}")
            have["rows"] += row["rows"]
            have["overhead"] += row["overhead"]
    return {
        "schema": SCHEMA,
        "gpu": parts[0]["gpu"],
        "libraries": {name: version for part in parts for name, version in part["libraries"].items()},
        "missing": {name: why for part in parts for name, why in part["missing"].items()},
        "rounds": min(part["rounds"] for part in parts),
        "models": list(models.values()),
        "parts": [{key: part[key] for key in ("machine", "versions", "command", "options")} for part in parts],
    }


def read_part(path: Path) -> dict[str, Any]:
    """One half, as it was measured. Raises BadInput, naming the file, for anything else."""
    found = read_documents(path)
    if len(found) != 1 or found[0]["schema"] != SCHEMA:
        raise BadInput(f"{path} holds {', '.join(one['schema'] for one in found)}, wanted one {SCHEMA}")
    if "parts" in found[0]:
        raise BadInput(f"{path} is joined already; give the two halves that it was made from")
    return dict(found[0])


@dataclass(frozen=True)
class _Job:
    """One network, and what is to be done with it."""

    model: Path
    spec: Path | None
    data: Path
    dataset: Dataset
    split: str
    eval_split: str
    halves: Sequence[str]
    asked: dict[str, Any]
    absent: dict[str, str]
    effort: Effort
    work: Path
    say: Callable[[str], None]


def _model(job: _Job) -> dict[str, Any]:
    """One network's part of the document."""
    path, spec, dataset, halves, absent = job.model, job.spec, job.dataset, job.halves, job.absent
    effort, say = job.effort, job.say
    held = known(path)
    read_as = held.network.fp32.spec if held is not None else read_spec(spec or path.with_suffix(".toml"))
    say(f"{read_as.name}: {path.name}")
    notes: list[str] = []
    ways: list[Way] = []
    failed: list[dict[str, Any]] = []
    pairs: list[Pair] = []
    with ExitStack() as stack:
        if "tensorrt" in halves and not all(library in absent for library in LIBRARIES):
            source = held or _as_bundle(job)
            ways += onnxruntime_ways(source, absent)
            for found, pair in tensorrt_ways(stack, source, job.asked, say):
                (failed if isinstance(found, dict) else ways).append(found)  # type: ignore[arg-type]
                pairs += [pair] if pair is not None else []
        if "torch" in halves and "torch" not in absent:
            if held is not None:
                notes.append("torch runs model files, and this is a bundle")
            else:
                for found in torch_ways(_network(path, read_as), read_as, "cuda", compiled=True):
                    (failed if isinstance(found, dict) else ways).append(found)  # type: ignore[arg-type]
        if not ways:
            raise BadInput(f"{path}: {'; '.join(notes)}. Give the model file for torch, the bundle for TensorRT.")
        say(f"{len(ways)} ways: accuracy")
        rows, evaluation = _accuracy(ways, read_as, dataset, job.eval_split, effort.eval_frames)
        frames = _frames(dataset, job.eval_split, read_as)
        say("latency")
        _latency(ways, rows, frames, effort.rounds)
        overhead = [_overhead(pair, frames, effort.rounds) for pair in pairs]
        say("power")
        for way in ways:
            rows[way.name] |= _power(way, frames, effort.power_s)
    return {
        "model": read_as.name,
        "file": path.name,
        "size": list(read_as.input.size),
        "notes": notes,
        "evaluation": evaluation,
        "rows": [*rows.values(), *failed],
        "overhead": overhead,
    }


def _network(path: Path, spec: ModelSpec) -> Torch:
    found = load(path, spec)
    if not isinstance(found, Torch):
        raise BadInput(f"{path} is no file of torch's")
    return found


def _as_bundle(job: _Job) -> Known:
    import edgeseg

    job.say("a bundle from the model file, on the CPU")
    out = job.work / f"{job.model.stem}.edgeseg"
    options: dict[str, Any] = {"precision": "int8", "backend": "onnxruntime", "quick": True, "max_miou_drop": 100.0}
    edgeseg.build(job.model, spec=job.spec, data=job.data, split=job.split, out=out, **options)
    made = known(out)
    assert made is not None
    return made


def _frames(dataset: Dataset, split: str, spec: ModelSpec) -> list[Frames]:
    """Some of the split, as the network takes them."""
    wanted = dataset.split(split)
    reading = read(wanted, range(min(RACED_FRAMES, len(wanted))), color=spec.input.frame, labels=False)
    return [fit(sample.pixels, spec.input.size, spec.input.resize)[None] for sample in reading]


def _accuracy(
    ways: Sequence[Way], spec: ModelSpec, dataset: Dataset, split: str, most: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Rows by way. Agreement is with the first: FP32 on the CPU in the half of TensorRT, eager torch in the other's."""
    wanted = dataset.split(split)
    count = min(most, len(wanted))
    names = class_names(spec, dataset)
    reading = read(wanted, range(count), color=spec.input.frame, labels=wanted.has_labels)
    found = evaluate(
        {way.name: lambda pixels, way=way: way.run(pixels[None])[0] for way in ways},  # type: ignore[misc]
        reading,
        prepare=lambda pixels: fit(pixels, spec.input.size, spec.input.resize),
        classes=max(1, len(names)),
        ignore_index=dataset.ignore_index,
    )
    rows = {}
    for way in ways:
        accuracy = found[way.name]
        try:
            miou = scores(accuracy.matrix, names).miou if names and accuracy.labelled else None
        except CannotTell:
            miou = None
        rows[way.name] = {
            "way": way.name,
            "precision": way.precision,
            "miou": miou,
            "agreement": accuracy.agreement.overall,
            "agrees_with": ways[0].name,
            **way.facts,
        }
    digest = wanted.digest(list(range(count)), labels=wanted.has_labels)
    return rows, {"split": split, "frames": count, "labelled": wanted.has_labels, "digest": digest}


def _latency(ways: Sequence[Way], rows: dict[str, dict[str, Any]], frames: Sequence[Frames], rounds: int) -> None:
    """Frame in to mask out of all ways in turns, then on the device alone, in turns again."""
    whole = interleave({way.name: InTurn(way.run, frames) for way in ways}, rounds=rounds, warmup=WARMUP)
    for way in ways:
        rows[way.name]["latency_ms"] = _summary(whole[way.name])
    timed = {way.name: way.device_ms for way in ways if way.device_ms is not None}
    device: dict[str, list[int]] = {name: [] for name in timed}
    order = list(timed)
    for number in range(rounds + WARMUP):
        order.append(order.pop(0)) if order else None
        for name in order:
            took = timed[name]()
            if number >= WARMUP:
                device[name].append(round(took * 1e6))
    for name, samples in device.items():
        rows[name]["device_ms"] = _summary(samples)


def _overhead(pair: Pair, frames: Sequence[Frames], rounds: int) -> dict[str, Any]:
    """A session beside the bare loop, in turns: what one frame costs more."""
    runs = {"edgeseg": InTurn(pair.ours, frames), "bare": pair.bare.run}
    samples = interleave(runs, rounds=rounds, warmup=WARMUP)  # type: ignore[arg-type]
    more = [(ours - bare) / 1e3 for ours, bare in zip(samples["edgeseg"], samples["bare"], strict=True)]
    return {
        "engine": pair.name,
        "edgeseg_ms": _summary(samples["edgeseg"]),
        "bare_ms": _summary(samples["bare"]),
        "more_us": {"p50": statistics.median(more), **_quartiles(more)},
    }


def _power(way: Way, frames: Sequence[Frames], seconds: float) -> dict[str, Any]:
    """Watts, and millijoules a frame, while this way alone runs; None where NVML does not tell."""
    nvml = Nvml()
    run, watts, memory, count = InTurn(way.run, frames), [], [], 0
    try:
        if nvml.sample().source is None:
            return {"power_w": None, "mj_per_frame": None, "gpu_used_mb": None}
        start = looked = time.perf_counter()
        while (now := time.perf_counter()) - start < seconds or not count:
            run()
            count += 1
            if now - looked > 0.1:  # its own reading is a mean over that time
                looked, seen = now, nvml.sample()
                watts += [seen.power_w] if seen.power_w is not None else []
                memory += [seen.gpu_memory_mb] if seen.gpu_memory_mb is not None else []
        elapsed = time.perf_counter() - start
    finally:
        nvml.close()
    mean = statistics.fmean(watts) if watts else None
    return {
        "power_w": mean,
        "mj_per_frame": None if mean is None else 1e3 * mean * elapsed / count,
        "gpu_used_mb": max(memory, default=None),  # of all ways that are open at once
    }


def _summary(samples_ns: Sequence[int]) -> dict[str, Any]:
    return {**summarize(samples_ns).to_json(), **_quartiles([ns / 1e6 for ns in samples_ns])}


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    low, high = np.quantile(np.asarray(values), (0.25, 0.75))
    return {"p25": float(low), "p75": float(high)}
