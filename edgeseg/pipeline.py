"""The whole run, from a model file to a bundle, read top to bottom. The only module, with cli.py, that imports stages.

    load → export → parity → calibrate → quantize → candidates → evaluate → race → choose → bundle

Each step is a function from values to values. What was computed before from the same inputs comes from the cache;
times never do.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from calibration import CalibrationError, Recipe, ScaleTable, calibrate, check, from_json, load_recipe, to_json
from edgeseg import __version__, backends, cache, export, intake, quantize
from edgeseg.backends import Engine
from edgeseg.backends.onnxruntime import probe
from edgeseg.build import document
from edgeseg.build.candidates import candidates, dialect_of
from edgeseg.build.choose import Measured, choose
from edgeseg.build.isolate import try_engines
from edgeseg.build.race import best_settings, race
from edgeseg.bundle import Bundle, Reference, Variant, read_bundle, write_bundle
from edgeseg.console import Console
from edgeseg.data import Dataset, Reading, fit, load_dataset, pick, read
from edgeseg.data.street import render
from edgeseg.errors import BadInput, MissingOnMachine
from edgeseg.evaluation import accuracies, class_names
from edgeseg.export.reference import onnx_reference
from edgeseg.measure.agreement import agreement
from edgeseg.measure.evaluate import Accuracy
from edgeseg.measure.latency import summarize
from edgeseg.measure.machine import machine, peak_rss_mb, versions
from edgeseg.measure.profile import Profile, profile
from edgeseg.selfcheck import place_now
from edgeseg.spec import spec_for
from edgeseg.types import MASK, Frames, Masks, ModelSpec, OnnxModel, Pixels, Precision


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. Enough for a verdict that holds, or a quick look."""

    samples: int = 64  # frames to calibrate on
    parity: int = 8  # frames to compare with torch
    evaluate: int = 500  # labelled frames for the verdict, at most
    tune: int = 12  # rounds in which settings of one engine are timed
    rounds: int = 80  # rounds of the deciding race: enough for a p90
    limit_s: float = 30.0  # and its longest duration, for slow networks


QUICK = Effort(samples=16, parity=2, evaluate=24, tune=3, rounds=20, limit_s=5.0)
REFERENCES = 4
LEAST_AGREEMENT = 0.5  # with FP32, of an engine just opened: below, it is not a loss of accuracy but a wrong answer


@dataclass(frozen=True, slots=True)
class Built:
    """What `build` returns: the bundle, where it was written (if it was), and the measured document in it."""

    bundle: Bundle
    path: Path | None
    report: Mapping[str, Any]


