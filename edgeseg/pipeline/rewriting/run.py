"""A trained network into a cheaper one, from top to bottom. Behind `edgeseg rewrite` and `build --rewrite`.

    export the original → its fastest engine is the target → options → choose → fit → (recover) → measure → save

The frames it learns from, those that decide between its own variants, and those of the verdict are three sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgeseg.console import Console
from edgeseg.data import Dataset, Reading, load_dataset
from edgeseg.distill.distributed import from_first, joined, started
from edgeseg.errors import BadInput
from edgeseg.evaluation import class_names
from edgeseg.measure.latency import summarize
from edgeseg.pipeline.calibrate import recipe_named
from edgeseg.pipeline.engines import engines_for, measured_accuracy, runtimes
from edgeseg.pipeline.frames import Effort, frames_for, look_at
from edgeseg.pipeline.ingest import ingest
from edgeseg.pipeline.prepare import dialects_of, ready
from edgeseg.pipeline.rewriting import document
from edgeseg.pipeline.rewriting.budgets import dense, shape
from edgeseg.pipeline.rewriting.offers import finished, opened
from edgeseg.pipeline.rewriting.recovery import forget, recovered
from edgeseg.pipeline.rewriting.students import GRAPH, Student, Work, prepare, student
from edgeseg.pipeline.rewriting.target import Target, target_of
from edgeseg.pipeline.rewriting.wish import Budget, Wish
from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.network import Network
from edgeseg.rewrite.rules import RULES
from edgeseg.rewrite.save import places, save
from edgeseg.spec import find_spec, spec_for
from edgeseg.trials.race import race
from edgeseg.types import ModelSpec, OnnxModel

CURVE = (0.6, 0.45, 0.3, 0.2, 0.15, 0.1, 0.07)  # shares of the operations
OVER = 1.05  # times a budget in milliseconds, by which a network measured whole may exceed it
TRIES = 3  # at a budget in milliseconds


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What `rewrite` returns: the network in memory, the files it was written to, and the measured document."""

    network: Network
    files: tuple[Path, ...]
    report: Mapping[str, Any]


def rewrite(
    model: str | Path,
    *,
    data: str | Path,
    spec: str | Path | None = None,
    split: str = "train",
    eval_split: str | None = None,
    wish: Wish | None = None,
    precision: Literal["fp32", "int8"] = "fp32",
    backend: str | None = None,
    recipe: str | Path = "mse",
    curve: bool = False,
    out: str | Path | None = None,
    trust_pickle: bool = False,
    use_cache: bool = True,
    console: Console | None = None,
) -> Rewritten:
    """Rewrite a trained network into a cheaper one of the same accuracy, and measure both on the target.

    `model`: state dict, TorchScript, .pt2, or a pickled module with `trust_pickle`. `data`, `split`: frames to fit to,
    no labels needed. `eval_split`: frames for the verdict, by default "val", else what `split` has left. `precision`,
    `backend`: what it will be deployed in; by default the fastest runtime here, FP32. `curve`: also the networks for a
    row of budgets, to show what accuracy each speed costs. `out`: NAME.pt2; NAME.pt, .py and .toml come beside it.

    Of several processes that torchrun started, all take part in the recovery; only the first does the rest, writes, and
    has a report.

    Raises ModelError, SpecError, DatasetError, BadInput (a budget that cannot be reached, an unknown rule),
    ParityFailed, MissingOnMachine.
    """
    wish = wish or Wish()
    checked(wish, Path(model))
    place, processes = started()
    if processes > 1 and not wish.minutes:
        raise BadInput(
            f"{processes} processes were started, and they learn together: say --distill MINUTES, or use one"
        )
    if place > 0:  # it helps the first, which alone measures and writes
        with joined() as ranks:
            work, network, split = from_first(None, ranks)
            network, _ = recovered(work, network, load_dataset(data), split, wish, Console(quiet=True))
        return Rewritten(network, (), {})
    if out is not None:
        places(Path(out))  # what is wrong with the name is said before anything is read
    read_spec = spec_for(model, spec)
    if out is not None:
        places(Path(out), _inputs(Path(model), read_spec, spec, data))
    console = console or Console()
    effort = Effort()
    dataset = load_dataset(data)
    names = class_names(read_spec, dataset)
    read_spec = replace(read_spec, output=replace(read_spec.output, classes=names))
    calibration, verdict, some = frames_for(dataset, split, eval_split, effort, read_spec)
    if calibration is None or verdict is None:
        raise BadInput(f"'{split}' has too few frames: some are needed to fit to, and others to judge by")
    look = look_at(some, read_spec, effort.look)
    fp32, _ = ingest(
        Path(model),
        read_spec,
        look,
        trust_pickle=trust_pickle,
        dynamic=False,
        opset=None,
        quick=False,
        use_cache=use_cache,
        console=console,
    )
    runs_on = runtimes(backend, console)

    def quantize(model: OnnxModel, names: Sequence[str]) -> dict[str, OnnxModel]:
        dialects, recipes = dialects_of(names), recipe_named(recipe)
        done = ready(model, calibration, recipes, dialects, effort, use_cache=use_cache, console=console)
        return done.network.on(names)

    int8 = quantize(fp32, runs_on) if precision == "int8" else {}
    tried = engines_for(fp32, int8, runs_on, precision, look, effort, console)
    target = target_of(
        tried.engines,
        fp32,
        int8,
        precision,
        look,
        lambda model, name: quantize(model, [name])[name],
        console,
        use_cache,
        wish.checkpoint,
    )
    split = calibration.split.name
    work, first = shrunk(Path(model), read_spec, dataset, split, wish, target, trust_pickle, console, verdict)
    network, recovery = first.network, None
    graphs = {"original": target.original, "rewritten": target.graph(first.network)}
    if wish.minutes > 0:
        target.journal.write()
        with joined() as ranks:  # the other processes, if torchrun started any, wait for this
            from_first((work, first.network, split), ranks)
            network, recovery = recovered(work, first.network, dataset, split, wish, console)
        graphs |= {"unrecovered": graphs["rewritten"], "rewritten": target.graph(network)}
    points: dict[str, Student] = {}
    for share in CURVE if curve else ():
        try:
            point = student(work, Budget("macs", share), wish, times=None, console=console)
        except BadInput as error:  # less than any choice of options can give
            console.say(f"           out: {error}")
            break
        points[f"{share:g}"] = point
        graphs[f"{share:g}"] = target.graph(point.network)
    engines = [target.like(model, name) for name, model in graphs.items()]
    accuracy = measured_accuracy(engines, read_spec, dataset, verdict, use_cache, console)
    with console.step("race") as step:
        frames = [frame[None] for frame in look]
        times = race(engines, frames, rounds=effort.rounds, limit_s=effort.limit_s * len(engines) / 2)
        step.note = f"{len(engines)} networks taking turns on {target.engine.name}"
    latency = {name: summarize(samples) for name, samples in times.items()}
    report = document.report(
        work,
        first,
        network,
        target.engine,
        latency,
        accuracy,
        points,
        names=names,
        budget=wish.budget,
        rules=wish.rules or tuple(RULES),
        recovery=recovery,
        times=target.times([s for o in first.chosen.options.values() for s in (dense(o.layer), shape(o))])
        if wish.timed
        else {},
        split=verdict.split.name,
        seconds=console.seconds,
    )
    files = save(network, read_spec, Path(out)) if out is not None else ()
    forget(wish, recovery)
    return Rewritten(network, files, report)


