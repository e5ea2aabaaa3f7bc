"""`edgeseg bench`: latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeseg.cli.words import ANY, NEW_FILE, said, write_json


@click.command()
@click.argument("bundles", type=ANY, nargs=-1, required=True)
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="For each bundle, at least."
)
@click.option("--data", type=ANY, help="Time with these frames, at their own size, instead of the bundle's own.")
@click.option("--split", default="val", show_default=True)
@click.option("--variant", help="One of the bundle's engines; by default the one its build chose.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0: all that this process may use.")
@click.option("--json", "json_path", type=NEW_FILE, help="Write the document here; a list of them for several bundles.")
@click.option("--quiet", is_flag=True)
@said
def bench(
    bundles: tuple[Path, ...], data: Path | None, split: str, json_path: Path | None, quiet: bool, **options: Any
) -> None:
    """Latency of bundles, frame by frame; several take turns."""
    from edgeseg.benchmark import bench as run
    from edgeseg.benchmark import frames_from
    from edgeseg.console import Console
    from edgeseg.report.text import bench_table

    frames = frames_from(data, split) if data else ()
    documents = run(bundles, frames=frames, console=Console(quiet=quiet), **options)
    click.echo(bench_table(documents))
    write_json(documents[0] if len(documents) == 1 else documents, json_path)
