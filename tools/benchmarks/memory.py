"""Peak memory while calibrating, by the number of frames; each figure from a child process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import Outcome, missing, run
from benchmarks.peers import export, prepare, say
from benchmarks.recipes import CALIBRATION, RECIPES, Job

NAMES = ("edgeseg-calibrate", "ort-minmax", "ort-entropy", "nncf-onnx", "nncf-openvino-mixed")
FLAT_MB = 32.0  # between the smallest and the largest number of frames: the noise of allocators


def measure(
    model: Path, spec: Path | None, data: Path, split: str, samples: Sequence[int], limit_gb: float, work: Path
) -> dict[str, Any]:
    """Rows of recipe and peak RSS in MiB for each number of frames, or in words why there is none."""
    setup = prepare(work, model, spec, data, split, max(samples), quick=True)
    say("export ...")
    graph, _ = export(setup)
    rows = []
    for name in NAMES:
        recipe = CALIBRATION if name == "edgeseg-calibrate" else RECIPES[name]
        title = recipe.title if name == "edgeseg-calibrate" else f"{recipe.title} ({recipe.backend})"
        found: list[dict[str, Any]] = []
        for count in sorted(samples):
            if count > setup.count:
                done = Outcome(0.0, failure=f"only {setup.count} frames")
            elif absent := missing(recipe.needs):
                done = Outcome(0.0, failure=absent)
            else:
                say(f"{title}, {count} frames ...")
                folder = str(work / f"{name}-{count}")
                done = run(Job(name, folder, str(graph), str(setup.frames), count, limit_gb))
            peak = done.peak_rss_mb
            found.append({"frames": count, "peak_rss_mb": peak, "failure": done.failure, "seconds": done.seconds})
        rows.append({"recipe": title, "peaks": found, "mb_per_frame": growth(found)})
    return {"schema": "edgeseg.memory/1", "model": setup.spec.name, "limit_gb": limit_gb, "rows": rows}


def growth(peaks: Sequence[dict[str, Any]]) -> float | None:
    """MiB for each further frame, between the smallest and the largest number that was measured."""
    known = [(p["frames"], p["peak_rss_mb"]) for p in peaks if p["peak_rss_mb"] is not None]
    if len(known) < 2:
        return None
    (first, low), (last, high) = known[0], known[-1]
    return float((high - low) / (last - first))


def verdict(row: dict[str, Any]) -> str:
    """Whether our own memory is what it should be: the same for any number of frames."""
    known = [(p["frames"], p["peak_rss_mb"]) for p in row["peaks"] if p["peak_rss_mb"] is not None]
    if len(known) < 2:
        return "edgeseg: predicted flat; found too little to tell"
    (first, low), (last, high) = known[0], known[-1]
    held = "as predicted" if abs(high - low) <= FLAT_MB else "NOT as predicted"
    return (
        f"edgeseg: predicted {low:.0f} MB at {last} frames as at {first} (one frame at a time, statistics of fixed "
        f"size); found {high:.0f} MB, {high - low:+.0f} MB: {held}"
    )
