"""Engines that crash, hang, refuse and answer, in a child process.

The child is a fresh interpreter; a sitecustomize.py on its path makes engines of certain names misbehave as they open.
"""

from __future__ import annotations

import os
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
