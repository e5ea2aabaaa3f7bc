"""`edgeseg history`: a metric through time."""

from __future__ import annotations

from pathlib import Path

import click

from edgeseg.cli.words import ANY, OUT, said


@click.command()
@click.argument("paths", type=ANY, nargs=-1, required=True)
@click.option("-o", "--out", type=OUT, help="Also write a page of HTML with a plot for each series.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Such as latency.p99, end_to_end.p50, fps, miou, iou.road, bytes; repeated.  [default: latency.p50, miou]",
)
@click.option(
    "--chance",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Of a change point in a series that does not change.",
)
@said
def history(paths: tuple[Path, ...], out: Path | None, metrics: tuple[str, ...], chance: float) -> None:
    """Metrics through time over result files of bench, eval, build and stream, and over folders of them.

    Shows where a metric changed for good. Runs compare where bundle, engine, scenario and machine are the same.
    """
    from edgeseg.report.history import history as read
    from edgeseg.report.history import history_table, write_history

    found = read(paths, metrics, p=chance)
    click.echo(history_table(found))
    if out is not None:
        click.echo(f"wrote {write_history(found, out)}", err=True)