def build(
    model: str | Path,
    *,
    spec: str | Path | None = None,
    data: str | Path | None = None,
    split: str = "train",
    eval_split: str | None = None,
    precision: Precision = "fp32",
    backend: str | None = None,
    recipe: str | Path = "mse",
    samples: int | None = None,
    max_miou_drop: float = 1.0,
    out: str | Path | None = None,
    quick: bool = False,
    dynamic: bool = False,
    opset: int | None = None,
    trust_pickle: bool = False,
    use_cache: bool = True,
    console: Console | None = None,
) -> Built:
    """Build a bundle from a trained network and measure it: the fastest engine within the allowed loss of accuracy.

    `model`: state dict, TorchScript, .pt2, .onnx, or a pickled module with `trust_pickle`. `spec`: by default the
    TOML file beside it. `data`, `split`: frames to calibrate on, needed for "int8". `eval_split`: frames for the
    verdict, by default "val" if there is one, else what `split` has left. `max_miou_drop`: points of 100 (without
    labels, of agreement with FP32). `quick`: fewer frames and rounds, for a first look.

    Raises ModelError, SpecError, DatasetError, ParityFailed (the graph does not compute what the network computes),
    AccuracyFailed (no engine is accurate enough), MissingOnMachine (a package is not installed).
    """
    console = console or Console()
    effort = replace(QUICK if quick else Effort(), **({} if samples is None else {"samples": samples}))
    chosen_recipe = _recipe(recipe)
    read_spec = spec_for(model, spec)
    dataset = load_dataset(data) if data is not None else None
    if dataset is None and precision == "int8":
        raise BadInput(
            "INT8 needs real frames to calibrate on: say --data DATASET.toml (or a folder of images). "
            "Random data would give scales that look right and masks that are wrong."
        )
    names = class_names(read_spec, dataset)
    read_spec = replace(read_spec, output=replace(read_spec.output, classes=names))

    calibration, verdict = _frames(dataset, split, eval_split, effort, read_spec)
    look = _look(calibration, read_spec, effort.parity)
    fp32, intake_row = _ingest(
        Path(model),
        read_spec,
        look,
        trust_pickle=trust_pickle,
        dynamic=dynamic,
        opset=opset,
        quick=quick,
        use_cache=use_cache,
        console=console,
    )
    table = None
    if precision == "int8" and calibration is not None:
        table = _calibrated(fp32, calibration, chosen_recipe, use_cache, console)
    engines, rejected, tried = _engines(fp32, table, precision, backend, look, effort, console)
    accuracy = _accuracy(engines, read_spec, dataset, verdict, use_cache, console)
    with console.step("race") as step:
        times = race(engines, [frame[None] for frame in look], rounds=effort.rounds, limit_s=effort.limit_s)
        latency = {name: summarize(samples) for name, samples in times.items()}
        step.note = f"{len(engines)} engines taking turns, {latency[engines[0].name].count} frames each"

    points = document.points(accuracy, names)
    labelled = any(found.labelled for found in accuracy.values())
    metric = "mIoU" if labelled else "agreement with FP32"
    measured = [
        Measured(e.name, e.backend, e.precision, statistics.median(times[e.name]) / 1e6, points.get(e.name))
        for e in engines
    ]
    choice = choose(measured, precision, max_miou_drop, metric)
    report: dict[str, Any] = {
        "schema": "edgeseg.build/1",
        "name": read_spec.name,
        "classes": list(names),
        "asked": precision,
        "metric": metric,
        "max_drop": max_miou_drop,
        "quick": quick,
        "intake": intake_row,
        "calibration": document.calibration_row(table, calibration) if table and calibration else None,
        "evaluation": document.evaluation_row(accuracy, verdict) if accuracy and verdict else None,
        "engines": [document.engine_row(e, latency[e.name].to_json(), accuracy.get(e.name), names) for e in engines],
        "settings_tried": tried,
        "rejected": rejected,
        "chosen": choice.name,
        "reasons": list(choice.reasons),
        "seconds": {name: round(seconds, 2) for name, seconds in console.seconds.items()},
        "peak_rss_mb": peak_rss_mb(),
        "machine": machine(),
        "versions": versions(),
    }
    bundle = _bundle(read_spec, engines, choice.name, look, table, fp32, report)
    return Built(bundle, write_bundle(bundle, out) if out is not None else None, report)


def _recipe(name: str | Path) -> Recipe:
    try:
        return load_recipe(name)
    except CalibrationError as error:
        raise BadInput(str(error)) from error


def _frames(
    dataset: Dataset | None, split: str, eval_split: str | None, effort: Effort, spec: ModelSpec
) -> tuple[Reading | None, Reading | None]:
    """The frames to calibrate on and those for the verdict. They never overlap."""
    if dataset is None:
        return None, None
    chosen = dataset.split(split)
    indices = pick(len(chosen), effort.samples)
    calibration = read(chosen, indices, color=spec.input.frame, labels=False)
    if eval_split is None and "val" in dataset.splits and split != "val":
        eval_split = "val"
    if eval_split is None or eval_split == split:
        used = set(indices)
        left = [index for index in range(len(chosen)) if index not in used]
        return calibration, read(chosen, [left[i] for i in pick(len(left), effort.evaluate)], color=spec.input.frame)
    others = dataset.split(eval_split)
    return calibration, read(others, pick(len(others), effort.evaluate), color=spec.input.frame)


