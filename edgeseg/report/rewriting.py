"""A rewrite as a table: what every layer became, and what that did to operations, time and accuracy.

Documents of the schema edgeseg.rewrite/1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeseg.report import parts
from edgeseg.report.curve import curve_plot
from edgeseg.report.text import DASH, number, size, table

Row = tuple[str, ...]

HEADER = ("layer", "was", "rule", "MACs before", "after", "damage", "ms before", "after")


def rewrite_table(document: Mapping[str, Any]) -> str:
    """Every change as a row, their sum, why the other layers stayed, and what the network was and is."""
    rows = [_cells(layer) for layer in _changed(document)]
    lines = [_title(document), ""]
    if rows:
        lines += [table(*_words_left(HEADER, [*rows, _sum(document)])), ""]
    else:
        lines += ["no layer was changed", ""]
    lines += _untouched(document)
    lines += [f"exact: {text}" for text in _exact(document)]
    lines += ["", table(("network", "before", "after", ""), _totals(document))]
    return "\n".join([*lines, *_remarks(document)])


def rewrite_section(document: Mapping[str, Any]) -> str:
    """The same for a page, with the trade-off curve."""
    rows = [tuple(map(escape, _cells(layer))) for layer in _changed(document)]
    total = tuple(f"<b>{escape(cell)}</b>" for cell in _sum(document))
    facts = [*_untouched(document), *(f"exact: {text}" for text in _exact(document)), *_remarks(document)]
    changes = parts.table(HEADER, [*rows, total], "numbers") if rows else "<p>no layer was changed</p>"
    totals = parts.table(("network", "before", "after", ""), [tuple(map(escape, row)) for row in _totals(document)])
    return (
        f"<h2>Rewrite of {escape(document['name'])}</h2><p>{escape(_asked(document))}</p>{totals}"
        + curve_plot(document)
        + f"<h3>Layers</h3>{changes}<ul>{''.join(f'<li>{escape(fact)}</li>' for fact in facts)}</ul>"
    )


def count(value: float | None) -> str:
    """Operations or parameters in units that people read."""
    if value is None:
        return DASH
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g} {unit}" if value < 999.5 * factor else f"{value / factor:.0f} {unit}"
    return f"{value:.0f}"


def _title(document: Mapping[str, Any]) -> str:
    return f"{document['name']}: {_asked(document)}"


def _asked(document: Mapping[str, Any]) -> str:
    height, width = document["size"]
    budget = document["budget"]
    value = budget["value"]
    asked = {
        "ms": f"to take at most {value:g} ms",
        "speedup": f"to be {value:g} times as fast",
        "macs": f"to at most {100 * value:.3g} % of the MACs",
        "bytes": f"to at most {size(value)}",
    }.get(budget["kind"], f"for {budget['kind']} {value:g}")
    return f"rewritten at {height}x{width} {asked}; rules: {', '.join(document['rules']) or 'none'}"


def _changed(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [layer for layer in document["layers"] if layer["rule"] is not None]


def _cells(layer: Mapping[str, Any]) -> Row:
    before, after = layer["macs"]
    times = layer["ms"] or (None, None)
    return (
        layer["name"],
        layer["was"],
        layer["rule"],
        count(before),
        count(after),
        damage(layer["damage"]),
        number(times[0]),
        number(times[1]),
    )


def damage(value: float | None) -> str:
    """Two digits that count: damages differ by orders of magnitude."""
    return DASH if value is None else f"{value:.2g}"


def _sum(document: Mapping[str, Any]) -> Row:
    rows = _changed(document)
    timed = [layer["ms"] for layer in rows]
    known = bool(timed) and all(times is not None for times in timed)
    losses = [layer["damage"] for layer in rows]
    return (
        "together",
        "",
        f"{len(rows)} of {len(document['layers'])} layers",
        *(count(sum(layer["macs"][at] for layer in rows)) for at in (0, 1)),
        damage(None if None in losses else sum(losses)),
        *(number(sum(times[at] for times in timed) if known else None) for at in (0, 1)),
    )


def _words_left(header: Row, rows: Sequence[Row]) -> tuple[Row, list[Row]]:
    """The first three columns filled up, so that they stand to the left."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(3)]

    def filled(row: Row) -> Row:
        return (*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), *row[3:])

    return filled(header), [filled(row) for row in rows]


def _untouched(document: Mapping[str, Any]) -> list[str]:
    """The reasons why layers stayed as they were, the most frequent first, each with the names it is about."""
    reasons: dict[str, list[str]] = {}
    for layer in document["layers"]:
        if layer["rule"] is None:
            reasons.setdefault(layer["reason"] or "nothing else was worth its damage", []).append(layer["name"])
    return [
        f"untouched: {reason}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]


def _exact(document: Mapping[str, Any]) -> list[str]:
    """One line a rule: what it did if it did so once, else how often, and what that saved."""
    by_rule: dict[str, list[Mapping[str, Any]]] = {}
    for change in document["exact"]:
        by_rule.setdefault(change["rule"], []).append(change)
    lines = []
    for rule, changes in by_rule.items():
        before, after = (sum((change.get("macs") or (0, 0))[at] for change in changes) for at in (0, 1))
        saved = f"; {count(before)} to {count(after)} MACs" if before != after else ""
        says = changes[0]["says"] if len(changes) == 1 else f"{len(changes)} times, first: {changes[0]['says']}"
        lines.append(f"{rule.replace('_', ' ')}: {says}{saved}")
    return lines


def _totals(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows: what, before, after, and the one as a share of the other or their difference."""
    rows = []
    for name, key in (("MACs", "macs"), ("parameters", "parameters")):
        before, after = document[key]["before"], document[key]["after"]
        rows.append((name, count(before), count(after), f"{after / before:.3f} of it" if before else DASH))
    if latency := document["latency"]:
        before, after = latency["before"]["p50"], latency["after"]["p50"]
        speed = f"{before / after:.2f} times as fast" if before and after else DASH
        rows.append((f"p50 ms, {latency['backend']} {latency['precision']}", number(before), number(after), speed))
    if accuracy := document["accuracy"]:
        before, after = accuracy["before"], accuracy["after"]
        what = f"{accuracy['metric']} %, {accuracy['frames']} frames"
        change = DASH if before is None or after is None else f"{100 * (after - before):+.2f} points"
        rows.append((what, number(before, 2, 100), number(after, 2, 100), change))
        if accuracy["agreement"] is not None and accuracy["metric"] != "agreement":
            rows.append(
                ("agreement %", number(1.0, 2, 100), number(accuracy["agreement"], 2, 100), "with the original")
            )
    return rows


def _remarks(document: Mapping[str, Any]) -> list[str]:
    lines = []
    if recovery := document["recovery"]:
        kept = "kept" if recovery["kept"] == "after" else "no better, and not kept"
        early = ", interrupted" if recovery["stopped"] == "interrupted" else ""
        lines.append(
            f"recovery: {recovery['steps']} steps in {recovery['seconds'] / 60:.1f} min{early}, "
            f"{number(recovery['before'], 2, 100)} to {number(recovery['after'], 2, 100)} %, {kept}"
        )
    lines += [f"note: {text}" for text in document.get("notes", ())]
    if not document["latency"]:
        lines.append("time was not measured: fewer operations need not be faster")
    if not document["accuracy"]:
        lines.append("accuracy was not measured: there were no frames to judge by")
    if seconds := document["seconds"]:
        spent = sum(seconds.values())
        lines.append(f"took {spent:.1f} s: " + ", ".join(f"{name} {s:.1f}" for name, s in seconds.items()))
    return lines
