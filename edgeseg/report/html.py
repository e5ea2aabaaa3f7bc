"""One page that stands alone: a summary, sections, plots and pictures of documents and bundles; nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgeseg.bundle import read_bundle
from edgeseg.documents import is_bundle
from edgeseg.errors import BadInput
from edgeseg.files import write_whole
from edgeseg.gallery import Gallery, references_of
from edgeseg.report import svg
from edgeseg.report.bench import bench_section
from edgeseg.report.build import build_section
from edgeseg.report.compare import compare_section
from edgeseg.report.evaluation import eval_section
from edgeseg.report.explain import explain_section
from edgeseg.report.machines import machines_section, reproduce_section
from edgeseg.report.picture import comparisons, gallery_section, png, stacked
from edgeseg.report.profile import profile_section
from edgeseg.report.rewriting import rewrite_section
from edgeseg.report.search import search_section
from edgeseg.report.sources import Source, sources
from edgeseg.report.streams import stream_section
from edgeseg.report.summary import summary

STYLE = Path(__file__).with_name("report.css")
DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)  # what a document unlike its schema gives
# So that no browser fetches or runs anything for a page, whatever a document holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(paths: Sequence[Path], out: Path, *, galleries: Sequence[Gallery] = ()) -> Path:
    """Write a page of HTML about documents (JSON of the commands, see `_section`) and bundles; BadInput for others.

    `galleries`: frames with truth and masks (edgeseg.gallery); without, the bundles' own reference frames are shown.
    """
    found = sources(paths)
    return _page(", ".join(dict.fromkeys(path.stem for path in paths)), found, out, galleries)


def write_document(document: Mapping[str, Any], title: str, out: Path) -> Path:
    """Write a page about one document that was just made."""
    return _page(title, [Source(out, document)], out)


def page(title: str, body: str) -> bytes:
    """A whole page around markup, with the style sheet in it."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>edgeseg: {escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style><main><h1>edgeseg: {escape(title)}</h1>"
        f"{body}</main></html>"
    ).encode()


def _page(title: str, found: Sequence[Source], out: Path, galleries: Sequence[Gallery] = ()) -> Path:
    sections = [_section(source) for source in found]
    try:
        top = f"<p class='what'>{_what(found)}</p>{summary(found)}"
        end = machines_section(found) + reproduce_section(found)
    except DAMAGE as error:
        names = ", ".join(str(source.path) for source in found)
        raise BadInput(f"one of {names} is damaged: it does not look like its schema ({error!r})") from error
    shown = galleries or [references_of(source.bundle) for source in found if source.bundle is not None]
    pictures = "".join(map(gallery_section, shown))
    missing = "" if svg.available() else "<p class='machine'>Plots need matplotlib: pip install 'edgeseg[report]'</p>"
    body = f"{top}{missing}{''.join(sections)}" + (f"<h2>Frames</h2>{pictures}" if pictures else "") + end
    return write_whole(out, page(title, body))


def _what(found: Sequence[Source]) -> str:
    """In a sentence what the page is made of, and when that was measured."""
    kinds = [source.kind for source in found]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    times = sorted(source.time for source in found if source.time is not None)
    when = f", measured {times[0]:%Y-%m-%d %H:%M}" if times else ""
    if times and times[0].date() != times[-1].date():
        when += f" to {times[-1]:%Y-%m-%d %H:%M}"
    plural = "s" if len(found) != 1 else ""
    return f"{len(found)} document{plural} ({escape(counts)}){when + ' UTC' if when else ''}"


def write_picture(paths: Sequence[Path], out: Path) -> Path:
    """Write the reference frames of all bundles among `paths`, with their masks, as one PNG."""
    rows = [row for path in paths if is_bundle(path) for row in comparisons(read_bundle(path))]
    if not rows:
        raise BadInput("a picture is made of the reference frames of a bundle; none was given, or it has none")
    return write_whole(out, png(stacked(rows)))


def _section(source: Source) -> str:
    kinds = {
        "edgeseg.build/1": build_section,
        "edgeseg.eval/1": eval_section,
        "edgeseg.eval/2": eval_section,
        "edgeseg.bench/1": bench_section,
        "edgeseg.bench/2": bench_section,
        "edgeseg.stream/1": stream_section,
        "edgeseg.rewrite/1": rewrite_section,
        "edgeseg.search/1": search_section,
        "edgeseg.explain/1": explain_section,
        "edgeseg.profile/1": profile_section,
        "edgeseg.compare/1": compare_section,
    }
    path, schema = source.path, source.schema
    if schema not in kinds:
        raise BadInput(f"{path} has the schema {schema!r}; a report is made of: {', '.join(kinds)}, and of bundles")
    try:
        return kinds[schema](source.document)
    except DAMAGE as error:
        raise BadInput(f"{path} is damaged: a document {schema} does not look like this ({error!r})") from error
