"""`edgeseg bench`: latency and throughput."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeseg.cli.words import ANY, MILLISECONDS, NEW_FILE, said, write_json
from edgeseg.files import require_writable


@click.command()
@click.argument("bundles", type=ANY, nargs=-1, required=True)
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "multi-stream", "offline", "camera"]),
    default="single-stream",
    show_default=True,
    help="How frames come; see below.",
)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, help="Each, at least."
)
@click.option(
    "--samples", type=click.IntRange(1), help="Each, at least.  [default: what the scenario's percentile needs]"
)
@click.option("--limit", type=click.FloatRange(0, min_open=True), help="Seconds for each, at most.")
@click.option("--streams", type=click.IntRange(1), default=4, show_default=True, help="Of multi-stream.")
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="Of camera (30 by default) and multi-stream.")
@click.option("--deadline", type=MILLISECONDS, help="Of camera: a mask is late after this.  [default: a frame time]")
@click.option("--roofline", is_flag=True, help="How near to this machine's measured peak each layer comes.")
@click.option("--data", type=ANY, help="Time with these frames, at their own size, instead of the bundle's own.")
@click.option("--split", default="val", show_default=True)
@click.option("--variant", help="One of the bundle's engines; by default the one its build chose.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0: all that this process may use.")
@click.option(
    "--json",
    "json_paths",
    type=NEW_FILE,
    multiple=True,
    help="Write the document here: of several bundles a list, or, given once for each, a file for each.",
)
@click.option("--quiet", is_flag=True)
@said
def bench(
    bundles: tuple[Path, ...], data: Path | None, split: str, json_paths: tuple[Path, ...], quiet: bool, **options: Any
) -> None:
    """Latency and throughput of bundles; several take turns.

    \b
    single-stream  the next frame when the one before is done; states p90
    multi-stream   a frame of each of --streams at once, every 1/--fps s or back to back; states p99
    offline        frames a second when all are there from the start
    camera         a frame every 1/--fps s, the newest is taken; states p99, missed deadlines, age of masks
    """
    from edgeseg.benchmark import bench as run
    from edgeseg.benchmark import frames_from
    from edgeseg.console import Console
    from edgeseg.report.bench import bench_table

    if len(json_paths) not in (0, 1, len(bundles)) or len(set(json_paths)) < len(json_paths):
        raise click.UsageError(
            f"{len(json_paths)} files for {len(bundles)} bundles: give --json once, or once for each with another name"
        )
    for path in json_paths:
        require_writable(path)
    frames = frames_from(data, split) if data else ()
    documents = run(bundles, frames=frames, console=Console(quiet=quiet), **options)
    click.echo(bench_table(documents))
    if len(json_paths) == len(documents):
        for document, path in zip(documents, json_paths, strict=True):
            write_json(document, path)
    elif json_paths:
        write_json(documents, json_paths[0])
