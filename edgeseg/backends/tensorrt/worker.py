"""A build in a process of its own: a crash of the parser or the builder is an error and not the end of the program.

Also, what a build allocates on host and device is gone when it ends, and Ctrl-C stops it at once. The parent hands over
a folder; the child answers with files in it, and with a line of JSON on stdout for each step. Its stdin stays open as
long as the parent lives: when that is killed, the child removes the folder and ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg import cache
from edgeseg.backends.tensorrt.build import BuildCancelled, BuildFailed, build, merged
from edgeseg.backends.tensorrt.library import LIBRARIES
from edgeseg.backends.tensorrt.options import Options, options_from
from edgeseg.backends.tensorrt.repair import Repair, repaired
from edgeseg.errors import BadInput, EdgesegError, MissingOnMachine, ModelError
from edgeseg.types import Precision

MOST_REPAIRS = 16  # a builder that refuses more nodes than this one by one refuses the network
PROFILED_RUNS = 20
LAST_BYTES = 4096  # of what a child said on stderr: its last line is looked for in these
_KINDS: dict[str, type[EdgesegError]] = {"BadInput": BadInput, "MissingOnMachine": MissingOnMachine}


@dataclass(frozen=True, slots=True)
class Made:
    """An engine, and what was learnt while it was built."""

    engine: bytes
    information: str  # the inspector's JSON; "" where the engine could not be opened, as without a GPU
    times: dict[str, float]  # median milliseconds of each layer; empty likewise
    repairs: tuple[Repair, ...]
    warnings: tuple[str, ...]


def made(
    library: str,
    graph: bytes,
    precision: Precision,
    options: Options,
    *,
    timings: str = "",
    capability: tuple[int, int] | None = None,
    inspect: bool = True,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Made:
    """Build in a child process. `timings`: the entry of the timing cache to read and to add to.

    `inspect`: open the engine afterwards, read its layers and time them. Raises what `build` raises; ModelError where
    the child died.
    """
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as name:
        folder = Path(name)
        (folder / "graph.onnx").write_bytes(graph)
        request = {
            "library": library,
            "precision": precision,
            "options": options.to_settings(),
            "timings": timings,
            "capability": capability,
            "inspect": inspect,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        code = _run(folder, on_progress)
        answer = folder / "answer.json"
        if not answer.exists():
            raise ModelError(f"the build of the engine ended {_how(code)}{_last_words(folder)}. {_ADVICE}")
        found = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in found:
            raise _KINDS.get(found["kind"], ModelError)(found["error"])
        return Made(
            (folder / "engine").read_bytes(),
            found["information"],
            found["times"],
            tuple(Repair(**row) for row in found["repairs"]),
            tuple(found["warnings"]),
        )


_ADVICE = "Build with --fp32, or another precision; `--backend onnxruntime` runs the network meanwhile."


def _run(folder: Path, on_progress: Callable[[str, int, int], None]) -> int:
    command = [sys.executable, "-c", _START, str(folder)]
    # It shall find what this process finds, and no file of that name in the folder that somebody works in.
    paths = [str(Path(__file__).resolve().parents[3]), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths)))}
    with (
        (folder / "stderr").open("wb") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C comes here, and from here to the child: it would die with a traceback
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if (step := _step(line)) is not None:
                    on_progress(*step)
            return child.wait()
        except BaseException:
            try:
                child.terminate()  # the progress monitor ends the build between two steps
                with suppress(subprocess.TimeoutExpired):
                    child.wait(2.0)
            finally:
                child.kill()  # also when Ctrl-C comes again meanwhile; nothing where it has ended
            raise


def _step(line: bytes) -> tuple[str, int, int] | None:
    """Phase, steps done and steps in all; None for a line that is not ours, as of something that starts with Python."""
    try:
        step = json.loads(line)
        return str(step["phase"]), int(step["done"]), int(step["total"])
    except (ValueError, TypeError, KeyError):
        return None


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    known = {int(s): s.name for s in signal.Signals}
    return f"by {known.get(-code, f'signal {-code}')}"


def _last_words(folder: Path) -> str:
    with (folder / "stderr").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""


_START = """
import sys
sys.path[:] = filter(None, sys.path)
from edgeseg.backends.tensorrt.worker import _child, Path
_child(Path(sys.argv[1]))
"""


def _child(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    steps = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to stdout too, and half lines
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    threading.Thread(target=_end_with_the_parent, args=(folder,), daemon=True).start()

    def progress(phase: str, done: int, total: int) -> bool:
        print(json.dumps({"phase": phase, "done": done, "total": total}), file=steps, flush=True)
        return not ended

    try:
        answer = _answer(folder, request, progress)
    except BuildCancelled:
        sys.exit(128 + signal.SIGTERM)
    except EdgesegError as error:
        kind = next((name for name, known in _KINDS.items() if type(error) is known), "ModelError")
        answer = {"error": str(error), "kind": kind}
    part = folder / "answer.part"
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.rename(folder / "answer.json")


def _end_with_the_parent(folder: Path) -> None:
    """Not by the progress monitor: TensorRT has it from 10.0 only, and some steps take minutes."""
    os.read(0, 1)  # nothing is ever written there; past Python's own buffer, whose lock would hold up its shutdown
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(128 + signal.SIGTERM)


def _answer(folder: Path, request: dict[str, Any], progress: Callable[[str, int, int], bool]) -> dict[str, Any]:
    trt = LIBRARIES[request["library"]].load()
    options = options_from(request["options"])
    entry = request["timings"]
    graph = (folder / "graph.onnx").read_bytes()
    capability = None if request["capability"] is None else tuple(request["capability"])
    stored = (cache.load("timings", entry) or b"") if entry else b""
    repairs: list[Repair] = []
    while True:
        try:
            product = build(
                trt,
                graph,
                request["precision"],
                options,
                timings=stored,
                on_progress=progress,
                capability=capability,
            )
            break
        except BuildFailed as error:
            again = repaired(graph, error.nodes) if len(repairs) < MOST_REPAIRS else None
            if again is None:
                raise
            graph, repair = again
            repairs.append(repair)
    if entry and product.timings:
        with cache.locked("timings", entry):
            others = cache.load("timings", entry)
            both = merged(trt, product.timings, others) if others and others != stored else product.timings
            cache.store("timings", entry, both)
    (folder / "engine").write_bytes(product.engine)
    information, times = _looked_at(trt, product.engine, options) if request["inspect"] else ("", {})
    return {
        "information": information,
        "times": times,
        "repairs": [{"node": repair.node, "how": repair.how} for repair in repairs],
        "warnings": list(product.warnings),
    }


def _looked_at(trt: Any, engine: bytes, options: Options) -> tuple[str, dict[str, float]]:
    from edgeseg.backends.tensorrt.session import TensorRTSession

    with TensorRTSession(trt, engine, replace(options, cuda_graph=False)) as session:  # a graph reports no layers
        shape = session.best_shape
        frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        times = session.timed_layers(frames, PROFILED_RUNS)
        return session.information(), {name: statistics.median(ms) for name, ms in times.items()}
