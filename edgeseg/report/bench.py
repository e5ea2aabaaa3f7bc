"""What `edgeseg bench` found, as a table for a terminal and as a section of a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from edgeseg.report import parts, plots
from edgeseg.report.text import number, table

Document = Mapping[str, Any]
KINDS = {"engine": "engine", "whole": "frame to mask"}
SUMMARIES = {"engine": "latency_ms", "whole": "end_to_end_ms"}
_PERCENTILES = ("p50", "p90", "p99", "min", "max")
SLOWEST = 8  # layers of a roofline in a terminal; a page has all


def bench_table(documents: Sequence[Document]) -> str:
    """Every bundle's engine alone, and from a frame of its own size to a mask of that size; then what to know of it."""
    blocks = []
    titled = _titled(documents)
    offline = [(title, document) for title, document in titled if document.get("offline")]
    timed = [(title, document) for title, document in titled if not document.get("offline")]
    if timed:
        count = "queries" if _scenario(timed[0][1]) == "multi-stream" else "frames"
        rows = [(f"{title} {d['variant']}: {cell}", *row) for title, d in timed for cell, *row in _rows(d)]
        blocks.append(table(("milliseconds", *_PERCENTILES, count), rows))
    if offline:
        rows = [(f"{title} {d['variant']}: {cell}", *row) for title, d in offline for cell, *row in _speeds(d)]
        blocks.append(table(("frames a second", "mean", "95 % from", "to", "frames"), rows))
    blocks.append("\n".join(f"{title}: {line}" for title, document in titled for line in _lines(document)))
    reasons = sorted({reason for _, document in timed for reason in _reasons(document)})
    blocks += ["\n".join(reasons)] if reasons else []
    blocks += [_roofline_text(title, document["roofline"]) for title, document in titled if document.get("roofline")]
    return "\n\n".join(blocks)


def bench_section(document: Document) -> str:
    """The same of one document as HTML, with the distribution of its samples."""
    scenario = _scenario(document)
    about = f"<h2>{'Throughput' if document.get('offline') else 'Latency'} of {escape(document['bundle'])}, "
    about += f"{escape(document['variant'])}</h2><p>Scenario: {escape(scenario)}</p>"
    if document.get("offline"):
        shown = parts.table(("frames a second", "mean", "95 % from", "to", "frames"), _speeds(document))
    else:
        count = "queries" if scenario == "multi-stream" else "frames"
        shown = parts.table(("milliseconds", *_PERCENTILES, count), list(_rows(document)))
        shown += parts.listed([escape(reason) for reason in _reasons(document)])
    lines = parts.listed([escape(line) for line in _lines(document)])
    return about + shown + lines + _distribution(document) + _roofline_section(document.get("roofline"))


def _titled(documents: Sequence[Document]) -> list[tuple[str, Document]]:
    """Each with the shortest of these that tells it from the others: its file's name, its path, its number."""
    paths = [str(document.get("path", document["bundle"])) for document in documents]
    names = [PurePath(path).name for path in paths]
    for titles in (names, paths):
        if len(set(titles)) == len(titles):
            return list(zip(titles, documents, strict=True))
    return [(f"{name} #{number}", d) for number, (name, d) in enumerate(zip(names, documents, strict=True), start=1)]


def _scenario(document: Document) -> str:
    return str(document.get("scenario", "single-stream"))


def _rows(document: Document) -> Iterator[tuple[str, ...]]:
    for kind, what in KINDS.items():
        latency = document[SUMMARIES[kind]]
        yield (what, *(number(latency[p]) for p in _PERCENTILES), f"{latency['count']:d}")


def _reasons(document: Document) -> list[str]:
    """Why percentiles are missing; one for each, though engine and whole may have a sample more or less."""
    reasons = {name: f"{name}: {why}" for key in SUMMARIES.values() for name, why in document[key]["reasons"].items()}
    return sorted(reasons.values())


def _speeds(document: Document) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for kind, what in KINDS.items():
        found = document["offline"][kind]
        low, high = found["interval"] or (None, None)
        rows.append((what, number(found["frames_per_second"]), number(low), number(high), f"{found['frames']:d}"))
    return rows


def _lines(document: Document) -> Iterator[str]:
    """What a person should know besides the numbers."""
    cold = document.get("cold_ms")
    if cold:
        yield f"{cold['open']:.0f} ms to open, {cold['first_frame']:.1f} ms for the first frame"
    weights = [f"{document['size_mb']:.2f} MB of files"] if document.get("size_mb") is not None else []
    if document.get("memory_mb") is not None:
        weights.append(f"{document['memory_mb']:.0f} MB of memory in a process of its own")
    if weights:
        yield ", ".join(weights)
    yield from _bounds(document)
    yield from _multi_stream(document.get("multi_stream"))
    yield from _camera(document.get("camera"))
    if offline := document.get("offline"):
        yield f"the fastest way of those tried: {_way(offline['way'])}"
        for way in offline["ways"]:
            if way.get("refused"):
                yield f"refused: {_way(way)}: {way['refused']}"
            elif way["frames_per_second"] is not None:
                yield f"tried: {_way(way)}: {way['frames_per_second']:.1f} frames/s"
    for name, count in document.get("lacking", {}).items():
        yield f"too short for this scenario's {name}: it needs {count['needed']} samples, there are {count['have']}"
    yield from (document.get("slowdown") or {}).get("text", ())


