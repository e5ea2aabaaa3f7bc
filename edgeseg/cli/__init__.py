"""The command line: a skin over the Python API, a file for each subcommand.

Progress goes to stderr, results to stdout. Exit codes: 0 good, 1 a gate failed, 2 bad usage or bad input, 3 something
is missing on this machine, 4 cannot tell. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import click

from edgeseg import __version__
from edgeseg.cli.bench import bench
from edgeseg.cli.build import build
from edgeseg.cli.compare import compare
from edgeseg.cli.doctor import doctor
from edgeseg.cli.evaluate import evaluate
from edgeseg.cli.explain import explain
from edgeseg.cli.export import export
from edgeseg.cli.history import history
from edgeseg.cli.profile import profile
from edgeseg.cli.report import report
from edgeseg.cli.rewrite import rewrite
from edgeseg.cli.stream import stream


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgeseg")
def main() -> None:
    """From a trained segmentation network to a measured, faster engine."""


for _command in (build, rewrite, evaluate, bench, stream, profile, compare, report, history, export, doctor, explain):
    main.add_command(_command)
