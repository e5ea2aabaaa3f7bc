"""The search as it is run: sensitivity, cost, candidates judged on selection frames, the best of them in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from edgeseg import __version__, backends, cache
from edgeseg.backends import Engine, Settings
from edgeseg.console import Console
from edgeseg.data import Reading
from edgeseg.errors import BadInput, CannotTell, MissingOnMachine, ModelError
from edgeseg.measure.machine import machine
from edgeseg.pipeline.frames import look_at
from edgeseg.pipeline.network import dialect_for
from edgeseg.pipeline.search import document
from edgeseg.pipeline.search.candidates import Candidate, candidates
from edgeseg.pipeline.search.floor import Floor, Outcome
from edgeseg.pipeline.search.judge import Judge, Run, emulating, running
from edgeseg.pipeline.search.neighbours import neighbours
from edgeseg.pipeline.search.sensitivity import Int8Of, Losses, sensitivities
from edgeseg.pipeline.search.steps import Kept, Unit, cheapest, closest, cost, explore, filled
from edgeseg.pipeline.search.times import Costs, costs, engine, in_turns, settings_of_fp32
from edgeseg.quantize import Graph, place
from edgeseg.types import OnnxModel, Pixels

_LOOK = 4  # frames for sensitivity and to time with
_FINALISTS = 3
_FINAL_ROUNDS = 40
_CHANCE = 0.05  # of the milliseconds of a group's nodes: what is saved by all of them must be more
_SHARE = 0.5  # of the minutes, at most, before candidates are judged


@dataclass(frozen=True, slots=True)
class Found:
    """What the search hands over: the fastest network that meets the floor, or the one that comes closest.

    `keep_float`: names of its convolutions in float. `candidates`: all that were judged, the fastest first.
    `report`: the document edgeseg.search/1.
    """

    keep_float: frozenset[str]
    model: OnnxModel
    reached: bool
    candidates: tuple[Candidate, ...]
    report: Mapping[str, Any]

    @property
    def chosen(self) -> Candidate:
        return next(candidate for candidate in self.candidates if candidate.chosen)


def search(
    fp32: OnnxModel,
    int8_of: Int8Of,
    backend: str,
    selection: Reading,
    *,
    floor: Floor,
    minutes: float,
    settings: Settings | None = None,
    ignore_index: int | None = None,
    written: Callable[[OnnxModel], OnnxModel] = lambda model: model,
    emulate: bool = False,
    use_cache: bool = True,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Which convolutions stay in float, so that the floor is met on the selection frames at the fewest milliseconds.

    `int8_of(keep_float)` gives the network in the dialect of `backend`; `written` is what more a build does to it
    before it runs (half precision around INT8). `settings`: of the engine to be deployed. `minutes`: for all of it,
    one candidate more than that at most; what was judged is kept, so that the same call goes on where this one ended.
    One Ctrl-C ends it with the best so far. Where engines are made on the machine they run on, accuracy is emulated on
    ONNX Runtime. Where the runtime is not here, or with `emulate`, so are all, and instead of milliseconds shares of
    the operations count.

    Raises BadInput for minutes or settings that are none, ModelError when nothing can run in INT8, CannotTell when no
    selection frame can be read.
    """
    if not (math.isfinite(minutes) and minutes > 0):
        raise BadInput(f"the minutes of a search are a number above 0; {minutes} came")
    console = console or Console()
    begun = clock()

    def late(share: float = 1.0) -> bool:
        return clock() - begun >= 60 * minutes * share

    def graph_of(kept: Kept) -> OnnxModel:  # as the runtime gets it
        return written(int8_of(kept))

    placement = place(Graph(fp32.graph), dialect_for(backend))
    nodes = placement.convolutions
    groups = [frozenset(group) for group in placement.groups if 1 < len(group) < len(nodes)]
    if not nodes:
        raise ModelError(f"INT8 was wanted, but no convolution of {fp32.spec.name} can run in INT8 on {backend}")
    here = not emulate and _is_here(backend)
    emulate = not here or backends.get(backend).built_here
    look = look_at(replace(selection, labels=False), fp32.spec, _LOOK)
    if not look:
        raise CannotTell(f"no frame of split '{selection.split.name}' could be read to choose by")
    frames = [frame[None] for frame in look]
    work = _Work(fp32, int8_of if emulate else graph_of, graph_of, backend, settings, emulate, look[0])
    judge = Judge(selection, fp32.spec, ignore_index)
    with console.step("search") as step:
        with work.run(fp32, "fp32") as run:
            judge.reference(run)
        journal = document.Journal.of(
            __version__,
            fp32.digest,
            backend,
            work.identity(),
            selection.split.digest(selection.indices, labels=True),
            (repr(fp32.spec.input), ignore_index, emulate),
            use_cache=use_cache and not selection.skipped,
        )
        outcomes: dict[Kept, Outcome | None] = {}
        trail: dict[Kept, float] = {}

        def evaluate(kept: Kept) -> float:
            console.progress(f"search     {len(trail) + 1}: {len(kept)} of {len(nodes)} convolutions in float")
            outcomes[kept] = work.judged(kept, judge, journal)
            found = outcomes[kept]
            return math.inf if found is None else floor.short(found)

        ended, losses, price = "done", None, None
        units: list[Unit] = []
        try:
            trail[frozenset()] = evaluate(frozenset())
            losses = sensitivities(
                fp32, nodes, int8_of, frames, ended=lambda: late(_SHARE / 2), use_cache=use_cache, console=console
            )
            price = costs(
                fp32, nodes, graph_of, backend, frames,
                groups=groups, settings=settings, timed=here, ended=lambda: late(_SHARE), use_cache=use_cache,
            )  # fmt: skip
            units = _units(nodes, losses, price)
            explore(units, evaluate, trail, late)
            ended = "time" if late() else "done"
            if (best := cheapest(trail, units)) is not None and best and not late():
                more = filled(best, neighbours(Graph(fp32.graph), nodes))
                if more not in trail and len(more) < len(nodes):
                    trail[more] = evaluate(more)
        except KeyboardInterrupt:
            ended = "interrupted"
            console.say("           stopped: going on with the best so far; Ctrl-C again ends all")
        if not outcomes:
            raise KeyboardInterrupt
        console.progress("")
        units = units or [Unit(node, 0.0, 1 / len(nodes)) for node in nodes]
        times, names = _finals(work, trail, units, frames, here, ended == "interrupted")
        rows = candidates(outcomes, trail, units, times, names, price)
        chosen = next(candidate for candidate in rows if candidate.chosen)
        reached = chosen.short <= 0
        step.note = (
            f"{len(rows)} candidates on {judge.frames} frames of '{selection.split.name}'; "
            f"{len(chosen.kept)} of {len(nodes)} convolutions in float "
            f"{'meet' if reached else 'come closest to'} the floor"
        )
    fp32_ms = times.get("fp32") or (price.fp32_ms if price is not None else None)
    report = document.report(
        name=fp32.spec.name,
        backend=backend,
        metric=judge.metric,
        classes=fp32.spec.output.classes,
        floor=floor,
        reached=reached,
        ended=ended,
        frames={
            "frames": judge.frames,
            "labelled": judge.labelled,
            "split": selection.split.name,
            "skipped": [{"name": s.name, "reason": s.reason} for s in selection.skipped],
        },
        losses=losses,
        costs=price if here else None,
        fp32={"ms": fp32_ms, "ms_from": None if fp32_ms is None else "measured", "accuracy": judge.accuracy},
        candidates=rows,
        seconds=clock() - begun,
        emulated=emulate,
    )
    return Found(chosen.kept, int8_of(chosen.kept), reached, rows, report)


