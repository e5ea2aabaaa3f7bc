"""What going from frames to an INT8 file costs: seconds and peak memory, each from a child process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import missing, run
from benchmarks.peers import Setup, say
from benchmarks.recipes import EVERY, INT8, Job, Recipe

COSTS = (*INT8, "nncf-onnx", "nncf-openvino", "ort-entropy", "modelopt-entropy")


@dataclass(frozen=True, slots=True)
class Effort:
    """`repeats`: children in turns with `samples` frames; for each number in `memory` there is one more."""

    samples: int
    memory: tuple[int, ...]
    repeats: int
    limit_gb: float  # of address space
    limit_s: float
    modelopt: str  # an interpreter that has nvidia-modelopt


def costs(
    setup: Setup, graph: Path, indices: Sequence[int], names: Sequence[str], effort: Effort
) -> list[dict[str, Any]]:
    """Seconds and peak memory of children that go from frames to an INT8 file, in turns, by the number of frames."""
    plan = [(effort.samples, turn) for turn in range(effort.repeats)]
    plan += [(count, 0) for count in effort.memory if count != effort.samples]
    pythons = {name: interpreter(EVERY[name], effort.modelopt) for name in names}
    rows: list[dict[str, Any]] = [
        {
            "way": name,
            "recipe": EVERY[name].title,
            "runtime": EVERY[name].backend,
            "failure": pythons[name][1],
            "runs": [],
        }
        for name in names
    ]
    for count, turn in plan:
        for row in rows:
            if not row["failure"]:
                say(f"{row['recipe']} for {row['runtime']}, {count} frames ...")
                python, _ = pythons[row["way"]]
                row["runs"].append(_cost(row["way"], setup, graph, indices, effort, count, turn, python))
    return rows


def _cost(
    name: str, setup: Setup, graph: Path, indices: Sequence[int], effort: Effort, count: int, turn: int, python: str
) -> dict[str, Any]:
    if count > len(indices):
        return {"frames": count, "failure": f"only {len(indices)} frames", "run_s": None, "peak_rss_mb": None}
    cut = setup.work / "cut.onnx"
    took = cut if (setup.work / f"{name}-whole").exists() else graph  # the whole graph was refused before
    folder = str(setup.work / f"cost-{name}-{count}-{turn}")
    job = Job(name, folder, str(took), str(setup.frames), count, effort.limit_gb, setup.build, tuple(indices))
    done = run(job, timeout_s=effort.limit_s, python=python)
    say(f"  {done.failure or '{:.1f} s'.format(done.said['run_s'])}")
    return {
        "frames": count,
        "failure": done.failure,
        "seconds": done.seconds,
        "run_s": done.said.get("run_s"),
        "peak_rss_mb": done.peak_rss_mb,
        "steps": done.said.get("steps"),
    }


def interpreter(recipe: Recipe, modelopt: str) -> tuple[str, str]:
    """The Python that runs a recipe, and what it lacks in words; empty if nothing."""
    if recipe.needs != ("modelopt",):
        return sys.executable, missing(recipe.needs)
    command = [modelopt, "-c", "import modelopt.onnx.quantization"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return modelopt, f"no Python at {modelopt}: {error.strerror}"
    if found.returncode == 0:
        return modelopt, ""
    last = (found.stderr.strip().splitlines() or ["no word"])[-1][:120]
    return modelopt, f"not installed ({last}): pip install 'nvidia-modelopt[onnx]' in a Python of its own, --modelopt"
