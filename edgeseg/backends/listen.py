"""Who hears what a backend has to say while it opens an engine, which may take minutes: nobody, or a Console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Listener(Protocol):
    """edgeseg.console.Console is one."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def progress(self, text: str) -> None:
        """How it goes, for somebody who watches; the next one replaces it, and "" removes it."""


class _Nobody:
    def say(self, text: str) -> None:
        """Not heard."""

    def progress(self, text: str) -> None:
        """Not heard."""


_NOBODY = _Nobody()
_listener: ContextVar[Listener] = ContextVar("edgeseg_listener", default=_NOBODY)


def listener() -> Listener:
    """Who listens in this context."""
    return _listener.get()


@contextmanager
def heard_by(who: Listener) -> Iterator[None]:
    """While this lasts, backends speak to `who`."""
    token = _listener.set(who)
    try:
        yield
    finally:
        _listener.reset(token)
