"""Accuracy documents (edgeseg.eval/1 and /2) as a table for a terminal and as a section of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeseg.report import parts, plots
from edgeseg.report.parts import bar, listed
from edgeseg.report.text import DASH, number, table

SEQUENCES = 20  # so many are shown; the document has all
FRAMES = 5
MIXED = 8  # pairs of classes
DRAWN = 40  # classes, beyond which a matrix is too fine to read


def eval_table(document: Mapping[str, Any]) -> str:
    """Scores by class with their intervals, means, sequences, boundaries, what is mixed up, worst frames, notes."""
    header, rows = _classes(document)
    found = [
        f"{document['bundle']}, {document['variant']}: {document['frames']} frames of "
        f"'{document['data']['split']}'{_skipped(document)}",
        table(header, rows),
        "\n".join(_words(document)),
    ]
    if len(sequences := document.get("sequences") or ()) > 1:
        found.append(table(_SEQUENCE, _sequences(sequences)) + _more(sequences))
    if boundary := document.get("boundary"):
        found.append(table(*_boundary(boundary, document)))
    if mixed := _mixed(document):
        found.append(table(("labelled", "predicted", "of the class %"), mixed))
    if worst := document.get("worst_frames"):
        found.append(table(("worst frames", "mIoU %", "pixels right %"), _frames(worst[:FRAMES])))
    if notes := document.get("notes"):
        found.append("\n".join(f"note: {note}" for note in notes))
    return "\n\n".join(found)


def eval_section(document: Mapping[str, Any]) -> str:
    """The same as HTML, with plots where matplotlib is there, and the whole confusion matrix."""
    header, rows = _classes(document)
    iou = document["iou"]
    shown = [
        (escape(row[0]), bar(iou.get(row[0]) or 0.0, row[1]) if row[0] in iou else row[1], *map(escape, row[2:]))
        for row in rows[:-1]
    ]
    shown.append(("<b>mean</b>", *map(escape, rows[-1][1:])))
    body = [
        f"<h2>Accuracy of {escape(document['bundle'])}, {escape(document['variant'])}</h2>",
        f"<p>{document['frames']:d} frames of “{escape(document['data']['split'])}” of "
        f"{escape(document['data']['name'])}{_skipped(document)}</p>",
        listed([escape(line) for line in _words(document)]),
        listed([f"<b>{escape(note)}</b>" for note in document.get("notes") or ()]),
    ]
    ends = {name: ends and (ends[0], ends[1]) for name, ends in (_intervals(document).get("iou") or {}).items()}
    drawn = plots.bars({"IoU": iou}, "IoU, %", "IoU by class", intervals={"IoU": ends}, factor=100.0, most=100.0)
    body += [drawn, parts.table(tuple(map(escape, header)), shown)]
    if sequences := document.get("sequences"):
        cells = [tuple(map(escape, row)) for row in _sequences(sequences)]
        body.append(f"<h3>By sequence</h3>{parts.table(_SEQUENCE, cells)}<p>{escape(_more(sequences).strip())}</p>")
    if boundary := document.get("boundary"):
        body.append(f"<h3>Near boundaries between labels</h3>{parts.table(*_boundary(boundary, document))}")
    body.append(_matrix(document))
    if worst := document.get("worst_frames"):
        cells = [tuple(map(escape, row)) for row in _frames(worst)]
        body.append(f"<h3>Worst frames</h3>{parts.table(('frame', 'mIoU %', 'pixels right %'), cells)}")
    return "".join(body)


_SEQUENCE = ("sequence", "frames", "mIoU %", "pixels right %")


def _classes(document: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows, the last of them the mean; with intervals where the document has them."""
    ends = _intervals(document)
    level = f"{100 * ends['level']:g} % interval" if ends else ""
    rows: list[tuple[str, ...]] = []
    for (name, iou), share in zip(document["iou"].items(), document["frequency"].values(), strict=True):
        rest = (number(document["dice_per_class"][name], 2, 100), number(share, 2, 100))
        middle = (_range(ends["iou"].get(name)),) if ends else ()
        rows.append((name, number(iou, 2, 100), *middle, *rest))
    middle = (_range(ends["miou"]),) if ends else ()
    rows.append(("mean", number(document["miou"], 2, 100), *middle, number(document["dice"], 2, 100), ""))
    return ("class", "IoU %", *((level,) if ends else ()), "Dice %", "pixels %"), rows


def _skipped(document: Mapping[str, Any]) -> str:
    return f", {len(document['skipped'])} skipped" if document["skipped"] else ""


