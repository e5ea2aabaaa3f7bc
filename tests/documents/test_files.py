"""Two writers of one path: whoever reads meanwhile finds one of the two documents, whole, and no scraps stay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeseg.errors import BadInput
from edgeseg.files import write_whole

WRITER = """
import json, sys
from pathlib import Path
from edgeseg.files import write_whole
path, who = Path(sys.argv[1]), int(sys.argv[2])
text = json.dumps({"who": who, "samples": [who] * 20_000 * (who + 1)}).encode()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(40):
    write_whole(path, text)
"""


def test_two_processes_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    made = [{"who": who, "samples": [who] * 20_000 * (who + 1)} for who in range(2)]
    write_whole(path, json.dumps(made[0]).encode())
    arguments = [[sys.executable, "-c", WRITER, str(path), str(who)] for who in range(2)]
    writers = [subprocess.Popen(one, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for one in arguments]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    reads = 0
    while any(writer.poll() is None for writer in writers):
        assert json.loads(path.read_text()) in made
        reads += 1
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert reads > 1
    assert json.loads(path.read_text()) in made
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    dying = "import os, sys; from pathlib import Path; import edgeseg.files as f; os.fsync = lambda n: os._exit(9)\n"
    done = subprocess.run([sys.executable, "-c", dying + f"f.write_whole(Path({str(path)!r}), b'new')"], check=False)
    assert done.returncode == 9
    assert path.read_bytes() == b"old"


def test_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    seen: list[bool] = []
    real = os.fsync

    def noting(number: int) -> None:
        seen.append(path.exists())
        real(number)

    monkeypatch.setattr(os, "fsync", noting)
    write_whole(path, b"x" * 10)
    assert seen == ([False, True] if hasattr(os, "O_DIRECTORY") else [False])  # the file, then its folder


def test_a_disk_that_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.json"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"a\.json cannot be written: .*No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]
