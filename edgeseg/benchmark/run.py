"""`bench`: open bundles, measure them in turns by a scenario, write a document for each."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgeseg.benchmark.document import camera_of, latency_of, multi_stream_of
from edgeseg.benchmark.memory import memory_mb
from edgeseg.benchmark.offline import offline
from edgeseg.benchmark.opened import Opened, open_all
from edgeseg.benchmark.plan import Plan, Scenario
from edgeseg.benchmark.scenarios import WARMUP, Clock, Work, at_rate, in_turns
from edgeseg.benchmark.stability import Watch, stability
from edgeseg.console import Console
from edgeseg.data import load_dataset, pick, read
from edgeseg.errors import BadInput, need
from edgeseg.measure.latency import samples_needed, summarize
from edgeseg.measure.machine import machine, versions
from edgeseg.measure.monitor import Monitor
from edgeseg.measure.sensors import MachineSample
from edgeseg.types import Pixels

KINDS = ("engine", "whole")


def bench(
    bundles: str | Path | Sequence[str | Path],
    *,
    scenario: Scenario = "single-stream",
    seconds: float = 10.0,
    samples: int | None = None,
    limit: float | None = None,
    streams: int = 4,
    fps: float | None = None,
    deadline: float | None = None,
    roofline: bool = False,
    variant: str | None = None,
    threads: int = 0,
    frames: Sequence[Pixels] = (),
    clock: Clock = time.perf_counter_ns,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Measure bundles in turns: one document edgeseg.bench/2 for each.

    `scenario`: "single-stream": the next frame when the one before is done (p90). "multi-stream": `streams` frames at
    once, one of each stream, every 1 / `fps` s or, without `fps`, when the ones before are done; a latency is that of
    all of them (p99). "offline": frames a second when all are there. "camera": frames come `fps` times a second, the
    newest that waits is taken, and a mask is late `deadline` ms after its frame came (p99).

    Each bundle is measured for at least `seconds` and `samples` (by default what the scenario's percentile needs),
    unless `limit` seconds pass first: then the document says what is missing. `latency_ms`: from a frame of the
    network's size to its mask. `end_to_end_ms`: from a frame of the size that `frames` have, resizing included.
    Without `frames` (uint8 (H, W, 3), BGR) the bundle's own reference frames are used; never zeros. `cold_ms`: opening,
    and the first frame. `roofline`: afterwards, in runs of their own. Nothing is clipped. `size_mb`: the engine's
    files. `memory_mb`: what opening it and running frames takes, in a process of its own afterwards.

    Raises BadInput for numbers that do not go together, BundleError, ModelError, MissingOnMachine.
    """
    plan = Plan(scenario, seconds, samples, limit, streams, fps, deadline)
    paths = [bundles] if isinstance(bundles, str | Path) else list(bundles)
    if not paths:
        raise BadInput("wanted at least one bundle to measure, came none")
    console = console or Console()
    if roofline:
        need("onnx", extra="build", why="a roofline")  # now, not after minutes of measuring
    with ExitStack() as stack:
        opened = open_all(paths, stack, frames=frames, variant=variant, threads=threads, clock=clock)
        console.say(f"bench      {_announced(plan, len(opened))}")
        monitor = stack.enter_context(Monitor(clock=clock))
        documents = measure(opened, plan, clock=clock, sample=monitor.sample)
        if roofline:
            from edgeseg.benchmark.roofline import rooflines

            with console.step("roofline") as step:
                for document, found in zip(documents, rooflines(opened, say=console.say), strict=True):
                    document["roofline"] = found
                step.note = "this machine's peaks, then layer by layer, in runs of their own"
    for path, document in zip(paths, documents, strict=True):  # once all are closed: a small machine holds one
        document["memory_mb"] = memory_mb(path, document["variant"], threads)
    return documents


def measure(
    opened: Sequence[Opened],
    plan: Plan,
    *,
    clock: Clock,
    sleep: Callable[[float], object] = time.sleep,
    sample: Callable[[], MachineSample] | None = None,
) -> list[dict[str, Any]]:
    """The documents of engines that are open. `sample`: the machine now, asked between what is timed."""
    watch = Watch(sample, clock)
    watch()
    by_name = {str(number): one for number, one in enumerate(opened)}
    found = (_offline if plan.scenario == "offline" else _queries)(by_name, plan, clock, sleep, watch)
    run = secrets.token_hex(8)
    here, packages = machine(), versions()
    documents = []
    for name, one in by_name.items():
        part, took, ended = found[name]
        raw = part["samples_ms"]
        documents.append(
            {
                **one.head,
                "scenario": plan.scenario,
                "run": run,
                # Whether sample i of one document of this run belongs to sample i of another; not by a clock.
                "paired": plan.rate is None,
                "percentile": plan.percentile,
                "wanted": {"seconds": plan.seconds, "samples": plan.least, "limit_s": plan.limit_s},
                "lacking": _lacking(plan, raw),
                "warmup": WARMUP,
                "threads": one.threads,
                "multi_stream": None,
                "offline": None,
                "camera": None,
                "roofline": None,
                **part,
                "frame_size": list(one.frames[0].shape[:2]),
                "samples": len(raw["engine"]),
                "slowdown": stability([round(ns) for ns in took], ended, watch.seen),
                "machine": here if one.gpu is None else here | {"gpu": one.gpu},
                "versions": packages,
            }
        )
    return documents


