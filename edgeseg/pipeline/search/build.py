"""The search in a build: INT8 with some convolutions in float, between the engines made and the race that decides.

Called when the engines are made and evaluated. What is chosen is chosen on train frames; the verdict's frames only say
that a search is needed, and judge what comes out like every other engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeseg import backends
from edgeseg.backends import Engine, Settings
from edgeseg.console import Console
from edgeseg.data import Dataset, Reading
from edgeseg.errors import AccuracyFailed
from edgeseg.measure.confusion import scores
from edgeseg.measure.evaluate import Accuracy
from edgeseg.measure.latency import ratio_interval, summarize
from edgeseg.pipeline.engines import REWRITTEN, Largest, Tried, engines_for
from edgeseg.pipeline.frames import Effort
from edgeseg.pipeline.search.floor import Floor
from edgeseg.pipeline.search.judge import FRAMES, selection_for
from edgeseg.pipeline.search.run import Found, search
from edgeseg.quantize.half import half
from edgeseg.report.search import search_table
from edgeseg.trials.race import LEAST, race
from edgeseg.types import OnnxModel, Pixels

MIXED = "mixed"
MINUTES = 5.0  # of a search that nobody asked for, for all runtimes together
_ROUNDS = 25  # of the race between a mixed engine and what else meets the floor

Quantize = Callable[[str, frozenset[str]], OnnxModel]  # backend, names kept in float → the network in its dialect


@dataclass(frozen=True, slots=True)
class Mixed:
    """`tried`: the field with the mixed engines in it. `found`: by backend. `reasons`: sentences for the verdict."""

    tried: Tried
    found: Mapping[str, Found]
    reasons: tuple[str, ...]

    @property
    def kept(self) -> dict[str, frozenset[str]]:
        """By name of a mixed engine, the convolutions that it keeps in float."""
        return {f"{backend}-int8-{MIXED}": one.keep_float for backend, one in self.found.items()}

    def to_json(self) -> list[dict[str, Any]]:
        """Documents edgeseg.search/1, one for each runtime that was searched for."""
        return [dict(found.report) for found in self.found.values()]


def mixed_for(
    tried: Tried,
    fp32: OnnxModel,
    quantize: Quantize,
    accuracy: Mapping[str, Accuracy],
    dataset: Dataset | None,
    calibration: Reading | None,
    verdict: Reading | None,
    floor: Floor,
    minutes: float | None,
    look: Sequence[Pixels],
    effort: Effort,
    *,
    demanded: bool = False,
    asked: Settings | None = None,
    frames: int = FRAMES,
    use_cache: bool,
    console: Console,
) -> Mixed | None:
    """Search where the fastest INT8 engine misses the floor on the verdict's frames, or anyway if `minutes` are given.

    `fp32`: the network that `quantize` writes in INT8. `accuracy`: of the engines in `tried`. `demanded`: INT8 or
    nothing. Engines that come out are named "{backend}-int8-mixed", and are in the field if they are faster than the
    best engine in FP32 or half precision that meets the floor. None where no search was needed, or there is nothing to
    search with. Raises AccuracyFailed, with the closest and the curve, if INT8 is demanded and none meets the floor.
    """
    mine = [engine for engine in tried.engines if not engine.name.startswith(REWRITTEN)]
    int8 = [engine for engine in mine if engine.precision == "int8"]
    losses = {engine.name: lost(engine.name, mine, accuracy, fp32.spec.output.classes) for engine in mine}
    if not int8:
        return None
    batches = [frame[None] for frame in look]
    medians = _medians(mine, batches)
    fastest = min(int8, key=lambda engine: medians[engine.name])
    if minutes is None and _meets(losses[fastest.name], floor):
        return None
    if dataset is None or calibration is None:
        return _nothing(tried, "there were no frames to choose by", console)
    selection = selection_for(calibration, verdict, frames)
    if selection is None:
        return _nothing(tried, f"no frames of '{calibration.split.name}' are left to choose by", console)
    rivals = [engine for engine in mine if engine.precision != "int8" and _meets(losses[engine.name], floor)]
    best = min((medians[engine.name] for engine in rivals), default=float("inf"))
    # More in float makes INT8 slower, if it is faster at all: where it is not, nothing can be gained.
    targets = sorted((e for e in int8 if medians[e.name] < best or e is fastest), key=lambda e: medians[e.name])
    targets = [engine for at, engine in enumerate(targets) if engine.backend not in {e.backend for e in targets[:at]}]
    found: dict[str, Found] = {}
    reasons: list[str] = []
    for engine in targets:
        found[engine.backend] = one = search(
            fp32,
            lambda kept, name=engine.backend: quantize(name, kept),  # type: ignore[misc]
            engine.backend,
            selection,
            floor=floor,
            minutes=(minutes or MINUTES) / len(targets),
            settings=engine.settings,
            ignore_index=dataset.ignore_index,
            written=_written(fp32, engine, look),
            use_cache=use_cache,
            console=console,
        )
        if not one.reached:
            reasons.append(_closest(one, engine.backend))
        elif not one.keep_float:
            reasons.append(f"All in INT8 meets the floor on {engine.backend} on the frames that were searched on.")
        else:
            made = _engines(fp32, one, engine.backend, look, effort, asked, console)
            worth, said = _worth(made, one, rivals, batches)
            reasons.append(said)
            tried = _with(tried, made, {} if worth else {e.name: said for e in made.engines})
    for reason in reasons:
        console.say(f"           {reason}")
    good = any(_meets(losses[engine.name], floor) for engine in int8)
    if demanded and not good and not any(one.reached for one in found.values()):
        raise AccuracyFailed(failure(found, floor))
    return Mixed(tried, found, tuple(reasons))


def failure(found: Mapping[str, Found], floor: Floor) -> str:
    """What to say where no network in INT8 meets the floor: the closest, what to do, and the curve as a table."""
    points = f"{floor.max_drop:g} points" + (
        "" if floor.max_class_drop is None else f" and {floor.max_class_drop:g} of any class"
    )
    closest = " ".join(_closest(one, name) for name, one in found.items())
    curves = "\n\n".join(search_table(one.report) for one in found.values())
    return (
        f"no INT8 network stays within the allowed loss of {points}. {closest} Raise --max-miou-drop, give the search "
        f"more --search MINUTES, recover by training, or build with --fp16 or --fp32.\n\n{curves}"
    )


def lost(
    name: str, engines: Sequence[Engine], accuracy: Mapping[str, Accuracy], classes: Sequence[str]
) -> tuple[float, float] | None:
    """Points that an engine loses against FP32 on the verdict's frames: in the mean, and of the worst class.

    Without labels agreement with FP32 counts, and no class. None where it was not evaluated.
    """
    reference = next((e.name for e in engines if e.precision == "fp32" and e.name in accuracy), None)
    if reference is None or name not in accuracy:
        return None
    before, after = accuracy[reference], accuracy[name]
    if not after.labelled:
        return 100 * (1 - after.agreement.overall), 0.0
    names = classes or [f"class {index}" for index in range(len(before.matrix))]
    one, two = scores(before.matrix, names), scores(after.matrix, names)
    worst = max((value - (two.iou[key] or 0.0) for key, value in one.iou.items() if value is not None), default=0.0)
    return 100 * (one.miou - two.miou), 100 * worst


def _meets(loss: tuple[float, float] | None, floor: Floor) -> bool:
    """On the verdict's frames there is no margin: they say what is."""
    if loss is None:
        return True
    return loss[0] <= floor.max_drop and (floor.max_class_drop is None or loss[1] <= floor.max_class_drop)


