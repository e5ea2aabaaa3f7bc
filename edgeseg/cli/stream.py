"""`edgeseg stream`: video through an engine, measured while it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgeseg.cli.words import ANY, DIR, NEW_FILE, OUT, said, write_json
from edgeseg.files import require_writable


@click.command()
@click.argument("bundle", type=ANY)
@click.option("--source", "sources", multiple=True, required=True, help="Where frames come from; may be repeated.")
@click.option("--variant", help="One of the bundle's engines; by default the one its build chose.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0: all that this process may use.")
@click.option(
    "--policy",
    type=click.Choice(["latest", "every"]),
    help="latest: the freshest frame, older ones are dropped and counted; every: none is lost.  "
    "[default: latest for what is live, every for files]",
)
@click.option("--fps", type=float, help="Give files, folders and the street at this rate.  [default: as fast as taken]")
@click.option("--loop", is_flag=True, help="Start files and folders again at their end.")
@click.option("--seconds", type=float, help="End after so long.")
@click.option("--frames", type=int, help="End after so many frames of each source.")
@click.option("--labels", type=DIR, help="Label PNGs by the frames' names or numbers: mIoU while it runs.")
@click.option("--data", type=ANY, help="DATASET.toml that says what the labels' values mean.")
@click.option(
    "--agreement",
    type=float,
    default=0.01,
    show_default=True,
    help="Share of frames that the FP32 network looks at too, for agreement, confidence and drift.",
)
@click.option("--deadline", "deadline_ms", type=float, help="Milliseconds.  [default: one period of the camera]")
@click.option("--record", type=OUT, help="Video file: .mp4, .avi, .mkv, …")
@click.option(
    "--record-what", type=click.Choice(["overlay", "mask", "both", "frame"]), default="overlay", show_default=True
)
@click.option("--masks", type=OUT, help="Folder for a PNG of class indices a frame.")
@click.option("--lines", help="File for a JSON object a frame, a line each; - for stdout.")
@click.option("--send", help="Send the overlay on: rtsp://…, udp://HOST:PORT, gst:…; needs GStreamer.")
@click.option("--show", is_flag=True, help="A window; q or Esc ends.")
@click.option("--serve", help="HOST:PORT of a page to watch it on; other hosts than this one need the token it prints.")
@click.option("--token", envvar="EDGESEG_TOKEN", help="For --serve.  [default: a random one; or $EDGESEG_TOKEN]")
@click.option(
    "--stall",
    "stall_s",
    type=float,
    default=5.0,
    show_default=True,
    help="Seconds until a silent source is opened again.",
)
@click.option("--retries", type=int, help="Failures in a row after which a live source is given up.  [default: never]")
@click.option("--legend/--no-legend", default=True, help="In the overlay.")
@click.option("--contours/--no-contours", default=True, help="In the overlay.")
@click.option("--json", "json_path", type=NEW_FILE, help="Write the document here.")
@click.option("--quiet", is_flag=True)
@said
def stream(
    bundle: Path,
    sources: tuple[str, ...],
    variant: str | None,
    threads: int,
    json_path: Path | None,
    quiet: bool,
    **words: Any,
) -> None:
    """Run video through a bundle's engine and measure it while it runs. Ctrl-C ends it.

    A source is a video file, a folder of pictures, a camera (0, /dev/video0, camera:0?size=1280x720&fps=30), an
    address (rtsp://…, http://…), csi:0 on a Jetson, gst:PIPELINE, or street:480x360@15, the rendered street.
    """
    from edgeseg.console import Console
    from edgeseg.report.text import stream_table
    from edgeseg.runtime.streaming import stream as run

    if json_path is not None:
        require_writable(json_path)
    if words["serve"] is None:
        words["token"] = None  # $EDGESEG_TOKEN may be set for other runs
    document = run(bundle, sources, variant=variant, threads=threads, console=Console(quiet=quiet), **words)
    write_json(document, json_path)  # first: who reads the table may have gone
    click.echo(stream_table(document), err=words["lines"] == "-")
    if document["failure"] is not None:
        click.echo(f"edgeseg: {document['failure']['message']}", err=True)
        sys.exit(document["failure"]["exit_code"])
