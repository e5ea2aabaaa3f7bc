"""A metric through time over many result files: where it changed for good, as a table and as a page.

Runs are put together by bundle, engine, how they were measured, and machine: only those compare.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from pathlib import Path

from edgeseg.documents import is_bundle
from edgeseg.errors import BadInput, EdgesegError
from edgeseg.files import write_whole
from edgeseg.measure.changepoints import LEAST, Change, changes
from edgeseg.report import parts, plots, svg
from edgeseg.report.html import page
from edgeseg.report.metrics import Measured, less_is_better, measured
from edgeseg.report.sources import Source, sources
from edgeseg.report.text import DASH, table

DEFAULT = ("latency.p50", "miou")
SHARES = ("miou", "pixel_accuracy", "dice", "agreement", "boundary", "iou", "quality")  # shown in %


@dataclass(frozen=True, slots=True)
class Run:
    """One document's value."""

    time: datetime
    value: float
    path: Path
    by_file: bool  # the document tells no time, so the file's counts


@dataclass(frozen=True, slots=True)
class Series:
    """A metric of one engine on one machine through time."""

    bundle: str
    variant: str
    scenario: str
    machine: str
    metric: str
    runs: tuple[Run, ...]
    changes: tuple[Change, ...]

    @property
    def title(self) -> str:
        return ", ".join((self.bundle, self.variant, self.scenario, self.machine))


@dataclass(frozen=True, slots=True)
class History:
    """What was found: the series, and the files that were passed over with the reason."""

    series: tuple[Series, ...]
    passed: Mapping[Path, str]
    documents: int


def history(paths: Sequence[Path], metrics: Sequence[str] = (), *, p: float = 0.01) -> History:
    """Read all documents of files, bundles and folders (with all below them) into series in order of time.

    `metrics`: names like "latency.p50", "miou", "iou.road" (edgeseg.report.metrics); by default latency and mIoU. `p`:
    the chance of a change point in a series that does not change. In folders, files that are none of edgeseg are passed
    over; a file that was named must be one. Raises BadInput, also when no document has such a metric.
    """
    found, passed = _gathered(paths)
    rows = [(run, one) for one in found for run in measured(one)]
    if not rows:
        raise BadInput(f"there is no document with a metric among {len(found)} of edgeseg: give those of bench or eval")
    wanted = metrics or [name for name in DEFAULT if any(name in run.values for run, _ in rows)]
    known = sorted({name for run, _ in rows for name in run.values})
    if strange := [name for name in wanted if name not in known]:
        raise BadInput(f"no document has the metric '{strange[0]}'; there are: {', '.join(known)}")
    grouped: dict[tuple[str, str, str, str, str], list[Run]] = {}
    for name in wanted:
        for run, source in rows:
            if name in run.values:
                key = (run.bundle, run.variant, run.scenario, run.machine, name)
                grouped.setdefault(key, []).append(_run(run, name, source))
    series = []
    for key, runs in grouped.items():
        bundle, variant, scenario, machine, name = key
        runs.sort(key=lambda run: (run.time, str(run.path)))
        cuts = tuple(changes([run.value for run in runs], p=p))
        series.append(Series(bundle, variant, scenario, machine, name, tuple(runs), cuts))
    return History(tuple(series), passed, len(found))


def history_table(found: History) -> str:
    """A row for each series, then each change in words."""
    header = ("series", "metric", "runs", "first", "last", "lowest", "highest", "changes")
    rows, lines = [], []
    for one in found.series:
        values = [run.value for run in one.runs]
        cells = (_said(one.metric, value) for value in (values[0], values[-1], min(values), max(values)))
        rows.append((one.title, one.metric, str(len(values)), *cells, str(len(one.changes))))
        lines += [f"{one.title}: {text}" for text in _words(one)]
    by_file = sum(run.by_file for one in found.series for run in one.runs)
    notes = [f"{by_file} values are placed by the time of their file: the document tells none"] if by_file else []
    notes += [f"passed over {path}: {why}" for path, why in found.passed.items()]
    short = [one for one in found.series if len(one.runs) < 2 * LEAST]
    if short:
        notes.append(f"{len(short)} series are too short to tell a change from noise: {2 * LEAST} runs are the least")
    return "\n".join((table(header, rows), "", *(lines or ["no change"]), *([""] if notes else []), *notes))


def write_history(found: History, out: Path) -> Path:
    """Write the page: a plot for each series with its levels and changes, then the runs."""
    sections = "".join(map(_section, found.series))
    changed = sum(len(one.changes) for one in found.series)
    worse = sum(_verdict(one.metric, change) == "worse" for one in found.series for change in one.changes)
    lead = [(str(len(found.series)), "series", f"{found.documents} documents")]
    lead += [(str(changed), "changes", "that last"), (str(worse), "of them for the worse", "")]
    passed = [f"passed over {escape(str(path))}: {escape(why)}" for path, why in found.passed.items()]
    missing = "" if svg.available() else "<p class='machine'>Plots need matplotlib: pip install 'edgeseg[report]'</p>"
    body = f"{parts.cards(lead)}{missing}{sections}{parts.listed(passed)}"
    return write_whole(out, page("history", body))