def _medians(engines: Sequence[Engine], batches: Sequence[Any]) -> dict[str, float]:
    times = race(engines, batches, rounds=LEAST, limit_s=20.0)
    return {name: summarize(samples).p50 or summarize(samples).mean for name, samples in times.items()}


def _nothing(tried: Tried, why: str, console: Console) -> Mixed:
    reason = f"INT8 loses too much, and which layers should stay in float was not searched: {why}."
    console.say(f"           {reason}")
    return Mixed(tried, {}, (reason,))


def _written(fp32: OnnxModel, engine: Engine, look: Sequence[Pixels]) -> Callable[[OnnxModel], OnnxModel]:
    """What the build does to an INT8 graph for this engine."""
    if engine.settings.get("arithmetic") == "f16" and backends.get(engine.backend).half_graphs("int8"):
        largest = Largest(fp32, look)
        return lambda model: half(model, largest=largest.seen).model
    return lambda model: model


def _engines(
    fp32: OnnxModel,
    found: Found,
    backend: str,
    look: Sequence[Pixels],
    effort: Effort,
    asked: Settings | None,
    console: Console,
) -> Tried:
    """The mixed network's own engine, with the settings that are fastest for it, opened and looked at as all are."""
    made = engines_for(fp32, {backend: found.model}, [backend], "int8", look, effort, console, asked)
    names = {engine.name: f"{engine.name}-{MIXED}" for engine in made.engines if engine.precision == "int8"}
    return Tried(
        tuple(replace(engine, name=names[engine.name]) for engine in made.engines if engine.name in names),
        {names[name]: masks for name, masks in made.masks.items() if name in names},
        made.expected,
        [{**row, "name": f"{row['name']}-{MIXED}"} for row in made.rejected if "int8" in row["name"]],
        [f"{name}-{MIXED}" for name in made.settings if "int8" in name],
        {names[name]: row for name, row in made.built.items() if name in names},
    )


