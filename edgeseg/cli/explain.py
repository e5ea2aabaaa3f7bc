"""`edgeseg explain`: where the accuracy went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeseg.cli.words import ANY, NEW_FILE, said, write_json
from edgeseg.files import require_writable


@click.command()
@click.argument("bundle", type=ANY)
@click.option("--data", type=ANY, help="DATASET.toml, or a folder in a known layout.  [default: the bundle's frames]")
@click.option("--split", default="val", show_default=True)
@click.option("--variant", help="One of the bundle's engines.  [default: the one handed over, else the one in INT8]")
@click.option("--frames", type=click.IntRange(1), default=64, show_default=True, help="To compare masks on, at most.")
@click.option("--layer-frames", type=click.IntRange(1), default=4, show_default=True, help="To compare layers on.")
@click.option("--video", help="For flicker: a source as of stream.  [default: the first frames of the split]")
@click.option("--gallery", type=click.IntRange(0), default=6, show_default=True, help="Pictures of the worst frames.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, help="To take, about."
)
@click.option("--threads", type=click.IntRange(0), default=0, help="0: all that this process may use.")
@click.option("--html", type=NEW_FILE, help="Write a page with the pictures here.")
@click.option("--json", "json_path", type=NEW_FILE, help="Write the document here; `edgeseg report` draws it.")
@click.option("--quiet", is_flag=True)
@said
def explain(bundle: Path, html: Path | None, json_path: Path | None, quiet: bool, **options: Any) -> None:
    """Where the accuracy of a bundle's engine went: by layer, by class, at boundaries and over time.

    Layers come worst first, by what each does to the scores when it alone is as deployed and all others are FP32.
    """
    from edgeseg.console import Console
    from edgeseg.pipeline.explain import explain as run
    from edgeseg.report.explain import explain_table
    from edgeseg.report.html import write_document

    for path in (html, json_path):
        if path is not None:
            require_writable(path)
    document = run(bundle, console=Console(quiet=quiet), **options)
    click.echo(explain_table(document))
    write_json(document, json_path)
    if html is not None:
        click.echo(f"wrote {write_document(document, f'explain {bundle.stem}', html)}", err=True)
