"""How much physical memory an engine needs: what a fresh process grows by when it opens the engine and runs frames.

Run as a program, with a bundle, a variant and a number of threads, it is that process: one line of JSON comes out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgeseg.backends import open_engine
from edgeseg.bundle import read_bundle
from edgeseg.data import fit
from edgeseg.measure.machine import peak_rss_mb
from edgeseg.segmenter import engine_of

RUNS = 5  # frames: what an engine allocates it has after the first few
LONGEST_S = 300.0  # a TensorRT engine may be built when it is opened
_MARK = "edgeseg-memory "


def memory_mb(bundle: str | Path, variant: str, threads: int) -> float | None:
    """Growth of the most physical memory that the process ever held, in MiB: the runtime, the engine, its buffers.

    Of the host: memory of a GPU is not counted. The bundle's bytes and NumPy are there before. None where the system
    does not tell a process's peak (Windows), and where that process did not end well: this is no reason to lose what
    was timed.
    """
    words = [sys.executable, "-m", "edgeseg.benchmark.memory", str(Path(bundle).resolve()), variant, str(threads)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Runtimes write to stdout too.
    told = [line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not told:
        return None
    found = json.loads(told[-1])
    return None if found is None else float(found)


def grown(bundle: Path, variant: str, threads: int) -> float | None:
    """The same in this process, which should have done nothing before."""
    source = read_bundle(bundle)
    engine = engine_of(source, source.variant(variant), {"threads": threads})
    height, width = source.spec.input.size
    frames = [one.frame for one in source.references]
    given = [fit(frame, (height, width), source.spec.input.resize)[None] for frame in frames]
    _forget_peak()
    before = peak_rss_mb()
    with open_engine(engine) as session:
        for k in range(RUNS if given else 0):
            session.run(given[k % len(given)])
        after = peak_rss_mb()
    return None if before is None or after is None or not given else max(0.0, after - before)


def _forget_peak() -> None:
    """Linux can set the peak back to what is held now (proc_pid_clear_refs(5)); elsewhere reading the bundle stays."""
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        try:
            refs.write_text("5")
        except OSError:
            return  # not allowed in some containers: the growth is then a little less than it was


if __name__ == "__main__":
    print(_MARK + json.dumps(grown(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
