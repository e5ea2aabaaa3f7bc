"""Builds in a child process: what comes back, what a crash becomes, and that nothing is left behind."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgeseg import cache, quantize
from edgeseg.backends.tensorrt import worker
from edgeseg.backends.tensorrt.build import build
from edgeseg.backends.tensorrt.graph import for_tensorrt
from edgeseg.backends.tensorrt.options import Options
from edgeseg.errors import BadInput, MissingOnMachine, ModelError
from edgeseg.quantize.half import half
from edgeseg.types import Precision
from tests.quantize import making
from tests.tensorrt.double import make

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).parent / "double" / "site"
RELEASE = "10.3.0"
FAULT = "EDGESEG_TRT_DOUBLE_"


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Children import the double of that release; what they leave would lie in tmp_path / "folders"."""

    def told(release: str = RELEASE, **faults: object) -> None:
        monkeypatch.setenv("EDGESEG_TRT_DOUBLE", release)
        for name, value in faults.items():
            monkeypatch.setenv(FAULT + name.upper(), str(value))

    (tmp_path / "folders").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SITE), str(ROOT)]))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "folders"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is looked up once, and kept
    told()
    return told


@functools.cache
def graph_of(precision: Precision) -> bytes:
    model = making.unet()
    if precision == "int8":
        model = quantize.quantize(model, making.table_of(model), quantize.TENSORRT)
    if precision != "fp32":
        model = half(model).model
    return for_tensorrt(model.graph)


def made(precision: Precision = "fp32", **more: Any) -> worker.Made:
    return worker.made("tensorrt", graph_of(precision), precision, Options(), inspect=False, **more)


def left() -> list[Path]:
    return list(Path(os.environ["TMPDIR"]).iterdir())


def children(of: int) -> set[int]:
    """Processes that this one, or one that it started, started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(path.parent.name)] = int(fields[1])
    found: set[int] = set()
    grown = {of}
    while grown:
        grown = {child for child, parent in parents.items() if parent in grown} - found
        found |= grown
    return found


def ended(pid: int, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # nobody who waits for it is left: init takes it
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_engine_is_the_one_that_is_built_here(precision: Precision) -> None:
    steps: list[tuple[str, int, int]] = []
    found = made(precision, on_progress=lambda phase, done, total: steps.append((phase, done, total)))
    assert found.engine == build(make(RELEASE), graph_of(precision), precision, Options()).engine
    assert (found.repairs, found.information, found.times) == ((), "", {})
    assert steps
    assert all(0 <= done <= total for _, done, total in steps)
    assert left() == []


@pytest.mark.parametrize("where", ["build", "parse"])
def test_a_crash_is_an_error_with_the_name_of_the_signal(double: Callable[..., None], where: str) -> None:
    double(crash=where)
    with pytest.raises(ModelError) as crashed:
        made()
    assert "SIGSEGV" in str(crashed.value)
    assert "--backend onnxruntime" in str(crashed.value)
    assert left() == []


def test_a_child_that_just_ends_tells_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESEG_TRT_DOUBLE", "there is no such release")
    with pytest.raises((ModelError, MissingOnMachine)) as ended_early:
        made()
    assert "no such release" in str(ended_early.value)
    assert left() == []


def test_what_the_library_refuses_comes_back_as_it_was_said(double: Callable[..., None]) -> None:
    double(error="Cuda Runtime (out of memory)")
    with pytest.raises(ModelError, match="--trt workspace=512"):
        made()
    assert left() == []


def test_what_is_wrong_with_the_options_stays_what_it_is() -> None:
    with pytest.raises(BadInput, match=r"10\.9 and later"):
        worker.made("tensorrt", graph_of("fp32"), "fp32", Options(hardware="same-capability"), inspect=False)


def test_without_the_library_the_child_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESEG_TRT_DOUBLE", "rtx-1.7.1.116")  # has no module `tensorrt`
    with pytest.raises(MissingOnMachine, match="'tensorrt'"):
        made()


def test_a_node_without_an_int8_kernel_is_built_without_and_reported(double: Callable[..., None]) -> None:
    double(unbuildable="node_conv2")
    found = made("int8")
    assert found.repairs[0].node == "node_conv2"
    assert "INT8" in found.repairs[0].how
    assert {repair.node for repair in found.repairs} == {"node_conv2"}
    assert len(found.engine) > 1000


def test_two_nodes_one_after_the_other(double: Callable[..., None]) -> None:
    double(unbuildable="node_conv2;node_conv3")
    found = made("int8")
    assert {repair.node for repair in found.repairs} == {"node_conv2", "node_conv3"}


def test_a_node_without_a_half_kernel_runs_in_fp32(double: Callable[..., None]) -> None:
    double(unbuildable="node_conv2")
    (repair,) = made("fp16").repairs
    assert repair.node == "node_conv2"
    assert "FP32" in repair.how


def test_a_node_that_fails_in_every_precision_is_the_end(double: Callable[..., None]) -> None:
    double(unbuildable="node_conv2!")
    for precision in ("fp32", "int8"):
        with pytest.raises(ModelError, match="node_conv2"):
            made(precision)
    assert left() == []


def test_timings_are_kept_and_added_to() -> None:
    made(timings="here")
    first = cache.load("timings", "here")
    assert first
    made("int8", timings="here")
    both = cache.load("timings", "here")
    assert both is not None
    assert len(both) >= len(first)
    made(timings="here")
    assert cache.load("timings", "here") == both, "what was known already adds nothing"


def test_a_failing_listener_ends_the_build(double: Callable[..., None]) -> None:
    double(slow=0.05)

    def fail(phase: str, done: int, total: int) -> None:
        raise RuntimeError("nobody listens")

    before = children(os.getpid())
    with pytest.raises(RuntimeError, match="nobody listens"):
        made(on_progress=fail)
    assert children(os.getpid()) <= before
    assert left() == []


BUILDING = textwrap.dedent("""
    import sys
    from pathlib import Path
    from edgeseg.backends.tensorrt import worker
    from edgeseg.backends.tensorrt.options import Options
    graph = Path(sys.argv[1]).read_bytes()
    told = lambda phase, done, total: print(phase, flush=True)
    worker.made(sys.argv[2], graph, "fp32", Options(), inspect=False, on_progress=told,
                capability=(8, 6) if "rtx" in sys.argv[2] else None)
    print("finished", flush=True)
