"""A window with the live overlay, in a process of its own: a display that dies takes only that process with it.

X11 libraries end the process when the display goes away, and Qt aborts it when it finds none; neither can be caught.
So the child (`window_child`) owns the window. Frames lie in a file that both have mapped; one byte each way says
"shown" and "there is another". A frame that comes before the last one was shown is not shown: the stream never waits.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import MissingOnMachine
from edgeseg.runtime.sinks.base import Sink, SinkFailed, View
from edgeseg.runtime.sinks.window_child import CLOSED, NO_GUI, NO_GUI_CODE, READY
from edgeseg.runtime.values import Shot
from edgeseg.types import Pixels

_OPENING_S = 30.0  # a cold start imports OpenCV and Qt from a slow card
_CLOSING_S = 5.0
_INSTEAD = "or watch the stream in a browser: --serve 127.0.0.1:8080"


class Window(Sink):
    """Shows one stream; Esc, q or closing the window ends it (`put` returns False).

    Raises MissingOnMachine where OpenCV has no windows or there is no display. `put` raises SinkFailed when the display
    dies in mid-stream.
    """

    def __init__(self, title: str, *, stream: int = 0, opening_s: float = _OPENING_S) -> None:
        self.name = f"the window '{title}'"
        self._stream, self._shown, self._skipped = stream, 0, 0
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise MissingOnMachine(
                "There is no display to open a window on (neither DISPLAY nor WAYLAND_DISPLAY is set). "
                f"Over ssh use ssh -X, {_INSTEAD}"
            )
        # In memory where there is such a folder: what lies there is never written to a disk.
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._file = tempfile.NamedTemporaryFile(prefix="edgeseg-window-", dir=folder)  # noqa: SIM115 (closed in close)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._map: mmap.mmap | None = None
        self._buffer: Pixels = np.empty((0, 0, 3), np.uint8)
        self._answered, self._closed, self._dead = threading.Event(), threading.Event(), threading.Event()
        search = os.pathsep.join([str(Path(__file__).resolve().parents[3]), *filter(None, sys.path)])
        self._child = subprocess.Popen(
            [sys.executable, "-m", "edgeseg.runtime.sinks.window_child", self._file.name, title],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": search},
            bufsize=0,
        )
        self._listener = threading.Thread(target=self._listen, name="edgeseg-window", daemon=True)
        self._listener.start()
        if not self._answered.wait(opening_s) or self._dead.is_set():
            raise self._not_opened(opening_s)

    def put(self, shot: Shot, view: View) -> bool:
        if self._closed.is_set():
            return False
        if self._dead.is_set():
            raise self._died()
        if shot.stream != self._stream:
            return True
        if not self._answered.is_set():
            self._skipped += 1
            return True
        picture = view.overlay()
        if self._buffer.shape != picture.shape:
            self._make_room(picture.shape)
        np.copyto(self._buffer, picture)
        self._answered.clear()
        try:
            self._tell(f"{picture.shape[0]} {picture.shape[1]}\n".encode())
        except OSError as error:
            self._dead.wait(_CLOSING_S)
            if self._closed.is_set():
                return False
            raise self._died() from error
        self._shown += 1
        return True

    def close(self) -> None:
        if self._child.stdin is not None:
            self._child.stdin.close()  # the child ends when it reads nothing more
        try:
            self._child.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._listener.join()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._buffer = np.empty((0, 0, 3), np.uint8)  # a map cannot be closed while an array looks into it
        if self._map is not None:
            self._map.close()
        self._file.close()
        self._errors.close()

    def told(self) -> dict[str, Any]:
        """How many frames were shown, and how many came while the window was busy."""
        return {"shown": self._shown, "skipped": self._skipped}

    def _listen(self) -> None:
        """In a thread: hear the child's answers until it has ended."""
        answers = self._child.stdout
        while answers is not None and (answer := answers.read(1)):
            if answer == CLOSED:
                self._closed.set()
            elif answer == READY:
                self._answered.set()
        self._dead.set()
        self._answered.set()

    def _tell(self, line: bytes) -> None:
        if self._child.stdin is not None:
            self._child.stdin.write(line)

    def _make_room(self, shape: tuple[int, ...]) -> None:
        size = int(np.prod(shape))
        if self._map is None or len(self._map) < size:
            self._buffer = np.empty((0, 0, 3), np.uint8)
            if self._map is not None:
                self._map.close()
            self._file.truncate(size)
            self._map = mmap.mmap(self._file.fileno(), size)
        self._buffer = np.frombuffer(self._map, np.uint8, size).reshape(shape)

    def _not_opened(self, waited_s: float) -> MissingOnMachine:
        if not self._dead.is_set():
            why = f"it was not there after {waited_s:g} s"
            self._child.kill()
        elif self._child.wait(_CLOSING_S) == NO_GUI_CODE:
            why = NO_GUI
        else:
            why = f"the display {os.environ.get('DISPLAY', '')!r} cannot be used: {self._last_words()}"
        self.close()
        return MissingOnMachine(f"A window cannot be opened: {why}. Mend it, {_INSTEAD}")

    def _died(self) -> SinkFailed:
        code = self._child.wait(_CLOSING_S)
        return SinkFailed(f"{self.name} ended after {self._shown} frames: its display went away (exit code {code})")

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line for line in self._errors.read(65_536).decode(errors="replace").splitlines() if line.strip()]
        return lines[0] if lines else f"its process ended with exit code {self._child.returncode} without a word"
