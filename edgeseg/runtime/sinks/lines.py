"""The stream as JSON lines: what each frame was, how long it took and what is in it, for other programs to read."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeseg.errors import BadInput
from edgeseg.runtime.sinks.base import Sink, SinkFailed, View
from edgeseg.runtime.values import Shot


class JsonLines(Sink):
    """Writes an object a line for every frame of all streams, to `path` (overwritten) or, for "-", to stdout.

    Keys: `stream` and `index` of the frame, its `name`; `t`, seconds of its capture since that of the first frame, and
    `time`, the same by the wall clock (ISO 8601, UTC); `ms`, what the stages took (capture, prepare, infer);
    `age_ms` from capture to mask; `shares`, class → share of the pixels, of those that are there.

    A line is handed to the system at once. A reader that goes away ends the stream cleanly; a full disk raises
    SinkFailed and leaves whole lines. BadInput for a path that cannot be opened.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        names: Sequence[str],
        clock: Callable[[], int] = time.perf_counter_ns,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self._names, self._clock, self._wall = tuple(names), clock, wall
        self._path = None if str(path) == "-" else Path(path)
        self.name = "JSON lines to stdout" if self._path is None else f"JSON lines to {self._path}"
        self._first_ns: int | None = None
        self._lines = 0
        self._gone = False
        try:
            self._file = _stdout() if self._path is None else self._path.open("wb", buffering=0)
        except FileNotFoundError as error:
            folder = Path(path).parent
            raise BadInput(f"cannot write {self.name}: there is no folder {folder}; make it first") from error
        except OSError as error:
            raise BadInput(f"cannot write {self.name}: {error.strerror or error}") from error

    def put(self, shot: Shot, view: View) -> bool:
        if self._gone:
            return False
        try:
            self._write(json.dumps(self._entry(shot), ensure_ascii=False).encode() + b"\n")
        except BrokenPipeError:
            self._gone = True
            return False
        except OSError as error:
            raise SinkFailed(f"{self.name} ended after {self._lines} lines: {error.strerror or error}") from error
        self._lines += 1
        return True

    def close(self) -> None:
        self._file.close()

    def told(self) -> dict[str, Any]:
        return {"path": "-" if self._path is None else str(self._path), "lines": self._lines}

    def _entry(self, shot: Shot) -> dict[str, Any]:
        if self._first_ns is None:
            self._first_ns = shot.captured_ns
        taken_ns = self._wall() - (self._clock() - shot.captured_ns)
        moment = datetime.fromtimestamp(taken_ns // 1_000_000 / 1000, timezone.utc)
        return {
            "stream": shot.stream,
            "index": shot.index,
            "name": shot.name,
            "t": round((shot.captured_ns - self._first_ns) / 1e9, 6),
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "ms": {"capture": _ms(shot.read_ns), "prepare": _ms(shot.prepare_ns), "infer": _ms(shot.infer_ns)},
            "age_ms": _ms(shot.age_ns),
            "shares": {self._name(index): round(share, 6) for index, share in enumerate(shot.shares) if share > 0},
        }

    def _name(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else f"class {index}"

    def _write(self, line: bytes) -> None:
        done = 0
        try:
            while done < len(line):  # a pipe and a nearly full disk take a part
                done += self._file.write(line[done:]) or 0
        except OSError:
            if done and self._path is not None and self._path.is_file():
                self._file.truncate(self._file.tell() - done)
            raise


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 4)


def _stdout() -> io.RawIOBase:
    """Stdout, by a descriptor of our own: what a reader that went away left unwritten is then nobody's at exit."""
    sys.stdout.flush()
    try:
        number = os.dup(sys.stdout.fileno())
    except (OSError, ValueError):  # not a file: a test or a notebook reads along
        return _Text()
    return os.fdopen(number, "wb", buffering=0)


class _Text(io.RawIOBase):
    """Bytes to a stdout that takes text only."""

    def writable(self) -> bool:
        return True

    def write(self, line: Any, /) -> int:
        sys.stdout.write(bytes(line).decode())
        sys.stdout.flush()
        return len(line)
