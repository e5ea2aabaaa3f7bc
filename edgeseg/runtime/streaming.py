"""`edgeseg stream`, from top to bottom: open the bundle, the sources and the sinks, let frames flow, say what came.

with everything open:  flow(session, captures) → for each mask: scores, sinks, flicker, agreement → the document
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.backends import open_engine
from edgeseg.backends.base import Session
from edgeseg.bundle import Bundle, Variant, read_bundle
from edgeseg.console import Console
from edgeseg.data import load_dataset
from edgeseg.data.street import CLASSES as STREET_CLASSES
from edgeseg.data.street import FPS as STREET_FPS
from edgeseg.errors import BadInput, CannotTell, EdgesegError
from edgeseg.evaluation import class_names
from edgeseg.measure.flicker import Flicker
from edgeseg.measure.monitor import Monitor
from edgeseg.measure.sensors import MachineSample
from edgeseg.measure.timeline import Timeline
from edgeseg.palette import palette_of
from edgeseg.runtime import document as told
from edgeseg.runtime.capture import Capture, Retry
from edgeseg.runtime.delivery import OnFrame, delivering, labelling
from edgeseg.runtime.document import Running
from edgeseg.runtime.flow import run_flow
from edgeseg.runtime.labels import labels_from
from edgeseg.runtime.options import Options
from edgeseg.runtime.outputs import DEFAULT_FPS, open_sinks
from edgeseg.runtime.overlay import Painter
from edgeseg.runtime.score import Scorer
from edgeseg.runtime.shares import Shares
from edgeseg.runtime.sinks.base import Sink
from edgeseg.runtime.sources import Source, Wanted, open_source, parse
from edgeseg.runtime.tally import Tally
from edgeseg.runtime.values import STAGES
from edgeseg.runtime.watch import Watch, baseline_of
from edgeseg.segmenter import engine_of
from edgeseg.selfcheck import require_elsewhere

WARM_UP = 3  # runs of the engine before the first frame is captured


def stream(
    bundle: str | Path,
    sources: str | Sequence[str],
    options: Options | None = None,
    *,
    variant: str | None = None,
    threads: int = 0,
    on_frame: OnFrame | None = None,
    stop: threading.Event | None = None,
    console: Console | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
    **words: Any,
) -> dict[str, Any]:
    """Run frames of one or several sources through a bundle's engine until they end, and return what was measured.

    `sources`: see `edgeseg.runtime.sources`; several share the engine in turns, or in batches where it takes them.
    `words`: the fields of Options by name, instead of `options`. `on_frame(shot, view)` is called with every mask,
    whose arrays are overwritten afterwards; False ends the stream. `stop`: set it from another thread to end it; it is
    set at every end, so each stream needs its own. In the main thread Ctrl-C, SIGTERM and a lost terminal end it too.

    The document is what `--json` writes. Once frames flow it always comes back: `failure` in it (message, exit_code)
    tells what ended the stream if that was an error. Before, raises BadInput, BundleError, MissingOnMachine,
    AccuracyFailed.
    """
    options = options or Options(**words)
    console, stop = console or Console(), stop or threading.Event()
    wanted = [parse(text) for text in ([sources] if isinstance(sources, str) else sources)]
    if not wanted:
        raise BadInput("a stream needs a source: a file, a folder, a camera, an address; see edgeseg stream --help")
    opened = read_bundle(Path(bundle))
    chosen = opened.variant(variant)
    with ExitStack() as stack:
        session = stack.enter_context(open_engine(engine_of(opened, chosen, {"threads": threads})))
        require_elsewhere(opened, chosen, session)
        _warm_up(session, opened)
        stack.enter_context(_signals(stop))
        return run(
            opened, chosen, session, wanted, options, stack, on_frame=on_frame, stop=stop, console=console, clock=clock
        )


def run(
    bundle: Bundle,
    variant: Variant,
    session: Session,
    wanted: Sequence[Wanted],
    options: Options,
    stack: ExitStack,
    *,
    on_frame: OnFrame | None,
    stop: threading.Event,
    console: Console,
    clock: Callable[[], int],
    opener: Callable[[Wanted], Source] | None = None,
) -> dict[str, Any]:
    """The stream of an opened engine. What is opened is closed with `stack`, the sinks before the document is made.

    `opener` opens the sources that are wanted, in place of `open_source`.
    """
    policy = options.policy or ("latest" if any(source.live for source in wanted) else "every")
    open_one = opener or partial(open_source, fps=options.fps, stall_s=options.stall_s, clock=clock)
    captures = [stack.enter_context(_capture(source, open_one, options, stop, clock)) for source in wanted]
    dataset = load_dataset(options.data) if options.data is not None else None
    names = _names(class_names(bundle.spec, dataset))
    palette = palette_of(bundle)
    labels = labels_from(options.labels, classes=len(names), dataset=dataset) if options.labels is not None else None
    rendered = any(source.kind == "street" for source in wanted)
    scorer = None
    if labels is not None or (rendered and names == STREET_CLASSES):
        ignore = labels.rule.ignore_index if labels is not None else None
        scorer = stack.enter_context(Scorer(len(wanted), len(names), ignore, names, wait=policy == "every"))
    watch = stack.enter_context(Watch(bundle, options.agreement)) if options.agreement > 0 else None
    painters = [Painter(palette, names, legend=options.legend, contours=options.contours) for _ in wanted]
    for capture in captures:  # last: what is live does not wait for the rest to be opened
        capture.open()
        if policy == "latest" and not capture.live and not capture.pace:
            capture.keep_pace(capture.fps or DEFAULT_FPS)  # what should look live comes at its own rate
    started_ns = clock()
    timeline = Timeline((*STAGES, "age"), start_ns=started_ns)
    tally = Tally(
        len(wanted),
        timeline,
        clock,
        lambda stream: _deadline_ns(options, captures[stream]),
        on_captured=labelling(scorer, labels, truth=names == STREET_CLASSES),
        on_dropped=lambda shot: scorer.dropped(shot.stream, shot.index) if scorer is not None else None,
    )
    running = Running(
        bundle,
        variant,
        policy,
        names,
        palette,
        wanted,
        captures,
        tally,
        timeline,
        Shares(len(names)),
        [Flicker() for _ in wanted],
        labels,
        scorer,
        watch,
        baseline_of(bundle),
        started_ns=started_ns,
    )
    if rendered and names != STREET_CLASSES:
        running.warnings.append(
            "the street's classes are not the model's, so its labels say nothing about this model: no mIoU of it"
        )
    with _failures(running), ExitStack() as closing:
        sinks = open_sinks(options, running, closing, clock)
        if running.address is not None:
            console.say(f"serving    {running.address}")
        closing.enter_context(Monitor(_ticking(running, console), clock=clock)).start()
        if options.seconds is not None:
            timer = threading.Timer(
                min(options.seconds, threading.TIMEOUT_MAX), _ending, (running, stop, f"after {options.seconds:g} s")
            )
            timer.daemon = True
            timer.start()
            closing.callback(timer.join)
            closing.callback(timer.cancel)
        try:
            run_flow(
                session,
                captures,
                bundle.spec.input,
                latest=policy == "latest",
                deliver=delivering(running, painters, sinks, on_frame, clock),
                observer=tally,
                stop=stop,
                clock=clock,
                limit=options.frames,
            )
        except (EdgesegError, OSError) as error:
            _failed(running, error)
        running.finished_ns = clock()
        if running.ended is None:
            running.ended = _why(running, options)
        if running.failure is None and running.ended != "stopped" and not tally.total()["processed"]:
            _failed(running, CannotTell(_nothing_came(running)))
    console.status("")
    _close(running, sinks)
    for part in (scorer, watch):
        if part is not None:
            part.close()  # what it still had to look at is in the document
    return told.document(running, clock())


def _capture(
    source: Wanted,
    open_one: Callable[[Wanted], Source],
    options: Options,
    stop: threading.Event,
    clock: Callable[[], int],
) -> Capture:
    pace = options.fps or (source.fps or STREET_FPS if source.kind == "street" else None)
    return Capture(
        partial(open_one, source),
        pace=pace,
        retry=Retry(attempts=options.retries),
        loop=options.loop,
        stop=stop,
        clock=clock,
    )


def _deadline_ns(options: Options, capture: Capture) -> int | None:
    if options.deadline_ms is not None:
        return round(options.deadline_ms * 1e6)
    rate = capture.fps if capture.live or capture.pace else None  # what is taken as fast as it goes has no clock
    return round(1e9 / rate) if rate else None


def _warm_up(session: Session, bundle: Bundle) -> None:
    """On a real frame where there is one: the first runs allocate, and are no measurement."""
    frame = bundle.references[0].frame if bundle.references else np.zeros((*bundle.spec.input.size, 3), np.uint8)
    out = np.empty((1, *bundle.spec.input.size), np.uint8)
    for _ in range(WARM_UP):
        session.run(np.ascontiguousarray(frame)[None], out)


def _names(classes: Sequence[str]) -> tuple[str, ...]:
    """Names for all values that a mask may hold: one channel decides between two, and nobody may have named any."""
    if len(classes) == 1:
        return ("other", classes[0])
    return tuple(classes) or tuple(f"class {index}" for index in range(256))


def _ticking(running: Running, console: Console) -> Callable[[int, MachineSample], None]:
    """Once a second, in the monitor's thread: join the machine to the record, and tell who watches the terminal."""
    ticks, outages = 0, [0] * len(running.captures)

    def tick(now_ns: int, sample: MachineSample) -> None:
        nonlocal ticks
        for stream, capture in enumerate(running.captures):
            seen = capture.outages
            if seen.count > outages[stream] and capture.state == "reopening":
                outages[stream] = seen.count
                console.say(f"reopening  {running.wanted[stream].shown}: {seen.last}")
        running.sample = sample
        running.timeline.machine(now_ns, sample)
        ticks += 1
        if ticks % (1 if console.live else 10) == 0:
            console.status(status_line(running, now_ns))

    return tick