def _with(tried: Tried, made: Tried, rejected: Mapping[str, str]) -> Tried:
    rows = [{"name": name, "why": why} for name, why in rejected.items()]
    kept = {engine.name: engine for engine in made.engines if engine.name not in rejected}
    return replace(
        tried,
        engines=(*tried.engines, *kept.values()),
        masks={**tried.masks, **{name: masks for name, masks in made.masks.items() if name in kept}},
        rejected=[*tried.rejected, *made.rejected, *rows],
        settings=[*tried.settings, *made.settings],
        built={**tried.built, **{name: row for name, row in made.built.items() if name in kept}},
    )


def _worth(made: Tried, found: Found, rivals: Sequence[Engine], batches: Sequence[Any]) -> tuple[bool, str]:
    """Whether a mixed engine is faster than everything in float that meets the floor, and the sentence that says so."""
    kept = f"{len(found.keep_float)} convolution{'s' if len(found.keep_float) > 1 else ''} in float"
    if not made.engines:
        why = made.rejected[0]["why"] if made.rejected else "it could not be opened"
        return False, f"INT8 with {kept} is out: {why}"
    (engine,) = made.engines
    if not rivals:
        return True, f"{engine.name} is INT8 with {kept}."
    times = race([engine, *rivals], batches, rounds=_ROUNDS, limit_s=20.0)
    best = min(rivals, key=lambda rival: sorted(times[rival.name])[len(times[rival.name]) // 2])
    ratio = ratio_interval(times[best.name], times[engine.name])
    faster = ratio.ratio > 1
    sure = "" if ratio.low > 1 or ratio.high < 1 else ", which may be chance"
    return faster, (
        f"{engine.name} is INT8 with {kept}: {ratio.ratio:.2f} times as fast as {best.name}, the best in float within "
        f"the allowed loss{sure}." + ("" if faster else " It is not worth having.")
    )


def _closest(found: Found, backend: str) -> str:
    near = found.chosen
    if near.outcome is None:
        return f"On {backend} every INT8 network was refused."
    at = "" if near.ms is None else f", {near.ms:.2f} ms"
    return (
        f"On {backend} the closest of {len(found.candidates)} loses {near.outcome.drop:.2f} ± {near.outcome.error:.2f} "
        f"points on {found.report['selection']['frames']} frames of '{found.report['selection']['split']}', with "
        f"{len(near.kept)} convolutions in float{at}."
    )
