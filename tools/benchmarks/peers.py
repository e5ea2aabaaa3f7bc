"""Our build next to other quantizers: same FP32 graph, same frames, same machine, all engines in one interleaved race.

Every peer gets what our own engines get: the decision inside the graph or on the host, both optimisation levels of ONNX
Runtime, every arithmetic that OpenVINO has on this processor. The fastest of each is the one that races.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.child import Outcome, missing, run
from benchmarks.recipes import BUNDLE, RECIPES, Job, Recipe
from edgeseg.backends import Engine, get
from edgeseg.bundle import Bundle, read_bundle
from edgeseg.console import Console
from edgeseg.data import fit, load_dataset, pick, read
from edgeseg.errors import CannotTell, DatasetError, EdgesegError
from edgeseg.evaluation import accuracies, class_names
from edgeseg.measure.confusion import scores
from edgeseg.measure.evaluate import Accuracy
from edgeseg.measure.latency import ratio_interval, samples_needed, summarize
from edgeseg.segmenter import engine_of
from edgeseg.spec import spec_for
from edgeseg.trials.candidates import candidates, cut_decision
from edgeseg.trials.isolate import try_engines
from edgeseg.trials.race import best_settings, race
from edgeseg.types import Frames, ModelSpec, OnnxModel

LOOK = 8  # frames to time with
TUNE = 12  # rounds in which the settings of one engine are timed


@dataclass(slots=True)
class Row:
    """One line of the table: a recipe's engine, or why it has none."""

    title: str
    runtime: str
    outcome: Outcome | None = None
    engine: Engine | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Setup:
    """The things that all recipes share, on disk in `work`."""

    work: Path
    spec: ModelSpec
    frames: Path  # .npy uint8 (N, H, W, 3)
    count: int
    build: dict[str, Any]  # arguments of edgeseg.pipeline.build, as plain JSON
    limit_gb: float | None = None  # of a peer's address space


def say(text: str) -> None:
    click.echo(text, err=True)


def prepare(work: Path, model: Path, spec: Path | None, data: Path, split: str, samples: int, **build: Any) -> Setup:
    """Read the calibration frames that our build would take, at the network's size, and store them for the children."""
    read_spec = spec_for(model, spec)
    chosen = load_dataset(data).split(split)
    reading = read(chosen, pick(len(chosen), samples), color=read_spec.input.frame, labels=False)
    frames = np.stack([fit(sample.pixels, read_spec.input.size, read_spec.input.resize) for sample in reading])
    np.save(work / "frames.npy", frames)
    arguments = {
        "model": str(model.resolve()),
        "spec": None if spec is None else str(spec.resolve()),
        "data": str(data.resolve()),
        "split": split,
        "samples": samples,
        **build,
    }
    return Setup(work, read_spec, work / "frames.npy", len(frames), arguments)


def export(setup: Setup) -> tuple[Path, Path]:
    """The FP32 graph that everybody quantizes, from a build of ours, and the cache that knows it."""
    cache = setup.work / "cache"
    told = {**setup.build, "precision": "fp32", "backend": "onnxruntime"}
    done = run(Job("edgeseg-onnxruntime", str(setup.work / "export"), build=told), cache=cache)
    if done.failure:
        raise CannotTell(f"the FP32 graph could not be exported: {done.failure}; see {setup.work}/export/log.txt")
    graph = setup.work / "fp32.onnx"
    graph.write_bytes(read_bundle(setup.work / "export" / BUNDLE).files["fp32.onnx"])
    shutil.rmtree(cache / "accuracy", ignore_errors=True)
    return graph, cache


def quantized(
    setup: Setup, graph: Path, cache: Path, spec: ModelSpec, names: Sequence[str] = tuple(RECIPES)
) -> list[Row]:
    """Run every recipe and open what it wrote, each with the settings that are fastest here. FP32 stands first."""
    frames = np.load(setup.frames)
    look = frames[pick(len(frames), LOOK)]
    rows: list[Row] = []
    for name in names:
        recipe = RECIPES[name]
        row = Row(recipe.title, recipe.backend)
        if absent := missing(recipe.needs):
            rows.append(replace(row, outcome=Outcome(0.0, failure=absent)))
            continue
        say(f"{recipe.title} for {recipe.backend} ...")
        if recipe.ours:
            rows += _ours(setup, name, recipe, cache)
        else:
            row.outcome = _peer(setup, name, graph, row.notes)
            rows += [row] if row.outcome.failure else _open(row, setup.work / name, spec, look)
        say(f"  {rows[-1].outcome.failure or f'{rows[-1].outcome.seconds:.1f} s'}" if rows[-1].outcome else "")
    return sorted(rows, key=lambda row: row.engine is None or row.engine.precision == "int8")


