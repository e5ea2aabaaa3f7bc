"""What INT8 must reach, as data, and whether it did: from a document of benchmarks.quantization."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.recipes import RECIPES

LOST = {"onnxruntime": 0.3, "openvino": 0.3, "tensorrt": 0.5}  # points of mIoU, with default settings
FASTER_THAN_ENTROPY = 5.0
MEMORY = 0.05  # more at the largest number of frames than at the smallest
NNCF = {"onnxruntime": "nncf-onnx", "openvino": "nncf-openvino"}
NNCF_TITLES = {runtime: RECIPES[name].title for runtime, name in NNCF.items()}
ENTROPY = "ort-entropy"
OURS = "edgeseg"
FLOOR = "edgeseg, --max-miou-drop"


@dataclass(frozen=True, slots=True)
class Aim:
    """`met`: None where what was measured cannot tell."""

    what: str
    where: str
    wanted: str
    found: str
    met: bool | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def aims(document: Mapping[str, Any], floor: float, samples: int) -> list[Aim]:
    """All aims for one model, in the order of the table. `samples`: frames at which calibrations are compared."""
    rows = document["rows"]
    found = []
    for runtime, allowed in LOST.items():
        for row in (row for row in rows if row["runtime"] == runtime and _is_ours(row)):
            found.append(_lost("mIoU lost, default settings", row, allowed))
    found += [_lost(row["recipe"], row, floor) for row in rows if row["recipe"].startswith(FLOOR)]
    for runtime in NNCF:
        found += _speed([row for row in rows if row["runtime"] == runtime], runtime)
    return found + list(_costs(document["costs"], samples))


def _is_ours(row: Mapping[str, Any]) -> bool:
    return bool(row["recipe"] == OURS)


def _lost(what: str, row: Mapping[str, Any], allowed: float) -> Aim:
    wanted = f"≤ {allowed:g}"
    if "drop" not in row:
        return Aim(what, row["runtime"], wanted, row["failure"] or "no engine came out", False)
    lost = 100 * row["drop"]
    said = f"{lost:.2f}" + ("" if row["precision"] == "int8" else f", by handing over {row['precision'].upper()}")
    return Aim(what, row["runtime"], wanted, said, bool(lost <= allowed + 1e-9))


def _speed(rows: Sequence[Mapping[str, Any]], runtime: str) -> Iterator[Aim]:
    """Of the engine that our build hands over; what INT8 alone would be is told where it is another one."""
    int8 = next((row for row in rows if _is_ours(row)), None)
    if int8 is None:
        return
    builds = [row for row in rows if not row["recipe"].startswith(FLOOR)]
    final = next((row for row in builds if int8["chosen"] and row.get("engine") == int8["chosen"]), int8)
    peer = next((row for row in rows if row["recipe"].startswith(NNCF_TITLES[runtime])), None)
    for what, key, sign in (
        ("final engine not slower than FP32", "speed_fp32", "≥ 1x"),
        ("final engine faster than NNCF's default", "speed_nncf", "> 1x"),
    ):
        if key == "speed_nncf" and peer is None:
            continue
        speed, alone = final.get(key), int8.get(key)
        if speed is None:
            yield Aim(what, runtime, sign, final["failure"] or _why_not(key, peer), None)
            continue
        said = _said(speed)
        if final is not int8:
            said += f", handing over {final['precision'].upper()}" + (f"; INT8 {_said(alone)}" if alone else "")
        met = True if speed["low"] >= 1 else False if speed["high"] < 1 else None
        yield Aim(what, runtime, sign, said, met)


def _said(speed: Mapping[str, float]) -> str:
    return f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})"


def _why_not(key: str, peer: Mapping[str, Any] | None) -> str:
    if key == "speed_nncf" and peer is not None and "drop" not in peer:
        return f"NNCF's does not run: {peer['failure'] or 'no engine answers'}"
    return "too few rounds, or there is no such engine"


def _costs(rows: Sequence[Mapping[str, Any]], samples: int) -> Iterator[Aim]:
    """Ours is compared twice: taking ranges alone, and all that a build does until the INT8 file is there."""
    known = {row["way"]: row for row in rows}
    for runtime, peer in NNCF.items():
        mine = known.get(f"edgeseg-int8-{runtime}")
        if mine is None:
            continue
        for name, least in ((peer, 1.0), (ENTROPY, FASTER_THAN_ENTROPY)):
            other = known.get(name)
            if other is None or other["runtime"] != runtime:
                continue
            for what, step in (("ranges", "calibrate"), ("ranges, channels evened out, weights rounded", None)):
                times = seconds(mine, samples, step), seconds(other, samples)
                said = f"{samples} frames, {what}: beside {other['recipe']}"
                yield _times(said, runtime, *times, least, stopped(other, samples) or stopped(mine, samples))
        yield _memory(mine, runtime)


def seconds(row: Mapping[str, Any], frames: int, step: str | None = None) -> list[float]:
    """Of the runs that came to an end, or of one step of them; without the imports of the packages."""
    runs = [run for run in row["runs"] if run["frames"] == frames and run["run_s"] is not None]
    return [run["run_s"] if step is None else run["steps"][step] for run in runs]


def stopped(row: Mapping[str, Any], frames: int) -> str:
    """Why there is no time, in words; empty if there is one."""
    said = (run["failure"] for run in row["runs"] if run["frames"] == frames and run["failure"])
    return str(next(said, row["failure"]))


def _times(what: str, where: str, mine: Sequence[float], other: Sequence[float], least: float, why: str) -> Aim:
    wanted = f"≥ {least:g}x as fast"
    if not mine or not other:
        said = why or "not measured"
        return Aim(what, where, wanted, f"the other: {said}" if mine else f"ours: {said}", None)
    one, two = statistics.median(mine), statistics.median(other)
    # Medians of few runs: all pairs must say the same.
    pairs = [b / a for a in mine for b in other]
    met = True if min(pairs) >= least else False if max(pairs) < least else None
    return Aim(what, where, wanted, f"{one:.1f} s against {two:.1f} s, {two / one:.2f}x", met)


def _memory(row: Mapping[str, Any], where: str) -> Aim:
    peaks: dict[int, list[float]] = {}
    for run in row["runs"]:
        if run["peak_rss_mb"] is not None:
            peaks.setdefault(run["frames"], []).append(run["peak_rss_mb"])
    if len(peaks) < 2:
        return Aim("peak memory, by frames", where, f"within {100 * MEMORY:g} %", "measured for too few", None)
    few, many = min(peaks), max(peaks)
    low, high = statistics.median(peaks[few]), statistics.median(peaks[many])
    said = f"{low:.0f} MB at {few} frames, {high:.0f} MB at {many}: {100 * (high / low - 1):+.1f} %"
    return Aim("peak memory, by frames", where, f"within {100 * MEMORY:g} %", said, bool(high <= (1 + MEMORY) * low))
