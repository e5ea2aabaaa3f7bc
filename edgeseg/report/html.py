"""One page that stands alone: tables, bars and pictures from documents and bundles, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgeseg.bundle import Bundle, read_bundle
from edgeseg.errors import BadInput
from edgeseg.files import write_whole
from edgeseg.palette import palette_of
from edgeseg.report.explain import explain_section
from edgeseg.report.parts import bar, table
from edgeseg.report.picture import comparisons, png, stacked
from edgeseg.report.rewriting import rewrite_section
from edgeseg.report.search import search_section
from edgeseg.report.streams import stream_section
from edgeseg.report.text import DASH, number, size

STYLE = Path(__file__).with_name("report.css")


def write_report(sources: Sequence[Path], out: Path) -> Path:
    """Write a page of HTML about documents (JSON of the commands, see `_document`) and bundles; BadInput for others."""
    parts = [section for source in sources for section in _source(source)]
    return _page(", ".join(source.stem for source in sources), parts, out)


def write_document(document: Mapping[str, Any], title: str, out: Path) -> Path:
    """Write a page about one document that was just made."""
    return _page(title, _document(document, out), out)


def _page(title: str, parts: Sequence[str], out: Path) -> Path:
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>edgeseg: {escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style><main><h1>edgeseg: {escape(title)}</h1>"
        f"{''.join(parts)}</main></html>"
    )
    return write_whole(out, page.encode())


def write_picture(sources: Sequence[Path], out: Path) -> Path:
    """Write the reference frames of all bundles among `sources`, with their masks, as one PNG."""
    rows = [row for source in sources if _is_bundle(source) for row in comparisons(read_bundle(source))]
    if not rows:
        raise BadInput("a picture is made of the reference frames of a bundle; none was given, or it has none")
    return write_whole(out, png(stacked(rows)))


def _is_bundle(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".edgeseg"


def _source(path: Path) -> list[str]:
    if _is_bundle(path):
        bundle = read_bundle(path)
        return [*_document(bundle.verdict, path), _pictures(bundle)]
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is neither a bundle nor a JSON document of edgeseg: {error}") from error
    documents = loaded if isinstance(loaded, list) and loaded else [loaded]
    return [section for document in documents for section in _document(document, path)]


def _document(document: Any, path: Path) -> list[str]:
    kinds = {
        "edgeseg.build/1": _build,
        "edgeseg.eval/1": _eval,
        "edgeseg.bench/1": _bench,
        "edgeseg.stream/1": stream_section,
        "edgeseg.rewrite/1": rewrite_section,
        "edgeseg.search/1": search_section,
        "edgeseg.explain/1": explain_section,
    }
    schema = document.get("schema") if isinstance(document, Mapping) else None
    if not isinstance(schema, str) or schema not in kinds:
        raise BadInput(f"{path} has the schema {schema!r}; a report is made of: {', '.join(kinds)}, and of bundles")
    try:
        return [kinds[schema](document), _machine(document)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is damaged: a document {schema} does not look like this ({error!r})") from error


def _build(report: Mapping[str, Any]) -> str:
    slowest = max((e["latency_ms"]["p50"] or 0.0) for e in report["engines"]) or 1.0
    rows = []
    for engine in report["engines"]:
        latency = engine["latency_ms"]
        rows.append(
            (
                f"<b>{escape(engine['name'])}</b> ✓" if engine["name"] == report["chosen"] else escape(engine["name"]),
                number(engine["miou"], 2, 100),
                number(engine["agreement"], 2, 100),
                number(engine["boundary_agreement"], 2, 100),
                bar((latency["p50"] or 0.0) / slowest, number(latency["p50"])),
                number(latency["p90"]),
                size(engine["bytes"]),
                escape(", ".join(f"{key}={value}" for key, value in engine["settings"].items())),
            )
        )
    header = ("engine", "mIoU %", "agree %", "edges %", "p50 ms", "p90 ms", "size", "settings")
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report["reasons"])
    reasons += "".join(f"<li>out: {escape(r['name'])}: {escape(r['why'])}</li>" for r in report["rejected"])
    parity = report["intake"]["parity"]
    facts = [
        f"graph: {escape(report['intake']['form'])}, opset {report['intake']['opset']:d}; "
        f"{100 * parity['overall']:.3f} % of labels as the network gives them, {100 * parity['boundary']:.2f} % along "
        f"boundaries, on {parity['frames']:d} frames"
    ]
    if calibration := report["calibration"]:
        facts.append(
            f"calibration: {calibration['frames']:d} frames of “{escape(calibration['split'])}”, recipe "
            f"{escape(calibration['recipe']['name'])}, {len(calibration['skipped'])} frames skipped"
        )
    if evaluation := report["evaluation"]:
        facts.append(f"verdict on {evaluation['frames']:d} frames of “{escape(evaluation['split'])}”")
    facts += [
        escape(f"{engine['name']} runs in " + "; ".join((engine["built"]["summary"], *engine["built"]["repairs"])))
        for engine in report["engines"]
        if engine.get("built")
    ]
    body = table(header, rows, "notes") + f"<p>Handed over: <b>{escape(report['chosen'])}</b></p><ul>{reasons}</ul>"
    return f"<h2>Build of {escape(report['name'])}</h2>{body}<ul>{''.join(f'<li>{f}</li>' for f in facts)}</ul>" + (
        _classes(report) + "".join(map(search_section, report.get("search") or ()))
    )


def _classes(report: Mapping[str, Any]) -> str:
    engines = [engine for engine in report["engines"] if engine.get("iou")]
    if not engines:
        return ""
    rows = [
        (escape(name), *(number(engine["iou"].get(name), 2, 100) for engine in engines)) for name in report["classes"]
    ]
    header = ("IoU %", *(escape(engine["name"]) for engine in engines))
    return f"<h3>By class</h3>{table(header, rows)}"


def _eval(document: Mapping[str, Any]) -> str:
    rows = [
        (escape(name), bar(iou or 0.0, number(iou, 2, 100)), number(document["dice_per_class"][name], 2, 100))
        for name, iou in document["iou"].items()
    ]
    rows.append(("<b>mean</b>", number(document["miou"], 2, 100), number(document["dice"], 2, 100)))
    head = f"<h2>Accuracy of {escape(document['bundle'])}, {escape(document['variant'])}</h2>"
    return f"{head}<p>{document['frames']:d} frames of “{escape(document['data']['split'])}”</p>" + table(
        ("class", "IoU %", "Dice %"), rows
    )


def _bench(document: Mapping[str, Any]) -> str:
    rows = []
    for what, key in (("engine", "latency_ms"), ("frame to mask", "end_to_end_ms")):
        latency = document[key]
        rows.append((what, *(number(latency[p]) for p in ("p50", "p90", "p99", "min", "max")), f"{latency['count']:d}"))
    head = f"<h2>Latency of {escape(document['bundle'])}, {escape(document['variant'])}</h2>"
    return head + table(("milliseconds", "p50", "p90", "p99", "min", "max", "frames"), rows)


def _machine(document: Mapping[str, Any]) -> str:
    here = document.get("machine", {})
    facts = {key: here.get(key) for key in ("cpu", "cores_usable", "isa", "memory_mb", "os", "python")}
    facts |= document.get("versions", {})
    text = "; ".join(f"{key} {', '.join(v) if isinstance(v, list) else v or DASH}" for key, v in facts.items())
    return f"<p class='machine'>Measured on: {escape(text)}</p>"


def _pictures(bundle: Bundle) -> str:
    """Each reference frame beside the FP32 mask, the chosen engine's, and where the two differ."""
    rows = []
    for reference, picture in zip(bundle.references, comparisons(bundle), strict=True):
        data = base64.b64encode(png(picture)).decode()
        rows.append(f'<img alt="frame {escape(reference.name)} and its masks" src="data:image/png;base64,{data}">')
    legend = "".join(
        f'<span class="class"><i style="background:rgb({r},{g},{b})"></i>{escape(name)}</span>'
        for name, (r, g, b) in zip(bundle.spec.output.classes, palette_of(bundle), strict=False)
    )
    return f"<h3>Reference frames</h3><p>{legend}</p>{''.join(rows)}"
