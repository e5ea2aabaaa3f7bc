"""The sinks that a stream was asked for, opened: each stream's own files, one window and one page for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from edgeseg.errors import BadInput
from edgeseg.runtime.document import Running, live
from edgeseg.runtime.options import Options
from edgeseg.runtime.sinks.base import Sink
from edgeseg.runtime.sinks.lines import JsonLines
from edgeseg.runtime.sinks.masks import MaskFiles
from edgeseg.runtime.sinks.network import Restream
from edgeseg.runtime.sinks.record import Recording
from edgeseg.runtime.sinks.window import Window
from edgeseg.runtime.sources import Wanted

DEFAULT_FPS = 25.0  # of a recording, where neither the user nor the source tells a rate


def open_sinks(options: Options, running: Running, stack: ExitStack, clock: Callable[[], int]) -> list[Sink]:
    """Open them all, each to be closed with `stack`. Raises BadInput or MissingOnMachine for one that cannot be."""
    sinks: list[Sink] = []

    def add(sink: Sink) -> None:
        sinks.append(stack.enter_context(sink))

    several = len(running.wanted) > 1
    if several and options.send is not None:
        raise BadInput("one stream can be sent on, and there are several sources: start a stream for each")
    for stream, capture in enumerate(running.captures):
        rate = capture.fps or DEFAULT_FPS
        if options.record is not None:
            path = _numbered(options.record, stream) if several else options.record
            _refuse_source(path, running.wanted)
            add(Recording(path, fps=rate, what=options.record_what, stream=stream, keep_time=running.timed))
        if options.masks is not None:
            folder = options.masks / str(stream) if several else options.masks
            _refuse_folder(folder, running.wanted, options.labels)
            add(MaskFiles(folder, stream=stream))
        if options.show:
            title = running.bundle.spec.name
            add(Window(f"{title}: {running.wanted[stream].shown}" if several else title, stream=stream))
    if options.lines is not None:
        add(JsonLines(options.lines, names=running.names))
    if options.send is not None:
        add(Restream(options.send))
    if options.serve is not None:
        from edgeseg.runtime.serve import Page

        streams = [source.shown for source in running.wanted]
        page = Page(options.serve, lambda: live(running, clock()), token=options.token, streams=streams)
        add(page)
        running.address = page.url
    return sinks


def _refuse_source(path: Path, wanted: Sequence[Wanted]) -> None:
    """Raise BadInput where a recording would overwrite what is being read."""
    for source in wanted:
        if source.kind == "file" and path.exists() and path.samefile(source.where):
            raise BadInput(f"cannot record to {path}: it is the source. Record to another file.")


def _refuse_folder(folder: Path, wanted: Sequence[Wanted], labels: Path | None) -> None:
    """Raise BadInput where masks would overwrite pictures or labels, which have the same names."""
    for source in wanted:
        if source.kind == "folder" and folder.resolve() == Path(source.where).resolve():
            raise BadInput(f"cannot write masks to {folder}: it is the source. Name another folder.")
    if labels is not None and folder.resolve() == labels.resolve():
        raise BadInput(f"cannot write masks to {folder}: the labels are there. Name another folder.")


def _numbered(path: Path, stream: int) -> Path:
    """out.mp4 → out-0.mp4, for the first of several streams."""
    return path.with_name(f"{path.stem}-{stream}{path.suffix}")