def _prepared(reading: Reading, spec: ModelSpec) -> Iterator[Pixels]:
    for sample in reading:
        yield fit(sample.pixels, spec.input.size, spec.input.resize)


def _look(reading: Reading | None, spec: ModelSpec, count: int) -> list[Pixels]:
    """A few frames spread over the set, to compare and to time with; rendered ones where no frames were given."""
    if reading is None:
        frames = (render(spec.input.size, seed, 0)[0] for seed in range(count))
        return [np.ascontiguousarray(frame[..., ::-1]) if spec.input.frame == "rgb" else frame for frame in frames]
    some = [reading.indices[index] for index in pick(len(reading.indices), count)]
    return list(_prepared(read(reading.split, some, color=reading.color, labels=False), spec))


def _ingest(
    path: Path,
    spec: ModelSpec,
    frames: Sequence[Pixels],
    *,
    trust_pickle: bool,
    dynamic: bool,
    opset: int | None,
    quick: bool,
    use_cache: bool,
    console: Console,
) -> tuple[OnnxModel, dict[str, Any]]:
    """The network as one graph, proven on `frames` to answer as torch does, and what there is to say about it."""
    if not path.is_file():
        raise BadInput(f"there is no model file {path}")
    made_by = {
        name: version for name, version in versions().items() if name in ("torch", "onnx", "onnxslim", "onnxscript")
    }
    key = cache.key(
        "export",
        __version__,
        intake.fingerprint(path, spec),
        dynamic,
        opset,
        quick,
        made_by,
        *map(np.ndarray.tobytes, frames),
    )
    with console.step("export") as step:
        graph, stored = cache.load("graph", key), cache.load("parity", key)
        if use_cache and graph is not None and stored is not None:
            report = json.loads(stored)
            step.note = f"reused: {_summary(report)}"
            return OnnxModel(graph, spec), report
        source = intake.load(path, spec, trust_pickle=trust_pickle)
        if isinstance(source, intake.Onnx):
            exported = export.from_onnx(source, spec, dynamic=dynamic)
            reference = onnx_reference(source, spec)
        else:
            exported = export.to_onnx(source, spec, opset=opset, dynamic=dynamic, quick=quick)
            reference = export.torch_reference(source, spec)
        fused = export.fuse(exported.graph, spec, dynamic=dynamic)
        parity = export.compare(reference, fused, frames, agreement)
        export.require(parity, lambda: _diverging(source, fused, parity))
        report = {
            "form": "onnx" if isinstance(source, intake.Onnx) else source.form,
            "opset": exported.opset,
            "notes": list(exported.notes),
            "parity": {"frames": parity.frames, "overall": parity.overall, "boundary": parity.boundary},
        }
        if report["form"] != "pickle":  # a pickle may run other code tomorrow
            cache.store("graph", key, fused.graph)
            cache.store("parity", key, json.dumps(report).encode())
        step.note = _summary(report)
    for note in exported.notes:
        console.say(f"           note: {note}")
    return fused, report


def _diverging(source: intake.Torch | intake.Onnx, fused: OnnxModel, parity: export.Parity) -> export.Divergence | None:
    return None if parity.worst is None else export.first_divergence(source, fused, parity.worst)


def _summary(report: Mapping[str, Any]) -> str:
    parity = report["parity"]
    return (
        f"{report['form']}, opset {report['opset']}; {100 * parity['overall']:.3f} % of labels as the network gives "
        f"them, {100 * parity['boundary']:.2f} % along boundaries ({parity['frames']} frames)"
    )


