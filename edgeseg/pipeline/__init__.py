"""The whole run, from a model file to a bundle, read top to bottom. This package and cli alone import stages.

    load → export → parity → prepare, calibrate, quantize → candidates → (rewrite) → evaluate → race → choose → bundle

Each step is a function from values to values. What was computed before from the same inputs comes from the cache;
times never do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseg.backends import Settings
from edgeseg.bundle import Bundle, write_bundle
from edgeseg.console import Console
from edgeseg.data import load_dataset
from edgeseg.errors import BadInput
from edgeseg.evaluation import class_names, identity
from edgeseg.measure.latency import summarize
from edgeseg.measure.machine import machine, peak_rss_mb, versions
from edgeseg.pipeline.again import known, on_references
from edgeseg.pipeline.assemble import assemble
from edgeseg.pipeline.baseline import baseline_for
from edgeseg.pipeline.calibrate import recipe_named
from edgeseg.pipeline.engines import REWRITTEN, engines_for, joined, measured_accuracy, runtimes
from edgeseg.pipeline.explain.placed import placements
from edgeseg.pipeline.frames import Preparation, effort_for, frames_for, look_at
from edgeseg.pipeline.ingest import ingest, profiled
from edgeseg.pipeline.network import Network, dialect_for
from edgeseg.pipeline.prepare import Ready, dialects_of, fitted_to, ready
from edgeseg.pipeline.refusals import check_bundle, check_words
from edgeseg.pipeline.sampling import calibration_notes, preprocessing_checked, sampled
from edgeseg.pipeline.search.build import Mixed, mixed_for
from edgeseg.pipeline.search.floor import Floor
from edgeseg.segmenter import engine_of
from edgeseg.selfcheck import gpu_of
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
    recover: float | None = None,
    without: Collection[Preparation] = (),
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
    (never with `quick`). `recover`: minutes for the INT8 weights to learn from the FP32 network, without labels; needs
    torch. `without`: of what prepares INT8, "equalization", "rounding" (biases are then corrected instead) and "bias".
    `quick`: fewer frames and rounds and none of these, for a first look.

    Raises ModelError, SpecError, DatasetError, ParityFailed (the graph does not compute what the network computes),
    AccuracyFailed (no engine is accurate enough), PrecisionAbsent (an engine lacks the precision it was built for),
    MissingOnMachine (a package, a driver or a GPU is not here).
    """
    check_words(model, precision, rewrite, data, dynamic, samples, max_miou_drop, recover, out)
    console = console or Console()
    effort = effort_for(quick, samples, without)
    chosen_recipe = recipe_named(recipe)
    before = known(Path(model))
    if before is not None:
        changed = {"--spec": spec, "--dynamic": dynamic, "--opset": opset, "--rewrite": rewrite}
        given = {"--samples": samples, "--recipe": recipe if recipe != "mse" else None}
        check_bundle(Path(model), before, precision, changed, given, data, out)
    read_spec = before.network.fp32.spec if before is not None else spec_for(model, spec)
    dataset = load_dataset(data) if data is not None else None
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
        fp32, intake_row = replace(before.network.fp32, spec=read_spec), before.intake
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
    picked, doubt = None, None
    if calibration is not None and dataset is not None and not quick:
        doubt = preprocessing_checked(fp32, calibration, dataset, use_cache=use_cache, console=console)
        if precision == "int8" and (before is None or before.network.table is None):
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
    network = replace(before.network, fp32=fp32) if before is not None else Network(fp32)
    small_network = before.small if before is not None else None
    prepared: Ready | None = None
    learned: list[dict[str, Any]] = []
    if precision == "int8":
        dialects = dialects_of(runs_on, travels=backend is None and before is None and not quick)

        def made_ready(model: OnnxModel) -> Ready:
            assert calibration is not None  # without frames the build has ended above
            return ready(model, calibration, chosen_recipe, dialects, effort, use_cache=use_cache, console=console)

        if network.table is None:
            prepared = made_ready(fp32)
            network, fp32 = prepared.network, prepared.network.fp32
        else:
            with_frames = [frame[None] for frame in look]
            less = replace(effort, fit=0)  # a few frames are too few to round by
            network, _ = fitted_to(network, with_frames, dialects, less, use_cache=use_cache, console=console)
            if small_network is not None:
                small_network, _ = fitted_to(
                    small_network, with_frames, dialects, less, use_cache=use_cache, console=console
                )
        if recover is not None:
            from edgeseg.pipeline.relearn import relearned

            assert calibration is not None
            mine = dialects_of(runs_on)
            network, learned = relearned(network, calibration, mine, recover, verdict=verdict, console=console)
    int8 = network.on(runs_on) if precision == "int8" else {}
    tried = engines_for(fp32, int8, runs_on, precision, look, effort, console, trt)
    small: Shrunk | None = None
    if rewrite is not None:
        assert dataset is not None
        assert calibration is not None
        from edgeseg.pipeline.rewriting.build import shrunk_for

        def quantize(model: OnnxModel, names: Sequence[str]) -> dict[str, OnnxModel]:
            return made_ready(model).network.on(names)

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
        small_network = made_ready(small.graph).network if precision == "int8" else Network(small.graph)
    if small_network is not None:
        others = small_network.on(runs_on) if precision == "int8" and small_network.table is not None else {}
        tried = joined(tried, engines_for(small_network.fp32, others, runs_on, precision, look, effort, console, trt))
    engines = tried.engines
    accuracy = measured_accuracy(engines, read_spec, dataset, verdict, use_cache, console)
    judged = document.evaluation_row(accuracy, verdict) if accuracy and verdict else None
    if before is not None and before.frames and not accuracy:
        accuracy, judged = on_references(tried)
    mixed: Mixed | None = None
    if int8 and accuracy and (search is not None or not quick):

        def int8_of(name: str, kept: frozenset[str]) -> OnnxModel:
            return network.int8(dialect_for(name), kept)

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
    small_fp32 = small_network.fp32 if small_network is not None else None
    placed = placements(engines, network.fp32, small_fp32, mixed.kept if mixed is not None else {})
    gpus = [gpu for name in runs_on if (gpu := gpu_of(name)) is not None]
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
        if before is not None and before.network.table is not None
        else document.calibration_row(network.table, calibration)
        if network.table and calibration
        else None,
        "preparation": {**prepared.row, "recovered": learned} if prepared is not None else None,
        **calibration_notes(picked, doubt, prepared.convergence if prepared is not None else None),
        "evaluation": judged,
        "per_frame": document.per_frame_row(accuracy, verdict, choice.name) if accuracy and verdict else None,
        "baseline": baseline.to_json() if baseline else before and before.baseline,
        "engines": [
            document.engine_row(
                e, latency[e.name].to_json(), accuracy.get(e.name), names, tried.built.get(e.name), placed.get(e.name)
            )
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
        "machine": machine() | ({"gpu": gpus[0]} if gpus else {}),
        "versions": versions(),
    }
    bundle = assemble(read_spec, tried, choice.name, look, network, small_network, report)
    for row in report["engines"]:  # what eval and bench say of it too: which results are of one engine
        row["graph"] = identity(engine_of(bundle, bundle.variant(row["name"])))
    built = Built(bundle, write_bundle(bundle, out) if out is not None else None, report)
    if rewrite is not None and small is not None:
        small.forget()
    return built
