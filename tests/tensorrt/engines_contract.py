"""Engines in the cache, and sessions that come and go, with what the stand-in for the driver counts.

Collected by name only, by test_engines.py, in a child process that has the double of a release and the stand-in.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import sys
import warnings
from pathlib import Path

import pytest

import edgeseg
from edgeseg import cache
from edgeseg.backends import Engine, Session, open_engine
from edgeseg.backends.listen import heard_by
from edgeseg.backends.tensorrt import TensorRT, engines
from edgeseg.errors import AccuracyFailed, ModelError
from tests.quantize import making
from tests.tensorrt.cuda import Books
from tests.tensorrt.device_contract import NAME, SPEC, Ears, backend, dynamic, engine_of, expected, own_cache

__all__ = ["backend", "own_cache"]  # fixtures
FAULT = "EDGESEG_TRT_DOUBLE_"
HEIGHT, WIDTH = making.SIZE


@pytest.fixture
def books() -> Books:
    gc.collect()
    found = Books()
    found.forget()
    return found


@pytest.fixture
def engine(backend: TensorRT) -> Engine:
    return engine_of(backend, making.unet())


def alternating(backend: TensorRT) -> Session:
    shapes = f"1x{HEIGHT}x{WIDTH}:1x{HEIGHT}x{WIDTH}:2x{HEIGHT}x{WIDTH}"
    return open_engine(engine_of(backend, dynamic(making.unet()), shapes=shapes))


def test_a_session_that_nobody_closed_gives_all_back(engine: Engine, books: Books) -> None:
    session = open_engine(engine)
    session.run(making.frames(1))
    session.run(making.frames(1))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        del session  # no garbage collection: an engine must not wait for one
    assert [str(each.message) for each in seen if "not closed" in str(each.message)]
    assert {key: count for key, count in books.alive().items() if key != "depth"} == {}


@pytest.mark.parametrize("function", ["cuStreamCreate", "cuMemHostAlloc"])
def test_an_engine_that_has_no_room_is_an_error_and_leaves_nothing(engine: Engine, books: Books, function: str) -> None:
    open_engine(engine).close()
    books.fail(function, 2)
    with pytest.raises(ModelError, match=r"no room.*CUDA_ERROR_OUT_OF_MEMORY.*Close"):
        open_engine(engine)
    gc.collect()
    assert {key: count for key, count in books.alive().items() if key != "depth"} == {}


def test_a_driver_that_breaks_in_a_run_is_an_error_in_words(engine: Engine, books: Books) -> None:
    with open_engine(engine) as session:
        for _ in range(3):
            books.fail("cuStreamSynchronize", 719)
            with pytest.raises(ModelError, match="CUDA_ERROR_LAUNCH_FAILED"):
                session.run(making.frames(1))
            session.run(making.frames(1))


def test_closing_a_broken_context_does_not_raise(engine: Engine, books: Books) -> None:
    session = open_engine(engine)
    books.fail("cuCtxSetCurrent", 719)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        session.close()
    assert any("CUDA_ERROR_LAUNCH_FAILED" in str(each.message) for each in seen)
    gc.collect()
    assert {key: count for key, count in books.alive().items() if key != "depth"} == {}


def test_the_second_run_of_a_shape_is_captured_and_not_the_first(backend: TensorRT, books: Books) -> None:
    with alternating(backend) as session:
        one, two = making.frames(1), making.frames(2)
        for frames in (one, two, one, two, one):
            session.run(frames)
        assert books.count("executables") == 0, "shapes that alternate cost no capture"
        own = 0 if backend.library.name == "tensorrt-rtx" else 1  # TensorRT-RTX captures by itself
        for frames in (one, one, two, two, two, one, one):
            masks = session.run(frames)
        assert books.count("executables") == own, "graphs of other shapes are given back"
        assert (masks == session.run(one)).all()
        assert (session.run(making.frames(2)[1:]) == expected(making.unet(), making.frames(2)[1:])).mean() > 0.99


def test_an_engine_whose_capture_fails_runs_without(engine: Engine, books: Books) -> None:
    frames = making.frames(1)
    with open_engine(engine) as session:
        wanted = session.run(frames)
        books.fail("cuGraphInstantiate", 901)
        for _ in range(3):
            assert (session.run(frames) == wanted).all()
        assert books.count("executables") == 0
        books.fail("cuGraphInstantiate", 0)


def bundle_of(folder: Path) -> Path:
    (folder / "net.onnx").write_bytes(making.plain_network())
    (folder / "net.toml").write_text(SPEC, encoding="utf-8")
    built = edgeseg.build(folder / "net.onnx", backend=NAME, quick=True, out=folder / "net.edgeseg")
    assert built.path is not None
    return built.path


def test_an_engine_that_failed_its_check_is_not_served_next_time(
    backend: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the very place that the bundle was measured in: the engine was lost, and the new one is wrong."""
    monkeypatch.setenv("EDGESEG_CACHE", str(tmp_path / "cache"))
    path = bundle_of(tmp_path)
    edgeseg.open(path).close()
    for kept in (tmp_path / "cache" / "engines").iterdir():
        kept.write_bytes(b"")
    monkeypatch.setenv(f"{FAULT}WRONG", "1")
    for _ in range(2):  # at first it is built; then it is in the cache
        with pytest.raises(AccuracyFailed):
            edgeseg.open(path)
        with pytest.raises(AccuracyFailed):
            edgeseg.bench(path, seconds=0.1)
    monkeypatch.delenv(f"{FAULT}WRONG")
    edgeseg.open(path).close()


