"""The top of a page: what it is about, the verdict, the numbers that matter, and accuracy against latency against size.

All documents together: engines of builds, and what bench and eval measured of the same engines later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import cycle
from typing import Any

from edgeseg.report import plots
from edgeseg.report.build import baseline_of
from edgeseg.report.parts import cards, table
from edgeseg.report.sources import Source
from edgeseg.report.text import DASH, number, size

CARDS = 4  # engines with large numbers; the table has all


@dataclass(slots=True)
class Entry:
    """One engine as one run timed it, and what other documents say about its accuracy."""

    name: str
    variant: str
    graph: str | None  # hash of all that its masks depend on
    place: str = ""  # the file, to tell engines of one name apart
    timed: str | None = None  # the run in which it was timed: only times of one run compare
    facts: dict[str, Any] = field(default_factory=dict)
    twin: bool = False  # another entry has the same names

    @property
    def title(self) -> str:
        return f"{self.name}, {self.label}"

    @property
    def label(self) -> str:
        return f"{self.variant} ({self.place})" if self.twin else self.variant

    def same(self, name: str, variant: str, graph: str | None) -> bool:
        alike = self.graph is None or graph is None or self.graph == graph
        return (self.name, self.variant) == (name, variant) and alike


def summary(found: Sequence[Source]) -> str:
    """Verdicts and large numbers, then the plot and the table of all engines; empty if no document is about engines."""
    entries = entries_of(found)
    verdicts = [f"<div class='verdict'>{text}</div>" for source in found if (text := _verdict(source.document))]
    benched = {(entry.name, entry.variant) for entry in entries if entry.facts.get("benched")}
    lead = [
        entry
        for entry in entries
        if entry.facts.get("lead") and (entry.facts.get("benched") or (entry.name, entry.variant) not in benched)
    ]
    shown = [f"<p><b>{escape(e.title)}</b></p>{cards(_numbers(e))}" for e in lead[:CARDS] if _numbers(e)]
    shown += [made for source in found if (made := _headline(source))]
    if len(lead) > CARDS:
        shown.append(f"<p>and {len(lead) - CARDS} more in the table below</p>")
    table_ = _all(entries) if len(found) > 1 else ""
    return "".join((*verdicts, *shown, _trade_off(entries), table_, _distributions(found)))


def entries_of(found: Sequence[Source]) -> list[Entry]:
    """One entry for every engine of a build and every bench document, with the accuracy of eval documents.

    A bench document takes accuracy and size from a build of an engine of this name, if there is just one such build.
    """
    entries = [entry for source in found if source.kind in ("build", "bench") for entry in _timed(source)]
    for entry in entries:
        built = [e for e in entries if e.same(entry.name, entry.variant, entry.graph) and "built" in e.facts]
        if "built" not in entry.facts and len(built) == 1:
            taken = ("miou", "agreement", "bytes", "judged", "before", "baseline")
            entry.facts |= {key: built[0].facts[key] for key in taken if built[0].facts.get(key) is not None}
    for source in found:
        if source.kind == "eval":
            _judge(entries, source)
    names = [(entry.name, entry.variant) for entry in entries]
    for entry in entries:
        entry.twin = names.count((entry.name, entry.variant)) > 1
    return entries


def _judge(entries: list[Entry], source: Source) -> None:
    """Give the accuracy of an eval document to the entries it is about, or make a new one."""
    document = source.document
    interval = (document.get("intervals") or {}).get("miou")
    facts = {"miou": document["miou"], "interval": interval, "precision": document.get("precision"), "lead": True}
    facts |= {"judged": f"{document['frames']} frames of “{document['data']['split']}”", "evaluated": True}
    name, variant, graph = document["bundle"], document["variant"], document.get("graph")
    about = [entry for entry in entries if entry.same(name, variant, graph) and "evaluated" not in entry.facts]
    if len([entry for entry in about if "built" in entry.facts]) > 1:  # which build is not known
        about = [entry for entry in about if entry.graph is not None]
    if not about:
        entries.append(entry := Entry(name, variant, graph, source.path.stem))
        about = [entry]
    for entry in about:
        entry.facts |= {key: value for key, value in facts.items() if value is not None}


def _timed(source: Source) -> list[Entry]:
    document = source.document
    cpu = (document.get("machine") or {}).get("cpu")
    if source.kind == "bench":
        # Of many frames at once a time each is no latency.
        latency = document["latency_ms"] if not document.get("offline") else {"p50": None, "p90": None}
        facts = {"p50": latency["p50"], "p90": latency["p90"], "precision": document.get("precision"), "cpu": cpu}
        facts |= {"fps": document.get("fps"), "lead": True, "benched": True}
        run = str(document.get("run") or source.path)
        return [Entry(document["bundle"], document["variant"], document.get("graph"), source.path.stem, run, facts)]
    first = baseline_of(document) or {"name": None, "latency_ms": {"p50": None}, "miou": None, "bytes": None}
    judged = document["evaluation"]
    made = []
    for engine in document["engines"]:
        facts = {
            "p50": engine["latency_ms"]["p50"],
            "p90": engine["latency_ms"]["p90"],
            "miou": engine["miou"],
            "agreement": engine["agreement"],
            "bytes": engine["bytes"],
            "precision": engine["precision"],
            "judged": f"{judged['frames']} frames of “{judged['split']}”" if judged else None,
            "cpu": cpu,
            "lead": engine["name"] == document["chosen"],
            "built": True,
            "baseline": engine["name"] == first["name"],
            "before": None if engine["name"] == first["name"] else first,
        }
        made.append(
            Entry(
                document["name"], engine["name"], engine.get("graph"), source.path.stem, f"build {source.path}", facts
            )
        )
    return made


def _verdict(document: Mapping[str, Any]) -> str:
    if document.get("schema") != "edgeseg.build/1":
        return ""
    reasons = " ".join(escape(reason) for reason in document["reasons"])
    return f"<b>{escape(document['name'])}: {escape(document['chosen'])} is handed over.</b> {reasons}"


def _numbers(entry: Entry) -> list[tuple[str, str, str]]:
    """Latency, accuracy and size, as far as known, each against the FP32 engine that a build measured with it."""
    facts, before = entry.facts, entry.facts.get("before") or {}
    found = []
    if (p50 := facts.get("p50")) is not None:
        reference = (before.get("latency_ms") or {}).get("p50")
        # Only what one run measured in turns may be divided.
        turns = reference and not facts.get("benched")
        aside = f"{reference / p50:.2f} times as fast as {escape(before['name'])}" if turns else ""
        found.append((f"{p50:.2f} ms", "latency, p50", aside or f"p90 {number(facts.get('p90'))} ms"))
    if (miou := facts.get("miou")) is not None:
        asides = [escape(facts["judged"])] if facts.get("judged") else []
        if facts.get("interval"):
            asides.insert(0, f"95 %: {100 * facts['interval'][0]:.2f} to {100 * facts['interval'][1]:.2f}")
        if before.get("miou") is not None and not facts.get("evaluated"):
            asides.insert(0, f"{100 * (miou - before['miou']):+.2f} points against {escape(before['name'])}")
        found.append((f"{100 * miou:.2f} %", "mIoU", "; ".join(asides)))
    elif (agrees := facts.get("agreement")) is not None:
        found.append((f"{100 * agrees:.2f} %", "labels as FP32", "there are no true labels"))
    if (count := facts.get("bytes")) is not None:
        aside = f"{count / before['bytes']:.2f} of {escape(before['name'])}" if before.get("bytes") else ""
        found.append((size(count), "size", aside))
    elif facts.get("fps") is not None:
        found.append((f"{facts['fps']:.1f}", "frames a second", "one at a time"))
    return found


def _headline(source: Source) -> str:
    """The numbers that matter of a stream and of a rewrite."""
    document, numbers = source.document, []
    if source.kind == "stream":
        frames = document["frames"]
        name = f"{document['bundle']}, {document['variant']}, as a stream"
        latency = document["latency_ms"]
        numbers.append((f"{number(latency['p50'])} ms", "camera to mask, p50", f"p99 {number(latency['p99'])} ms"))
        numbers.append((f"{document['fps']:.1f}", "frames a second", f"for {document['seconds']:.0f} s"))
        if document.get("miou") is not None:
            numbers.append((f"{100 * document['miou']:.2f} %", "mIoU", "of the processed frames"))
        lost = frames["dropped"] + frames["failed"]
        share = 100 * lost / frames["captured"] if frames["captured"] else 0.0
        numbers.append((f"{share:.1f} %", "dropped or failed", f"{lost:d} of {frames['captured']:d} frames"))
    elif source.kind == "rewrite":
        name = f"{document['name']}, rewritten"
        latency, accuracy, macs = document["latency"], document["accuracy"], document["macs"]
        before, after = ((latency or {}).get(when, {}).get("p50") for when in ("before", "after"))
        if before and after:
            aside = f"{before:.2f} to {after:.2f} ms on {escape(latency['backend'])}"
            numbers.append((f"{before / after:.2f} times", "as fast", aside))
        if accuracy and None not in (accuracy["before"], accuracy["after"]):
            points = 100 * (accuracy["after"] - accuracy["before"])
            numbers.append(
                (f"{points:+.2f} points", f"of {escape(accuracy['metric'])}", f"{accuracy['frames']} frames")
            )
        if macs["before"]:
            numbers.append((f"{100 * macs['after'] / macs['before']:.0f} %", "of the MACs left", ""))
    return f"<p><b>{escape(name)}</b></p>{cards(numbers)}" if numbers else ""


def _trade_off(entries: Sequence[Entry]) -> str:
    """One dot for each engine with a time and an accuracy; its area is the engine's size, its colour the run."""
    metric = "miou" if any(e.facts.get("miou") is not None for e in entries) else "agreement"
    placed = [e for e in entries if e.facts.get("p50") is not None and e.facts.get(metric) is not None]
    if len(placed) < 2:
        return ""
    runs: dict[str | None, list[Entry]] = {}
    for entry in placed:
        runs.setdefault(entry.timed, []).append(entry)
    fronts = {run: _front([(e.facts["p50"], 100 * e.facts[metric]) for e in some]) for run, some in runs.items()}
    colours = dict(zip(runs, cycle(("s1", "s3", "s4", "s5", "s6")), strict=False))
    names = {entry.name for entry in placed}
    sizes = [entry.facts["bytes"] for entry in placed if entry.facts.get("bytes")]
    dots = []
    for entry in placed:
        x, y = entry.facts["p50"], 100 * entry.facts[metric]
        count = entry.facts.get("bytes")
        first = bool(entry.facts.get("baseline"))
        dots.append(
            plots.Dot(
                x,
                y,
                entry.label if len(names) == 1 else entry.title,
                f"{entry.title}: {x:.2f} ms, {y:.2f} %" + (f", {size(count)}" if count else ""),
                colour="s2" if first else colours[entry.timed],
                hollow=(x, y) not in fronts[entry.timed],
                square=first,
                area=1.0 if not count else min(8.0, max(0.7, 8.0 * count / max(sizes))),
                bold=bool(entry.facts.get("lead")),
            )
        )
    notes = ["hollow: another of its run is faster and better", "bold: handed over, or measured on its own"]
    if sizes:
        notes.insert(0, f"area: size of the engine, the largest {size(max(sizes))}")
    if len(runs) > 1:
        notes.append("a colour for each run: times of different runs compare roughly")
    if len({e.facts.get("cpu") for e in placed}) > 1:
        notes.append("timed on several machines, so times do not compare")
    if len({e.facts.get("judged") for e in placed}) > 1:
        notes.append("judged on different frames, so accuracies do not compare")
    name = {"miou": "mIoU", "agreement": "labels as FP32"}[metric]
    longest = max(fronts.values(), key=len)
    return "<h2>Trade-off</h2>" + plots.scatter(
        dots,
        x="latency p50, ms",
        y=f"{name}, %",
        title=f"{name} against latency against size" if sizes else f"{name} against latency",
        line=longest if len(longest) > 1 else (),
        note="; ".join(notes),
        most=100.0,
        span=1.0,
    )


