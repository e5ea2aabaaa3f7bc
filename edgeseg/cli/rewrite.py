"""`edgeseg rewrite`: a trained network into a cheaper one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgeseg.cli.words import ANY, BACKEND, FILE, NAMES, NEW_FILE, OUT, said, wished, write_json
from edgeseg.files import require_writable


@click.command()
@click.argument("model", type=FILE)
@click.option("--data", type=ANY, required=True, help="DATASET.toml, or a folder in a known layout; labels not needed.")
@click.option("--spec", type=FILE, help="SPEC.toml; by default the file beside the model with its stem.")
@click.option("--split", default="train", show_default=True, help="Frames to fit to and to learn from.")
@click.option("--eval-split", help="Frames for the verdict; by default 'val', else what --split has left.")
@click.option("--rules", type=NAMES, help="Only these, separated by commas.  [default: all]")
@wished
@click.option("--int8", "precision", flag_value="int8", help="It will be deployed in INT8: time layers so.")
@click.option("--fp32", "precision", flag_value="fp32", default="fp32", help="In FP32 (the default).")
@click.option("--backend", type=BACKEND, help="Force a runtime.")
@click.option("--recipe", default="mse", show_default=True, help="For --int8: how ranges are taken.")
@click.option("--samples", type=click.IntRange(4), help="Frames to fit to, at most.  [default: 48]")
@click.option("--curve", is_flag=True, help="Also the networks for a row of budgets: accuracy against latency.")
@click.option("--trust-pickle", is_flag=True, help="Load a pickled module. It can run any code: only if you made it.")
@click.option("--no-cache", is_flag=True, help="Compute and time everything again.")
@click.option("-o", "--out", type=OUT, help="NAME.pt2; .pt, .py and .toml come beside it.  [default: MODEL-small.pt2]")
@click.option("--json", "json_path", type=NEW_FILE, help="Also write what was measured; `edgeseg report` draws it.")
@click.option("--quiet", is_flag=True, help="Only the result.")
@said
def rewrite(
    model: Path, out: Path | None, json_path: Path | None, quiet: bool, no_cache: bool, precision: Any, **words: Any
) -> None:
    """Rewrite MODEL (.pt, .pt2, TorchScript) into a cheaper network of the same accuracy, and measure both.

    It becomes a mixture of depthwise separable, bottleneck, factorised and other cheaper convolutions, each fitted to
    what the layer does on real frames, chosen by what they cost in accuracy and what they gain in time on this machine.
    """
    from edgeseg.console import Console
    from edgeseg.errors import need
    from edgeseg.pipeline.rewriting.wish import wish_of
    from edgeseg.report.rewriting import rewrite_table

    need("torch", extra="torch", why="Rewriting a network")
    from edgeseg.pipeline.rewriting.run import rewrite as run

    if json_path is not None:
        require_writable(json_path)
    target = out or Path(f"{model.stem}-small.pt2")
    words["rules"] = ("all",) if words["rules"] is None else words["rules"]
    timed = not words["untimed"]
    wish = wish_of(words, precision=precision or "fp32", out=target)
    done = run(
        model,
        wish=wish,
        precision=precision or "fp32",
        out=target,
        use_cache=not no_cache,
        console=Console(quiet=quiet),
        **words,
    )
    if not done.files:  # a process of torchrun that is not the first
        return
    click.echo(rewrite_table(done.report))
    click.echo("\nwrote " + ", ".join(str(path) for path in done.files))
    write_json(done.report, json_path)
    before, after = (done.report["latency"][when]["p50"] for when in ("before", "after"))
    if timed and before is not None and after is not None and after >= before:
        click.echo(f"edgeseg: the rewritten network is not faster here: {before:.2f} → {after:.2f} ms", err=True)
        sys.exit(1)