def _inputs(model: Path, read: ModelSpec, spec: str | Path | None, data: str | Path) -> list[Path]:
    """The files that a run reads, as far as their names are known: what it writes must not stand in their places."""
    made_by = (read.factory or "").partition(":")[0].replace(".", "/")
    beside = find_spec(model)
    found = [model, Path(data), model.parent / f"{made_by}.py"] + ([beside] if beside else [])
    return found + ([Path(spec)] if spec is not None else [])


def checked(wish: Wish, model: Path) -> None:
    """Raises BadInput for a rule that there is not, and for what is named as a graph: before anything is computed."""
    if model.suffix.lower() == ".onnx":
        raise BadInput(f"{model} {GRAPH}")
    unknown = [rule for rule in wish.rules if rule not in RULES]
    if unknown:
        raise BadInput(f"there is no rule '{unknown[0]}'; there are: {', '.join(RULES)}")


def shrunk(
    model: Path,
    spec: ModelSpec,
    dataset: Dataset,
    split: str,
    wish: Wish,
    target: Target | None,
    trust_pickle: bool,
    console: Console,
    verdict: Reading | None = None,
) -> tuple[Work, Student]:
    """The network rewritten within the budget; one in milliseconds holds for the whole network as measured.

    Without a target nothing is timed. Nothing is learned from the frames of the `verdict`.
    """
    size = spec.input.size
    judged = frozenset(verdict.indices if verdict is not None and verdict.split.name == split else ())
    extra: list[Change] = []
    times = target.times if target is not None and wish.timed else None

    def open_up(network: Network) -> tuple[Network, list[Change]]:
        return opened(network, size, target) if target is not None and wish.timed else (network, [])

    work = prepare(
        model,
        spec,
        dataset,
        split,
        wish,
        open_up=open_up,
        judged=judged,
        trust_pickle=trust_pickle,
        console=console,
    )
    if target is None or not wish.budget.in_time:
        found = student(work, wish.budget, wish, times=times, console=console)
    else:
        found, work = _in_time(work, wish, target, console)
    if target is not None and wish.timed:
        with console.step("finish") as step:
            network, extra = finished(found.network, size, target)
            found = replace(found, network=network)
            step.note = f"{len(extra)} more exact rewrites"
    return replace(work, exact=(*work.exact, *found.exact, *extra)), found


def _in_time(work: Work, wish: Wish, target: Target, console: Console) -> tuple[Student, Work]:
    """A budget in time is one of the whole network: measured, and tightened until it is kept."""
    (now,) = target.together([target.original])
    work = replace(work, whole=replace(work.whole, ms=now))
    limit = wish.budget.value if wish.budget.kind == "ms" else now / wish.budget.value
    allowed = limit
    found = student(work, Budget("ms", allowed), wish, times=target.times, console=console)
    for left in reversed(range(TRIES)):
        before, after = target.together([target.original, target.graph(found.network)])
        now_after = after * now / before  # the machine may have become faster or slower meanwhile
        console.say(f"           measured whole: {before:.2f} → {after:.2f} ms, {limit * before / now:.2f} are allowed")
        if now_after <= OVER * limit or left == 0:
            break
        allowed *= limit / now_after
        try:
            found = student(work, Budget("ms", allowed), wish, times=target.times, console=console)
        except BadInput:  # nothing is faster still: what there is, is what can be had
            console.say(f"           {now_after:.2f} ms is the least that these rules reach")
            break
    return found, work
