"""Files that people find whole or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from edgeseg.errors import BadInput


def require_writable(path: Path) -> None:
    """Raise BadInput unless a file (or a bundle's folder) could be put at `path`: before the work, not after it."""
    folder = path.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error}. Choose another place.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"{path} cannot be written: no right to write in {folder}. Choose another place.")
    if os.path.lexists(path) and not (path.is_file() or path.is_dir()):
        raise BadInput(f"{path} is neither a file nor a folder, and it is not overwritten. Choose another place.")


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file in one step: what stood there stays until the new one is whole and on the disk. Raises BadInput."""
    require_writable(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            # Before the new name: else a power cut may leave the name with nothing behind it.
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error}. Free some space or choose another place.") from error
    finally:
        # On a disk that went read-only there is nothing left to remove, or no way to.
        if temporary.exists() and os.access(temporary.parent, os.W_OK):
            temporary.unlink(missing_ok=True)
    return path


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder last, where the system can (Windows cannot, nor some network file systems)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):  # the file is whole either way: at worst a power cut brings back the old one
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
