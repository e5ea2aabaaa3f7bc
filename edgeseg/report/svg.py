"""Figures of matplotlib as SVG that belongs to the page: its font, its colours in light and dark, no ids, no script.

matplotlib draws with stand-in colours; in the SVG each becomes a variable of the page's style sheet (`var(--ink)`), so
one picture serves a light page, a dark one and paper. Each figure is drawn twice, for a desk and for a phone: scaling
one picture down would make its text too small to read.
"""

from __future__ import annotations

import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any
from xml.etree import ElementTree

from edgeseg.errors import need

WIDE, NARROW = 820, 358  # CSS pixels: a desk, and a phone of 390 less its margins
FONT = 12.0

# The page's variables, each with the stand-in that matplotlib draws with. Series are s1 to s6, see report.css.
NAMES = ("ink", "soft", "grid", "ground", "s1", "s2", "s3", "s4", "s5", "s6", "good", "bad")
COLOUR = {name: f"#01{at:02x}fe" for at, name in enumerate(NAMES)}
_VARIABLE = {stand_in: f"var(--{name})" for name, stand_in in COLOUR.items()}
SERIES = tuple(name for name in NAMES if re.fullmatch(r"s\d", name))
DASHES = ("solid", "dashed", "dotted")  # so that series are told apart without their colours

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_RULES: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgeseg",  # the same figure is the same text
    "text.parse_math": False,  # a class may be called $x$
    "font.size": FONT,
    "axes.edgecolor": COLOUR["grid"],
    "axes.labelcolor": COLOUR["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": COLOUR["grid"],
    "grid.linewidth": 0.8,
    "text.color": COLOUR["ink"],
    "xtick.labelcolor": COLOUR["soft"],
    "ytick.labelcolor": COLOUR["soft"],
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


def available() -> bool:
    """Whether plots can be drawn here; without matplotlib a page has its tables only."""
    return importlib.util.find_spec("matplotlib") is not None


def figure(
    draw: Callable[[Any, int], None],
    *,
    title: str,
    note: str = "",
    key: Sequence[tuple[str, str, str]] = (),
    height: int = 400,
) -> str:
    """A figure element with its caption, and in it two SVG pictures, for wide and for narrow pages.

    `draw(axes, width)` draws on matplotlib's Axes for a page of `width` CSS pixels. `key`: text, colour (of NAMES) and
    dash (of DASHES) of each series; `note`: how to read it. An empty text where there is no matplotlib.
    """
    if not available():
        return ""
    pictures = "".join(
        f'<div class="{kind}">{_drawn(draw, width, height, title)}</div>'
        for kind, width in (("wide", WIDE), ("narrow", NARROW))
    )
    marks = "".join(
        f'<span class="key"><i style="border-top:3px {dash} var(--{colour})"></i>{escape(text)}</span>'
        for text, colour, dash in key
    )
    below = f'<p class="machine">{escape(note)}</p>' if note else ""
    return f'<figure class="plot"><figcaption>{escape(title)} {marks}</figcaption>{pictures}{below}</figure>'


def said(artist: Any, text: str) -> None:
    """Give what matplotlib drew a tooltip."""
    artist.set_gid(f"said:{text}")


def _drawn(draw: Callable[[Any, int], None], width: int, height: int, title: str) -> str:
    matplotlib = need("matplotlib", extra="report", why="drawing plots")
    pyplot_free = need("matplotlib.figure", extra="report", why="drawing plots")
    written = io.StringIO()
    with matplotlib.rc_context(_RULES), warnings.catch_warnings():
        # Letters that matplotlib's own font lacks are drawn by the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        made = pyplot_free.Figure(figsize=(width / 72, height / 72))
        made.patch.set_visible(False)
        axes = made.add_subplot()
        axes.patch.set_visible(False)
        draw(axes, width)
        made.savefig(written, format="svg", metadata={"Date": None})
    return _belonging(ElementTree.fromstring(written.getvalue()), width, height, title)


def _belonging(root: ElementTree.Element, width: int, height: int, title: str) -> str:
    """The SVG of matplotlib as part of a page."""
    shapes = {f"#{found.get('id')}": found for defs in root.iter(f"{_SVG}defs") for found in defs}
    for parent in list(root.iter()):
        for child in list(parent):
            tag = child.tag.removeprefix(_SVG)
            if tag in ("defs", "metadata"):
                parent.remove(child)
            elif tag == "use":
                parent[list(parent).index(child)] = _used(child, shapes)
    for element in root.iter():
        gid = element.attrib.pop("id", "")
        element.attrib.pop("clip-path", None)  # limits are chosen so that nothing lies outside
        if "style" in element.attrib:
            element.set("style", _styled(element.attrib["style"]))
        if gid.startswith("said:"):
            label = ElementTree.Element(f"{_SVG}title")
            label.text = gid.removeprefix("said:")
            element.insert(0, label)
            element.set("class", "said")
        element.tag = element.tag.removeprefix(_SVG)
    root.attrib = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": title}
    return re.sub(r"\n\s*", "\n", ElementTree.tostring(root, encoding="unicode"))


def _used(use: ElementTree.Element, shapes: dict[str, ElementTree.Element]) -> ElementTree.Element:
    """A copy of the shape that a <use> points to, where it points it: so no id is left that two figures could share."""
    shape = shapes[use.attrib[f"{_XLINK}href"]]
    copy = ElementTree.Element(shape.tag, {key: value for key, value in shape.attrib.items() if key != "id"})
    copy.set("transform", f"translate({float(use.get('x', '0')):.2f} {float(use.get('y', '0')):.2f})")
    copy.set("style", "; ".join(filter(None, (shape.get("style"), use.get("style")))))
    return copy


def _styled(style: str) -> str:
    """Without a font of its own, and with the page's colours."""
    style = re.sub(r"#[0-9a-f]{6}", lambda found: _VARIABLE.get(found[0], found[0]), style)
    style = re.sub(r"font: (?:(bold|\d+) )?([\d.]+px)[^;]*", _font, style)
    return re.sub(r"font-family: [^;]*(?:; *|$)", "", style)


def _font(found: re.Match[str]) -> str:
    return f"font-size: {found[2]}" + (f"; font-weight: {found[1]}" if found[1] else "")
