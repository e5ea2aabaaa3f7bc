"""Run a recipe in a child process of its own: its wall time, its peak memory, and how it failed if it did."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.recipes import Job

ROOT = Path(__file__).resolve().parents[2]
_OUT_OF_MEMORY = re.compile(r"MemoryError|bad_alloc|Unable to allocate|[Cc]annot allocate|Failed to allocate", re.M)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`failure` is empty where the recipe worked. `seconds`: the whole child, interpreter and imports included."""

    seconds: float
    peak_rss_mb: float | None = None
    failure: str = ""
    said: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def missing(needs: tuple[str, ...]) -> str:
    """Which packages are not here, in words; empty if all are."""
    absent = [name for name in needs if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def run(job: Job, *, cache: Path | None = None, timeout_s: float = 1800.0, python: str = sys.executable) -> Outcome:
    """Run a job to its end in `job.folder`, which is made; `cache` is the child's EDGESEG_CACHE.

    `python`: another interpreter, for a peer whose dependencies do not go with ours; it needs NumPy and click besides.
    """
    folder = Path(job.folder)
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    path = os.pathsep.join((str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")))
    surroundings = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    surroundings["EDGESEG_CACHE"] = str(cache or folder / "cache")
    command = [python, "-m", "benchmarks.recipes", str(folder)]
    start = time.perf_counter()
    with (folder / "log.txt").open("wb") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=surroundings, timeout=timeout_s
            ).returncode
        except subprocess.TimeoutExpired:
            return Outcome(time.perf_counter() - start, failure=f"stopped after {timeout_s:.0f} s")
    seconds = time.perf_counter() - start
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    if code != 0:
        return Outcome(seconds, failure=_why(code, text, job.limit_gb), warnings=warnings_in(text))
    said = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return Outcome(seconds, said.pop("peak_rss_mb"), "", said, warnings_in(text))


def _why(code: int, text: str, limit_gb: float | None) -> str:
    if limit_gb is not None and _OUT_OF_MEMORY.search(text):
        return f"more than {limit_gb:g} GB"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = text.strip().splitlines()
    return f"failed: {lines[-1][:200] if lines else f'exit code {code}, without a word'}"


def warnings_in(text: str) -> tuple[str, ...]:
    """The lines of a log that warn, each once, without what a terminal would have coloured."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    found = [line.strip()[:300] for line in plain.splitlines() if re.search(r"warn|error", line, re.I)]
    return tuple(dict.fromkeys(found))
