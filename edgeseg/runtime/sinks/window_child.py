"""The process that owns the window: it shows what its parent puts into a mapped file, until either of them ends.

Run as `python -m edgeseg.runtime.sinks.window_child FILE TITLE`. A line on stdin, "HEIGHT WIDTH", says that the file
holds another frame (BGR); one byte on stdout answers: READY for the next, CLOSED when the user has closed the window.
"""

from __future__ import annotations

import mmap
import os
import queue
import signal
import sys
import threading
from pathlib import Path

import numpy as np

from edgeseg.errors import need

READY, CLOSED = b"r", b"c"
NO_GUI_CODE = 3
NO_GUI = (
    "this OpenCV was built without windows, as PyPI's headless one is: "
    "pip uninstall opencv-python-headless && pip install opencv-python"
)
_EVENTS_MS = 10  # how long one look at the window's events lasts, while no frame comes
_QUIT = {27, ord("q"), ord("Q")}


def show(path: Path, title: str) -> int:
    """Own the window until the parent closes stdin or the user closes the window; the exit code."""
    cv2 = need("cv2", extra="run", why="a window")
    if not hasattr(cv2, "namedWindow"):
        return NO_GUI_CODE
    try:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | getattr(cv2, "WINDOW_GUI_NORMAL", 0))
    except cv2.error:
        return NO_GUI_CODE
    cv2.waitKey(1)
    answers = sys.stdout.fileno()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    size = (0, 0)
    _answer(answers, READY)
    _silence()
    with path.open("rb") as file:
        while True:
            try:
                line = lines.get_nowait()
            except queue.Empty:
                pass
            else:
                if not line:
                    return 0
                height, width = map(int, line.split())
                with mmap.mmap(file.fileno(), height * width * 3, access=mmap.ACCESS_READ) as shared:
                    picture = np.frombuffer(shared, np.uint8).reshape(height, width, 3)
                    if (height, width) != size:
                        cv2.resizeWindow(title, width, height)
                        size = (height, width)
                    cv2.imshow(title, picture)  # copies it
                    del picture
                _answer(answers, READY)
            key = cv2.waitKey(_EVENTS_MS)
            if (key != -1 and key & 0xFF in _QUIT) or _gone(title):
                _answer(answers, CLOSED)
                return 0


def _gone(title: str) -> bool:
    cv2 = need("cv2", extra="run", why="a window")
    try:
        return bool(cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1)
    except cv2.error:  # there is no window of that name any more
        return True


def _read(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put("")


def _answer(number: int, answer: bytes) -> None:
    """An answer that nobody reads: the parent is gone, and so are we soon."""
    try:
        os.write(number, answer)
    except BrokenPipeError:
        os._exit(0)


def _silence() -> None:
    """What Qt has to say in weeks of running is not kept: stderr is a file of the parent's."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stderr.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes stdin
    sys.exit(show(Path(sys.argv[1]), sys.argv[2]))
