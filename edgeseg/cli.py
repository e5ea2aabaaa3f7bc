"""The command line: a skin over the Python API, one subcommand for each stage.

Progress goes to stderr, results to stdout. Exit codes: 0 good, 1 a gate failed, 2 bad usage or bad input, 3 something
is missing on this machine, 4 cannot tell. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from edgeseg import __version__
from edgeseg.errors import EdgesegError
from edgeseg.files import require_writable, write_whole

P = ParamSpec("P")
R = TypeVar("R")

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
ANY = click.Path(exists=True, path_type=Path)
DIR = click.Path(exists=True, file_okay=False, path_type=Path)
OUT = click.Path(path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)


class _Milliseconds(click.ParamType[float]):
    name = "MS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            found = float(str(value).strip().lower().removesuffix("ms"))
        except ValueError:
            self.fail(f"wanted milliseconds like 12ms, came '{value}'", param, ctx)
        if not 0 < found < float("inf"):
            self.fail(f"wanted a positive number of milliseconds, came '{value}'", param, ctx)
        return found


class _Names(click.ParamType[tuple[str, ...]]):
    name = "NAME,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(name.strip() for name in value.split(",") if name.strip())


class _Trt(click.ParamType[tuple[str, Any]]):
    name = "NAME[=VALUE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        from edgeseg.backends.tensorrt.options import option_from

        try:
            return value if isinstance(value, tuple) else option_from(value)
        except EdgesegError as error:
            self.fail(str(error), param, ctx)


MILLISECONDS, NAMES, TRT = _Milliseconds(), _Names(), _Trt()
BACKEND = click.Choice(["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"])


def _said(command: Callable[P, R]) -> Callable[P, R]:
    """Deliberate errors end the program with their message and their exit code, without a traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # So that temporary folders and child processes go too when somebody stops the program from outside.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        from edgeseg.backends.listen import heard_by
        from edgeseg.console import Console

        try:
            with heard_by(Console(quiet=bool(kwargs.get("quiet", False)))):
                return command(*args, **kwargs)
        except EdgesegError as error:
            click.echo(f"edgeseg: {error}", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            click.echo(f"edgeseg: the system refused: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("edgeseg: stopped", err=True)
            sys.exit(128 + signal.SIGINT)

    return run


def _write_json(document: Any, path: Path | None) -> None:
    if path is not None:
        write_whole(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
        click.echo(f"wrote {path}", err=True)


def _wished(command: Callable[P, R]) -> Callable[P, R]:
    """The options that say what a rewritten network shall become; `wish_of` reads them."""
    options = [
        click.option(
            "--speedup", type=click.FloatRange(1), help="How many times as fast, measured here.  [default: 2]"
        ),
        click.option("--latency", type=MILLISECONDS, help="Milliseconds a frame, measured here: 12ms."),
        click.option("--macs", type=click.FloatRange(0, 1, min_open=True), help="Share of the operations: 0.3."),
        click.option("--bytes", "weight_bytes", type=click.IntRange(1), help="Bytes of all weights."),
        click.option("--distill", "minutes", type=float, default=0.0, help="Minutes to learn from the original."),
        click.option("--labels", is_flag=True, help="With --distill: learn from labels too."),
        click.option("--align", type=int, default=8, show_default=True, help="Ranks are multiples of this."),
        click.option("--refine", is_flag=True, help="Tune each layer behind its non-linearity; kept if better."),
        click.option("--untimed", is_flag=True, help="With --macs, --bytes: do not put back what is not faster here."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgeseg")
def main() -> None:
    """From a trained segmentation network to a measured, faster engine."""


@main.command()
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
@click.option("--rewrite", "rules", type=NAMES, help="Rewrite into cheaper convolutions too: 'all', or names of rules.")
@_wished
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
@_said
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
    _write_json(built.report, json_path)


@main.command()
@click.argument("model", type=FILE)
@click.option("--data", type=ANY, required=True, help="DATASET.toml, or a folder in a known layout; labels not needed.")
@click.option("--spec", type=FILE, help="SPEC.toml; by default the file beside the model with its stem.")
@click.option("--split", default="train", show_default=True, help="Frames to fit to and to learn from.")
@click.option("--eval-split", help="Frames for the verdict; by default 'val', else what --split has left.")
@click.option("--rules", type=NAMES, help="Only these, separated by commas.  [default: all]")
@_wished
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
@_said
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
    _write_json(done.report, json_path)
    before, after = (done.report["latency"][when]["p50"] for when in ("before", "after"))
    if timed and before is not None and after is not None and after >= before:
        click.echo(f"edgeseg: the rewritten network is not faster here: {before:.2f} → {after:.2f} ms", err=True)
        sys.exit(1)


@main.command("eval")
@click.argument("bundle", type=ANY)
@click.option("--data", type=ANY, required=True, help="DATASET.toml, or a folder in a known layout.")
@click.option("--split", default="val", show_default=True)
@click.option("--variant", help="One of the bundle's engines; by default the one its build chose.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0: all that this process may use.")
@click.option("--json", "json_path", type=NEW_FILE, help="Write the document here.")
@click.option("--quiet", is_flag=True)
@_said
def evaluate(bundle: Path, json_path: Path | None, quiet: bool, **options: Any) -> None:
    """Accuracy of a bundle's engine on labelled frames."""
    from edgeseg.console import Console
    from edgeseg.evaluation import evaluate as run
    from edgeseg.report.text import eval_table

    document = run(bundle, console=Console(quiet=quiet), **options)
    click.echo(eval_table(document))
    _write_json(document, json_path)


@main.command()
@click.argument("bundles", type=ANY, nargs=-1, required=True)
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="For each bundle, at least."
)
@click.option("--data", type=ANY, help="Time with these frames, at their own size, instead of the bundle's own.")
@click.option("--split", default="val", show_default=True)
@click.option("--variant", help="One of the bundle's engines; by default the one its build chose.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0: all that this process may use.")
@click.option("--json", "json_path", type=NEW_FILE, help="Write the document here; a list of them for several bundles.")
@click.option("--quiet", is_flag=True)
@_said
def bench(
    bundles: tuple[Path, ...], data: Path | None, split: str, json_path: Path | None, quiet: bool, **options: Any
) -> None:
    """Latency of bundles, frame by frame; several take turns."""
    from edgeseg.benchmark import bench as run
    from edgeseg.benchmark import frames_from
    from edgeseg.console import Console
    from edgeseg.report.text import bench_table

    frames = frames_from(data, split) if data else ()
    documents = run(bundles, frames=frames, console=Console(quiet=quiet), **options)
    click.echo(bench_table(documents))
    _write_json(documents[0] if len(documents) == 1 else documents, json_path)


@main.command()
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
@_said
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
    _write_json(document, json_path)  # first: who reads the table may have gone
    click.echo(stream_table(document), err=words["lines"] == "-")
    if document["failure"] is not None:
        click.echo(f"edgeseg: {document['failure']['message']}", err=True)
        sys.exit(document["failure"]["exit_code"])


@main.command()
@click.argument("model", type=ANY)
@click.option("--spec", type=FILE, help="SPEC.toml, for a model; by default the file beside it.")
@click.option("--variant", help="For a bundle: one of its engines.  [default: the FP32 graph]")
@click.option("--trust-pickle", is_flag=True, help="Load a pickled module. It can run any code: only if you made it.")
@click.option("--json", "json_path", type=NEW_FILE, help="Write the rows here.")
@_said
def profile(model: Path, json_path: Path | None, **options: Any) -> None:
    """Multiplications, parameters and activations of a MODEL or BUNDLE, a row a layer."""
    from dataclasses import asdict

    from edgeseg.measure.machine import machine, versions
    from edgeseg.measure.profile import table
    from edgeseg.pipeline import profiled

    result = profiled(model, **options)
    click.echo(table(result))
    about = {"machine": machine(), "versions": versions()}
    _write_json({"schema": "edgeseg.profile/1", **asdict(result), **about}, json_path)


@main.command()
@click.argument("documents", type=ANY, nargs=-1, required=True)
@click.option("-o", "--out", type=OUT, default=Path("report.html"), show_default=True)
@click.option("--picture", type=OUT, help="Also write the bundles' reference frames and masks as one PNG.")
@_said
def report(documents: tuple[Path, ...], out: Path, picture: Path | None) -> None:
    """One page from the JSON of build, eval and bench, or from bundles."""
    from edgeseg.report.html import write_picture, write_report

    if picture is not None:
        click.echo(f"picture: {write_picture(documents, picture)}")
    click.echo(f"report:  {write_report(documents, out)}")


@main.command()
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
@_said
def export(bundle: Path, out: Path, trt: tuple[tuple[str, Any], ...], **options: Any) -> None:
    """Write plain files of a bundle, for tools and devices that do not run edgeseg.

    tensorrt: a graph and the trtexec command line that builds its engine, as for JetPack 5. onnxruntime: a graph and a
    short program. triton: a model repository. Each with labels, frames and the masks expected, and a README.
    """
    from edgeseg.pipeline.plain import plain_files

    for path in plain_files(bundle, out=out, trt=dict(trt), **options):
        click.echo(path)


@main.command()
@_said
def doctor() -> None:
    """What this machine can run, and the command that mends what it cannot."""
    from edgeseg.doctor import diagnose
    from edgeseg.doctor import report as text

    click.echo(text(diagnose()))


@main.command()
@click.argument("bundle", type=ANY)
@click.option("--data", type=ANY, help="DATASET.toml, or a folder in a known layout.  [default: the bundle's frames]")
@click.option("--split", default="val", show_default=True)
@click.option("--variant", help="One of the bundle's engines.  [default: the one handed over, else the one in INT8]")
@click.option("--frames", type=click.IntRange(1), default=64, show_default=True, help="To compare masks on, at most.")
@click.option("--layer-frames", type=click.IntRange(1), default=4, show_default=True, help="To compare layers on.")
@click.option("--video", help="For flicker: a source as of stream.  [default: the first frames of the split]")
@click.option("--gallery", type=click.IntRange(0), default=6, show_default=True, help="Pictures of the worst frames.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, help="To take, about."
)
@click.option("--threads", type=click.IntRange(0), default=0, help="0: all that this process may use.")
@click.option("--html", type=NEW_FILE, help="Write a page with the pictures here.")
@click.option("--json", "json_path", type=NEW_FILE, help="Write the document here; `edgeseg report` draws it.")
@click.option("--quiet", is_flag=True)
@_said
def explain(bundle: Path, html: Path | None, json_path: Path | None, quiet: bool, **options: Any) -> None:
    """Where the accuracy of a bundle's engine went: by layer, by class, at boundaries and over time.

    Layers come worst first, by what each does to the scores when it alone is as deployed and all others are FP32.
    """
    from edgeseg.console import Console
    from edgeseg.pipeline.explain import explain as run
    from edgeseg.report.explain import explain_table
    from edgeseg.report.html import write_document

    for path in (html, json_path):
        if path is not None:
            require_writable(path)
    document = run(bundle, console=Console(quiet=quiet), **options)
    click.echo(explain_table(document))
    _write_json(document, json_path)
    if html is not None:
        click.echo(f"wrote {write_document(document, f'explain {bundle.stem}', html)}", err=True)
