"""`edgeseg report`: one page of documents and bundles."""

from __future__ import annotations

from pathlib import Path

import click

from edgeseg.cli.words import ANY, OUT, said


@click.command()
@click.argument("documents", type=ANY, nargs=-1, required=True)
@click.option("-o", "--out", type=OUT, default=Path("report.html"), show_default=True)
@click.option("--picture", type=OUT, help="Also write the bundles' reference frames and masks as one PNG.")
@said
def report(documents: tuple[Path, ...], out: Path, picture: Path | None) -> None:
    """One page from the JSON of build, eval and bench, or from bundles."""
    from edgeseg.report.html import write_picture, write_report

    if picture is not None:
        click.echo(f"picture: {write_picture(documents, picture)}")
    click.echo(f"report:  {write_report(documents, out)}")
