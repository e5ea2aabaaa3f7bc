"""A search over which layers stay in float: accuracy against latency, one dot a candidate; what each layer loses.

Documents of the schema edgeseg.search/1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeseg.report import parts
from edgeseg.report.plots import Dot, scatter
from edgeseg.report.text import DASH, number, table

Row = tuple[str, ...]

HEADER = ("kept in float", "ms", "from", "accuracy %", "lost", "±", "worst class", "lost", "floor")
LAYERS = ("convolution", "alone dB", "alone agree %", "all but it dB", "all but it agree %", "ms in float", "from")
_SHOWN = 20  # rows of candidates in a text


def search_table(document: Mapping[str, Any]) -> str:
    """What was asked and found, the candidates from the fastest on, and the layers that lose most first."""
    rows = [_cells(candidate) for candidate in _shown(document)]
    more = len(document["candidates"]) - len(rows)
    lines = [_title(document), "", table(HEADER, [_fp32(document), *rows])]
    lines += [f"and {more} more candidates"] if more else []
    lines += ["", *_remarks(document)]
    if layers := [_layer(row) for row in document["convolutions"]]:
        lines += ["", table(LAYERS, layers)]
    return "\n".join(lines)


def search_section(document: Mapping[str, Any]) -> str:
    """The same for a page, with the picture and all candidates."""
    rows = [tuple(map(escape, row)) for row in (_fp32(document), *map(_cells, document["candidates"]))]
    layers = [tuple(map(escape, _layer(row))) for row in document["convolutions"]]
    return (
        f"<h2>INT8 of {escape(document['name'])}, some of it in float</h2><p>{escape(_title(document))}</p>"
        + search_plot(document)
        + f"<ul>{''.join(f'<li>{escape(fact)}</li>' for fact in _remarks(document))}</ul>"
        + parts.table(HEADER, rows)
        + (f"<h3>What each convolution loses in INT8</h3>{parts.table(LAYERS, layers)}" if layers else "")
    )


def search_plot(document: Mapping[str, Any]) -> str:
    """Accuracy against latency, FP32 a square, the floor a line; an empty text without a dot.

    Filled dots were measured in turns, hollow ones are predicted from single layers.
    """
    found = [c for c in document["candidates"] if c["ms"] is not None and c["accuracy"] is not None]
    fp32, floor = document["fp32"], document["floor"]
    if not found:
        return ""
    dots = []
    for one in sorted(found, key=lambda one: bool(one["chosen"])):  # the chosen one lies above the others
        named = one["chosen"] or not one["kept"]
        dots.append(
            Dot(
                one["ms"],
                one["accuracy"],
                (f"{len(one['kept'])} in float" if one["kept"] else "INT8") if named else "",
                f"{_kept(one['kept'])}: {one['ms']:.2f} ms {one['ms_from']}, {one['accuracy']:.2f} %",
                hollow=one["ms_from"] != "measured",
                area=2.4 if one["chosen"] else 1.0,
                bold=bool(one["chosen"]),
            )
        )
    if fp32["ms"] is not None:
        said = f"FP32: {fp32['ms']:.2f} ms, {fp32['accuracy']:.2f} %"
        dots.append(Dot(fp32["ms"], fp32["accuracy"], "FP32", said, colour="s2", square=True))
    return scatter(
        dots,
        x=f"latency on {document['backend']}, ms",
        y=f"{document['metric']}, %",
        title=f"{document['name']}: {document['metric']} against latency on {document['backend']}",
        level=(fp32["accuracy"] - floor["max_drop"], f"{floor['max_drop']:g} points less"),
        note="filled: measured in turns; hollow: predicted",
        most=100.0,
        span=0.1,
    )


def _title(document: Mapping[str, Any]) -> str:
    floor = document["floor"]
    asked = f"at most {floor['max_drop']:g} points of {document['metric']} lost"
    if floor["max_class_drop"] is not None:
        asked += f" and {floor['max_class_drop']:g} of any class"
    if floor["margin"]:
        asked += f", by {floor['margin']:g} standard error{'s' if floor['margin'] != 1 else ''}"
    return f"{document['name']} in INT8 on {document['backend']}: {asked}"


def _shown(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The best first: what meets the floor from the fastest on, then what comes closest to it."""
    candidates = document["candidates"]
    order = sorted(
        candidates,
        key=lambda c: (not c["chosen"], not c["meets"], c["ms"] or 0.0 if c["meets"] else c["drop"] or 0.0),
    )
    best = order[:_SHOWN]
    return [candidate for candidate in candidates if candidate in best]


def _fp32(document: Mapping[str, Any]) -> Row:
    fp32 = document["fp32"]
    return ("  everything: FP32", number(fp32["ms"]), fp32["ms_from"] or DASH, number(fp32["accuracy"]), *("",) * 5)


def _cells(candidate: Mapping[str, Any]) -> Row:
    worst = candidate["worst_class"]
    return (
        ("* " if candidate["chosen"] else "  ") + _kept(candidate["kept"]),
        number(candidate["ms"]),
        candidate["ms_from"] or DASH,
        number(candidate["accuracy"]),
        number(candidate["drop"], 3),
        number(candidate["error"], 3),
        DASH if worst is None else worst["name"],
        DASH if worst is None else number(worst["drop"]),
        "meets" if candidate["meets"] else "refused" if candidate["drop"] is None else "misses",
    )


def _kept(names: Sequence[str]) -> str:
    if not names:
        return "nothing: INT8"
    return f"{len(names)}: " + ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _layer(row: Mapping[str, Any]) -> Row:
    cells = []
    for kind in ("alone", "without"):
        decibels = row["snr_db"][kind]
        judged = row["agreement"][kind] is not None
        said = f"{decibels:.1f}" if decibels is not None else "no noise" if judged else DASH
        cells += [said, number(row["agreement"][kind], 2, 100)]
    return (row["node"], *cells, number(row["ms"], 3), row["ms_from"] or DASH)


def _remarks(document: Mapping[str, Any]) -> list[str]:
    chosen = next((c for c in document["candidates"] if c["chosen"]), None)
    selection = document["selection"]
    labels = "labelled" if selection["labelled"] else "without labels"
    facts = []
    if chosen is not None:
        verb = "meets" if document["reached"] else "comes closest to"
        facts.append(
            f"* {verb} the floor; in float: {', '.join(chosen['kept']) or 'nothing'}"
            if document["reached"]
            else f"* {verb} the floor, and nothing meets it; in float: {', '.join(chosen['kept']) or 'nothing'}"
        )
    facts.append(
        f"chosen on {selection['frames']} frames of '{selection['split']}', {labels}, which nothing was calibrated on "
        f"and the verdict does not use; judged {document['judged']}"
    )
    ended = {
        "done": "nothing near it is better",
        "time": "its minutes were over; the same command goes on from here",
        "interrupted": "it was interrupted; the same command goes on from here",
    }[document["ended"]]
    facts.append(f"{len(document['candidates'])} candidates in {document['seconds']:.0f} s: {ended}")
    return facts