def _bounds(document: Document) -> Iterator[str]:
    bounds, percentile = document.get("bounds_ms"), document.get("percentile")
    if bounds and percentile:
        name = f"p{100 * percentile:g}"
        known = {what: bounds[kind][name] for kind, what in KINDS.items() if bounds[kind][name] is not None}
        if known:
            texts = ", ".join(f"{value:.2f} ms ({what})" for what, value in known.items())
            yield f"with {100 * bounds['confidence']:.0f} % confidence {name} lies below {texts}"


def _multi_stream(found: Document | None) -> Iterator[str]:
    if found is None:
        return
    pace = "back to back" if found["fps"] is None else f"{found['fps']:g} times a second"
    for kind, what in KINDS.items():
        part = found[kind]
        text = f"{what}: {found['streams']} frames {pace}, {part['frames_per_second']:.1f} frames/s are possible"
        if part["load"] is not None:
            text += f", load {100 * part['load']:.0f} %" + (": the queue grows without end" * (part["load"] > 1))
        yield text


def _camera(found: Document | None) -> Iterator[str]:
    if found is None:
        return
    for kind, what in KINDS.items():
        part = found[kind]
        yield (
            f"{what} at {found['fps']:g} frames/s: {part['arrived']} came, {part['dropped']} dropped, {part['late']} "
            f"later than {found['deadline_ms']:.1f} ms; deadline missed by {100 * part['missed_share']:.2f} %"
        )
        age = part["mask_age_ms"]
        if age:
            texts = ", ".join(f"{name} {number(age[name], 1)}" for name in ("p50", "p90", "p99", "max"))
            yield f"{what}: when a new mask comes the one before it is so old, ms: {texts}"


def _way(way: Document) -> str:
    words = ((way["sessions"], "session"), (way["threads"], "thread"), (way["batch"], "frame"))
    sessions, threads, frames = (f"{count} {word}{'s' * (count != 1)}" for count, word in words)
    return f"{sessions} of {threads}, {frames} at once"


def _distribution(document: Document) -> str:
    samples = document.get("samples_ms")
    if not samples:
        return ""
    series = {what: samples[kind] for kind, what in KINDS.items()}
    what = "milliseconds a frame of each turn" if document.get("offline") else "latency, ms"
    return plots.ecdf(series, "ms", what) + plots.histogram(series, "ms", f"{what}: how often")


def _roofline_text(title: str, found: Document) -> str:
    lines = [f"{title}: {line}" for line in _roofline_lines(found)]
    layers = sorted(found["layers"] or (), key=lambda layer: -float(layer["ms"]))
    if layers:
        rest = layers[SLOWEST:]
        lines += ["", table(_LAYER, [_layer(layer) for layer in layers[:SLOWEST]])]
        if rest:
            lines.append(f"and {len(rest)} more layers of {sum(layer['ms'] for layer in rest):.2f} ms together")
    return "\n".join(lines)


def _roofline_section(found: Document | None) -> str:
    if not found:
        return ""
    lines = parts.listed([escape(line) for line in _roofline_lines(found)])
    rows = [tuple(map(escape, _layer(layer))) for layer in found["layers"] or ()]
    return "<h3>Roofline</h3>" + lines + (parts.table(_LAYER, rows, "notes") if rows else "")


_LAYER = ("layer", "ms", "GMAC", "GMAC/s", "GB/s", "of the peak %", "bound by")


def _layer(layer: Document) -> tuple[str, ...]:
    name = str(layer["name"])
    name = name if len(name) <= 40 else "…" + name[-39:]
    return (
        f"{name} ({layer['op']}, {layer['precision']})",
        number(layer["ms"], 3),
        number(layer["macs"] / 1e9, 3),
        number(layer["gmac_s"], 1),
        number(layer["gb_s"], 1),
        number(layer["share"], 0, 100),
        str(layer["bound"] or "–"),
    )


def _roofline_lines(found: Document) -> Iterator[str]:
    peaks = found["peaks"]
    if peaks:
        rates = ", ".join(f"{rate:.0f} GMAC/s in {name}" for name, rate in peaks["gmac_s"].items())
        yield f"measured peaks of this machine with {peaks['threads']} thread(s): {rates}; {peaks['gb_s']:.1f} GB/s"
    of = found["bundle"]
    text = f"{of['macs'] / 1e9:.3f} GMAC and {of['bytes'] / 1e6:.1f} MB a frame"
    if of["gmac_s"] is not None:
        text += f": {of['gmac_s']:.1f} GMAC/s"
    if of["share"] is not None:
        text += f", {100 * of['share']:.0f} % of what the peaks allow, bound by {of['bound']}"
    yield text
    if found["layers"]:
        total = sum(layer["ms"] for layer in found["layers"])
        for bound in ("compute", "memory"):
            own = [layer for layer in found["layers"] if layer["bound"] == bound]
            if own and total:
                share = sum(layer["ms"] for layer in own) / total
                yield f"{len(own)} layers are bound by {bound}: {100 * share:.0f} % of the {total:.2f} ms of all layers"
    yield from found["notes"]