def _section(one: Series) -> str:
    factor = _factor(one.metric)
    points = [(float(at), run.value * factor) for at, run in enumerate(one.runs)]
    ends = [0, *(change.index for change in one.changes), len(one.runs)]
    heights = [c.before for c in one.changes] + ([one.changes[-1].after] if one.changes else [])
    levels = [(a, b - 1.0, h * factor) for a, b, h in zip(ends[:-1], ends[1:], heights, strict=False)]
    drawn = plots.lines(
        {one.metric: points},
        x="runs, in order of time",
        y=f"{one.metric}{_unit(one.metric)}",
        title=f"{one.metric}: {one.title}",
        marks=[(change.index - 0.5, _step(one.metric, change)) for change in one.changes],
        levels=levels,
        ticks=[(float(at), f"{run.time:%Y-%m-%d}") for at, run in enumerate(one.runs)],
        dots=True,
        height=280,
    )
    rows = []
    starts = {change.index: change for change in one.changes}
    for at, run in enumerate(one.runs):
        change = starts.get(at)
        verdict = "" if change is None else _verdict(one.metric, change)
        note = (
            "" if change is None else f"<b class='{_class(verdict)}'>{verdict}: {escape(_step(one.metric, change))}</b>"
        )
        cells = (f"{run.time:%Y-%m-%d %H:%M:%S}{' (file)' if run.by_file else ''}", _said(one.metric, run.value))
        rows.append((*cells, escape(run.path.name), note))
    runs = parts.table(("time (UTC)", f"{escape(one.metric)}{_unit(one.metric)}", "file", ""), rows, "notes")
    words = parts.listed([escape(text) for text in _words(one)]) or "<p>No change.</p>"
    return f"<h2>{escape(one.title)}</h2>{drawn}{words}<details><summary>{len(rows)} runs</summary>{runs}</details>"


def _gathered(paths: Sequence[Path]) -> tuple[list[Source], dict[Path, str]]:
    found: list[Source] = []
    passed: dict[Path, str] = {}
    for path in paths:
        if path.is_file() or (path.is_dir() and (path / "manifest.json").is_file()):
            found += sources([path])
            continue
        for inner in sorted(path.rglob("*")):
            if not (inner.is_file() and (inner.suffix == ".json" or is_bundle(inner))):
                continue
            try:
                read = sources([inner])
                for one in read:
                    measured(one)
            except EdgesegError as error:
                if _is_ours(inner):
                    passed[inner] = str(error)
                continue
            found += read
    return found, passed


def _is_ours(path: Path) -> bool:
    """Whether a file that cannot be read was meant to be a document: then its absence is worth a word."""
    if path.suffix == ".edgeseg":
        return True
    try:
        return re.search(r'"schema"\s*:\s*"edgeseg\.', path.read_text(encoding="utf-8")) is not None
    except (OSError, UnicodeDecodeError):
        return True


def _run(run: Measured, metric: str, source: Source) -> Run:
    when = source.time
    by_file = when is None
    moment = when or datetime.fromtimestamp(source.path.stat().st_mtime, timezone.utc)
    return Run(moment, run.values[metric], source.path, by_file)


def _words(one: Series) -> list[str]:
    return [
        f"{one.metric} {_verdict(one.metric, change)} from {one.runs[change.index].time:%Y-%m-%d %H:%M} on "
        f"({one.runs[change.index].path.name}): {_said(one.metric, change.before)} to "
        f"{_said(one.metric, change.after)}{_unit(one.metric)}, {_step(one.metric, change)}"
        + (f", p {change.p:.2g}" if change.p else "")
        for change in one.changes
    ]


def _verdict(metric: str, change: Change) -> str:
    return "worse" if (change.after > change.before) == less_is_better(metric) else "better"


def _class(verdict: str) -> str:
    return "bad" if verdict == "worse" else "good"


def _step(metric: str, change: Change) -> str:
    if metric.startswith(SHARES):
        return f"{100 * (change.after - change.before):+.2f} points"
    return f"{100 * (change.after / change.before - 1):+.1f} %" if change.before else f"{change.after:+.4g}"


def _factor(metric: str) -> float:
    return 100.0 if metric.startswith(SHARES) else 1.0


def _unit(metric: str) -> str:
    if metric.startswith(SHARES):
        return " %"
    if metric.endswith("_mb"):
        return " MB"
    timed = metric.startswith(("latency", "end_to_end", "cold", "stages")) and not metric.endswith("count")
    return " ms" if timed else ""


def _said(metric: str, value: float | None) -> str:
    return DASH if value is None else f"{_factor(metric) * value:.6g}"