def _calibrated(model: OnnxModel, reading: Reading, recipe: Recipe, use_cache: bool, console: Console) -> ScaleTable:
    """What was seen of every tensor that any dialect quantizes; one frame after the other."""
    data = cache.key(reading.split.digest(reading.indices), repr(model.spec.input))
    key = cache.key("scales", model.digest, data, recipe.digest)
    with console.step("calibrate") as step:
        if use_cache and (stored := cache.load("scales", key)) is not None:
            table = from_json(stored.decode())
            check(table, model=model.digest, data=data, recipe=recipe)
            step.note = f"reused: {table.frames} frames of '{reading.split.name}', recipe {recipe.name}"
            return table
        graph = quantize.Graph(model.graph)
        tensors = sorted(set().union(*(quantize.place(graph, d).observed for d in quantize.DIALECTS.values())))
        frames = (frame[None] for frame in _prepared(reading, model.spec))
        try:
            table = calibrate(
                console.track(probe(model.graph, tensors, frames), len(reading), "calibrate"),
                recipe,
                model=model.digest,
                data=data,
            )
        except CalibrationError as error:
            raise BadInput(f"calibration stopped: {error}") from error
        if not reading.skipped:
            cache.store("scales", key, to_json(table).encode())
        step.note = f"{table.frames} frames of '{reading.split.name}', {len(tensors)} tensors, recipe {recipe.name}"
    for skipped in reading.skipped:
        console.say(f"           skipped {skipped.name}: {skipped.reason}")
    return table


def _engines(
    fp32: OnnxModel,
    table: ScaleTable | None,
    precision: Precision,
    backend: str | None,
    frames: Sequence[Pixels],
    effort: Effort,
    console: Console,
) -> tuple[list[Engine], list[dict[str, str]], list[str]]:
    """One engine for each backend and precision, with the settings that are fastest here; and those that are out."""
    here = backends.installed()
    if backend is not None and backend not in here:
        backends.get(backend).version()  # says what is missing and how to install it
    names = (backend,) if backend is not None else here
    finalists: list[Engine] = []
    rejected: list[dict[str, str]] = []
    tried: list[str] = []
    expected = _expected(fp32, frames)
    with console.step("candidates") as step:
        for name in names:
            for kind, model in _graphs(fp32, table, precision, name):
                engines = list(candidates(model, name, kind))
                tried += [engine.name for engine in engines]
                if backends.get(name).isolate:
                    engines = _answering(engines, expected, np.stack(frames), rejected)
                if engines:
                    best = best_settings(engines, [frame[None] for frame in frames], rounds=effort.tune)
                    finalists.append(replace(best, name=f"{name}-{kind}"))
        step.note = f"{len(tried)} settings of {len(finalists)} engines timed on {', '.join(names)}"
    for row in rejected:
        console.say(f"           out: {row['name']}: {row['why']}")
    if not any(engine.precision == "fp32" for engine in finalists):
        raise MissingOnMachine("no runtime here could run the FP32 graph; see: edgeseg doctor")
    if precision == "fp16" and not any(engine.precision in ("fp16", "bf16") for engine in finalists):
        raise MissingOnMachine(
            f"FP16 was asked for, and none of {', '.join(names)} computes in half precision on this processor. "
            "Build with --fp32 or --int8, or on a machine that does (edgeseg doctor says what this one can)."
        )
    return finalists, rejected, tried


def _graphs(
    fp32: OnnxModel, table: ScaleTable | None, precision: Precision, backend: str
) -> Iterator[tuple[Precision, OnnxModel]]:
    """The graphs that a backend is to be measured with. FP32 is always among them: it is the yardstick."""
    yield "fp32", fp32
    if precision == "fp32":
        return
    for half in backends.get(backend).halves():
        yield half, fp32  # the runtime computes the FP32 graph in half precision
    if table is not None:
        dialect = quantize.DIALECTS[dialect_of(backend, frozenset(machine()["isa"]))]
        yield "int8", quantize.quantize(fp32, table, dialect)


def _expected(fp32: OnnxModel, frames: Sequence[Pixels]) -> Masks:
    masks = [values[MASK][0] for values in probe(fp32.graph, [MASK], (frame[None] for frame in frames))]
    return np.stack(masks)


