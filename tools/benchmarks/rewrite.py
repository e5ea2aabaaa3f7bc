"""Rewriting next to pruning and decompositions: the same network, frames, budgets, and minutes of learning for all.

Ours is `edgeseg rewrite` without timed layers, budgets being shares of the multiplications; the peers are in
rewrite_peers. One counter counts for all, one pass over the labelled frames judges all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.child import missing
from benchmarks.rewrite_making import Clock, Made, guarded, reason, start_of
from benchmarks.rewrite_peers import PEERS
from edgeseg import distill, intake
from edgeseg.console import Console
from edgeseg.data import Dataset, fit, load_dataset, pick, read
from edgeseg.distill import Distillation, LabelLoss, Progress
from edgeseg.evaluation import class_names
from edgeseg.export.reference import torch_reference
from edgeseg.measure.confusion import scores
from edgeseg.measure.evaluate import Accuracy, evaluate
from edgeseg.measure.machine import peak_rss_mb
from edgeseg.pipeline.rewriting.students import Work, prepare, student
from edgeseg.pipeline.rewriting.wish import Budget, Wish
from edgeseg.rewrite.network import Network, macs_of
from edgeseg.spec import spec_for
from edgeseg.types import ModelSpec, Pixels, Torch

OURS = "edgeseg"
ORIGINAL = "original"
# How a network learns: the first way is ours and everybody's. The others are for what starts far from the original.
TRIES: tuple[dict[str, Any], ...] = ({}, {"learning_rate": 1e-3, "norm": "updating"})


@dataclass(frozen=True, slots=True)
class Setting:
    """What is compared, and on what."""

    model: Path
    spec: ModelSpec  # with the names of the classes
    dataset: Dataset
    fit_split: str
    eval_split: str
    shares: tuple[float, ...]
    samples: int = 48
    eval_frames: int = 500
    methods: tuple[str, ...] = (OURS, *PEERS)
    seeds: int = 1
    minutes: float = 0.0
    peer_tries: int = 2
    threads: int = 1


@dataclass(slots=True)
class Bench:
    """What there is so far: the original, and all that was made of it."""

    setting: Setting
    works: dict[int, Work] = field(default_factory=dict)  # by seed
    prepared_s: dict[int, dict[str, float]] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    peak_mb: float | None = None
    original: Accuracy | None = None


def say(text: str) -> None:
    click.echo(text, err=True)


def setting_of(model: Path, spec: Path | None, data: Path, **words: Any) -> Setting:
    """Raises SpecError, DatasetError."""
    read_spec, dataset = spec_for(model, spec), load_dataset(data)
    names = class_names(read_spec, dataset)
    return Setting(
        model=model,
        spec=replace(read_spec, output=replace(read_spec.output, classes=names)),
        dataset=dataset,
        **words,
    )


# Making


def zero_shot(setting: Setting) -> Bench:
    """Networks by every method at every share, without learning; ours first, so that the peak of memory is ours."""
    bench = Bench(setting)
    with threads(setting.threads):
        for seed in range(setting.seeds):
            bench.made += _ours(bench, seed, keep=OURS in setting.methods)
        bench.peak_mb = peak_rss_mb()
        bench.made += _peers(bench)
    bench.made = _in_order(bench.made)
    return bench


def _ours(bench: Bench, seed: int, *, keep: bool) -> list[Made]:
    setting = bench.setting
    say(f"\n{OURS}, seed {seed}")
    console, clock = Console(quiet=False), Clock()
    work = prepare(
        setting.model,
        setting.spec,
        setting.dataset,
        setting.fit_split,
        wish := Wish(Budget("macs", 1.0), samples=setting.samples, timed=False, seed=seed),
        trust_pickle=False,
        console=console,
    )
    wall, cpu = clock.read()
    bench.works[seed], bench.prepared_s[seed] = work, {**console.seconds, "wall_s": wall, "cpu_s": cpu}
    found = []
    for share in setting.shares if keep else ():

        def make(made: Made, share: float = share) -> Made:
            told, clock = Console(quiet=False), Clock(wall, cpu)
            new = student(work, Budget("macs", share), wish, times=None, console=told)
            reached = macs_of(new.network, work.spec.input.size) / work.whole.macs
            took, used = clock.read()
            note = f"{len(new.chosen.choices)} of {len(work.layers)} layers rewritten" + (f", {new.variant}")
            made = replace(made, network=new.network, share=reached, parts_s=told.seconds, note=note)
            return replace(made, wall_s=took, cpu_s=used)

        found.append(_told(guarded(Made(OURS, share, seed), make)))
    return found


def _peers(bench: Bench) -> list[Made]:
    """None of them draws anything at random: each is made once, for all seeds."""
    setting = bench.setting
    found: list[Made] = []
    wanted = [name for name in setting.methods if name in PEERS]
    if not wanted:
        return found
    start = start_of(_source(setting), bench.works[0])
    for name in wanted:
        title, needs, method = PEERS[name]
        say(f"\n{title}")
        done: list[Made] = []
        failure = missing(needs)
        if not failure:
            try:
                for made in method(start, setting.shares):
                    done.append(_told(made))
            except Exception as error:  # other people's libraries can raise anything
                failure = reason(error)
                say(f"  {failure}")
        if failure:
            have = {made.asked for made in done}
            done += [Made(title, share, failure=failure) for share in setting.shares if share not in have]
        found += done
    return found


def _told(made: Made) -> Made:
    share = "" if made.share is None else f"{made.share:.3f} of the operations, {made.wall_s:.1f} s; "
    say(f"  {made.asked if made.asked is not None else ''}: {made.failure or share + made.note}")
    return made


def _in_order(made: Sequence[Made]) -> list[Made]:
    def place(one: Made) -> tuple[float, bool]:
        return -(one.asked if one.asked is not None else one.share or 0.0), one.method != OURS

    return sorted(made, key=place)


def _source(setting: Setting) -> Torch:
    source = intake.load(setting.model, setting.spec, trust_pickle=False)
    assert isinstance(source, Torch)  # prepare() has seen to it
    return source


# Judging


def judged(bench: Bench, made: Sequence[Made]) -> list[Accuracy | None]:
    """Accuracy of each network on the labelled frames, in one pass over them; None for those that failed."""
    setting = bench.setting
    spec = setting.spec
    split = setting.dataset.split(setting.eval_split)
    reading = read(split, pick(len(split), setting.eval_frames), color=spec.input.frame)
    runs: dict[str, Callable[[Pixels], Any]] = {ORIGINAL: torch_reference(_source(setting), spec)}
    for number, one in enumerate(made):
        if one.network is not None:
            runs[str(number)] = torch_reference(Torch(one.network, "pickle"), spec)
    say(f"\njudging {len(runs)} networks on {len(reading.indices)} frames of '{setting.eval_split}'")
    console = Console(quiet=False)
    with threads(setting.threads):
        found = evaluate(
            runs,
            _ticking(reading, len(reading.indices), console),
            prepare=lambda pixels: fit(pixels, spec.input.size, spec.input.resize),
            classes=max(2, len(spec.output.classes)),
            ignore_index=setting.dataset.ignore_index,
        )
    bench.original = found[ORIGINAL]
    return [found.get(str(number)) for number in range(len(made))]


def _ticking(reading: Any, total: int, console: Console) -> Iterator[Any]:
    for number, sample in enumerate(reading):
        if number % max(1, total // 10) == 0:
            console.status(f"           {number} of {total} frames")
        yield sample
    console.status("")


def miou(setting: Setting, accuracy: Accuracy) -> float:
    return scores(accuracy.matrix, setting.spec.output.classes).miou


# Learning


def recovered(bench: Bench, on_each: Callable[[Made], object] = lambda made: None) -> list[Made]:
    """Every network after equal learning from the original, on equal frames, judged by the same frames held out."""
    setting = bench.setting
    work = bench.works[0]
    frames = _frames(setting, work)
    output = setting.spec.output
    found = []
    todo = [(one, seed) for one in bench.made for seed in (range(setting.seeds) if one.method != OURS else [one.seed])]
    with threads(setting.threads):
        for number, (one, seed) in enumerate(todo):
            say(f"\nlearning, {number + 1} of {len(todo)}: {one.method}, {_asked(one)}, seed {seed}")
            if one.network is None:
                found.append(replace(one, seed=seed))
                continue
            tries = TRIES[: 1 if one.method == OURS else setting.peer_tries]
            options = Distillation(
                minutes=setting.minutes,
                seed=seed,
                output=output.index,
                probabilities=output.activation == "probabilities",
                threshold=output.threshold,
                align_corners=output.align_corners,
                labels=LabelLoss(ignore_index=setting.dataset.ignore_index),
            )

            def learn(
                made: Made,
                seed: int = seed,
                tries: Sequence[Mapping[str, Any]] = tries,
                options: Distillation = options,
            ) -> Made:
                return _learned(
                    replace(made, seed=seed), bench.works[seed], frames, [replace(options, **t) for t in tries]
                )

            new = guarded(replace(one, seed=seed), learn)
            if new.failure:
                new.network = None
            say(f"  {new.failure or new.note}")
            found.append(new)
            on_each(new)
    return found


def _learned(made: Made, work: Work, frames: Sequence[Pixels], ways: Sequence[Distillation]) -> Made:
    """The best of several ways to learn, by the frames held out."""
    best: tuple[float, Network, str] | None = None
    clock, notes = Clock(), []
    for options in ways:
        console = Console(quiet=False)

        def told(progress: Progress, console: Console = console) -> None:
            if progress.score is not None:
                console.status(
                    f"           {100 * progress.fraction:.0f} %, step {progress.step}: "
                    f"{100 * progress.score.agreement:.2f} % mean IoU with the original's decisions"
                )

        done = distill.distill(
            work.teacher,
            made.network,  # type: ignore[arg-type]  # there is one: see recovered()
            frames,
            options,
            prepare=distill.preparation(work.spec.input),
            held_out=work.held.frames,
            on_progress=told,
        )
        console.status("")
        assert isinstance(done.student, Network)
        near = max(done.before.agreement, done.after.agreement)
        notes.append(
            f"{options.learning_rate:g}, norms {options.norm}: {done.steps} steps, held out "
            f"{100 * done.before.agreement:.1f} → {100 * done.after.agreement:.1f} %, kept {done.kept}"
        )
        if best is None or near > best[0]:
            best = near, done.student, notes[-1]
    assert best is not None
    wall, cpu = clock.read()
    share = macs_of(best[1], work.spec.input.size) / work.whole.macs
    return replace(made, network=best[1], share=share, note="; ".join(notes), wall_s=wall, cpu_s=cpu)


def _frames(setting: Setting, work: Work) -> list[Pixels]:
    """All frames of the split but those held out, as `edgeseg rewrite --distill` takes them."""
    split = setting.dataset.split(setting.fit_split)
    left = [index for index in range(len(split)) if index not in work.held_indices]
    height, width = setting.spec.input.size
    some = [left[k] for k in pick(len(left), min(len(left), max(1, (2 << 30) // (height * width * 3))))]
    reading = read(split, some, color=setting.spec.input.frame, labels=False)
    return [fit(sample.pixels, setting.spec.input.size, setting.spec.input.resize) for sample in reading]


def _asked(made: Made) -> str:
    return "its one share" if made.asked is None else f"{made.asked:g}"


# Tables


def rows_of(bench: Bench, made: Sequence[Made], accuracy: Sequence[Accuracy | None]) -> list[dict[str, Any]]:
    """One row for a method and share, in the order they came: the values of all seeds, or why there are none."""
    assert bench.original is not None
    whole = miou(bench.setting, bench.original)
    groups: dict[tuple[str, float | None], list[tuple[Made, Accuracy | None]]] = {}
    for one, seen in zip(made, accuracy, strict=True):
        groups.setdefault((one.method, one.asked), []).append((one, seen))
    rows = []
    for (method, asked), members in groups.items():
        good = [(one, seen) for one, seen in members if seen is not None]
        values = [miou(bench.setting, seen) for _, seen in good]
        rows.append(
            {
                "method": method,
                "asked": asked,
                "failure": "; ".join(dict.fromkeys(one.failure for one, _ in members if one.failure)),
                "miou": values,
                "drop": whole - statistics.fmean(values) if values else None,
                "agreement": [seen.agreement.overall for _, seen in good],
                "share": [one.share for one, _ in good],
                "wall_s": [one.wall_s for one, _ in good],
                "cpu_s": [one.cpu_s for one, _ in good],
                "parts_s": [one.parts_s for one, _ in good],
                "notes": [one.note for one, _ in members if one.note],
            }
        )
    return rows


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many for torch meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