def status_line(running: Running, now_ns: int) -> str:
    frames, quality = running.tally.total(), running.quality()
    age = running.timeline.recent(told.RECENT_S).get("age")
    parts = [f"{running.seconds(now_ns):6.0f} s", f"{frames['processed']} of {frames['captured']} frames"]
    parts += [f"{frames[kind]} {kind}" for kind in ("dropped", "failed") if frames[kind]]
    if age is not None and age.p50 is not None:
        parts.append(f"age {age.p50:.1f} ms (max {age.max:.1f})")
    for key, word in (("miou", "mIoU"), ("streaming_miou", "streaming mIoU"), ("agreement", "agrees with FP32")):
        if quality[key] is not None:
            parts.append(f"{word} {100 * quality[key]:.2f} %")
    parts += [capture.state for capture in running.captures if capture.state == "reopening"]
    return "stream     " + ", ".join(parts)


def _ending(running: Running, stop: threading.Event, why: str) -> None:
    running.ended = running.ended or why
    stop.set()


def _why(running: Running, options: Options) -> str:
    enough = [options.frames is not None and counts.captured >= options.frames for counts in running.tally.streams]
    if not all(map(or_, enough, (capture.finished for capture in running.captures))):
        return "stopped"
    return f"after {options.frames} frames" if any(enough) else "the sources ended"


