"""Figures of a page, taken apart: where dots, bars and ticks are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

Place = tuple[float, float]


def pictures(figure: str) -> list[ElementTree.Element]:
    """The SVG pictures of markup, wide before narrow; ParseError if they are not well-formed."""
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", figure, re.S)]


def said(picture: ElementTree.Element) -> dict[str, ElementTree.Element]:
    """What was drawn with a tooltip, by the tooltip."""
    found = {}
    for group in picture.iter("g"):
        title = group.find("title")
        if title is not None and group.get("class") == "said":
            found[title.text or ""] = group
    return found


def place(element: ElementTree.Element) -> Place:
    """Where a marker is."""
    for inner in element.iter("path"):
        if found := re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", inner.get("transform", "")):
            return float(found[1]), float(found[2])
    raise AssertionError(f"no marker in {ElementTree.tostring(element, encoding='unicode')[:200]}")


def extent(element: ElementTree.Element) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a drawn path."""
    numbers = [float(n) for path in element.iter("path") for n in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def texts(picture: ElementTree.Element) -> list[tuple[str, float, float, str]]:
    """Every text with the place it is anchored at and how."""
    found = []
    for text in picture.iter("text"):
        style = text.get("style", "")
        anchor = re.search(r"text-anchor: (\w+)", style)
        if "x" in text.attrib:
            at = float(text.attrib["x"]), float(text.attrib["y"])
        else:
            moved = re.search(r"translate\(([-\d.]+)[ ,]+([-\d.]+)\)", text.get("transform", ""))
            assert moved, text.attrib
            at = float(moved[1]), float(moved[2])
        found.append((text.text or "", *at, anchor[1] if anchor else "start"))
    return found


def axis(picture: ElementTree.Element, name: str) -> dict[float, float]:
    """Value of each numbered tick to its place along the axis "x" or "y"."""
    found = {}
    numbers = [(t, x, y) for t, x, y, _ in texts(picture) if re.fullmatch(r"[−-]?\d+(?:\.\d+)?", t)]
    bottom = max(y for _, _, y in numbers)
    for text, x, y in numbers:
        value = float(text.replace("−", "-"))
        if name == "x" and abs(y - bottom) < 1:
            found[value] = x
        elif name == "y" and abs(y - bottom) >= 1:
            found[value] = y
    return found


def along(ticks: dict[float, float], value: float) -> float:
    """Where a value is on an axis, from its outermost ticks."""
    (a, at), (b, bt) = min(ticks.items()), max(ticks.items())
    return at + (value - a) / (b - a) * (bt - at)
