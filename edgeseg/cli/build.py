"""`edgeseg build`: from a model, or from a bundle built elsewhere, to a measured bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeseg.cli.words import ANY, BACKEND, FILE, NAMES, NEW_FILE, OUT, TRT, said, wished, write_json
from edgeseg.files import require_writable


@click.command()
@click.argument("model", type=ANY)
@click.option("--spec", type=FILE, help="SPEC.toml; by default the file beside the model with its stem.")
@click.option("--data", type=ANY, help="DATASET.toml, or a folder in a known layout (Cityscapes, VOC, CamVid, ADE20K).")
@click.option("--split", default="train", show_default=True, help="Frames to calibrate on.")
@click.option("--eval-split", help="Frames for the verdict; by default 'val', else what --split has left.")
@click.option("--int8", "precision", flag_value="int8", help="Calibrate and quantize; needs --data.")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision, where the processor computes in it.")
@click.option("--fp32", "precision", flag_value="fp32", default="fp32", help="As trained (the default).")
@click.option("--backend", type=BACKEND, help="Force a runtime.  [default: all that can run here]")
@click.option(
    "--trt",
    type=TRT,
    multiple=True,
    help="For TensorRT engines, repeated: workspace=2GB, level=0 to 5, tf32=off, version-compatible, "
    "hardware=ampere+|same-capability, sparse, dla=0, shapes=LEAST:BEST:MOST, no-external-tactics, "
    "cuda-graph=off, fallback.",
)
@click.option("--recipe", default="mse", show_default=True, help="How ranges are taken: a name or a TOML file.")
@click.option("--samples", type=click.IntRange(1), help="Frames to calibrate on, at most.  [default: 64]")
@click.option(
    "--max-miou-drop",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Points of mIoU (without labels: of agreement with FP32) that may be lost.",
)
@click.option(
    "--max-class-drop", type=click.FloatRange(0), help="Points of IoU that any class may lose.  [default: any]"
)
@click.option(
    "--search",
    type=click.FloatRange(0, min_open=True),
    metavar="MINUTES",
    help="Look so long for the convolutions to keep in float.  [default: 5, where INT8 loses too much]",
)
@click.option(
    "--recover",
    type=click.FloatRange(0, min_open=True),
    metavar="MINUTES",
    help="Let the INT8 weights learn so long from the FP32 network; no labels needed.",
)
@click.option(
    "--without",
    type=click.Choice(["equalization", "rounding", "bias"]),
    multiple=True,
    help="Leave out a part of what prepares INT8, repeated.  [default: all, and bias only in the place of rounding]",
)
@click.option("--rewrite", "rules", type=NAMES, help="Rewrite into cheaper convolutions too: 'all', or names of rules.")
@wished
@click.option("--quick", is_flag=True, help="A first look: fewer frames and rounds, no bias correction.")
@click.option("--dynamic", is_flag=True, help="Any batch and frame size, instead of one frame of the spec's size.")
@click.option("--opset", type=click.IntRange(17, 21), help="ONNX opset of the graph.  [default: 17]")
@click.option("--trust-pickle", is_flag=True, help="Load a pickled module. It can run any code: only if you made it.")
@click.option("--no-cache", is_flag=True, help="Compute everything again.")
@click.option(
    "-o",
    "--out",
    type=OUT,
    help="The bundle: a file NAME.edgeseg, else a folder.  [default: MODEL's stem with .edgeseg, here]",
)
@click.option("--json", "json_path", type=NEW_FILE, help="Also write what was measured.")
@click.option("--quiet", is_flag=True, help="Only the result.")
@said
def build(
    model: Path,
    precision: Any,
    out: Path | None,
    json_path: Path | None,
    quiet: bool,
    no_cache: bool,
    trt: tuple[tuple[str, Any], ...],
    **options: Any,
) -> None:
    """Build a bundle from MODEL (.pt, .pt2, TorchScript, .onnx) and measure it.

    MODEL may also be a bundle built elsewhere: its graph and scales become engines of this machine.
    """
    from edgeseg.console import Console
    from edgeseg.pipeline import build as run
    from edgeseg.pipeline.rewriting.wish import wish_of
    from edgeseg.report.rewriting import rewrite_table
    from edgeseg.report.search import search_table
    from edgeseg.report.text import build_table

    console = Console(quiet=quiet)
    if json_path is not None:
        require_writable(json_path)
    precision = precision or "fp32"  # click 8.3.0 forgets the default of a flag with a value
    made = model.is_dir() or model.suffix == ".edgeseg"  # a bundle: what it was built from stays
    target = out or Path(f"{model.stem}-here.edgeseg" if made else f"{model.stem}.edgeseg")
    samples = options["samples"]
    wish = wish_of(options, precision=precision, out=target)
    built = run(
        model,
        out=target,
        precision=precision,
        trt=dict(trt),
        samples=samples,
        rewrite=wish,
        use_cache=not no_cache,
        console=console,
        **options,
    )
    click.echo(build_table(built.report))
    for document in built.report["search"] or ():
        click.echo(f"\n{search_table(document)}")
    if built.report["rewriting"] is not None:
        click.echo(f"\n{rewrite_table(built.report['rewriting'])}")
    click.echo(f"\nbundle: {built.path}")
    write_json(built.report, json_path)
