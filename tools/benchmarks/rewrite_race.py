"""Rewritten networks as they are deployed: next to the original on the fastest runtime here, in one interleaved race.

For each precision this is `edgeseg rewrite` once for every budget, with its layers timed on that runtime.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rewrite import ORIGINAL, Setting, miou, say, threads
from benchmarks.rewrite_making import reason
from edgeseg.console import Console
from edgeseg.errors import BadInput, DatasetError
from edgeseg.measure.latency import ratio_interval, summarize
from edgeseg.pipeline.calibrate import recipe_named
from edgeseg.pipeline.engines import engines_for, measured_accuracy, runtimes
from edgeseg.pipeline.frames import Effort, frames_for, look_at
from edgeseg.pipeline.ingest import ingest
from edgeseg.pipeline.prepare import dialects_of, ready
from edgeseg.pipeline.rewriting.recovery import recovered
from edgeseg.pipeline.rewriting.run import shrunk
from edgeseg.pipeline.rewriting.target import Target, target_of
from edgeseg.pipeline.rewriting.wish import Budget, Wish
from edgeseg.rewrite.network import macs_of
from edgeseg.trials.race import race
from edgeseg.types import OnnxModel, Precision


def budget_of(word: str) -> Budget:
    """`0.3`: a share of the operations; `2.5x`: so many times as fast. Raises BadInput."""
    try:
        return Budget("speedup", float(word[:-1])) if word.endswith("x") else Budget("macs", float(word))
    except ValueError:
        raise BadInput(f"'{word}' is no budget: a share of the operations is 0.3, a speed-up 2.5x") from None


def deployed(setting: Setting, budgets: Sequence[Budget], precision: Precision, rounds: int) -> dict[str, Any]:
    """Accuracy, latency and speed-up of the original's engine and those rewritten for it; a budget may fail alone."""
    say(f"\n{precision.upper()} engines")
    console, effort = Console(quiet=False), Effort(evaluate=setting.eval_frames)
    spec, dataset = setting.spec, setting.dataset
    calibration, verdict, some = frames_for(dataset, setting.fit_split, setting.eval_split, effort, spec)
    if calibration is None or verdict is None:
        raise DatasetError(f"'{setting.fit_split}' and '{setting.eval_split}' have too few frames")
    look = look_at(some, spec, effort.look)
    fp32, _ = ingest(
        setting.model,
        spec,
        look,
        trust_pickle=False,
        dynamic=False,
        opset=None,
        quick=False,
        use_cache=True,
        console=console,
    )
    names = runtimes(None, console)

    def quantize(model: OnnxModel, runtime_names: Sequence[str]) -> dict[str, OnnxModel]:
        dialects = dialects_of(runtime_names)
        done = ready(model, calibration, recipe_named("mse"), dialects, effort, use_cache=True, console=console)
        return done.network.on(runtime_names)

    int8 = quantize(fp32, names) if precision == "int8" else {}
    tried = engines_for(fp32, int8, names, precision, look, effort, console)
    target = target_of(
        tried.engines, fp32, int8, precision, look, lambda m, name: quantize(m, [name])[name], console, True
    )
    rows: list[dict[str, Any]] = [{"budget": ORIGINAL, "failure": "", "share": 1.0, "rewrite_s": None}]
    graphs = {ORIGINAL: target.original}
    for budget in budgets:
        row: dict[str, Any] = {"budget": str(budget), "failure": "", "share": None, "rewrite_s": None}
        say(f"\n{precision.upper()}, {budget}")
        try:
            graphs[row["budget"]] = _rewritten(setting, budget, target, calibration.split.name, precision, row, console)
        except Exception as error:  # the other budgets go on
            row["failure"] = reason(error)
            say(f"  {row['failure']}")
        rows.append(row)
    engines = [target.like(model, name) for name, model in graphs.items()]
    accuracy = measured_accuracy(engines, spec, dataset, verdict, True, console)
    with console.step("race") as step:
        frames = [frame[None] for frame in look]
        samples = race(engines, frames, rounds=rounds, limit_s=effort.limit_s * len(engines))
        step.note = f"{len(engines)} networks taking turns on {target.engine.name}"
    for row in rows:
        if (name := str(row["budget"])) not in graphs:
            continue
        row["miou"] = miou(setting, accuracy[name])
        row["drop"] = miou(setting, accuracy[ORIGINAL]) - row["miou"]
        row["agreement"] = accuracy[name].agreement.overall
        row["latency_ms"] = summarize(samples[name]).to_json()
        if name != ORIGINAL:
            row["speed"] = ratio_interval(samples[ORIGINAL], samples[name])._asdict()
    frames_judged = next(iter(accuracy.values())).frames
    return {
        "precision": precision,
        "engine": target.engine.name,
        "settings": dict(target.engine.settings),
        "rounds": len(samples[ORIGINAL]),
        "frames": frames_judged,
        "rows": rows,
    }


def _rewritten(
    setting: Setting,
    budget: Budget,
    target: Target,
    split: str,
    precision: Precision,
    row: dict[str, Any],
    console: Console,
) -> OnnxModel:
    wish = Wish(
        budget,
        minutes=setting.minutes,
        samples=setting.samples,
        bytes_each=1 if precision == "int8" else 4,
    )
    start = time.perf_counter()
    with threads(setting.threads):
        work, student = shrunk(Path(setting.model), setting.spec, setting.dataset, split, wish, target, False, console)
        network = student.network
        if wish.minutes > 0:
            network, _ = recovered(work, network, setting.dataset, split, wish, console)
    row["rewrite_s"] = time.perf_counter() - start
    row["share"] = macs_of(network, setting.spec.input.size) / work.whole.macs
    return target.graph(network)