def frames_from(data: str | Path, split: str, count: int = 16) -> list[Pixels]:
    """Frames at their own size, BGR, spread over a split: to time with."""
    frames = load_dataset(data).split(split)
    return [sample.pixels for sample in read(frames, pick(len(frames), count), labels=False)]


# By name: a part of its document; how long the engine took, query after query, in ns; and when each of these ended.
Found = dict[str, tuple[dict[str, Any], Sequence[float], Sequence[int]]]


def _queries(
    opened: Mapping[str, Opened], plan: Plan, clock: Clock, sleep: Callable[[float], object], watch: Watch
) -> Found:
    """Single stream, multi-stream, camera."""
    count = plan.streams if plan.scenario == "multi-stream" else 1
    runs: dict[str, Work] = {}
    for name, one in opened.items():
        runs |= dict(zip((f"{name}/{kind}" for kind in KINDS), one.works(count), strict=True))
    until = plan.until(len(opened))
    if plan.rate is None:
        turns = in_turns(runs, until, clock=clock, after=watch)
        both = {name: {kind: turns.samples[f"{name}/{kind}"] for kind in KINDS} for name in opened}
        return {name: (_closed(plan, both[name], count), both[name]["engine"], turns.ended) for name in opened}
    camera = plan.scenario == "camera"
    came = at_rate(runs, until, fps=plan.rate, latest=camera, clock=clock, sleep=sleep, after=watch)
    found: Found = {}
    for name in opened:
        arrivals = {kind: came[f"{name}/{kind}"] for kind in KINDS}
        samples = {kind: arrivals[kind].latency for kind in KINDS}
        part = latency_of(samples)
        if camera:
            part |= {"camera": camera_of(arrivals, plan)}
            part["fps"] = plan.rate * len(samples["engine"]) / arrivals["engine"].arrived
        else:
            part |= {"multi_stream": multi_stream_of(plan, {kind: arrivals[kind].service for kind in KINDS})}
            part["fps"] = part["multi_stream"]["engine"]["frames_per_second"]
        found[name] = (part, arrivals["engine"].service, arrivals["engine"].ended)
    return found


def _closed(plan: Plan, samples: dict[str, list[int]], count: int) -> dict[str, Any]:
    part = latency_of(samples)
    part["fps"] = 1000.0 * count / part["latency_ms"]["mean"]
    if plan.scenario == "multi-stream":
        part["multi_stream"] = multi_stream_of(plan, samples)
    return part


def _offline(
    opened: Mapping[str, Opened], plan: Plan, clock: Clock, sleep: Callable[[float], object], watch: Watch
) -> Found:
    with ExitStack() as stack:
        samples, said, ended = offline(opened, plan.until(len(opened)), stack=stack, clock=clock, after=watch)
    why = "offline states throughput: how long a frame waited says nothing when all were there from the start"
    nothing: dict[str, Any] = {**dict.fromkeys(summarize([1]).to_json()), "count": 0}
    nothing["reasons"] = dict.fromkeys(("p50", "p90", "p99"), why)
    return {
        name: (
            {
                "latency_ms": nothing,
                "end_to_end_ms": nothing,
                "fps": said[name]["engine"]["frames_per_second"],
                "samples_ms": {kind: [round(ns / 1e6, 4) for ns in samples[name][kind]] for kind in KINDS},
                "offline": said[name],
                "warmup": 2,  # pieces of a run: to find out how long one takes
            },
            samples[name]["engine"],
            ended,
        )
        for name in opened
    }


def _lacking(plan: Plan, samples_ms: Mapping[str, Sequence[float]]) -> dict[str, dict[str, int]]:
    """What a limit, or few `samples`, left undone: percentile → how many samples it needs, and how many there are."""
    have = min(len(samples_ms[kind]) for kind in KINDS)
    needed = samples_needed(plan.percentile)
    return {f"p{100 * plan.percentile:g}": {"needed": needed, "have": have}} if have < needed else {}


def _announced(plan: Plan, count: int) -> str:
    limit = "" if plan.limit_s is None else f", at most {plan.limit_s:g} s"
    turns = ", taking turns" if count > 1 else ""
    clock = f" at {plan.rate:g} a second" if plan.rate else ""
    several = f" of {plan.streams} streams" if plan.scenario == "multi-stream" else ""
    return (
        f"{count} bundle(s), {plan.scenario}{several}{clock}: at least {plan.seconds:g} s and {plan.least} samples "
        f"each{limit}{turns}"
    )
