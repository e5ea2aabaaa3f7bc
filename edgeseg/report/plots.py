"""The plots of all pages, drawn by one hand: points, distributions, bars with intervals, a matrix, lines over time.

Every function gives HTML that belongs to the page (see svg.py), or an empty text where matplotlib is not here or there
is nothing to draw. Colours are names of the style sheet's variables: "s1" to "s6", "good", "bad", "ink", "soft".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np

from edgeseg.report.labels import label
from edgeseg.report.svg import COLOUR, DASHES, FONT, NARROW, SERIES, figure, said

Interval = tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of `scatter`: what stands beside it, what a pointer over it reads, and how it looks."""

    x: float
    y: float
    label: str = ""
    said: str = ""
    colour: str = "s1"
    hollow: bool = False
    square: bool = False
    area: float = 1.0  # 1 is a small point; grows with, say, the size of a file
    bold: bool = False


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dash of each series: six colours, then the same in dashes."""
    looks = ((colour, dash) for dash in DASHES for colour in SERIES)
    return dict(zip(names, islice(cycle(looks), len(names)), strict=True))


def scatter(
    dots: Sequence[Dot],
    *,
    x: str,
    y: str,
    title: str,
    line: Sequence[tuple[float, float]] = (),
    level: tuple[float, str] | None = None,
    note: str = "",
    most: float | None = None,
    span: float = 0.0,
) -> str:
    """Points with labels that do not lie on one another; the x axis begins at 0.

    `line`: joins these places, say those that no other point beats. `level`: a height that counts, and what it is.
    `note`: how to read it. `most`: what y cannot exceed, 100 for a percentage. `span`: the y axis covers at least so
    much, so that noise does not look like a difference.
    """
    if not dots:
        return ""

    def draw(axes: Any, width: int) -> None:
        values = [dot.y for dot in dots] + ([level[0]] if level else [])
        reach = max(values) - min(values)
        pad = max(0.14 * reach, (span - reach) / 2, 1e-3 * abs(max(values)), 1e-9)
        top = max(values) + pad
        axes.set_ylim(min(values) - pad, top if most is None else min(top, most + 0.05 * (top - min(values))))
        axes.set_xlim(0, 1.08 * max(*(dot.x for dot in dots), 1e-9))
        if line:
            axes.plot(*zip(*line, strict=True), color=COLOUR["s1"], linewidth=1.4, zorder=2)
        if level:
            axes.axhline(level[0], color=COLOUR["s2"], linestyle="--", linewidth=1.2)
            axes.annotate(
                level[1],
                (0.01, level[0]),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, -3),
                textcoords="offset points",
                va="top",
                color=COLOUR["soft"],
            )
        for dot in dots:
            colour = COLOUR[dot.colour]
            (drawn,) = axes.plot(
                dot.x,
                dot.y,
                marker="s" if dot.square else "o",
                markersize=8.5 * math.sqrt(dot.area),
                markerfacecolor=COLOUR["ground"] if dot.hollow else colour,
                markeredgecolor=colour,
                alpha=1.0 if dot.area <= 1.5 else 0.8,
                linestyle="none",
                zorder=3 + dot.bold,
            )
            said(drawn, dot.said or f"{dot.label}: {dot.x:.4g}, {dot.y:.4g}")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _labels(axes, dots, 24 if width <= NARROW else 60)

    return figure(draw, title=title, note=note, height=420)


def ecdf(series: Mapping[str, Sequence[float]], unit: str = "ms", title: str = "") -> str:
    """Value against percentile, each further nine as wide as the one before: the tail is not clipped, but wide open.

    One line for each series of raw samples; it ends in the largest sample, at the percentile that n samples reach.
    """
    shown = {name: np.sort(np.asarray(values, np.float64)) for name, values in series.items() if len(values)}
    if not shown:
        return ""
    looks = styles(list(shown))
    most = max(len(values) for values in shown.values())

    def draw(axes: Any, width: int) -> None:
        for name, values in shown.items():
            count = len(values)
            below = (np.arange(count) + 0.5) / count  # the share of a population below the i-th of n, its middle
            kept = _fewer(count)
            colour, dash = looks[name]
            x = -np.log10(1.0 - below[kept])
            (drawn,) = axes.plot(x, values[kept], color=COLOUR[colour], linestyle=dash)
            said(drawn, f"{name}: {count} samples, the median {np.median(values):.2f} {unit}")
            (end,) = axes.plot(x[-1], values[-1], color=COLOUR[colour], marker="o", markersize=4, linestyle="none")
            said(end, f"{name}: the largest of {count}, {values[-1]:.2f} {unit}")
        nines = [share for share in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999) if share <= 1 - 0.5 / most]
        axes.set_xticks([-math.log10(1 - share) for share in nines], [f"p{100 * share:g}" for share in nines])
        axes.set_xlim(0, 1.03 * -math.log10(0.5 / most))
        axes.set_xlabel("percentile")
        axes.set_ylabel(unit)
        axes.set_ylim(*_room([value for values in shown.values() for value in (values[0], values[-1])]))

    return figure(draw, title=title or f"distribution, {unit}", key=_key(looks), height=340)


def histogram(series: Mapping[str, Sequence[float]], unit: str = "ms", title: str = "") -> str:
    """How often which value: one outline for each series, over common bins by Freedman and Diaconis, all samples in."""
    shown = {name: np.asarray(values, np.float64) for name, values in series.items() if len(values)}
    if not shown:
        return ""
    looks = styles(list(shown))
    edges = _bins(np.concatenate(list(shown.values())))

    def draw(axes: Any, width: int) -> None:
        for name, values in shown.items():
            colour, dash = looks[name]
            counts, _ = np.histogram(values, edges)
            drawn = axes.stairs(counts / len(values), edges, color=COLOUR[colour], linestyle=dash, linewidth=1.4)
            said(drawn, f"{name}: {len(values)} samples")
        axes.set_xlabel(unit)
        axes.set_ylabel("share of samples")
        axes.set_ylim(bottom=0)

    return figure(draw, title=title or f"histogram, {unit}", key=_key(looks), height=300)


def box(series: Mapping[str, Sequence[float]], unit: str = "ms", title: str = "") -> str:
    """Quartiles as boxes, whiskers to the last sample within 1.5 of their range (Tukey), all others as dots."""
    shown = {name: np.asarray(values, np.float64) for name, values in series.items() if len(values)}
    if not shown:
        return ""

    def draw(axes: Any, width: int) -> None:
        line = {"color": COLOUR["soft"], "linewidth": 1.2}
        drawn = axes.boxplot(
            list(shown.values()),
            orientation="horizontal",
            widths=0.55,
            patch_artist=True,
            boxprops={"facecolor": COLOUR["s1"], "edgecolor": COLOUR["s1"], "alpha": 0.45},
            medianprops={"color": COLOUR["ink"], "linewidth": 1.6},
            whiskerprops=line,
            capprops=line,
            flierprops={"marker": "o", "markersize": 3, "markeredgecolor": COLOUR["s2"], "markerfacecolor": "none"},
        )
        for patch, (name, values) in zip(drawn["boxes"], shown.items(), strict=True):
            low, middle, high = np.percentile(values, (25, 50, 75))
            said(
                patch, f"{name}: {low:.2f} to {high:.2f} {unit}, the median {middle:.2f}, the largest {max(values):.2f}"
            )
        _rows(axes, list(shown), width)
        axes.set_ylim(len(shown) + 0.5, 0.5)
        axes.set_xlabel(unit)

    return figure(draw, title=title or unit, height=70 + 34 * len(shown))


def bars(
    series: Mapping[str, Mapping[str, float | None]],
    unit: str = "%",
    title: str = "",
    *,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
    factor: float = 1.0,
    most: float | None = None,
) -> str:
    """Bars for every name, one for each series: `series` and `intervals` are series → name → value, or None.

    The names are those of the first series, in their order, and what the others have on top. Values and ends of
    intervals are multiplied by `factor`; `most` is the end of the axis.
    """
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    known = [value for values in series.values() for value in values.values() if value is not None]
    if not known:
        return ""
    looks = styles(list(series))
    each = 0.8 / len(series)

    def draw(axes: Any, width: int) -> None:
        for at, (who, values) in enumerate(series.items()):
            for row, name in enumerate(names):
                value = values.get(name)
                place = row - 0.4 + each * (at + 0.5)
                if value is None:
                    axes.text(0, place, " does not occur", va="center", color=COLOUR["soft"], fontsize=FONT - 2)
                    continue
                colour = COLOUR[looks[who][0]]
                (drawn,) = axes.barh(place, factor * value, each * 0.9, color=colour, alpha=0.75)
                text = f"{name}{', ' + who if len(series) > 1 else ''}: {factor * value:.2f} {unit}"
                if (ends := ((intervals or {}).get(who) or {}).get(name)) is not None:
                    low, high = factor * ends[0], factor * ends[1]
                    axes.plot([low, high], [place, place], color=COLOUR["ink"], linewidth=1.4, marker="|", markersize=6)
                    text += f", interval {low:.2f} to {high:.2f}"
                said(drawn, text)
        _rows(axes, names, width, start=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(min(0.0, factor * min(known)), most)
        axes.set_xlabel(unit)

    key = _key({name: (colour, "solid") for name, (colour, _) in looks.items()})
    return figure(draw, title=title or unit, key=key, height=60 + max(20, 13 * len(series) + 6) * len(names))


def heat(matrix: Sequence[Sequence[float]], names: Sequence[str], title: str = "") -> str:
    """A confusion matrix (C, C) of counts, rows true and columns predicted: each row as shares of the class, in %.

    With one more column (C, C + 1) the last is for predictions that are none of the classes. Rows of classes that do
    not occur stay empty. Raises ValueError for other shapes.
    """
    if not len(matrix) and not names:
        return ""
    counts = np.asarray(matrix, np.float64)
    if counts.shape not in ((len(names), len(names)), (len(names), len(names) + 1)):
        raise ValueError(f"wanted a matrix of {len(names)} by {len(names)} classes, came one of shape {counts.shape}")
    across = [*names, *["none of these"] * (counts.shape[1] - len(names))]
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = len(names)

    def draw(axes: Any, width: int) -> None:
        cell = (width - 130) / len(across)
        for row, column in zip(*np.nonzero(counts), strict=True):
            share, right = shares[row, column], row == column
            (drawn,) = axes.bar(column, 1, 1, row - 0.5, color=COLOUR["s1" if right else "s2"], alpha=0.55 * share**0.5)
            said(drawn, f"{100 * share:.2f} % of {names[row]} {'found' if right else f'taken for {across[column]}'}")
            if cell > 24 and share >= 0.005:
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=min(FONT, cell / 2.6))
        _rows(axes, names, width, start=0)
        short = [_short(name, 10) for name in across]
        axes.set_xticks(range(len(across)), short, rotation=90, fontsize=min(FONT, max(6.0, cell)))
        axes.set_xlim(-0.5, len(across) - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_ylabel("true")
        axes.set_xlabel("predicted")
        axes.grid(visible=False)

    return figure(draw, title=title or "confusion, % of each true class", height=min(680, 130 + 34 * size))


def lines(
    series: Mapping[str, Sequence[tuple[float, float | None]]],
    *,
    x: str,
    y: str,
    title: str,
    bands: Mapping[str, Sequence[Interval]] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    levels: Sequence[tuple[float, float, float]] = (),
    ticks: Sequence[tuple[float, str]] = (),
    colours: Mapping[str, str] | None = None,
    dots: bool = False,
    zero: bool = False,
    height: int = 230,
) -> str:
    """Values over time or over frames; None leaves a gap.

    `bands`: an interval for each point of a series. `marks`: upright lines with a text. `levels`: level lines from x to
    x at a height. `ticks`: places on the x axis and what to write there, instead of numbers. `dots`: show each point.
    `zero`: y begins at 0.
    """
    known = {name: [value for _, value in points if value is not None] for name, points in series.items()}
    if not any(known.values()):
        return ""
    looks = {name: ((colours or {}).get(name, colour), dash) for name, (colour, dash) in styles(list(series)).items()}
    ends = [end for rows in (bands or {}).values() for row in rows if row is not None for end in row]

    def draw(axes: Any, width: int) -> None:
        for name, points in series.items():
            colour, dash = looks[name]
            across = [at for at, _ in points]
            values = [math.nan if value is None else value for _, value in points]
            (drawn,) = axes.plot(across, values, color=COLOUR[colour], linestyle=dash, zorder=3)
            said(drawn, name)
            if dots:
                for at, value in points:
                    if value is not None:
                        (dot,) = axes.plot(at, value, color=COLOUR[colour], marker="o", markersize=5, zorder=4)
                        said(dot, f"{name}: {dict(ticks).get(at, f'{at:g}')}, {value:.6g}")
            for at, row in zip(across, (bands or {}).get(name, ()), strict=False):
                if row is not None:
                    axes.plot([at, at], row, color=COLOUR[colour], linewidth=1.2, marker="_", markersize=6)
        for left, right, level in levels:
            axes.plot([left, right], [level, level], color=COLOUR["ink"], linewidth=1.2, linestyle="--")
        for at, text in marks:
            said(axes.axvline(at, color=COLOUR["bad"], linewidth=1.2, linestyle="--"), text)
            where = axes.get_xaxis_transform()
            axes.text(at, 1.0, f" {text}", transform=where, va="bottom", ha="center", color=COLOUR["bad"])
        low, high = _room([value for values in known.values() for value in values] + ends)
        axes.set_ylim(0 if zero else low, high)
        if ticks:
            fewer = ticks[:: max(1, math.ceil(len(ticks) * 95 / width))]
            axes.set_xticks([at for at, _ in fewer], [text for _, text in fewer])
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return figure(draw, title=title, key=_key(looks), height=height)


def _key(looks: Mapping[str, tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [(name, *look) for name, look in looks.items()] if len(looks) > 1 else []


def _rows(axes: Any, names: Sequence[str], width: int, start: int = 1) -> None:
    room = 14 if width <= NARROW else 40
    axes.set_yticks(range(start, start + len(names)), [_short(name, room) for name in names])
    axes.tick_params(axis="y", labelcolor=COLOUR["ink"])
    axes.grid(visible=False, axis="y")


def _short(name: str, room: int) -> str:
    """With both ends, as names of engines differ in their last letters."""
    return name if len(name) <= room else f"{name[: room // 2]}…{name[len(name) - (room - 1) // 2 :]}"


def _fewer(count: int) -> Any:
    """Indices of at most some 600 of the sorted samples: the largest 100 all, of the others evenly many."""
    if count <= 600:
        return np.arange(count)
    return np.unique(np.concatenate([np.linspace(0, count - 100, 500).astype(np.int64), np.arange(count - 100, count)]))


def _bins(values: Any) -> Any:
    """Edges by the rule of Freedman and Diaconis (1981), at most 120 bins over all that was seen."""
    low, high = float(values.min()), float(values.max())
    q1, q3 = np.percentile(values, (25, 75))
    step = 2.0 * (q3 - q1) / len(values) ** (1 / 3)
    count = 1 if high == low else min(120, math.ceil((high - low) / step) if step > 0 else 30)
    return np.linspace(low, high, count + 1) if high > low else np.array([low - 0.5, low + 0.5])


def _room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max(0.08 * (high - low), 1e-3 * abs(high), 1e-9)
    return low - pad, high + pad


def _labels(axes: Any, dots: Sequence[Dot], room: int) -> None:
    taken = [(dot.x, dot.y, 4.3 * math.sqrt(dot.area)) for dot in dots]
    texts = [
        (axes.annotate(_short(dot.label, room), (dot.x, dot.y), **_look(dot)), 6 * math.sqrt(dot.area))
        for dot in dots
        if dot.label
    ]
    label(axes, texts, taken)


def _look(dot: Dot) -> dict[str, Any]:
    return {
        "color": COLOUR[dot.colour] if dot.square else COLOUR["ink"],
        "fontweight": "bold" if dot.bold else "normal",
    }