""")


def building(tmp_path: Path, library: str = "tensorrt", graph: bytes | None = None) -> subprocess.Popen[str]:
    """A program that builds, in its first steps."""
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph or graph_of("fp32"))
    program = subprocess.Popen(
        [sys.executable, "-c", BUILDING, str(path), library], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert program.stdout is not None
    assert program.stdout.readline().strip() not in ("", "finished")
    return program


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc for children")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ending_the_program_ends_the_build(double: Callable[..., None], tmp_path: Path, number: signal.Signals) -> None:
    double(slow=0.1)
    program = building(tmp_path)
    started = children(program.pid)
    assert started
    program.send_signal(number)
    program.communicate(timeout=30)
    assert program.returncode != 0
    assert all(ended(pid) for pid in started)
    assert left() == [], "where the program cannot clear up, the child does"


def test_ctrl_c_in_a_build_by_the_real_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13, which builds without a GPU")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    net = making.Net(5, (64, 64))
    x = net.image()
    for index in range(60):  # a build of some seconds
        x = net.relu(net.conv(x, f"conv{index}", 8 + index % 7, gain=0.9), f"relu{index}")
    program = building(tmp_path, "tensorrt-rtx", for_tensorrt(net.model(net.conv(x, "head", 4, 1)).graph))
    started = children(program.pid)
    program.send_signal(signal.SIGINT)
    told, _ = program.communicate(timeout=60)
    assert "finished" not in told
    assert program.returncode != 0
    assert all(ended(pid) for pid in started)
    assert left() == []


def test_an_odd_line_on_the_childs_stdout_is_no_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Libraries print there too."""
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    (noisy / "sitecustomize.py").write_text('import os\nos.write(1, b"[TRT] loaded\\n\\xff[1, 2]\\n")\n')
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(noisy), str(SITE), str(ROOT)]))
    steps: list[str] = []
    assert made(on_progress=lambda phase, done, total: steps.append(phase)).engine
    assert steps
    assert not any("loaded" in step for step in steps)


def test_an_unnamed_node_does_not_stop_a_repair(double: Callable[..., None]) -> None:
    """Foreign graphs name no nodes: there is nothing to go by, and the error is the library's own."""
    proto = onnx.load_from_string(graph_of("int8"))
    for node in proto.graph.node:
        node.name = ""
    double(unbuildable="node_conv2")
    found = worker.made("tensorrt", proto.SerializeToString(), "int8", Options(), inspect=False)
    assert found.repairs == ()