@dataclass(frozen=True, slots=True)
class _Work:
    """How a network becomes something that answers."""

    fp32: OnnxModel
    judged_as: Int8Of  # emulation takes the quantized graph: half precision around it is for the runtime
    graph_of: Int8Of
    backend: str
    settings: Settings | None
    emulate: bool
    frame: Pixels

    def engine(self, model: OnnxModel, name: str) -> Engine:
        told = settings_of_fp32(self.backend, self.settings) if model is self.fp32 else self.settings
        return engine(name, model, self.backend, "fp32" if model is self.fp32 else "int8", told)

    def run(self, model: OnnxModel, name: str) -> AbstractContextManager[Run]:
        return emulating(model) if self.emulate else running(self.engine(model, name), self.frame)

    def judged(self, kept: Kept, judge: Judge, journal: document.Journal) -> Outcome | None:
        """From the journal or measured; None for what the runtime refuses."""
        model = self.judged_as(kept)
        if model.digest not in journal.outcomes:
            try:
                with self.run(model, "candidate") as run:
                    found = judge.outcome(run)
            except ModelError:
                journal.write(model.digest, None)
            else:
                journal.write(model.digest, found)
        return journal.outcomes[model.digest]

    def identity(self) -> str:
        """What masks depend on besides the graph."""
        if self.emulate:
            return cache.key("emulated", backends.get("onnxruntime").version(), machine()["cpu"])
        settings = sorted((self.settings or {}).items())
        return cache.key(backends.get(self.backend).version(), machine()["cpu"], settings)