def _words(document: Mapping[str, Any]) -> list[str]:
    ends = _intervals(document)
    known = f" ({_range(ends['pixel_accuracy'])})" if ends and ends["pixel_accuracy"] else ""
    found = [f"pixel accuracy {number(document['pixel_accuracy'], 2, 100)} %{known}"]
    if ends:
        plural = "s" if ends["block"] > 1 else ""
        why = "as told" if ends.get("block_from") == "given" else "so long neighbours are alike"
        of = f", {ends['blocks']} blocks" if "blocks" in ends else ""
        found.append(
            f"intervals: {100 * ends['level']:g} %, {ends['resamples']} resamples of blocks of up to {ends['block']} "
            f"frame{plural} ({why}){of}"
        )
    if unassigned := sum(document.get("unassigned") or ()):
        total = sum(map(sum, document["confusion"])) + unassigned
        found.append(
            f"{100 * unassigned / total:.2f} % of the pixels are predicted as a class that the data set does not have: "
            "they count as wrong"
        )
    return found


def _sequences(sequences: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    ordered = sorted(sequences, key=lambda one: 2.0 if one["miou"] is None else one["miou"])
    return [
        (one["name"] or "(no name)", str(one["frames"]), *_pair(one))
        for one in (ordered[:SEQUENCES] if len(sequences) > SEQUENCES else sequences)
    ]


def _more(sequences: Sequence[Any]) -> str:
    return f"\nthe worst of {len(sequences)} sequences" if len(sequences) > SEQUENCES else ""


def _frames(worst: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [(one["name"], *_pair(one)) for one in worst]


def _pair(one: Mapping[str, Any]) -> tuple[str, str]:
    return number(one["miou"], 2, 100), number(one.get("pixel_accuracy"), 2, 100)


def _boundary(
    boundary: Mapping[str, Any], document: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows; with intervals where the document has them."""
    total = sum(map(sum, document["confusion"])) + sum(document.get("unassigned") or ())
    ends = _intervals(document)
    known = bool(ends) and any("interval" in band for band in boundary.values())
    rows = []
    for width, band in (*boundary.items(), (None, document)):
        miou, right = _pair(band)
        interval = ends["miou"] if known and width is None else band.get("interval")
        share = 1.0 if width is None else band["pixels"] / total if total else None
        name = "any" if width is None else f"up to {width}"
        rows.append((name, miou, *((_range(interval),) if known else ()), right, number(share, 2, 100)))
    middle = (f"{100 * ends['level']:g} % interval",) if known else ()
    return ("pixels from a boundary", "mIoU %", *middle, "pixels right %", "of all pixels %"), rows


def _mixed(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The pairs of classes that cost most: by pixels, each as a share of the labelled class."""
    names = list(document["iou"])
    matrix = document.get("confusion") or []
    others = document.get("unassigned") or [0] * len(matrix)
    pairs = [
        (pixels, label, predicted)
        for label, row in enumerate(matrix)
        for predicted, pixels in enumerate([*row, others[label]])
        if predicted != label and pixels
    ]
    sums = [sum(row) + other for row, other in zip(matrix, others, strict=True)]
    named = [*names, "none of these"]
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:MIXED]
    return [(names[label], named[p], number(pixels / sums[label], 2, 100)) for pixels, label, p in worst]


def _matrix(document: Mapping[str, Any]) -> str:
    matrix = document.get("confusion")
    if not matrix:
        return ""
    names = list(document["iou"])
    mixed = [tuple(map(escape, row)) for row in _mixed(document)]
    body = "<h3>What is taken for what</h3>" + parts.table(("labelled", "predicted", "of the class %"), mixed)
    if len(names) > DRAWN:
        return body + f"<p>{len(names)} classes are too many for a picture; the document has the whole matrix.</p>"
    others = document.get("unassigned") or [0] * len(names)
    extra = any(others)
    rows = []
    for name, row, other in zip(names, matrix, others, strict=True):
        cells = [*row, other] if extra else row
        total = sum(cells)
        rows.append((escape(name), *(_cell(pixels, total) for pixels in cells)))
    header = ("labelled ↓, predicted →", *map(escape, names), *(("none of these",) if extra else ()))
    title = "Confusion matrix: of each labelled class, the % predicted as"
    drawn = plots.heat(matrix, names, title) if not extra else ""
    whole = parts.table(header, rows)
    return body + (f"{drawn}<details><summary>as a table</summary>{whole}</details>" if drawn else whole)


def _cell(pixels: int, total: int) -> str:
    if not total:
        return DASH
    share = pixels / total
    return f"<span style='background:rgba(74,144,217,{0.75 * share:.2f});padding:0 .3em'>{100 * share:.1f}</span>"


def _intervals(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = document.get("intervals") or {}
    return found


def _range(ends: Sequence[float] | None) -> str:
    return DASH if ends is None else f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}"
