"""`edgeseg report`: one page of documents and bundles, and their numbers for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from edgeseg.cli.words import ANY, OUT, said


@click.command()
@click.argument("documents", type=ANY, nargs=-1, required=True)
@click.option("-o", "--out", type=OUT, help="The page.  [default: report.html, unless only exports are asked for]")
@click.option("--data", type=ANY, help="Show labelled frames of this data set, run by the bundles given.")
@click.option("--split", default="val", show_default=True, help="With --data.")
@click.option("--frames", type=click.IntRange(1, 64), default=4, show_default=True, help="With --data: how many.")
@click.option("--picture", type=OUT, help="Also write the bundles' reference frames and masks as one PNG.")
@click.option("--csv", "csv_path", type=OUT, help="Write all numbers as a table: a file, or one a kind into a folder.")
@click.option(
    "--tensorboard", type=OUT, metavar="DIR", help="Write all numbers as TensorBoard events into this folder."
)
@click.option("--mlflow", metavar="URI", help="Log all numbers to MLflow: a server, sqlite:///FILE.db, or a folder.")
@said
def report(
    documents: tuple[Path, ...],
    out: Path | None,
    data: Path | None,
    split: str,
    frames: int,
    picture: Path | None,
    csv_path: Path | None,
    tensorboard: Path | None,
    mlflow: str | None,
) -> None:
    """One page from the JSON of build, eval, bench, stream and others, or from bundles.

    Of the frames of --data the worst are shown where an eval document names them.
    """
    from edgeseg.documents import is_bundle
    from edgeseg.gallery import gallery
    from edgeseg.report.exports import log_mlflow, write_csv, write_tensorboard
    from edgeseg.report.html import write_picture, write_report
    from edgeseg.report.sources import sources, worst_frames

    if picture is not None:
        click.echo(f"picture: {write_picture(documents, picture)}")
    found = sources(documents)
    exported = csv_path or tensorboard or mlflow
    if out is not None or not exported:
        bundles = [path for path in documents if is_bundle(path)] if data else []
        if data and not bundles:
            raise click.UsageError("--data shows frames that a bundle is run on: give the bundle too")
        names = worst_frames(found, split)[:frames]
        galleries = [gallery(path, data, split=split, count=frames, names=names) for path in bundles if data]
        click.echo(f"report:  {write_report(documents, out or Path('report.html'), galleries=galleries)}")
    if csv_path is not None:
        for path in write_csv(found, csv_path):
            click.echo(f"csv:     {path}")
    if tensorboard is not None:
        for path in write_tensorboard(found, tensorboard):
            click.echo(f"events:  {path}")
    if mlflow is not None:
        runs = log_mlflow(found, mlflow)
        click.echo(f"mlflow:  {len(runs)} new runs")
