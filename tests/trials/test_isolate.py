"""Engines that crash, hang, refuse and answer, in a child process.

The child is a fresh interpreter; a sitecustomize.py on its path makes engines of certain names misbehave as they open.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeseg.backends import Engine
from edgeseg.trials.candidates import candidates
from edgeseg.trials.isolate import try_engines
from tests.quantize import making

MISCHIEF = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from edgeseg.backends import onnxruntime
opened = onnxruntime.open
def misbehave(engine):
    if engine.name == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if engine.name == "abort":
        os.abort()
    if engine.name == "exit":
        sys.stderr.write("out of luck\\n")
        os._exit(9)
    if engine.name == "surprise":
        raise RuntimeError("something nobody expected")
    if engine.name == "hang":
        time.sleep(600)
    return opened(engine)
onnxruntime.open = misbehave
"""


@pytest.fixture
def mischief(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).resolve().parents[2])
    (tmp_path / "sitecustomize.py").write_text(MISCHIEF.format(root=root), encoding="utf-8")
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *([inherited] if inherited else [])]))


def engine(name: str, **changes: object) -> Engine:
    return replace(candidates(making.unet(), "onnxruntime", "fp32")[0], name=name, **changes)  # type: ignore[arg-type]


def expected() -> making.Array:
    model = making.unet()
    return np.concatenate([making.tensors_of(model.graph, ["mask"], f[None], "all")["mask"] for f in making.frames(2)])


def test_engines_that_answer() -> None:
    answers = try_engines([engine("one"), engine("two")], making.frames(2), timeout_s=60)
    for answer in answers:
        assert isinstance(answer, np.ndarray)
        assert answer.dtype == np.uint8
        np.testing.assert_array_equal(answer, expected())


@pytest.mark.usefixtures("mischief")
def test_the_others_are_still_tried() -> None:
    broken = engine("refuses", files={"graph.onnx": b"nothing like a graph"})
    names = ["good", "segfault", "abort", "exit", "surprise", "last"]
    engines = [broken if name == "abort" else engine(name) for name in names]
    answers = try_engines([*engines, engine("abort")], making.frames(2), timeout_s=60)
    found = dict(zip([*names[:2], "refuses", *names[3:], "abort"], answers, strict=True))
    np.testing.assert_array_equal(found["good"], expected())
    np.testing.assert_array_equal(found["last"], expected())
    said = {name: answer for name, answer in found.items() if isinstance(answer, str)}
    assert set(said) == {"segfault", "refuses", "exit", "surprise", "abort"}
    assert "SIGSEGV" in said["segfault"]
    assert "SIGABRT" in said["abort"]
    assert "refuses the graph" in said["refuses"]
    assert "exit code 9" in said["exit"]
    assert "out of luck" in said["exit"]
    assert "something nobody expected" in said["surprise"]


@pytest.mark.usefixtures("mischief")
def test_one_that_hangs_is_stopped() -> None:
    start = time.perf_counter()
    answers = try_engines([engine("good"), engine("hang")], making.frames(2), timeout_s=8)
    assert time.perf_counter() - start < 40
    np.testing.assert_array_equal(answers[0], expected())
    assert isinstance(answers[1], str)
    assert "not answered after 8 s" in answers[1]


def test_nothing_to_try() -> None:
    assert try_engines([], making.frames(1)) == []


@pytest.mark.skipif(not hasattr(os, "getppid"), reason="this system has no parents")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    child = "import sys\nfrom edgeseg.trials.isolate import _end_with\n_end_with(int(sys.argv[1]))"
    parent = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        time.sleep(1.5)
        assert _alive(pid)  # as long as the parent lives
        process.kill()
    for _ in range(100):
        if not _alive(pid):
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("the child outlived its parent by ten seconds")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")")[-1].split()[0] != "Z"  # nobody may reap it here
