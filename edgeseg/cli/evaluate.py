"""`edgeseg eval`: accuracy on labelled frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeseg.cli.words import ANY, NEW_FILE, said, write_json


@click.command("eval")
@click.argument("bundle", type=ANY)
@click.option("--data", type=ANY, required=True, help="DATASET.toml, or a folder in a known layout.")
@click.option("--split", default="val", show_default=True)
@click.option("--variant", help="One of the bundle's engines; by default the one its build chose.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0: all that this process may use.")
@click.option("--block", type=click.IntRange(1), help="Frames per block of the resampling.  [default: from the data]")
@click.option("--workers", type=click.IntRange(1), help="Processes, each with its share of the threads.  [default: 1]")
@click.option("--ray", metavar="ADDRESS", help="Workers in this Ray cluster (auto, HOST:6379, ray://HOST:10001).")
@click.option("--json", "json_path", type=NEW_FILE, help="Write the document here.")
@click.option("--quiet", is_flag=True)
@said
def evaluate(bundle: Path, json_path: Path | None, quiet: bool, **options: Any) -> None:
    """Accuracy of a bundle's engine on labelled frames, with intervals, by class, sequence and boundary."""
    from edgeseg.console import Console
    from edgeseg.evaluation import evaluate as run
    from edgeseg.report.evaluation import eval_table

    document = run(bundle, console=Console(quiet=quiet), **options)
    click.echo(eval_table(document))
    write_json(document, json_path)