def _ours(setup: Setup, name: str, recipe: Recipe, cache: Path) -> list[Row]:
    """The engines of our build, as its bundle has them. It finds the export in a cache of its own, and nothing else."""
    folder = setup.work / name
    shutil.copytree(cache, setup.work / f"{name}-cache")
    told = {**setup.build, "precision": "int8", "backend": recipe.backend}
    done = run(Job(name, str(folder), build=told), cache=setup.work / f"{name}-cache")
    if done.failure:
        return [Row(recipe.title, recipe.backend, done)]
    bundle: Bundle = read_bundle(folder / BUNDLE)
    done = replace(done, seconds=done.seconds - done.said["other_s"])
    rows = []
    for variant in bundle.variants:
        int8 = variant.precision == "int8"
        title = recipe.title if int8 else f"{variant.precision.upper()}, exported by edgeseg"
        rows.append(Row(title, recipe.backend, done if int8 else None, engine_of(bundle, variant)))
    rows[-1].notes.append(f"whole build, choice and all: {done.said['build_s']:.1f} s; it chose {done.said['chosen']}")
    for row in bundle.verdict.get("rejected", ()):
        rows[-1].notes.append(f"left out: {row['name']}: {row['why']}")
    return rows


def _peer(setup: Setup, name: str, graph: Path, notes: list[str]) -> Outcome:
    folder = setup.work / name
    done = run(Job(name, str(folder), str(graph), str(setup.frames), setup.count, setup.limit_gb))
    if done.failure and (cut := cut_decision(graph.read_bytes())) is not None:
        notes.append(f"the whole graph: {done.failure}; here: the graph up to the scores")
        (setup.work / "cut.onnx").write_bytes(cut)
        folder.rename(setup.work / f"{name}-whole")
        cut_graph = str(setup.work / "cut.onnx")
        done = run(Job(name, str(folder), cut_graph, str(setup.frames), setup.count, setup.limit_gb))
    return done


def _open(row: Row, folder: Path, spec: ModelSpec, look: Frames) -> list[Row]:
    """The row with the fastest of its engines that answer at all.

    Two rows where the whole graph and the one cut at the scores answer differently, as they do for quantizers that
    round the scores to 8 bits before the decision: a choice between them by time would be one of accuracy as well.
    """
    try:
        engines = _engines(row.runtime, folder, spec)
        answers = try_engines(engines, look)
    except EdgesegError as error:
        row.notes.append(str(error))
        return [row]
    row.notes += [f"{e.name}: {answer}" for e, answer in zip(engines, answers, strict=True) if isinstance(answer, str)]
    masks = {e.name: answer for e, answer in zip(engines, answers, strict=True) if not isinstance(answer, str)}
    good = [engine for engine in engines if engine.name in masks]
    groups = {row.title: good}
    decided = {d: [e for e in good if e.settings["decision"] == d] for d in ("graph", "host")}
    firsts = [masks[group[0].name] for group in decided.values() if group]
    if len(firsts) == 2 and not np.array_equal(firsts[0], firsts[1]):
        groups = {f"{row.title}, decision in {d}": group for d, group in decided.items()}
    frames = [frame[None] for frame in look]
    return [
        replace(row, title=title, engine=best_settings(group, frames, rounds=TUNE)[0] if group else None)
        for title, group in groups.items()
    ]


def _engines(backend: str, folder: Path, spec: ModelSpec) -> list[Engine]:
    if (folder / "graph.onnx").exists():
        return list(candidates(OnnxModel((folder / "graph.onnx").read_bytes(), spec, "int8"), backend, "int8"))
    found = []
    for decision in ("graph", "host"):
        if not (path := folder / f"{decision}.xml").exists():
            continue
        files = {"graph.xml": path.read_bytes(), "graph.bin": path.with_suffix(".bin").read_bytes()}
        for settings in get(backend).settings("int8"):
            told = {**settings, "decision": decision, "threshold": spec.output.score_threshold}
            label = ",".join(str(value) for value in (*settings.values(), decision))
            found.append(Engine(f"{backend}[{label}]", backend, "int8", "graph.xml", files, told))
    return found


