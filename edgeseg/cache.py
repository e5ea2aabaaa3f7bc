"""What a build has already computed, kept between builds: results by the hash of everything that went into them.

A folder of small files (EDGESEG_CACHE, else the user's cache folder). An entry carries its own checksum, so a damaged
one counts as absent. Only results that depend on their key alone are kept, and so no time, with one exception: the
milliseconds of single layers (pipeline/layer_times.py), under the processor, the runtime and its version, which choose
between rewrites; what is reported of a whole network is measured each time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


def folder() -> Path:
    """Where the cache lies."""
    if chosen := os.environ.get("EDGESEG_CACHE"):
        return Path(chosen).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeseg"
    except RuntimeError:  # no HOME and no entry for this user, as in some containers
        return Path(tempfile.gettempdir()) / f"edgeseg-cache-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def key(*parts: object) -> str:
    """SHA-256 over the parts, each with its length, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def load(kind: str, entry: str) -> bytes | None:
    """What was stored under this kind and key, None if nothing or if it is damaged."""
    try:
        content = (folder() / kind / entry).read_bytes()
    except OSError:
        return None
    checksum, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == checksum else None


def store(kind: str, entry: str, data: bytes) -> bool:
    """Keep `data`; whether that went well. A cache that cannot be written is no cache: the build goes on without it."""
    target = folder() / kind / entry
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent)
    except OSError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)
        Path(name).replace(target)  # atomic: another build sees all of it or nothing
    except OSError:
        Path(name).unlink(missing_ok=True)
        return False
    return True


@contextmanager
def locked(kind: str, entry: str, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Between reading an entry and writing it again, so that of two processes none takes back what the other added.

    `waiting` is called once if another process has it. Where the system has no file locks (as some network file
    systems), or the folder cannot be written, nobody waits.
    """
    with ExitStack() as stack:
        try:
            import fcntl

            path = folder() / kind / f"{entry}.lock"
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("w"))  # closing releases, also of a process that dies
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            stack.close()
        yield
