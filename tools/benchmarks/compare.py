"""How often `edgeseg compare` alarms where nothing changed, and how often it finds what did.

Latencies are simulated as they come: a lognormal around a level that drifts (an autoregression that both engines share,
as neighbours and heat hit both) and jumps (another program for some dozens of rounds), with a slow tail. Frames are
simulated as a video: each class has an area and a quality that wander from frame to frame, most of it alike for both
engines. Or windows are taken from a real interleaved run of one engine with itself (`windows`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.compare import compare
from edgeseg.errors import BadInput

CLASSES = ("sky", "building", "road", "tree", "car", "sign", "pedestrian", "pole")
_AREAS = np.array([0.12, 0.28, 0.3, 0.17, 0.06, 0.02, 0.03, 0.02])
_QUALITY = np.array([0.96, 0.88, 0.97, 0.93, 0.8, 0.4, 0.5, 0.25])
_PIXELS = 480 * 360
_MACHINE = {"cpu": "simulated", "architecture": "x86_64", "cores_usable": 4.0, "isa": [], "memory_mb": 1}
_VERSIONS = {"edgeseg": "0"}
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """What came of many comparisons."""

    trials: int
    worse: int  # verdicts "worse" on the metric that was changed, or, with nothing changed, on any
    failed: int  # gates, exit code 1
    unknown: int  # exit code 4


def latencies(chance: np.random.Generator, count: int, engines: int, *, shared: bool) -> list[Array]:
    """Milliseconds of each engine, one a round; `shared`: they took turns, so drift and jumps hit them alike."""

    def place() -> Array:
        drift = wander(chance, count, 0.98, 0.04)
        busy = (chance.random(count) < 0.01).astype(float)
        # A neighbour stays for 20 rounds on average.
        stays = np.convolve(busy, np.exp(-np.arange(60) / 20))[:count]
        return drift + 0.15 * np.minimum(stays, 1.0)

    level = place() if shared else None
    found = []
    for _ in range(engines):
        own = chance.normal(0, 0.04, count) + np.where(chance.random(count) < 0.03, chance.exponential(0.4, count), 0)
        run = chance.normal(0, 0.003 if shared else 0.04)  # what differs between two openings, or two runs
        found.append(20.0 * np.exp((place() if level is None else level) + own + run))
    return found


def bench_document(samples: Array, run: str, *, paired: bool) -> dict[str, Any]:
    """A document edgeseg.bench/2 with the parts that a comparison reads."""
    from edgeseg.measure.latency import summarize

    kept = [round(float(ms), 4) for ms in samples]
    summary = summarize([round(ms * 1e6) for ms in kept]).to_json()
    return {
        "schema": "edgeseg.bench/2",
        "bundle": "net",
        "path": "net.edgeseg",
        "graph": "g",
        "variant": "int8",
        "backend": "none",
        "precision": "int8",
        "settings": {},
        "cold_ms": {"open": 100.0, "first_frame": 30.0},
        "scenario": "single-stream",
        "run": run,
        "paired": paired,
        "frames_digest": "f",
        "latency_ms": summary,
        "end_to_end_ms": summary,
        "fps": 1000 / summary["mean"],
        "samples_ms": {"engine": kept, "whole": kept},
        **dict.fromkeys(("slowdown", "roofline", "multi_stream", "offline", "camera")),
        "frame_size": [360, 480],
        "samples": len(kept),
        "machine": _MACHINE,
        "versions": _VERSIONS,
    }


def counts(chance: np.random.Generator, frames: int, loss: float) -> list[NDArray[np.int64]]:
    """Counts (3, N, C) of two engines; the second loses `loss` points of every class's IoU, give or take a frame."""
    area = _AREAS * np.exp(np.stack([wander(chance, frames, 0.95, 0.5) for _ in CLASSES], axis=-1))
    area *= chance.random((1, len(CLASSES))) * 0.4 + 0.8
    area = area / area.sum(axis=1, keepdims=True) * _PIXELS
    hard = np.stack([wander(chance, frames, 0.95, 0.4) for _ in CLASSES], axis=-1)
    found = []
    for lost in (0.0, loss / 100):
        # Rounding to INT8 moves each frame a little, and neighbours alike.
        own = np.stack([wander(chance, frames, 0.8, 0.06) for _ in CLASSES], axis=-1)
        share = 1 / (1 + np.exp(-(np.log(_QUALITY / (1 - _QUALITY)) + hard + own)))
        share = np.clip(share - lost, 0.0, 1.0)
        hit = area * 2 * share / (1 + share)  # as many pixels too many as too few: IoU = hit / (2 area - hit)
        tp = np.round(hit).astype(np.int64)
        missed = np.round(area).astype(np.int64) - tp
        found.append(np.stack([tp, missed, missed]))
    return found


