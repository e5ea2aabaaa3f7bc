"""Where the accuracy went, as a table and as a section of a page: layers worst first, classes, boundaries, pictures.

Documents of the schema edgeseg.explain/1.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeseg.report import parts
from edgeseg.report.placement import edges_line, placement_line, placement_tables
from edgeseg.report.text import DASH, number, table

Row = tuple[str, ...]

HEADER = (
    "layer",
    "module",
    "alone dB",
    "agree %",
    "share %",
    "without dB",
    "output dB",
    "weights dB",
    "cut off %",
    "scale",
)
CLASSES = ("class", "agree %", "pixels %", "else mostly", "IoU % FP32", "deployed", "points")
SHOWN = 20  # layers in a terminal
_PNG = b"\x89PNG\r\n\x1a\n"

LEGEND = (
    "alone: signal-to-noise ratio of the scores when this layer alone is as deployed and all others are FP32; agree: "
    "labels that stay then; share: of the noise of all layers alone; without: the ratio when all layers but this one "
    "are as deployed; output: the ratio of what the layer gives in the deployed graph, with all that was lost before "
    "it; cut off: of what it reads, outside of the range of its integers. More decibels are better; 6 dB are one bit."
)


def explain_table(document: Mapping[str, Any]) -> str:
    """What was found in words, then layers worst first with the reason for the worst, classes, and the frames."""
    lines = [_title(document), "", *(f"* {text}" for text in document["says"])]
    lines += [f"  note: {text}" for text in document["notes"]]
    lines += [f"  {_emulation(document)}"]
    layers = document["layers"]
    if layers:
        rows = [layer_cells(layer) for layer in layers[:SHOWN]]
        lines += ["", table(*_words_left(*_known(HEADER, rows)))]
        if len(layers) > SHOWN:
            lines.append(f"and {len(layers) - SHOWN} layers more that lose less")
        reasons = [f"  {layer['node']}: {layer['why']}" for layer in layers[:SHOWN] if layer["why"]]
        lines += ["", *reasons] if reasons else []
        lines += _whole(document)
    lines += _placed(document)
    lines += ["", table(("labels that agree", "%", "of all pixels %"), _bands(document)), ""]
    header, rows = _class_rows(document)
    lines.append(table(header, rows))
    lines += ["", *_flicker(document)] if document["flicker"] else []
    if document["gallery"]:
        worst = ", ".join(f"{one['name']} ({100 * one['agreement']:.2f} %)" for one in document["gallery"])
        lines += ["", f"frames that differ most: {worst}"]
    return "\n".join(lines)


def explain_section(document: Mapping[str, Any]) -> str:
    """The same for a page, with the gallery."""
    says = "".join(f"<li>{escape(text)}</li>" for text in document["says"])
    facts = [
        *document["notes"],
        _emulation(document),
        *([] if document.get("placement") else _placed(document)),
        *_whole(document),
        *_flicker(document),
    ]
    body = f"<h2>{escape(_title(document))}</h2><ul>{says}</ul>"
    if layers := document["layers"]:
        worst = max((layer["share"] or 0.0 for layer in layers), default=0.0)
        rows = [_marked(layer, worst) for layer in layers]
        reasons = [(layer["node"], layer["why"]) for layer in layers[:SHOWN] if layer["why"]]
        body += f"<h3>Layers, worst first</h3>{parts.table(*_known(tuple(map(escape, HEADER)), rows))}"
        body += f"<ul>{''.join(f'<li><b>{escape(node)}</b>: {escape(why)}</li>' for node, why in reasons)}</ul>"
        body += f"<p class='machine'>{escape(LEGEND)}</p>"
    if placement := document.get("placement"):
        body += f"<h3>What runs in INT8, and why</h3>{placement_tables(placement)}"
    header, classes = _class_rows(document)
    body += "<h3>Labels that agree with FP32</h3>"
    body += parts.table(("where", "%", "of all pixels %"), [tuple(map(escape, row)) for row in _bands(document)])
    body += "<h3>By class</h3>" + parts.table(tuple(map(escape, header)), [tuple(map(escape, row)) for row in classes])
    body += f"<ul>{''.join(f'<li>{escape(fact)}</li>' for fact in facts if fact)}</ul>"
    if pictures := "".join(map(_picture, document["gallery"])):
        body += f"<h3>Frames that differ most</h3>{pictures}"
    return body


def layer_cells(layer: Mapping[str, Any]) -> Row:
    """One row, in the columns of HEADER."""
    own, without, weights, reads = layer["own"], layer["without"], layer["weights"], layer["inputs"]
    clipped = [read["clipped"] for read in reads if read["clipped"] is not None]
    return (
        layer["node"],
        layer["module"] or DASH,
        _db(own),
        DASH if own is None else number(own["agreement"], 2, 100),
        number(layer["share"], 1, 100),
        _db(without),
        "broken" if layer["broken"] else number(layer["snr_db"], 1),
        number(weights["snr_db"] if weights else None, 1),
        number(max(clipped), 3, 100) if clipped else DASH,
        f"{reads[-1]['scale']:.3g}" if reads else DASH,
    )


def _known(header: Row, rows: Sequence[Row]) -> tuple[Row, list[Row]]:
    """Without the columns in which nothing is known of any layer."""
    kept = [at for at in range(len(header)) if any(row[at] != DASH for row in rows)]
    return tuple(header[at] for at in kept), [tuple(row[at] for at in kept) for row in rows]


def _db(end: Mapping[str, Any] | None) -> str:
    if end is None:
        return DASH
    if end["broken"]:
        return "broken"
    return "exact" if end["snr_db"] is None and end["agreement"] == 1 else number(end["snr_db"], 1)


def _marked(layer: Mapping[str, Any], worst: float) -> Row:
    cells = [escape(cell) for cell in layer_cells(layer)]
    if layer["share"] is not None and worst > 0:
        cells[4] = parts.bar(layer["share"] / worst, cells[4])
    reads = "; ".join(
        f"reads {read['tensor']}" + (f" of {read['from']}" if read["from"] else "") for read in layer["inputs"]
    )
    runs = f"runs in {layer['precision']}: {layer['reason']}; " if layer.get("precision") else ""
    cells[0] = f"<b title='{escape(runs + reads, quote=True)}'>{cells[0]}</b>"
    return tuple(cells)


def _title(document: Mapping[str, Any]) -> str:
    data = document["data"]
    where = f"'{data['split']}' of {data['name']}" if data else "the bundle's references"
    labelled = f", {document['labelled']} of them labelled" if document["labelled"] else ", none labelled"
    return (
        f"{document['bundle']}, {document['variant']} against {document['reference']}: "
        f"{document['frames']} frames of {where}{labelled}"
    )


def _emulation(document: Mapping[str, Any]) -> str:
    found = document["emulation"]
    if not document["layers"]:
        return f"layers: {found['how']}"
    agrees = (
        ""
        if found["agreement"] is None
        else f"; it agrees with the engine on {100 * found['agreement']:.2f} % of labels"
    )
    return f"layers: {found['how']}, on {document['layer_frames']} frames{agrees}"


def _whole(document: Mapping[str, Any]) -> list[str]:
    found = document["whole"]
    if found is None:
        return []
    return [
        f"all layers together: {_db(found)} dB at the scores, {number(found['agreement'], 2, 100)} % of labels agree"
    ]


def _placed(document: Mapping[str, Any]) -> list[str]:
    """What runs in INT8; documents of earlier versions only name what does not."""
    if placement := document.get("placement"):
        return [placement_line("placement", placement), edges_line(placement["edges"])]
    names = document["float_layers"]
    return (
        [f"in float: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"] if names else []
    )


def _bands(document: Mapping[str, Any]) -> list[Row]:
    found = document["agreement"]
    rows: list[Row] = [("everywhere", number(found["overall"], 3, 100), number(1.0, 1, 100))]
    for width, share in found["bands"].items():
        where = f"within {width} pixel{'s' * (width != '1')} of a boundary"
        rows.append((where, number(share, 3, 100), number(found["band_share"][width], 1, 100)))
    return rows


def _class_rows(document: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Columns and rows; those of IoU only where there were labels."""
    found, miou = document["agreement"]["classes"], document["miou"]
    total = sum(row["pixels"] for row in found.values()) or 1
    rows: list[Row] = []
    for name, row in found.items():
        cells = (name, number(row["agreement"], 2, 100), number(row["pixels"] / total, 2, 100), row["becomes"] or DASH)
        rows.append((*cells, *_iou(miou["iou"][name])) if miou else cells)
    if miou:
        rows.append(("mean", "", "", "", *_iou(miou)))
    return CLASSES if miou else CLASSES[:4], rows


