"""`edgeseg doctor`: what this machine can run."""

from __future__ import annotations

import click

from edgeseg.cli.words import said


@click.command()
@said
def doctor() -> None:
    """What this machine can run, and the command that mends what it cannot."""
    from edgeseg.doctor import diagnose
    from edgeseg.doctor import report as text

    click.echo(text(diagnose()))
