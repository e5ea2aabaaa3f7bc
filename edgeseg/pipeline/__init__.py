"""The whole run, from a model file to a bundle, read top to bottom. This package and cli alone import stages.

    load → export → parity → calibrate → quantize → candidates → (rewrite) → evaluate → race → choose → bundle

Each step is a function from values to values. What was computed before from the same inputs comes from the cache;
times never do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edgeseg.backends import Settings
from edgeseg.bundle import Bundle, write_bundle
from edgeseg.console import Console
from edgeseg.data import load_dataset
from edgeseg.errors import BadInput, need
from edgeseg.evaluation import class_names
from edgeseg.files import require_writable
from edgeseg.measure.latency import summarize
from edgeseg.measure.machine import machine, peak_rss_mb, versions
from edgeseg.pipeline.again import known, on_references
from edgeseg.pipeline.assemble import assemble
from edgeseg.pipeline.baseline import baseline_for
from edgeseg.pipeline.calibrate import calibrated, quantized, recipe_named
from edgeseg.pipeline.engines import REWRITTEN, engines_for, joined, measured_accuracy, runtimes
from edgeseg.pipeline.frames import QUICK, Effort, frames_for, look_at
from edgeseg.pipeline.ingest import ingest, profiled
from edgeseg.pipeline.sampling import calibration_notes, preprocessing_checked, sampled
from edgeseg.pipeline.search.build import Mixed, mixed_for
from edgeseg.pipeline.search.floor import Floor
from edgeseg.spec import spec_for
from edgeseg.trials import document
from edgeseg.trials.choose import Measured, choose
from edgeseg.trials.race import race
from edgeseg.types import OnnxModel, Precision

if TYPE_CHECKING:
    from edgeseg.pipeline.rewriting.build import Shrunk
    from edgeseg.pipeline.rewriting.wish import Wish

__all__ = ["Built", "build", "profiled"]


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
    trt: Settings | None = None,
    recipe: str | Path = "mse",
    samples: int | None = None,
    rewrite: Wish | None = None,
    max_miou_drop: float = 1.0,
    max_class_drop: float | None = None,
    search: float | None = None,
    out: str | Path | None = None,
    quick: bool = False,
    dynamic: bool = False,
    opset: int | None = None,
    trust_pickle: bool = False,
    use_cache: bool = True,
    console: Console | None = None,
) -> Built:
    """Build a bundle from a trained network and measure it: the fastest engine within the allowed loss of accuracy.

    `model`: state dict, TorchScript, .pt2, .onnx, a pickled module with `trust_pickle`, or a bundle that was built
    elsewhere, whose graph and scales then become engines of this machine. `spec`: by default the TOML file beside it.
    `data`, `split`: frames to calibrate on, needed for "int8" unless a bundle brings its scales. `eval_split`: frames
    for the verdict, by default "val" if there is one, else what `split` has left. `trt`: settings for engines of
    TensorRT (edgeseg.backends.tensorrt.options). `max_miou_drop`: points of 100 (without labels, of agreement with
    FP32). `max_class_drop`: the same for the IoU of every class. `search`: minutes to look for the convolutions that
    stay in float; without, a search is made only where the fastest INT8 engine loses too much, for 5 minutes at most
    (never with `quick`). `quick`: fewer frames and rounds and no bias correction, for a first look.

    Raises ModelError, SpecError, DatasetError, ParityFailed (the graph does not compute what the network computes),
    AccuracyFailed (no engine is accurate enough), PrecisionAbsent (an engine lacks the precision it was built for),
    MissingOnMachine (a package, a driver or a GPU is not here).
    """
    _check(model, precision, rewrite, data, dynamic, samples, max_miou_drop, out)
    console = console or Console()
    effort = replace(QUICK if quick else Effort(), **({} if samples is None else {"samples": samples}))
    chosen_recipe = recipe_named(recipe)
    before = known(Path(model))
    if before is not None and (spec is not None or dynamic or opset is not None or rewrite is not None):
        raise BadInput(
            f"{model} is a bundle: its graph is made. --spec, --dynamic, --opset and --rewrite need the model"
        )
    if before is not None:
        if out is not None and Path(out).exists() and Path(out).samefile(model):
            raise BadInput(f"{out} is the bundle that is built from: give the new one another name with -o")
        if precision == "int8" and before.table is not None and (samples is not None or recipe != "mse"):
            raise BadInput(f"{model} brings the scales that it was built with: --samples and --recipe need the model")
        if before.rewritten:
            console.say(
                f"           note: {model} also holds a rewritten network ({', '.join(before.rewritten)}); engines "
                "made here are of the original. For its own: edgeseg rewrite, then build the .pt2 that it writes"
            )
    read_spec = before.fp32.spec if before is not None else spec_for(model, spec)
    dataset = load_dataset(data) if data is not None else None
    if before is not None and before.table is None and dataset is None and precision == "int8":
        raise BadInput(f"{model} was built without calibration: say --data DATASET.toml, or build it with --int8 first")
    if dataset is None and before is None and precision == "int8":
        raise BadInput(
            "INT8 needs real frames to calibrate on: say --data DATASET.toml (or a folder of images). "
            "Random data would give scales that look right and masks that are wrong."
        )
    names = class_names(read_spec, dataset)
    read_spec = replace(read_spec, output=replace(read_spec.output, classes=names))

    calibration, verdict, some = frames_for(dataset, split, eval_split, effort, read_spec)
    if precision == "int8" and not verdict and before is None:
        raise BadInput(
            "INT8 needs frames to judge by besides those to calibrate on: add frames, labelled or not, to the data set"
        )
    runs_on = runtimes(backend, console)
    if trt and not any(name.startswith("tensorrt") for name in runs_on):
        raise BadInput(
            f"--trt {', '.join(sorted(trt))} is for engines of TensorRT, and those built here run on "
            f"{', '.join(runs_on)}. Build without --trt; --backend tensorrt says what is missing here."
        )
    if before is not None:
        look = look_at(some, read_spec, effort.look) if some is not None or not before.frames else list(before.frames)
        fp32, intake_row = replace(before.fp32, spec=read_spec), before.intake
    else:
        look = look_at(some, read_spec, effort.look)
        fp32, intake_row = ingest(
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
    picked, doubt, converged = None, None, None
    if calibration is not None and dataset is not None and not quick:
        doubt = preprocessing_checked(fp32, calibration, dataset, use_cache=use_cache, console=console)
        if precision == "int8" and (before is None or before.table is None):
            same = verdict is not None and verdict.split.name == calibration.split.name
            calibration, picked = sampled(
                calibration.split,
                effort.samples,
                read_spec,
                fp32=fp32,
                among=calibration.indices if same else None,
                use_cache=use_cache,
                console=console,
            )
    baseline = baseline_for(fp32, calibration, quick=quick, use_cache=use_cache, console=console)
    table, int8 = None, {}
    if precision == "int8":
        if before is not None and before.table is not None:
            table = before.table
        else:
            assert calibration is not None  # without frames the build has ended above
            table, converged = calibrated(fp32, calibration, chosen_recipe, use_cache, console)
        int8 = quantized(fp32, table, runs_on, look[: effort.correct], use_cache, console)
    tried = engines_for(fp32, int8, runs_on, precision, look, effort, console, trt)
    small: Shrunk | None = None
    if rewrite is not None:
        assert dataset is not None
        assert calibration is not None
        from edgeseg.pipeline.rewriting.build import shrunk_for

        def quantize(model: OnnxModel, names: Sequence[str]) -> dict[str, OnnxModel]:
            found, _ = calibrated(model, calibration, chosen_recipe, use_cache, console)
            return quantized(model, found, names, look[: effort.correct], use_cache, console)

        small = shrunk_for(
            Path(model),
            read_spec,
            dataset,
            calibration.split.name,
            rewrite,
            tried,
            fp32,
            int8,
            precision,
            look,
            quantize,
            verdict=verdict,
            trust_pickle=trust_pickle,
            use_cache=use_cache,
            console=console,
        )
        others = quantize(small.graph, runs_on) if precision == "int8" else {}
        tried = joined(tried, engines_for(small.graph, others, runs_on, precision, look, effort, console, trt))
    engines = tried.engines
    accuracy = measured_accuracy(engines, read_spec, dataset, verdict, use_cache, console)
    judged = document.evaluation_row(accuracy, verdict) if accuracy and verdict else None
    if before is not None and before.frames and not accuracy:
        accuracy, judged = on_references(tried)
    mixed: Mixed | None = None
    if table is not None and accuracy and (search is not None or not quick):
        scales = table

        def int8_of(name: str, kept: frozenset[str]) -> OnnxModel:
            return quantized(fp32, scales, (name,), look[: effort.correct], True, Console(), kept)[name]

        floor = Floor(max_miou_drop, max_class_drop)
        mixed = mixed_for(
            tried,
            fp32,
            int8_of,
            accuracy,
            dataset,
            calibration,
            verdict,
            floor,
            search,
            look,
            effort,
            asked=trt,
            use_cache=use_cache,
            console=console,
        )
        if mixed is not None and mixed.tried is not tried:
            tried, engines = mixed.tried, mixed.tried.engines
            accuracy = measured_accuracy(engines, read_spec, dataset, verdict, use_cache, console)
    with console.step("race") as step:
        with console.bar(effort.rounds, "race") as done:
            times = race(
                engines, [frame[None] for frame in look], rounds=effort.rounds, limit_s=effort.limit_s, on_round=done
            )
        latency = {name: summarize(samples) for name, samples in times.items()}
        step.note = f"{len(engines)} engines taking turns, {latency[engines[0].name].count} frames each"

    points = document.points(accuracy, names)
    labelled = any(found.labelled for found in accuracy.values())
    metric = "mIoU" if labelled else "agreement with FP32"
    measured = [
        Measured(
            e.name,
            e.backend,
            e.precision,
            latency[e.name].p50 or latency[e.name].mean,
            points.get(e.name),
            e.name.startswith(REWRITTEN),
            document.worst_class(accuracy, e.name, names),
        )
        for e in engines
    ]
    choice = choose(measured, precision, max_miou_drop, metric, max_class_drop)
    report: dict[str, Any] = {
        "schema": "edgeseg.build/1",
        "name": read_spec.name,
        "classes": list(names),
        "palette": [list(colour) for colour in dataset.palette] if dataset else before and before.palette,
        "asked": precision,
        "metric": metric,
        "max_drop": max_miou_drop,
        "quick": quick,
        "intake": intake_row,
        "calibration": before.calibration
        if before is not None and before.table is not None
        else document.calibration_row(table, calibration)
        if table and calibration
        else None,
        **calibration_notes(picked, doubt, converged),
        "evaluation": judged,
        "baseline": baseline.to_json() if baseline else before and before.baseline,
        "engines": [
            document.engine_row(e, latency[e.name].to_json(), accuracy.get(e.name), names, tried.built.get(e.name))
            for e in engines
        ],
        "settings_tried": tried.settings,
        "rejected": tried.rejected,
        "rewriting": small.to_json(engines, latency, accuracy, names, verdict.split.name, console.seconds)
        if small is not None and verdict is not None
        else None,
        "search": mixed.to_json() if mixed is not None else None,
        "chosen": choice.name,
        "reasons": [*(mixed.reasons if mixed is not None else ()), *choice.reasons],
        "seconds": {name: round(seconds, 2) for name, seconds in console.seconds.items()},
        "peak_rss_mb": peak_rss_mb(),
        "machine": machine(),
        "versions": versions(),
    }
    bundle = assemble(read_spec, tried, choice.name, look, table, fp32, report)
    built = Built(bundle, write_bundle(bundle, out) if out is not None else None, report)
    if rewrite is not None and small is not None:
        small.forget()
    return built


def _check(
    model: str | Path,
    precision: str,
    rewrite: Wish | None,
    data: str | Path | None,
    dynamic: bool,
    samples: int | None,
    max_miou_drop: float,
    out: str | Path | None,
) -> None:
    """What can be said before anything is read."""
    if rewrite is not None:
        need("torch", extra="torch", why="Rewriting a network")
        from edgeseg.pipeline.rewriting.run import checked

        if dynamic:
            raise BadInput("a network is rewritten for one size: build without --dynamic, or without --rewrite")
        if data is None:
            raise BadInput("rewriting needs real frames to fit to: say --data DATASET.toml (or a folder of images)")
        checked(rewrite, Path(model))
    if precision not in get_args(Precision):
        raise BadInput(f"there is no precision '{precision}'; there are: {', '.join(get_args(Precision))}")
    if not (math.isfinite(max_miou_drop) and max_miou_drop >= 0):
        raise BadInput(f"max_miou_drop is a number of points, 0 or more; {max_miou_drop} came")
    if samples is not None and samples < 1:
        raise BadInput(f"samples is a number of frames, 1 or more; {samples} came")
    if out is not None:
        require_writable(Path(out))
