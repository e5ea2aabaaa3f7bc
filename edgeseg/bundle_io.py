"""How the bytes of a bundle lie on a disk: one ZIP file or one folder, and the PNGs in it. Below edgeseg.bundle.

Everything that is read here may be hostile, so nothing is opened before its name, kind and size have been judged:
names are plain ASCII paths without tricks, only regular files count, an archive is stored without compression (there
can be no bomb in it), and no read asks for more than was declared. What is written appears whole under its final name
or not at all. Every refusal is a BundleError.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import BundleError, need

SUFFIX = ".edgeseg"
MANIFEST = "manifest.json"
LIMIT = 2 << 30  # bytes of content in one bundle, unless the caller allows more
MAX_MANIFEST = 4 << 20  # bytes
MAX_ENTRIES = 4096
MAX_DEPTH = 8  # folders
AGAIN = "Copy the bundle again from where it was made, or build it again."

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII | re.IGNORECASE)
_END = struct.Struct("<4s4H2IH")  # the ZIP's end record: PKWARE APPNOTE 4.3.16
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class Stored:
    """An opened bundle: `sizes` in bytes by name, all names safe; `read(name, most)` gives at most that many bytes."""

    sizes: Mapping[str, int]
    read: Callable[[str, int], bytes]


def safe_part(name: object) -> bool:
    """Whether this can be a file's name on every system: ASCII letters, digits and ._- without a dot at either end."""
    return (
        isinstance(name, str)
        and _PART.fullmatch(name) is not None
        and not name.endswith(".")
        and not _RESERVED.fullmatch(name)
    )


def check_names(names: Iterable[object], where: str) -> None:
    """Refuse names that leave the bundle, mean different files on different systems, or collide with one another."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        parts = name.split("/") if isinstance(name, str) else []
        if not parts or len(parts) > MAX_DEPTH or not all(safe_part(part) for part in parts):
            raise BundleError(
                f"{where}: wanted file names of ASCII letters, digits and . _ - in at most {MAX_DEPTH} folders, found "
                f"{str(name)[:120]!r}. No edgeseg wrote this: do not open it, and build the bundle again."
            )
        assert isinstance(name, str)
        if name.casefold() in seen:
            raise BundleError(
                f"{where}: {name!r} and {seen[name.casefold()]!r} are one file, at least on some systems. "
                f"No edgeseg wrote this: build the bundle again."
            )
        seen[name.casefold()] = name
        for end in range(1, len(parts)):
            folders["/".join(parts[:end]).casefold()] = name
    for name in seen.keys() & folders.keys():
        raise BundleError(f"{where}: {seen[name]!r} is a file and also the folder of {folders[name]!r}. {AGAIN}")


@contextlib.contextmanager
def opened(path: Path, limit: int) -> Iterator[Stored]:
    """Open a bundle's file or folder for reading. Raises BundleError for one that is not sound."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise BundleError(f"{path}: there is no bundle to read here ({error}). Check the path.") from error
    if stat.S_ISDIR(kind):
        yield _folder(path, limit)
    elif stat.S_ISREG(kind):
        try:
            with path.open("rb") as file:
                archive, stored = _archive(path, file, limit)
                with archive:
                    yield stored
        except _DAMAGE as error:
            raise BundleError(f"{path}: the bundle is damaged: {error}. {AGAIN}") from error
    else:
        raise BundleError(f"{path}: wanted a bundle, a file or a folder, and this is neither. Check the path.")


def _archive(path: Path, file: IO[bytes], limit: int) -> tuple[zipfile.ZipFile, Stored]:
    _check_end(path, file)
    archive = zipfile.ZipFile(file)
    infos = archive.infolist()
    # zipfile tidies names (it cuts them at a NUL), so it is the name as written that is judged.
    check_names([info.orig_filename for info in infos], str(path))
    by_name = {info.orig_filename: info for info in infos}
    for name, info in by_name.items():
        if info.flag_bits & 0x1 or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise BundleError(f"{path}: {name!r} is a link, a device or encrypted; wanted plain files only. {AGAIN}")
    _check_total(path, {name: info.file_size for name, info in by_name.items()}, limit)
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise BundleError(f"{path}: the entries overlap: they are larger together than the file itself. {AGAIN}")

    def read(name: str, most: int) -> bytes:
        info = by_name[name]
        # Only the manifest may be compressed, so that a later format which compresses can still say that it is later.
        if name != MANIFEST and (info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size):
            raise BundleError(f"{path}: {name!r} is compressed, and edgeseg stores bundles uncompressed. {AGAIN}")
        with archive.open(info) as entry:
            return entry.read(most)

    return archive, Stored({name: info.file_size for name, info in by_name.items()}, read)