def _answering(engines: list[Engine], expected: Masks, frames: Frames, rejected: list[dict[str, str]]) -> list[Engine]:
    """The engines that open, run and answer sensibly in a child process."""
    good = []
    for engine, answer in zip(engines, try_engines(engines, frames), strict=True):
        if isinstance(answer, str):
            rejected.append({"name": engine.name, "why": answer})
            continue
        equal = float(np.mean(answer == expected))
        if equal < LEAST_AGREEMENT:
            why = f"wrong answers: only {100 * equal:.1f} % of its labels are those of the FP32 graph"
            rejected.append({"name": engine.name, "why": why})
            continue
        good.append(engine)
    return good


def _accuracy(
    engines: Sequence[Engine],
    spec: ModelSpec,
    dataset: Dataset | None,
    reading: Reading | None,
    use_cache: bool,
    console: Console,
) -> dict[str, Accuracy]:
    if dataset is None or reading is None or not len(reading):
        return {}
    with console.step("evaluate") as step:
        found = accuracies(
            engines,
            spec,
            reading,
            classes=max(len(spec.output.classes), 2),
            ignore_index=dataset.ignore_index,
            console=console,
            use_cache=use_cache,
        )
        first = found[engines[0].name]
        step.note = f"{first.frames} frames of '{reading.split.name}', {first.labelled} of them labelled"
    for skipped in reading.skipped:
        console.say(f"           skipped {skipped.name}: {skipped.reason}")
    return found


def _bundle(
    spec: ModelSpec,
    engines: Sequence[Engine],
    chosen: str,
    frames: Sequence[Pixels],
    table: ScaleTable | None,
    fp32: OnnxModel,
    report: Mapping[str, Any],
) -> Bundle:
    """Everything the device needs: all measured engines, the scales, the FP32 graph, frames with expected masks."""
    files = {f"{engine.name}/{file}": data for engine in engines for file, data in engine.files.items()}
    files["fp32.onnx"] = fp32.graph
    if table is not None:
        files["scales.json"] = to_json(table).encode()
    shown = list(frames[:REFERENCES])
    expected = _expected(fp32, shown)
    answers: dict[str, Masks] = {}
    for engine in engines:
        with backends.open_engine(engine) as session:
            answers[engine.name] = np.concatenate([session.run(frame[None]) for frame in shown])
    references = tuple(
        Reference(f"{i}", frame, expected[i], {name: masks[i] for name, masks in answers.items()})
        for i, frame in enumerate(shown)
    )
    variants = tuple(
        Variant(
            engine.name,
            engine.backend,
            engine.precision,
            (f"{engine.name}/{engine.graph}", *(f"{engine.name}/{f}" for f in engine.files if f != engine.graph)),
            dict(engine.settings),
        )
        for engine in engines
    )
    created = {
        "edgeseg": __version__,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "place": {name: place_now(name) for name in {engine.backend for engine in engines}},
        "machine": report["machine"],
        "versions": report["versions"],
    }
    return Bundle(spec, variants, chosen, files, references, report, created)


def profiled(
    model: str | Path, *, spec: str | Path | None = None, variant: str | None = None, trust_pickle: bool = False
) -> Profile:
    """Multiplications, parameters and activations of a model file, or of a bundle's FP32 graph or named variant."""
    path = Path(model)
    if path.is_dir() or path.suffix == ".edgeseg":
        bundle = read_bundle(path)
        graph = bundle.files.get("fp32.onnx", b"") if variant is None else bundle.graph(variant)
        return profile(graph)
    read_spec = spec_for(path, spec)
    source = intake.load(path, read_spec, trust_pickle=trust_pickle)
    if isinstance(source, intake.Onnx):
        return profile(export.from_onnx(source, read_spec).graph)
    return profile(export.to_onnx(source, read_spec, quick=True).graph)