def _iou(row: Mapping[str, float | None]) -> Row:
    before, after = row["before"], row["after"]
    change = DASH if before is None or after is None else f"{100 * (after - before):+.2f}"
    return number(before, 2, 100), number(after, 2, 100), change


def _flicker(document: Mapping[str, Any]) -> list[str]:
    found = document["flicker"]
    if not found or not found["changed"]:
        return []
    changed, wavering = (
        {who: number(values[who], 2, 100) for who in ("fp32", "deployed")}
        for values in (found["changed"], found["wavering"])
    )
    source = "the video" if found["source"] == "video" else "frames in a row"
    return [
        f"flicker over {found['pairs']} pairs of {source}: of the {number(found['still'], 1, 100)} % of pixels that "
        f"stay as they are, {changed['fp32']} % change class in FP32 and {changed['deployed']} % deployed; of all "
        f"pixels, {wavering['fp32']} and {wavering['deployed']} % change and change back"
    ]


def _picture(one: Mapping[str, Any]) -> str:
    try:
        data = base64.b64decode(one["png"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"the picture of {one['name']} is not base64") from error
    if not data.startswith(_PNG):
        raise ValueError(f"the picture of {one['name']} is no PNG")
    caption = f"{one['name']}: {100 * one['agreement']:.2f} % of labels agree"
    return (
        f"<p>{escape(caption)}</p><img alt='{escape(caption, quote=True)}' "
        f"src='data:image/png;base64,{base64.b64encode(data).decode('ascii')}'>"
    )


def _words_left(header: Row, rows: Sequence[Row]) -> tuple[Row, list[Row]]:
    """The columns of words filled up, so that they stand to the left."""
    count = 2 if header[1:2] == HEADER[1:2] else 1  # nothing may be known of modules
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(count)]

    def filled(row: Row) -> Row:
        return (*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), *row[count:])

    return filled(header), [filled(row) for row in rows]