def eval_document(found: NDArray[np.int64], sequences: int = 4) -> dict[str, Any]:
    """A document edgeseg.eval/2 with the parts that a comparison reads."""
    tp, fp, fn = found.sum(axis=1)
    each, twice = tp / (tp + fp + fn), 2 * tp / (2 * tp + fp + fn)
    count = found.shape[1]
    kept = {key: side.tolist() for key, side in zip(("tp", "fp", "fn"), found, strict=True)}
    nothing = dict.fromkeys(("miou", "pixel_accuracy"))
    places = [str(i * sequences // count) for i in range(count)]
    return {
        "schema": "edgeseg.eval/2",
        "bundle": "net",
        "variant": "int8",
        "precision": "int8",
        "data": {"name": "simulated", "split": "val", "digest": "d"},
        "miou": float(each.mean()),
        "pixel_accuracy": float(tp.sum() / (tp + fn).sum()),
        "dice": float(twice.mean()),
        "iou": dict(zip(CLASSES, map(float, each), strict=True)),
        "dice_per_class": dict(zip(CLASSES, map(float, twice), strict=True)),
        "frequency": dict(zip(CLASSES, map(float, (tp + fn) / (tp + fn).sum()), strict=True)),
        "frames": count,
        "skipped": [],
        "per_frame": {"names": [f"{i:05d}" for i in range(count)], "sequences": places, **kept},
        "intervals": {"level": 0.95, "resamples": 1, "block": 1, **nothing, "iou": {"sky": None}},
        "sequences": [{"name": "all", "frames": count, "miou": None}],
        "boundary": {"1": {**nothing, "iou": {"sky": None}, "pixels": 0}},
        "confusion": [[1]],
        "worst_frames": [{"name": "00000", "miou": 0.5, "pixel_accuracy": 0.5}],
        "machine": _MACHINE,
        "versions": _VERSIONS,
    }


def paired_latency(seed: int, slower: float, rounds: int = 300) -> tuple[Any, Any]:
    """Two engines that took turns, the second `slower` (1.05 for 5 %)."""
    a, b = latencies(np.random.default_rng(seed), rounds, 2, shared=True)
    return bench_document(a, "r", paired=True), bench_document(b * slower, "r", paired=True)


def single_latency(seed: int, slower: float, rounds: int = 300) -> tuple[Any, Any]:
    """Two engines, each in a run of its own."""
    a, b = latencies(np.random.default_rng(seed), rounds, 2, shared=False)
    return bench_document(a, "r", paired=True), bench_document(b * slower, "s", paired=True)


def repeated_latency(seed: int, slower: float, rounds: int = 300, runs: int = 5) -> tuple[Any, Any]:
    """Two engines, each in several runs of its own."""
    found = latencies(np.random.default_rng(seed), rounds, 2 * runs, shared=False)
    made = [bench_document(one * (slower if i >= runs else 1), str(i), paired=True) for i, one in enumerate(found)]
    return made[:runs], made[runs:]


def video(seed: int, loss: float, frames: int = 400) -> tuple[Any, Any]:
    """Two engines on the same frames, the second worse by `loss` points."""
    a, b = counts(np.random.default_rng(seed), frames, loss)
    return eval_document(a), eval_document(b)


def windows(path: Path, rounds: int, trials: int, slower: float) -> Iterator[tuple[Any, Any]]:
    """Documents of `rounds` rounds from the first two of one real interleaved run, the second side slowed.

    Windows begin anywhere and overlap, and either engine may be the second.
    """
    first, second = json.loads(path.read_text(encoding="utf-8"))[:2]
    if first["run"] != second["run"] or not (first["paired"] and second["paired"]):
        raise BadInput(f"{path}: wanted two engines that took turns in one call of edgeseg bench")
    both = np.array([one["samples_ms"]["engine"] for one in (first, second)], np.float64)
    if both.shape[1] < rounds:
        raise BadInput(f"{path}: wanted at least {rounds} rounds, came {both.shape[1]}; name fewer with --rounds.")
    chance = np.random.default_rng(0)
    for _ in range(trials):
        at = chance.integers(0, both.shape[1] - rounds + 1)
        a, b = both[:: chance.choice((-1, 1)), at : at + rounds]
        yield bench_document(a, "r", paired=True), bench_document(b * slower, "r", paired=True)


def score(cases: Iterator[tuple[Any, Any]], metric: str | None) -> Score:
    """Compare each pair through files, as a user would. `metric`: that was changed; None: nothing was."""
    trials = worse = failed = unknown = 0
    with tempfile.TemporaryDirectory(prefix="edgeseg-compare-") as name:
        paths = [Path(name) / "base.json", Path(name) / "new.json"]
        for pair in cases:
            for path, document in zip(paths, pair, strict=True):
                path.write_text(json.dumps(document), encoding="utf-8")
            found = compare(paths[0], paths[1])
            rows = [one for group in found["groups"] for one in group["metrics"] if metric in (None, one["name"])]
            trials += 1
            worse += any(one["verdict"] == "worse" for one in rows)
            failed += found["exit_code"] == 1
            unknown += found["exit_code"] == 4
    return Score(trials, worse, failed, unknown)


def measure(trials: int, path: Path | None, rounds: int, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """A row for each case; `path`: a real run of one engine twice, of which windows of `rounds` are taken."""
    ways: list[tuple[str, Callable[[int, float], tuple[Any, Any]], float, str, Sequence[float]]] = [
        ("latency, paired", paired_latency, 1.0, "latency.p50", (1.05, 1.10)),
        ("latency, one run each", single_latency, 1.0, "latency.p50", (1.05, 1.60)),
        ("latency, 5 runs each", repeated_latency, 1.0, "latency.p50", (1.05, 1.20)),
        ("accuracy, same frames", video, 0.0, "miou", (0.5, 1.0)),
    ]
    rows = []
    for what, make, nothing, metric, changes in ways:
        for change in (nothing, *changes):
            many = 2 * trials if change == nothing else trials
            say(f"{what}, {change:g}: {many} comparisons")
            found = score((make(seed, change) for seed in range(many)), None if change == nothing else metric)
            rows.append(_row(what, metric, change, found))
    if path is not None:
        for slower in (1.0, 1.05, 1.10):
            many = 2 * trials if slower == 1.0 else trials
            say(f"real, {slower:g}: {many} comparisons")
            found = score(windows(path, rounds, many, slower), None if slower == 1.0 else "latency.p50")
            rows.append(_row(f"latency, real paired run, {rounds} rounds", "latency.p50", slower, found))
    return rows


def _row(what: str, metric: str, change: float, found: Score) -> dict[str, Any]:
    if change == (1.0 if metric == "latency.p50" else 0.0):
        true = "nothing"
    else:
        true = f"{100 * (change - 1):+.0f} %" if metric == "latency.p50" else f"{-change:+.1f} points"
    return {
        "case": what,
        "true": true,
        "trials": found.trials,
        "worse": found.worse,
        "failed": found.failed,
        "unknown": found.unknown,
    }


def wander(chance: np.random.Generator, count: int, memory: float, spread: float) -> Array:
    """A stationary autoregression of first order (N,) with that standard deviation."""
    steps = chance.normal(0, spread * np.sqrt(1 - memory**2), count)
    found = np.empty(count)
    value = chance.normal(0, spread)
    for i, step in enumerate(steps):
        value = memory * value + step
        found[i] = value
    return found
