"""What a person sees while edgeseg works: one line a step and a bar for long ones, on stderr, quiet when not wanted."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Step:
    """A step that is under way; `note` is what its line will say."""

    note: str = ""


@dataclass(slots=True)
class Console:
    """Reports steps. `quiet`: nothing at all is printed. `seconds` keeps how long each step took."""

    quiet: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a step and print one line when it ends well."""
        step, start = Step(), time.perf_counter()
        if self.live:
            sys.stderr.write(f"{name:<10} …\r")
            sys.stderr.flush()
        yield step
        took = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        self.say(f"{name:<10} {step.note}  ({took:.1f} s)")

    def say(self, text: str) -> None:
        if not self.quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def status(self, text: str) -> None:
        """How it goes: on a terminal one line that the next replaces (and "" removes), elsewhere a line of its own."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r{text[:width]:<{width}}" + ("" if text else "\r"))
            sys.stderr.flush()
        elif text:
            self.say(text)

    def progress(self, text: str) -> None:
        """How it goes, on a terminal only: one line that the next replaces, and "" removes."""
        if self.live:
            self.status(text)

    @property
    def live(self) -> bool:
        """Whether a person is watching a terminal."""
        return not self.quiet and sys.stderr.isatty()

    @contextmanager
    def bar(self, total: int, label: str) -> Iterator[Callable[[], object]]:
        """A progress bar for `total` calls of what it gives, on a terminal only."""
        if not self.live:
            yield lambda: None
            return
        import click

        with click.progressbar(length=total, label=f"{label:<10}", file=sys.stderr) as bar:
            yield lambda: bar.update(1)

    def track(self, items: Iterable[T], total: int, label: str) -> Iterator[T]:
        """The items, with a progress bar while they come, on a terminal only."""
        with self.bar(total, label) as done:
            for item in items:
                yield item
                done()
