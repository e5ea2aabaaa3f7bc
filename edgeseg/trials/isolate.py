"""Open an engine for the first time in a child process: one that crashes must not take the build with it.

The parent hands over files and frames in a temporary folder; the child answers each engine with its masks, in order.
If it dies, the engine it was at is the one that failed, and another child goes on with the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeseg.backends import Engine, open_engine
from edgeseg.errors import EdgesegError
from edgeseg.types import Frames, Masks


def try_engines(engines: Sequence[Engine], frames: Frames, timeout_s: float = 180.0) -> list[Masks | str]:
    """For each engine the masks uint8 (N, H, W) it gives for frames uint8 (N, H, W, 3), or why it cannot be used."""
    answers: list[Masks | str] = []
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as name:
        folder = Path(name)
        np.save(folder / "frames.npy", frames)
        for index, engine in enumerate(engines):
            (folder / str(index)).mkdir()
            for file, data in engine.files.items():
                (folder / str(index) / file).write_bytes(data)
            described = {
                "name": engine.name,
                "backend": engine.backend,
                "precision": engine.precision,
                "graph": engine.graph,
                "settings": dict(engine.settings),
            }
            (folder / f"{index}.json").write_text(json.dumps(described), encoding="utf-8")
        while len(answers) < len(engines):
            ended = _run_child(folder, len(answers), len(engines), timeout_s)
            while len(answers) < len(engines) and (answer := _answer(folder, len(answers))) is not None:
                answers.append(answer)
            if len(answers) < len(engines):
                answers.append(ended)
    return answers


def _run_child(folder: Path, first: int, last: int, timeout_s: float) -> str:
    """How the child ended, in words: read only when it did not answer."""
    command = [sys.executable, "-m", "edgeseg.trials.isolate", str(folder), str(first), str(last)]
    path = str(Path(__file__).resolve().parents[2])
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=timeout_s, check=False, cwd=path, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"it had not answered after {timeout_s:.0f} s and was stopped"
    if done.returncode < 0:
        known = {int(s): s.name for s in signal.Signals}
        name = known.get(-done.returncode, f"signal {-done.returncode}")
        return f"it ended the process by {name} while opening or running"
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"its process ended with exit code {done.returncode}: {lines[-1] if lines else 'without a word'}"


def _answer(folder: Path, index: int) -> Masks | str | None:
    refused = folder / f"{index}.refused"
    if refused.exists():
        return refused.read_text(encoding="utf-8")
    masks = folder / f"{index}.masks.npy"
    if not masks.exists():
        return None
    loaded: Masks = np.load(masks)
    return loaded


def _end_with(parent: int) -> None:
    """Nobody waits for the answers of a child whose parent was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _child(folder: Path, first: int, last: int) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    frames = np.load(folder / "frames.npy")
    for index in range(first, last):
        described = json.loads((folder / f"{index}.json").read_text(encoding="utf-8"))
        files = {path.name: path.read_bytes() for path in (folder / str(index)).iterdir()}
        engine = Engine(files=files, **described)
        try:
            with open_engine(engine) as session:
                masks = np.concatenate([session.run(frame[None]) for frame in frames])
        except EdgesegError as error:
            (folder / f"{index}.refused").write_text(str(error), encoding="utf-8")
            continue
        whole = folder / f"{index}.part.npy"
        np.save(whole, masks)
        whole.rename(folder / f"{index}.masks.npy")


if __name__ == "__main__":
    _child(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
