"""A comparison for people to read: a table for the terminal, Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

DASH = "–"
_MARKS = {"failed": "FAILED", "passed": "ok", "cannot tell": "cannot tell"}
_HEADER = ("metric", "before", "after", "change", "95 % interval", "allowed", "verdict", "gate")


def summary(document: Mapping[str, Any]) -> str:
    """One line: what the gate says, and about what."""
    metrics = [(group, one) for group in document["groups"] for one in group["metrics"]]
    gated = [(group, one) for group, one in metrics if one["gate"] is not None]
    head = {"passed": "Passed", "failed": "Failed", "cannot tell": "Cannot tell"}[document["gate"]]
    told = [_told(one) for _, one in sorted(gated, key=lambda pair: list(_MARKS).index(pair[1]["gate"]))]
    if document["gate"] != "passed":
        told = [text for text, (_, one) in zip(told, _sorted(gated), strict=True) if one["gate"] == document["gate"]]
    counts = [
        f"{number} {word}"
        for word in ("better", "worse", "same", "cannot tell")
        if (number := sum(one["verdict"] == word for _, one in metrics))
    ]
    return f"{head}: {'; '.join(told) or 'nothing is budgeted'} (of {len(metrics)} metrics: {', '.join(counts)})"


def table(document: Mapping[str, Any]) -> str:
    """All metrics in columns, budgeted ones first, then reasons and notes."""
    lines = [summary(document), budget_line(document)]
    for group in document["groups"]:
        rows = [_HEADER, *_rows(group)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        lines += ["", title(group), ""]
        for index, row in enumerate(rows):
            cells = [
                text.ljust(width) if column in (0, 6, 7) else text.rjust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
            lines += ["  ".join("-" * width for width in widths)] * (index == 0)
        lines += [f"  {text}" for text in remarks(group)]
    lines += [f"note: {text}" for text in document["notes"]]
    return "\n".join(lines)


def markdown(document: Mapping[str, Any]) -> str:
    """For a comment on a pull request: a summary line, budgeted metrics as a table, the others folded away."""
    lines = [f"**edgeseg compare** {_MARKDOWN[document['gate']]} {_plain(summary(document))}", ""]
    for group in document["groups"]:
        rows = list(zip(ordered(group), _rows(group), strict=True))
        named = [row for one, row in rows if one["gate"] is not None]
        others = [row for one, row in rows if one["gate"] is None]
        lines += [f"**{_plain(title(group))}**", ""]
        if named:
            lines += [*_grid(named), ""]
        if others:
            lines += [f"<details><summary>{len(others)} metrics without a budget</summary>", "", *_grid(others), ""]
            lines += ["</details>", ""]
        lines += [f"- {_plain(text)}" for text in remarks(group)]
        lines += [""] * bool(remarks(group))
    lines += [f"- {_plain(text)}" for text in document["notes"]]
    return "\n".join([*lines, _plain(budget_line(document))]) + "\n"


_MARKDOWN = {"passed": "✅", "failed": "❌", "cannot tell": "❔"}


def title(group: Mapping[str, Any]) -> str:
    """What is compared with what, and how."""
    before, after = (f"{group[side]['bundle']}, {group[side]['variant']}" for side in ("before", "after"))
    what = before if before == after else f"{before} → {after}"
    return f"{what} ({group['kind']}, {group['scenario']}; {group['method']})"


def budget_line(document: Mapping[str, Any]) -> str:
    """What was allowed, and who said so."""
    rules = ", ".join(f"{name} {text}" for name, text in document["budget"]["rules"].items())
    whose = document["budget"]["file"] or "the default, as no --budget was given"
    level = f"false alarms together at most {100 * document['level']:g} %, by Holm"
    return f"budget: {rules or 'nothing for such documents'} ({whose}); {level}"


def ordered(group: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The metrics of a group, budgeted ones first."""
    return sorted(group["metrics"], key=lambda one: one["gate"] is None)


def remarks(group: Mapping[str, Any]) -> list[str]:
    """Why verdicts and gates are open, each reason once; then notes."""
    reasons: dict[str, list[str]] = {}
    for one in ordered(group):
        if (why := one["gate_reason"] or one["reason"]) is not None:
            reasons.setdefault(why, []).append(one["name"])
    return [f"{', '.join(names)}: {why}" for why, names in reasons.items()] + list(group["notes"])


def cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    """A metric as texts, in the order of the header."""
    unit = "" if one["unit"] == "points" else f" {one['unit']}"
    low_high = DASH
    if one["interval"] is not None:
        low_high = f"{one['interval'][0]:+.2f} to {one['interval'][1]:+.2f}"
    return (
        one["name"],
        *(DASH if one[key] is None else f"{one[key]:.2f}{unit}" for key in ("before", "after")),
        DASH if one["change"] is None else f"{one['change']:+.2f} {one['change_unit']}",
        low_high,
        one["allowed"] or "",
        one["verdict"],
        _MARKS[one["gate"]] if one["gate"] else "",
    )


def _rows(group: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    return map(cells, ordered(group))


def _sorted(gated: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return sorted(gated, key=lambda pair: list(_MARKS).index(pair[1]["gate"]))


def _told(one: Mapping[str, Any]) -> str:
    if one["change"] is None:
        return f"{one['name']} unknown ({one['gate_reason']})"
    if one["gate"] == "cannot tell":
        return (
            f"{one['name']} {one['change']:+.2f} {one['change_unit']} (allowed {one['allowed']}; {one['gate_reason']})"
        )
    return f"{one['name']} {one['change']:+.2f} {one['change_unit']} (allowed {one['allowed']})"


def _grid(rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [_HEADER, ("---", *["---:"] * 5, "---", "---"), *[tuple(map(_plain, row)) for row in rows]]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _plain(text: str) -> str:
    """Names come from files: nothing in them may become markup, a mention or a line of its own."""
    for mark in "<>|@`[]":
        text = text.replace(mark, f"&#{ord(mark)};")
    return " ".join(text.split())
