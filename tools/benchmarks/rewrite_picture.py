"""mIoU against the share of the operations, a line for each method, as SVG without script and fonts of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 900, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 262, 44, 56
COLOURS = ("#1f6fb2", "#b8540f", "#3d8b40", "#8a4fa3", "#a8861c", "#b03a5b", "#55606b")
MARKS = ("circle", "square", "diamond")


def picture(title: str, original: float, rows: Sequence[Mapping[str, Any]]) -> str:
    """`original`: its mIoU; `rows`: as of rewrite.rows_of, those that failed are left out. Values from 0 to 1."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["miou"]:
            mean = sum(row["miou"]) / len(row["miou"])
            lines.setdefault(row["method"], []).append((sum(row["share"]) / len(row["share"]), 100 * mean))
    if not lines:
        return ""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    shares = [share for points in lines.values() for share, _ in points]
    least, most = math.log(0.93 * min(shares)), math.log(1.06 * max(shares))
    highest = 10 * math.ceil(max(100 * original, *(value for points in lines.values() for _, value in points)) / 10)

    def x(share: float) -> float:
        return LEFT + (math.log(share) - least) / (most - least) * (right - LEFT)

    def y(value: float) -> float:
        return bottom - value / highest * (bottom - TOP)

    drawn = []
    for tick in range(0, highest + 1, 10):
        drawn.append(
            f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="soft" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>'
        )
    for share in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0):
        if least <= math.log(share) <= most:
            drawn.append(
                f'<line class="grid" x1="{x(share):.1f}" x2="{x(share):.1f}" y1="{TOP}" y2="{bottom}"/>'
                f'<text class="soft" x="{x(share):.1f}" y="{bottom + 18}" text-anchor="middle">{share:g}</text>'
            )
    level = y(100 * original)
    drawn.append(
        f'<line class="whole" x1="{LEFT}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}"/>'
        f'<text class="soft" x="{right + 8}" y="{level + 4:.1f}">original, {100 * original:.1f}</text>'
    )
    for number, (method, points) in enumerate(lines.items()):
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        points.sort()
        path = " ".join(f"{x(share):.1f},{y(value):.1f}" for share, value in points)
        drawn.append(f'<polyline points="{path}" stroke="{colour}"/>')
        for share, value in points:
            told = escape(f"{method}: {value:.2f} % at {share:.3f} of the operations")
            drawn.append(f"<g>{_mark(mark, x(share), y(value), colour)}<title>{told}</title></g>")
        height = level + 28 + 20 * number
        drawn.append(_mark(mark, right + 14, height - 4, colour))
        drawn.append(f'<text x="{right + 24}" y="{height:.1f}">{escape(method)}</text>')
    middle = (TOP + bottom) / 2
    drawn.append(
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">share of the multiplications</text>'
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">mIoU, %</text>'
    )
    style = (
        "text{font:12px system-ui,sans-serif;fill:#1d2329}.soft{fill:#55606b}.title{font-size:14px;font-weight:600}"
        ".grid{stroke:#e3e7eb}.whole{stroke:#55606b;stroke-dasharray:5 4}polyline{fill:none;stroke-width:1.6}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><style>{style}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>{"".join(drawn)}</svg>\n'
    )


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
    turned = f' transform="rotate(45 {x:.1f} {y:.1f})"' if kind == "diamond" else ""
    return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"{turned}/>'
