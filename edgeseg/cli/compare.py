"""`edgeseg compare`: what became better or worse, and a gate for CI."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgeseg.cli.words import ANY, FILE, NEW_FILE, said, write_json


@click.command()
@click.argument("base", type=ANY)
@click.argument("new", type=ANY, required=False)
@click.option("--budget", type=FILE, help="budget.toml.  [default: miou -0.5 points, latency.p50 +5 %]")
@click.option("--html", "html_path", type=NEW_FILE, help="Write a page for people.")
@click.option("--markdown", "markdown_path", type=NEW_FILE, help="Write the text of a pull request's comment.")
@click.option("--junit", "junit_path", type=NEW_FILE, help="Write JUnit XML: a test case for each budgeted metric.")
@click.option("--json", "json_path", type=NEW_FILE, help="Write the document here.")
@said
def compare(
    base: Path,
    new: Path | None,
    budget: Path | None,
    html_path: Path | None,
    markdown_path: Path | None,
    junit_path: Path | None,
    json_path: Path | None,
) -> None:
    """Compare the JSON of bench, eval, build or stream before and after a change: files, or folders of them.

    Without NEW, BASE holds two engines of one call: the first is before. Several runs of one engine count as repeated.
    Ends with 1 if something in the budget is surely worse than allowed, with 4 if something in it cannot be told.
    """
    from edgeseg.compare import compare as run
    from edgeseg.compare.junit import junit
    from edgeseg.compare.text import markdown, table
    from edgeseg.files import write_whole
    from edgeseg.measure.machine import machine, versions

    document = run(base, new, budget=budget) | {"machine": machine(), "versions": versions()}
    click.echo(table(document))
    write_json(document, json_path)
    if markdown_path is not None:
        click.echo(f"wrote {write_whole(markdown_path, markdown(document).encode())}", err=True)
    if junit_path is not None:
        click.echo(f"wrote {write_whole(junit_path, junit(document))}", err=True)
    if html_path is not None:
        from edgeseg.report.html import write_document

        click.echo(f"wrote {write_document(document, 'comparison', html_path)}", err=True)
    sys.exit(document["exit_code"])
