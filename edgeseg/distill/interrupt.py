"""Ctrl-C during a run: the step at hand is ended and what was learned is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is remembered instead of raised, the first time; a second one is raised."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    usual = signal.getsignal(signal.SIGINT)

    def remember_it(number: int, frame: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, usual if usual is not None else signal.default_int_handler)

    signal.signal(signal.SIGINT, remember_it)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, usual if usual is not None else signal.default_int_handler)