def test_an_engine_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESEG_CACHE", str(tmp_path / "cache"))
    path = bundle_of(tmp_path)
    for fresh in (True, False):
        with edgeseg.open(path, check=False) as segment:
            assert segment.fresh is fresh
        edgeseg.open(path).close()


def test_an_engine_that_the_library_refuses_is_built_again(backend: TensorRT, engine: Engine) -> None:
    """As one of another build of the same version: all that we can compare is the same."""
    stored = backend.stored(engine)
    path = cache.folder() / "engines" / stored.entry
    data = path.read_bytes()[32:]
    size = int.from_bytes(data[:8], "little")
    other = b"an engine of another build"
    head = json.dumps({**json.loads(data[8 : 8 + size]), "sha256": hashlib.sha256(other).hexdigest()}).encode()
    cache.store("engines", stored.entry, len(head).to_bytes(8, "little") + head + other)
    assert backend.stored(engine).engine == other
    ears = Ears()
    with heard_by(ears), open_engine(engine) as session:
        assert session.fresh
        assert (session.run(making.frames(1)) == expected(making.unet(), making.frames(1))).mean() > 0.99
    assert "the one in the cache is refused" in ears.lines[0]
    assert len(ears.lines) == 1
    assert backend.stored(engine).engine == stored.engine


def test_where_the_cache_cannot_be_written_an_engine_is_built_once_and_said(
    backend: TensorRT, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESEG_CACHE", "/dev/null/cache")
    monkeypatch.setattr(engines, "_unkept", {})
    ears = Ears()
    with heard_by(ears):
        with open_engine(engine) as session:
            session.checked()
        with open_engine(engine) as session:
            assert not session.fresh
    assert len([line for line in ears.lines if "building" in line]) == 1
    assert "EDGESEG_CACHE" in ears.lines[1]
    assert len(ears.lines) == 2


def opened(engine: Engine, lines: multiprocessing.Queue[list[str]]) -> None:
    ears = Ears()
    with heard_by(ears), open_engine(engine) as session:
        session.run(making.frames(1))
    lines.put(ears.lines)


def test_of_two_processes_one_builds_and_the_other_waits(
    backend: TensorRT, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESEG_CACHE", str(tmp_path))
    context = multiprocessing.get_context("spawn")
    lines = context.Queue()
    both = [context.Process(target=opened, args=(engine, lines)) for _ in range(2)]
    for process in both:
        process.start()
    said = [line for _ in both for line in lines.get(timeout=60)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert len([line for line in said if "building" in line and "another" not in line]) == 1, said


def test_a_file_in_the_working_folder_is_not_imported(
    backend: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit('not this one')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert backend.stored(engine_of(backend, making.unet(), level=2 if backend.version()[:3] != "8.5" else 3))


def test_what_libraries_print_is_no_step(backend: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even what looks like one, or half a line just before one."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos.write(1, b'{ForeignNode[a...b]}\\n{')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(path for path in sys.path if path)}")
    monkeypatch.setenv("EDGESEG_CACHE", str(tmp_path / "cache"))
    assert backend.stored(engine_of(backend, making.unet())).built


def test_a_forked_child_is_told_why_it_has_no_cuda() -> None:
    from edgeseg.backends.tensorrt.driver import NOT_INITIALIZED, _mend

    assert "spawn" in _mend(NOT_INITIALIZED)
