"""`edgeseg profile`: what each layer costs on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeseg.cli.words import ANY, FILE, NEW_FILE, said, write_json


@click.command()
@click.argument("model", type=ANY)
@click.option("--spec", type=FILE, help="SPEC.toml, for a model; by default the file beside it.")
@click.option("--variant", help="For a bundle: one of its engines.  [default: the FP32 graph]")
@click.option("--trust-pickle", is_flag=True, help="Load a pickled module. It can run any code: only if you made it.")
@click.option("--json", "json_path", type=NEW_FILE, help="Write the rows here.")
@said
def profile(model: Path, json_path: Path | None, **options: Any) -> None:
    """Multiplications, parameters and activations of a MODEL or BUNDLE, a row a layer."""
    from dataclasses import asdict

    from edgeseg.measure.machine import machine, versions
    from edgeseg.measure.profile import table
    from edgeseg.pipeline import profiled

    result = profiled(model, **options)
    click.echo(table(result))
    about = {"machine": machine(), "versions": versions()}
    write_json({"schema": "edgeseg.profile/1", **asdict(result), **about}, json_path)