def _is_here(backend: str) -> bool:
    try:
        backends.get(backend).version()
    except MissingOnMachine:
        return False
    return True


def _units(nodes: Sequence[str], losses: Losses, price: Costs) -> list[Unit]:
    """A node that there was no time to judge counts as the middle one of the others.

    A group is one where all of it in float was measured to cost less than one by one.
    """
    saved = {row.node: min(row.saved(losses.everything), 1e30) for row in losses.rows}
    middle = sorted(saved.values())[len(saved) // 2] if saved else 0.0
    most = max((c.ms for c in price.of.values() if math.isfinite(c.ms)), default=1.0)
    ms = {node: price.of[node].ms if math.isfinite(price.of[node].ms) else 100 * most for node in nodes}
    bonds: dict[str, tuple[Kept, float]] = {}
    for group, whole in price.together.items():
        singly = math.fsum(ms[node] for node in group)
        if singly - whole.ms > _CHANCE * abs(singly):
            bonds |= dict.fromkeys(group, (group, (singly - whole.ms) / len(group)))
    return [Unit(node, saved.get(node, middle), ms[node], *bonds.get(node, ())) for node in nodes]


def _finals(
    work: _Work,
    trail: Mapping[Kept, float],
    units: Sequence[Unit],
    frames: Sequence[Any],
    here: bool,
    interrupted: bool,
) -> tuple[dict[str, float], dict[str, Kept]]:
    """Milliseconds of FP32, all in INT8 and the finalists in turns, by name, and what the names stand for."""
    good = sorted((k for k, short in trail.items() if short <= 0), key=lambda k: (cost(k, units), len(k), sorted(k)))
    some = good[:_FINALISTS]
    if good and len(good[-1]) > len(good[0]):
        some += [kept for kept in good[_FINALISTS:] if good[0] < kept][-1:]  # where neighbours were filled in
    if not some and (near := closest(trail)) is not None:
        some = [near]
    names = {f"mixed-{index}": kept for index, kept in enumerate(some) if kept}
    if not here or interrupted:
        return {}, names
    base = work.graph_of(frozenset())
    engines = {"int8": work.engine(base, "int8"), "fp32": work.engine(work.fp32, "fp32")}
    engines |= {name: work.engine(work.graph_of(kept), name) for name, kept in names.items()}
    try:
        samples = in_turns(engines, frames, _FINAL_ROUNDS, limit_s=30.0)
    except ModelError:  # all in INT8 is refused, some of it is not
        return {}, names
    return {name: statistics.median(found) / 1e6 for name, found in samples.items()}, names