def _check_end(path: Path, file: IO[bytes]) -> None:
    """Judge the list of entries by its size before zipfile reads all of it into memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - 20))
    tail = file.read()
    file.seek(0)
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\x05\x06":
        raise BundleError(f"{path}: the end of the file is missing, or it never was a bundle. {AGAIN}")
    _, disk, start_disk, here, entries, length, offset, comment = _END.unpack(tail[-_END.size :])
    whole = (disk, start_disk, comment) == (0, 0, 0) and here == entries and offset + length == size - _END.size
    if not whole or tail[: -_END.size][-20:][:4] == b"PK\x06\x07":
        raise BundleError(f"{path}: cut short, or not in the form in which edgeseg writes a bundle. {AGAIN}")
    if entries > MAX_ENTRIES or length > MAX_ENTRIES * 1024:
        raise BundleError(f"{path}: {entries} entries, wanted at most {MAX_ENTRIES}. No edgeseg wrote this.")


def _folder(path: Path, limit: int) -> Stored:
    sizes: dict[str, int] = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        if folder.count("/") > MAX_DEPTH:
            raise BundleError(f"{path}: {folder[:200]!r} lies deeper than {MAX_DEPTH} folders. No edgeseg wrote this.")
        try:
            with os.scandir(path / folder) as found:
                for entry in found:
                    name = folder + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{name}/")
                    elif entry.is_file(follow_symlinks=False):
                        sizes[name] = entry.stat(follow_symlinks=False).st_size
                    else:
                        raise BundleError(f"{path}: {name!r} is a link or a device; wanted plain files only. {AGAIN}")
                    if len(sizes) + len(pending) > MAX_ENTRIES:
                        raise BundleError(f"{path}: more than {MAX_ENTRIES} files. Is this the folder of a bundle?")
        except OSError as error:
            raise BundleError(f"{path}: the folder cannot be read: {error}. Check its permissions.") from error
    check_names(sizes, str(path))
    _check_total(path, sizes, limit)

    def read(name: str, most: int) -> bytes:
        try:  # O_NOFOLLOW: the file may have been replaced by a link since it was listed
            handle = os.open(path / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
            with os.fdopen(handle, "rb") as file:
                return file.read(most)
        except OSError as error:
            raise BundleError(f"{path}: {name!r} cannot be read: {error}. Check its permissions.") from error

    return Stored(sizes, read)


def _check_total(path: Path, sizes: Mapping[str, int], limit: int) -> None:
    total = sum(sizes.values())
    if total > limit:
        raise BundleError(
            f"{path}: {total} bytes of content, wanted at most {limit}. "
            f"If you made this bundle and trust it, pass a higher limit to read_bundle."
        )


def write_file(path: Path, entries: Mapping[str, bytes]) -> None:
    """Write the entries, in their order, as one ZIP: stored, dateless, so that equal entries give equal bytes."""
    if os.path.lexists(path) and not path.is_file():
        raise BundleError(f"{path} is no file, and it is not overwritten. Choose another path.")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    try:
        with _created(temporary) as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
                for name, content in entries.items():
                    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                    info.create_system = 3  # Unix, on every system: it decides what the next line means
                    info.external_attr = (stat.S_IFREG | 0o644) << 16
                    archive.writestr(info, content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, zipfile.LargeZipFile) as error:
        raise BundleError(
            f"{path}: cannot write the bundle: {error}. Free some space or choose another place."
        ) from error
    finally:
        with suppress(OSError):  # what could not be written cannot always be removed
            temporary.unlink(missing_ok=True)


def write_folder(path: Path, entries: Mapping[str, bytes]) -> None:
    """Write the entries as a folder of files, swapped in whole.

    A folder that is already there is replaced if it is a bundle or empty. Between taking it away and putting the new
    one there is a moment with neither (no portable call exchanges two folders), but never one with half a bundle.
    """
    foreign = os.path.lexists(path) and not path.is_dir()
    if foreign or (path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file()):
        raise BundleError(
            f"{path}: something other than a bundle is there, and it is not overwritten. Choose another path."
        )
    mark = secrets.token_hex(6)
    temporary, old = path.parent / f".{path.name}.{mark}.tmp", path.parent / f".{path.name}.{mark}.old"
    try:
        temporary.mkdir()
        for name, content in entries.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with _created(target) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for folder, _, _ in os.walk(temporary):
            _sync_folder(Path(folder))
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise BundleError(
            f"{path}: cannot write the bundle: {error}. Free some space or choose another place."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _created(path: Path) -> IO[bytes]:
    # Not tempfile: it makes files that only their owner may read, and a bundle is there to be passed on.
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666), "wb")


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are flushed by the system
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of uint8 (H, W, 3) in BGR order, or (H, W). Lossless."""
    cv2 = need("cv2", extra="run", why="Writing the reference frames of a bundle")
    done, png = cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not done:
        raise BundleError(f"OpenCV cannot encode a reference of shape {pixels.shape} as PNG. Reinstall opencv.")
    return bytes(png)


def decode_png(png: bytes, size: tuple[int, int], channels: int, where: str) -> NDArray[np.uint8]:
    """The pixels of an 8-bit PNG that must have this (height, width) and 3 (BGR) or 1 channels; judged undecoded."""
    height, width = size
    wanted = (width, height, 8, 2 if channels == 3 else 0)
    # PNG specification, 11.2.2: signature, length of IHDR, its name, width, height, bit depth, colour type.
    if png[:16] != b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" or len(png) < 33:
        raise BundleError(f"{where}: not a PNG. {AGAIN}")
    found = struct.unpack(">IIBB", png[16:26])
    if found != wanted:
        raise BundleError(
            f"{where}: wanted a PNG of {width}x{height} pixels (the size of the network's input), 8 bits, "
            f"colour type {wanted[3]}, found {found[0]}x{found[1]}, {found[2]} bits, colour type {found[3]}. {AGAIN}"
        )
    cv2 = need("cv2", extra="run", why="Reading the reference frames of a bundle")
    try:
        pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BundleError(f"{where}: the PNG cannot be decoded: {error}. {AGAIN}") from error
    shape = (height, width, 3) if channels == 3 else (height, width)
    if pixels is None or pixels.shape != shape or pixels.dtype != np.uint8:
        raise BundleError(f"{where}: the PNG is damaged or has channels that do not belong there. {AGAIN}")
    decoded: NDArray[np.uint8] = pixels
    return decoded