def compare(
    model: Path, spec: Path | None, data: Path, split: str, eval_split: str, samples: int, rounds: int, work: Path
) -> dict[str, Any]:
    """All rows as plain JSON, in the order of the table."""
    setup = prepare(work, model, spec, data, split, samples, eval_split=eval_split)
    dataset = load_dataset(data)
    names = class_names(setup.spec, dataset)
    chosen = dataset.split(eval_split)
    if not chosen.has_labels or not names:
        raise DatasetError(f"split '{eval_split}' needs labels, and the data set the names of its classes")
    if eval_split == split:
        raise DatasetError(f"'{split}' is calibrated on: say another --eval-split")
    say("export ...")
    rows = quantized(setup, *export(setup), setup.spec)
    opened = [row for row in rows if row.engine is not None]
    engines = [replace(row.engine, name=str(at)) for at, row in enumerate(opened) if row.engine is not None]
    say(f"{len(engines)} engines on {len(chosen)} frames of '{eval_split}' ...")
    accuracy = accuracies(
        engines,
        setup.spec,
        read(chosen, color=setup.spec.input.frame),
        classes=max(len(names), 2),
        ignore_index=dataset.ignore_index,
        console=Console(),
        use_cache=False,
    )
    say(f"race: {rounds} rounds ...")
    frames = np.load(setup.frames)
    times = race(engines, [frame[None] for frame in frames[pick(len(frames), LOOK)]], rounds=rounds)
    found = documents(rows, engines, accuracy, times, names)
    return {
        "schema": "edgeseg.peers/1",
        "model": setup.spec.name,
        "calibration": {"split": split, "frames": setup.count},
        "evaluation": {"split": eval_split, "frames": len(chosen)},
        "rounds": rounds,
        "rows": found,
    }


def documents(
    rows: list[Row],
    engines: list[Engine],
    accuracy: Mapping[str, Accuracy],
    times: Mapping[str, list[int]],
    names: tuple[str, ...],
) -> list[dict[str, Any]]:
    """The rows as plain JSON. `engines`: of those rows that have one, in order, by whose names accuracy and times go.

    An engine that did not race has no latency.
    """
    miou = {name: scores(found.matrix, names).miou for name, found in accuracy.items()}
    plain = [engine.name for engine in engines if engine.precision == "fp32"]
    yardstick = min(plain, key=lambda name: statistics.median(times[name]))
    found, left = [], iter(engines)
    for row in rows:
        outcome = row.outcome
        document: dict[str, Any] = {
            "recipe": row.title,
            "runtime": row.runtime,
            "seconds": outcome.seconds if outcome else None,
            "run_s": outcome.said.get("run_s") if outcome else None,
            "chosen": outcome.said.get("chosen") if outcome else None,
            "peak_rss_mb": outcome.peak_rss_mb if outcome else None,
            "failure": outcome.failure if outcome else "",
            "notes": row.notes,
            "warnings": list(outcome.warnings) if outcome else [],
        }
        if row.engine is not None:
            name = next(left).name
            document |= {
                "engine": row.engine.name,
                "precision": row.engine.precision,
                "settings": dict(row.engine.settings),
                "bytes": sum(map(len, row.engine.files.values())),
                "miou": miou[name],
                "drop": miou[plain[0]] - miou[name],
                "agreement": accuracy[name].agreement.overall,
            }
            if name in times:
                document |= {
                    "latency_ms": summarize(times[name]).to_json(),
                    "speed": speed(times[yardstick], times[name]),
                    "samples_ns": times[name],
                }
        found.append(document)
    return found


def speed(slow: Sequence[int], fast: Sequence[int]) -> dict[str, float] | None:
    """How many times as fast the second of two engines is that raced, with its interval; None with too few rounds."""
    return ratio_interval(slow, fast)._asdict() if len(fast) >= samples_needed(0.5) else None
