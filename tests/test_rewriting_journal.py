"""Times kept beside a recovery: the same command must choose the same layers to go on from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeseg.pipeline.rewriting.journal import Journal, place
from edgeseg.pipeline.rewriting.recovery import forget
from edgeseg.pipeline.rewriting.wish import Budget, Wish
from edgeseg.types import OnnxModel
from tests.rewriting import SPEC

ONE, OTHER = OnnxModel(b"one", SPEC), OnnxModel(b"other", SPEC)


def unasked() -> list[float]:
    return pytest.fail("it was timed again")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "small.recovery"


def test_what_was_timed_before_a_recovery_is_not_timed_again(checkpoint: Path) -> None:
    first = Journal.beside(checkpoint)
    assert first.together([ONE, OTHER], lambda: [2.0, 1.5]) == [2.0, 1.5]
    assert first.together([ONE, OTHER], unasked) == [2.0, 1.5]
    assert first.together([OTHER, ONE], lambda: [1.6, 2.1]) == [1.6, 2.1]
    first.engine = {"name": "onnxruntime-fp32", "settings": {"optimization": "all", "threshold": 0.0}}
    first.write()
    checkpoint.write_bytes(b"")
    again = Journal.beside(checkpoint)
    assert again.engine == first.engine
    assert again.together([ONE, OTHER], unasked) == [2.0, 1.5]
    assert again.together([ONE], lambda: [3.0]) == [3.0]


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"times": {"a": 1}}', bytes([255, 0])])
def test_without_a_recovery_or_damaged_it_is_new(damaged: bytes, checkpoint: Path) -> None:
    journal = Journal.beside(checkpoint)
    journal.together([ONE], lambda: [2.0])
    journal.write()
    assert Journal.beside(checkpoint).together([ONE], lambda: [3.0]) == [3.0]  # no recovery to go on with
    checkpoint.write_bytes(b"")
    place(checkpoint).write_bytes(damaged)
    assert Journal.beside(checkpoint) == Journal(place(checkpoint))


def test_nothing_is_written_where_nothing_is_recovered(tmp_path: Path) -> None:
    journal = Journal.beside(None)
    assert journal.together([ONE], lambda: [2.0]) == [2.0]
    journal.write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stopped", ["finished", "diverged", "no time", "interrupted"])
def test_only_from_an_interrupted_recovery_can_be_gone_on(stopped: str, checkpoint: Path) -> None:
    wish = Wish(Budget("macs", 0.5), minutes=1, checkpoint=checkpoint)
    for path in (checkpoint, place(checkpoint)):
        path.write_bytes(b"")
    forget(wish, None)
    assert checkpoint.exists()
    forget(wish, {"stopped": stopped})
    left = stopped == "interrupted"
    assert (checkpoint.exists(), place(checkpoint).exists()) == (left, left)
