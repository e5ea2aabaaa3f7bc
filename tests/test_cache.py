"""The cache: keys that tell everything apart, damaged entries that count as absent, folders that cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgeseg import cache


def test_what_was_stored_comes_back(own_cache: Path) -> None:
    assert cache.folder() == own_cache
    assert cache.load("graph", "ab") is None
    for data in (b"", b"x", bytes(range(256)) * 100):
        cache.store("graph", "ab", data)
        assert cache.load("graph", "ab") == data
    assert cache.load("scales", "ab") is None
    assert [path.name for path in (own_cache / "graph").iterdir()] == ["ab"]  # and nothing temporary is left


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "checksum"])
def test_a_damaged_entry_is_none(own_cache: Path, damage: str) -> None:
    cache.store("graph", "ab", b"something worth keeping")
    path = own_cache / "graph" / "ab"
    whole = path.read_bytes()
    broken = {
        "cut": whole[:-1],
        "flipped": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        "emptied": b"",
        "checksum": whole[:16],
    }
    path.write_bytes(broken[damage])
    assert cache.load("graph", "ab") is None


def test_keys_tell_parts_apart() -> None:
    array = np.arange(3)
    parts: list[tuple[object, ...]] = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        (b"ab", "c"),
        ("ab", None),
        ("ab", ""),
        ("ab",),
        (1,),
        ("1",),
        (1.0,),
        (True,),
        ((1, 2),),
        ([1, 2],),
        (array.tobytes(),),
        (),
    ]
    keys = [cache.key(*part) for part in parts]
    assert len(set(keys)) == len(parts)
    assert keys == [cache.key(*part) for part in parts]
    assert all(len(key) == 64 for key in keys)


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EDGESEG_CACHE", str(tmp_path / "file" / "below"))
    cache.store("graph", "ab", b"x")
    assert cache.load("graph", "ab") is None


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGESEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "edgeseg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "edgeseg"


def test_a_full_disk_leaves_nothing_behind(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    cache.store("graph", "ab", b"x")
    assert os.listdir(own_cache / "graph") == []  # noqa: PTH208
    assert cache.load("graph", "ab") is None
