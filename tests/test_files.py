"""Files appear whole or not at all, and nothing that is no file is replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from edgeseg.bundle_io import write_file, write_folder
from edgeseg.errors import BadInput, BundleError
from edgeseg.files import require_writable, write_whole


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.json"
    assert write_whole(target, b"one").read_bytes() == b"one"
    write_whole(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_what_stood_there_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    target.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_is_neither_file_nor_folder_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BadInput, match="neither a file nor a folder"):
        require_writable(pipe)
    with pytest.raises(BadInput, match="neither a file nor a folder"):
        write_whole(pipe, b"")
    with pytest.raises(BundleError, match="not overwritten"):
        write_file(pipe, {"a": b""})
    with pytest.raises(BundleError, match="not overwritten"):
        write_folder(pipe, {"a": b""})
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_that_cannot_be_made_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInput, match="cannot be written"):
        require_writable(tmp_path / "file" / "a.edgeseg")
