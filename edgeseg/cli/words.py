"""What the subcommands share: types of arguments, options that come in groups, errors as exit codes, documents."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from edgeseg.errors import EdgesegError
from edgeseg.files import write_whole

P = ParamSpec("P")
R = TypeVar("R")

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
ANY = click.Path(exists=True, path_type=Path)
DIR = click.Path(exists=True, file_okay=False, path_type=Path)
OUT = click.Path(path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)


class _Milliseconds(click.ParamType[float]):
    name = "MS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            found = float(str(value).strip().lower().removesuffix("ms"))
        except ValueError:
            self.fail(f"wanted milliseconds like 12ms, came '{value}'", param, ctx)
        if not 0 < found < float("inf"):
            self.fail(f"wanted a positive number of milliseconds, came '{value}'", param, ctx)
        return found


class _Names(click.ParamType[tuple[str, ...]]):
    name = "NAME,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(name.strip() for name in value.split(",") if name.strip())


class _Trt(click.ParamType[tuple[str, Any]]):
    name = "NAME[=VALUE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        from edgeseg.backends.tensorrt.options import option_from

        try:
            return value if isinstance(value, tuple) else option_from(value)
        except EdgesegError as error:
            self.fail(str(error), param, ctx)


MILLISECONDS, NAMES, TRT = _Milliseconds(), _Names(), _Trt()
BACKEND = click.Choice(["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"])


def said(command: Callable[P, R]) -> Callable[P, R]:
    """Deliberate errors end the program with their message and their exit code, without a traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # So that temporary folders and child processes go too when somebody stops the program from outside.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        from edgeseg.backends.listen import heard_by
        from edgeseg.console import Console

        try:
            with heard_by(Console(quiet=bool(kwargs.get("quiet", False)))):
                return command(*args, **kwargs)
        except EdgesegError as error:
            click.echo(f"edgeseg: {error}", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            click.echo(f"edgeseg: the system refused: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("edgeseg: stopped", err=True)
            sys.exit(128 + signal.SIGINT)

    return run


def write_json(document: Any, path: Path | None) -> None:
    """Write a document, or a list of them, with the command that made it."""
    if path is not None:
        for one in document if isinstance(document, list) else [document]:
            one["command"] = command_line(sys.argv[1:])
        write_whole(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
        click.echo(f"wrote {path}", err=True)


def command_line(arguments: Sequence[str]) -> str:
    """What to type for it once more; passwords in it are masked."""
    from edgeseg.runtime.sources.wanted import masked

    return shlex.join(["edgeseg", *map(masked, arguments)])


def wished(command: Callable[P, R]) -> Callable[P, R]:
    """The options that say what a rewritten network shall become; `wish_of` reads them."""
    options = [
        click.option(
            "--speedup", type=click.FloatRange(1), help="How many times as fast, measured here.  [default: 2]"
        ),
        click.option("--latency", type=MILLISECONDS, help="Milliseconds a frame, measured here: 12ms."),
        click.option("--macs", type=click.FloatRange(0, 1, min_open=True), help="Share of the operations: 0.3."),
        click.option("--bytes", "weight_bytes", type=click.IntRange(1), help="Bytes of all weights."),
        click.option("--distill", "minutes", type=float, default=0.0, help="Minutes to learn from the original."),
        click.option("--labels", is_flag=True, help="With --distill: learn from labels too."),
        click.option("--align", type=int, default=8, show_default=True, help="Ranks are multiples of this."),
        click.option("--refine", is_flag=True, help="Tune each layer behind its non-linearity; kept if better."),
        click.option("--untimed", is_flag=True, help="With --macs, --bytes: do not put back what is not faster here."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command