def _front(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The places that none is both faster and better than, from left to right."""
    front: list[tuple[float, float]] = []
    best = -math.inf
    for x, y in sorted(set(places), key=lambda place: (place[0], -place[1])):
        if y > best:
            front.append((x, y))
            best = y
    return front


def _all(entries: Sequence[Entry]) -> str:
    if len(entries) < 2:
        return ""
    rows = []
    for entry in entries:
        f = entry.facts
        rows.append(
            (
                f"<b>{escape(entry.title)}</b>" if f.get("lead") else escape(entry.title),
                escape(str(f.get("precision") or DASH)),
                number(f.get("p50")),
                number(f.get("p90")),
                number(f.get("miou"), 2, 100),
                number(f.get("agreement"), 2, 100),
                DASH if f.get("bytes") is None else size(f["bytes"]),
                escape(f.get("judged") or DASH),
                escape(str(f.get("cpu") or DASH)),
            )
        )
    header = ("engine", "precision", "p50 ms", "p90 ms", "mIoU %", "agree %", "size", "judged on", "timed on")
    return table(header, rows, "notes")


def _distributions(found: Sequence[Source]) -> str:
    """All bench documents in one plot, where there are several; each has its own in its section."""
    series: dict[str, Sequence[float]] = {}
    for source in found:
        samples = (
            (source.document.get("samples_ms") or {})
            if source.kind == "bench" and not source.document.get("offline")
            else {}
        )
        if samples.get("engine"):
            name = f"{source.document['bundle']}, {source.document['variant']}"
            series[name if name not in series else f"{name} ({source.path.name}, {len(series) + 1})"] = samples[
                "engine"
            ]
    if len(series) < 2:
        return ""
    drawn = plots.ecdf(series, "ms", "latency of the engine, ms") + plots.box(series, "ms", "all samples, ms")
    return f"<h2>Latency distributions</h2>{drawn}"
