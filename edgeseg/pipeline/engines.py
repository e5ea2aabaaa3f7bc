"""The third step: engines that could be handed over, each opened, tried and with its best settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from edgeseg import backends
from edgeseg.backends import Engine, Settings
from edgeseg.backends.onnxruntime import probe
from edgeseg.console import Console
from edgeseg.data import Dataset, Reading
from edgeseg.errors import MissingOnMachine, ModelError
from edgeseg.evaluation import accuracies
from edgeseg.measure.evaluate import Accuracy
from edgeseg.pipeline.frames import Effort
from edgeseg.pipeline.read_back import read_back
from edgeseg.quantize.half import half
from edgeseg.quantize.half_ranges import largest_seen
from edgeseg.trials.candidates import candidates
from edgeseg.trials.isolate import try_engines
from edgeseg.trials.race import best_settings
from edgeseg.types import MASK, Frames, Masks, ModelSpec, OnnxModel, Pixels, Precision

HALVES = ("fp16", "bf16")
REWRITTEN = "rewritten"
LEAST_AGREEMENT = 0.5  # with FP32, of an engine just opened: below, it is not a loss of accuracy but a wrong answer


class Largest:
    """The largest magnitude of each tensor on real frames, found when a half-precision graph first asks for it."""

    def __init__(self, fp32: OnnxModel, frames: Sequence[Pixels]) -> None:
        self._fp32, self._frames = fp32, frames

    @cached_property
    def seen(self) -> Mapping[str, float]:
        return largest_seen(self._fp32, probe, [frame[None] for frame in self._frames])


@dataclass(frozen=True, slots=True)
class Tried:
    """The engines to decide between, and what came out on the way to them."""

    engines: tuple[Engine, ...]
    masks: Mapping[str, Masks]  # by engine: what it answered for the frames looked at
    expected: Masks  # what the FP32 graph answers for them
    rejected: list[dict[str, str]]  # name and why
    settings: list[str]  # names of all that were tried
    built: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # what was read back from engines made here


def runtimes(backend: str | None, console: Console) -> tuple[str, ...]:
    """The backend asked for, or all that are installed. Raises MissingOnMachine, BadInput."""
    if backend is not None:
        try:
            backends.get(backend).version()  # says what is missing and how to install it
        except MissingOnMachine as error:
            if not backends.get(backend).built_here:
                raise
            raise MissingOnMachine(
                f"{error} Or build here without --backend, and on the device that has it: "
                f"edgeseg build BUNDLE --backend {backend}"
            ) from error
        return (backend,)
    good = []
    for name in backends.installed():
        try:
            backends.get(name).version()
        except MissingOnMachine as error:  # installed, but broken: the others can still run
            console.say(f"           out: {str(error).partition('. ')[0]}")
            continue
        good.append(name)
    return tuple(good)


def engines_for(
    fp32: OnnxModel,
    int8: Mapping[str, OnnxModel],
    names: Sequence[str],
    precision: Precision,
    frames: Sequence[Pixels],
    effort: Effort,
    console: Console,
    asked: Settings | None = None,
) -> Tried:
    """One engine for each runtime and precision, with the settings that are fastest here.

    `int8`: the quantized graph for each runtime, where INT8 is wanted. `asked`: settings that a user wants of a
    TensorRT build. Raises MissingOnMachine, and PrecisionAbsent where an engine lacks the precision asked for.
    """
    finalists: list[Engine] = []
    masks: dict[str, Masks] = {}
    expected = fp32_masks(fp32, frames)
    with console.step("candidates") as step:
        groups: dict[tuple[str, Precision], tuple[Engine, ...]] = {}
        failed: dict[str, str] = {}
        largest = Largest(fp32, frames)
        for name in names:
            more = asked if asked and name.startswith("tensorrt") else {}
            for kind, settings in _wanted(precision, name, effort):
                try:
                    model = _written(fp32, int8.get(name), kind, settings, name, largest)
                    found = candidates(model, name, kind, [settings], more)
                    groups[name, kind] = (*groups.get((name, kind), ()), *found)[: effort.settings]
                except ModelError as error:  # another runtime may know the operators that this one does not
                    failed[f"{name}-{kind}"] = str(error)
        everyone = [engine for engines in groups.values() for engine in engines]
        answers = _answers(everyone, np.stack(frames))
        failed |= _failing(answers, expected)
        medians: dict[str, float] = {}
        for (name, kind), engines in console.track(groups.items(), len(groups), "candidates"):
            if good := [engine for engine in engines if engine.name not in failed]:
                best, median = best_settings(good, [frame[None] for frame in frames], rounds=effort.tune)
                finalist = replace(best, name=f"{name}-{kind}")
                finalists.append(finalist)
                medians[finalist.name] = median
                masks[finalist.name] = np.asarray(answers[best.name])
        step.note = f"{len(everyone)} settings of {len(finalists)} engines timed on {', '.join(names)}"
    if not any(engine.precision == "fp32" for engine in finalists):
        why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise MissingOnMachine(f"no runtime here could run the FP32 graph; see: edgeseg doctor. {why}")
    if precision == "fp16" and not any(engine.precision in HALVES for engine in finalists):
        raise MissingOnMachine(
            f"FP16 was asked for, and none of {', '.join(names)} computes in half precision on this processor. "
            "Build with --fp32 or --int8, or on a machine that does (edgeseg doctor says what this one can)."
        )
    back = read_back(finalists, precision)
    failed |= back.lacking
    if precision == "int8":
        failed |= _hopeless(finalists, medians)
    rejected = [{"name": name, "why": why} for name, why in failed.items()]
    for row in rejected:
        console.say(f"           out: {row['name']}: {row['why']}")
    engines = tuple(engine for engine in finalists if engine.name not in failed)
    return Tried(engines, masks, expected, rejected, [engine.name for engine in everyone], back.rows)


def joined(original: Tried, rewritten: Tried) -> Tried:
    """The engines of two networks as one field; those of the second are named REWRITTEN-…"""

    def name(engine: str) -> str:
        return f"{REWRITTEN}-{engine}"

    return Tried(
        (*original.engines, *(replace(engine, name=name(engine.name)) for engine in rewritten.engines)),
        {**original.masks, **{name(engine): masks for engine, masks in rewritten.masks.items()}},
        original.expected,
        [*original.rejected, *({**row, "name": name(row["name"])} for row in rewritten.rejected)],
        [*original.settings, *map(name, rewritten.settings)],
        {**original.built, **{name(engine): row for engine, row in rewritten.built.items()}},
    )


def _wanted(precision: Precision, name: str, effort: Effort) -> Iterator[tuple[Precision, Settings]]:
    """What a backend is to be measured in, and how. FP32 is always among them: it is the yardstick."""
    runtime = backends.get(name)
    halves = runtime.halves()[: effort.halves]
    kinds: dict[Precision, tuple[Precision, ...]] = {
        "fp32": (),
        "fp16": halves,
        "bf16": halves,
        "int8": (*halves, "int8"),
    }
    for kind in ("fp32", *kinds[precision]):
        for settings in runtime.settings(kind):
            yield kind, settings


def _written(
    fp32: OnnxModel, int8: OnnxModel | None, kind: Precision, settings: Settings, name: str, largest: Largest
) -> OnnxModel:
    """The graph for a precision: where the runtime computes an FP32 graph in half precision by itself, that one."""
    runtime = backends.get(name)
    if kind == "int8":
        if int8 is None:
            raise ModelError(f"{name} has no INT8 graph of this network")
        mixed = settings.get("arithmetic") == "f16" and runtime.half_graphs("int8")
        return half(int8, largest=largest.seen).model if mixed else int8
    return half(fp32, largest=largest.seen).model if kind in HALVES and runtime.half_graphs(kind) else fp32


def _hopeless(finalists: Sequence[Engine], medians: Mapping[str, float]) -> dict[str, str]:
    """Engines in half precision that are clearly slower than FP32: nobody asked for them, and they cannot win."""
    fastest = min(medians[engine.name] for engine in finalists if engine.precision == "fp32")
    return {
        engine.name: f"slower than FP32: {medians[engine.name] / 1e6:.1f} ms against {fastest / 1e6:.1f} ms"
        for engine in finalists
        if engine.precision in HALVES and medians[engine.name] > 1.2 * fastest
    }


def fp32_masks(fp32: OnnxModel, frames: Sequence[Pixels]) -> Masks:
    masks = [values[MASK][0] for values in probe(fp32.graph, [MASK], (frame[None] for frame in frames))]
    return np.stack(masks)


def _answers(engines: Sequence[Engine], frames: Frames) -> dict[str, Masks | str]:
    """For each engine its masks, or why there are none. Those that could crash run in a child process."""
    isolated = [engine for engine in engines if backends.get(engine.backend).isolate]
    answers = dict(zip((engine.name for engine in isolated), try_engines(isolated, frames), strict=True))
    return answers | {engine.name: _masks(engine, frames) for engine in engines if engine.name not in answers}


def _failing(answers: Mapping[str, Masks | str], expected: Masks) -> dict[str, str]:
    """The engines that crash, refuse or answer nonsense, and what happened."""
    failed: dict[str, str] = {}
    for name, answer in answers.items():
        if isinstance(answer, str):
            failed[name] = answer
        elif answer.shape != expected.shape:
            failed[name] = f"wrong answers: masks of shape {answer.shape} instead of {expected.shape}"
        elif (equal := float(np.mean(answer == expected))) < LEAST_AGREEMENT:
            failed[name] = f"wrong answers: {100 * equal:.1f} % of its labels are those of the FP32 graph"
    return failed


def _masks(engine: Engine, frames: Frames) -> Masks | str:
    try:
        with backends.open_engine(engine) as session:
            return np.concatenate([session.run(frame[None]) for frame in frames])
    except ModelError as error:
        return str(error)


def measured_accuracy(
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
