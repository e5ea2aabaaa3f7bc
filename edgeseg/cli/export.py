"""`edgeseg export`: plain files of a bundle for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeseg.cli.words import ANY, OUT, TRT, said


@click.command()
@click.argument("bundle", type=ANY)
@click.option("--dialect", type=click.Choice(["tensorrt", "onnxruntime", "triton"]), required=True)
@click.option("-o", "--out", type=OUT, required=True, help="Folder: a new or empty one, or that of an earlier export.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="INT8 needs a bundle built with --int8.  [default: of the engine that the bundle's build chose]",
)
@click.option(
    "--tensorrt", metavar="VERSION", default="10.3", show_default=True, help="On the device: 8.5, 8.6, 10.x or 11.x."
)
@click.option("--trt", type=TRT, multiple=True, help="For the engine, repeated: as for build.")
@said
def export(bundle: Path, out: Path, trt: tuple[tuple[str, Any], ...], **options: Any) -> None:
    """Write plain files of a bundle, for tools and devices that do not run edgeseg.

    tensorrt: a graph and the trtexec command line that builds its engine, as for JetPack 5. onnxruntime: a graph and a
    short program. triton: a model repository. Each with labels, frames and the masks expected, and a README.
    """
    from edgeseg.pipeline.plain import plain_files

    for path in plain_files(bundle, out=out, trt=dict(trt), **options):
        click.echo(path)
