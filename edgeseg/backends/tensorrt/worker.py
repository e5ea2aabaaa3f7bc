"""A build in a process of its own: a crash of the parser or the builder is an error and not the end of the program.

Also, what a build allocates on host and device is gone when it ends, and Ctrl-C stops it at once. The parent hands over
a folder; the child answers with files in it, and with a line of JSON on stdout for each step.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
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
    command = [sys.executable, "-m", "edgeseg.backends.tensorrt.worker", str(folder)]
    path = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH"))))}
    with (
        (folder / "stderr").open("wb") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C comes here, and from here to the child: it would die with a traceback
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if line.startswith(b"{"):  # libraries print to stdout too
                    step = json.loads(line)
                    on_progress(step["phase"], step["done"], step["total"])
            return child.wait()
        except BaseException:
            child.send_signal(signal.SIGTERM)  # the progress monitor ends the build between two steps
            try:
                child.wait(2.0)
            except subprocess.TimeoutExpired:
                child.kill()
            raise


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    known = {int(s): s.name for s in signal.Signals}
    return f"by {known.get(-code, f'signal {-code}')}"


def _last_words(folder: Path) -> str:
    lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def _child(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    parent = os.getppid()

    def progress(phase: str, done: int, total: int) -> bool:
        print(json.dumps({"phase": phase, "done": done, "total": total}), flush=True)
        return not ended and os.getppid() == parent

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

    with TensorRTSession(trt, engine, options) as session:
        shape = session.best_shape
        frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        times = session.timed_layers(frames, PROFILED_RUNS)
        return session.information(), {name: statistics.median(ms) for name, ms in times.items()}


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