def _nothing_came(running: Running) -> str:
    """Why there is nothing to tell: what the sources said, or the frames that failed."""
    said = [capture.complaint or capture.outages.last for capture in running.captures]
    reasons = [why for counts in running.tally.streams for why in counts.reasons]
    why = "; ".join(dict.fromkeys(text for text in (*said, *reasons[:1]) if text))
    return "no frame was processed, so nothing was measured" + (f": {why}" if why else "")


def _failed(running: Running, error: EdgesegError | OSError) -> None:
    code = error.exit_code if isinstance(error, EdgesegError) else 2
    running.failure = {"message": str(error), "exit_code": code}
    running.ended = "a failure"


@contextmanager
def _failures(running: Running) -> Iterator[None]:
    """What a sink raises when it is closed does not take the measurement with it; before frames flowed it is raised."""
    try:
        yield
    except (EdgesegError, OSError) as error:
        if running.finished_ns is None:
            raise
        if running.failure is None:
            _failed(running, error)


def _close(running: Running, sinks: Sequence[Sink]) -> None:
    """Sinks were closed with their stack: what each of them has to say goes into the document."""
    for sink in sinks:
        told = sink.told()
        running.sinks.append({"name": sink.name, **told})
        if told.get("problem"):
            running.warnings.append(f"{sink.name}: {told['problem']}")


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the stream cleanly, the second at once. Only the main thread can be told.

    So does the terminal's hanging up, unless that is ignored (nohup); it may be told twice, by system and shell.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    heard = False  # not stop.is_set(): it is set at every end, and what is being finished then is not to be broken off

    def end(number: int, frame: object) -> None:
        nonlocal heard
        if heard and number != hangup:
            raise KeyboardInterrupt
        heard = True
        stop.set()

    numbers, hangup = [signal.SIGINT, signal.SIGTERM], getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        numbers.append(hangup)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
