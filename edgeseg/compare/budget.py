"""What may change by how much: budget.toml, and what holds without one.

[miou]
max_drop = 0.5            # points of 100
[iou.pedestrian]
max_drop = 0.5
min = 60                  # points of 100, whatever it was before
[latency.p50]
max_rise = "5 %"          # or "2 ms"
max = "30 ms"
[size]
max_rise = "10 %"
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeseg.compare.vocabulary import Metric, fixed_names, metric
from edgeseg.errors import BadInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WORDS = ("max_drop", "max_rise", "min", "max")
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([^\s0-9]*)\s*")


@dataclass(frozen=True, slots=True)
class Rule:
    """What a metric may do, each None if nothing is said: a change for the worse, and a floor or ceiling."""

    metric: Metric
    allowed: float | None = None  # at least 0: points or percent; in the metric's unit if `absolute`
    absolute: bool = False
    limit: float | None = None  # of the new value, in the metric's unit

    def allowed_from(self, before: float) -> float | None:
        """Points or percent, at least 0, given the value before."""
        return 100 * self.allowed / before if self.absolute and self.allowed is not None else self.allowed

    @property
    def text(self) -> str:
        """Such as "+5 %" or "-0.5 points, at least 60 points"."""
        sign = "+" if self.metric.less_is_better else "-"
        parts = []
        if self.allowed is not None:
            unit = self.metric.unit if self.absolute else self.metric.change_unit
            parts.append(f"{sign}{self.allowed:g} {unit}")
        if self.limit is not None:
            parts.append(f"at {'most' if self.metric.less_is_better else 'least'} {self.limit:g} {self.metric.unit}")
        return ", ".join(parts)


def default_budget() -> dict[str, Rule]:
    """mIoU may fall by 0.5 points, the median latency rise by 5 %."""
    return {"miou": Rule(metric("miou"), 0.5), "latency.p50": Rule(metric("latency.p50"), 5.0)}


def read_budget(path: Path, *, classes: Collection[str] | None, sequences: Collection[str] = ()) -> dict[str, Rule]:
    """The rules of a file, metric -> rule. `classes`: those of the documents; None where they have none.

    Raises BadInput, naming file and key: not TOML, an unknown metric, class or word (with the nearest), a rule that
    does not fit its metric, a value without its unit, nothing at all.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}.") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"{path} is not TOML: {error}.") from error
    known = fixed_names() | {f"iou.{name}" for name in classes or ()} | {f"sequence.{s}.miou" for s in sequences}
    rules = {}
    for name, words in _entries(tables, (), path):
        if name not in known and not (name.startswith("iou.") and classes is None):
            raise BadInput(f"{path}, [{name}]: {_unknown(name, known, 'metric or class')}.")
        rules[name] = _rule(metric(name), words, f"{path}, [{name}]")
    if not rules:
        raise BadInput(f'{path} names no metric. Write for example: [latency.p50] and max_rise = "5 %" below it.')
    return rules


def _entries(table: Mapping[str, Any], at: tuple[str, ...], path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Tables with words in them, by their dotted names."""
    words = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if at and (words or not table):
        yield ".".join(at), words
    elif words:
        key = next(iter(words))
        raise BadInput(f"{path}: '{key}' stands outside of any metric; begin with a line such as [miou].")
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _entries(value, (*at, key), path)


def _rule(of: Metric, words: Mapping[str, Any], where: str) -> Rule:
    """One metric's words as a rule; `where` for what is refused."""
    change, bound = ("max_rise", "max") if of.less_is_better else ("max_drop", "min")
    for word in words:
        if word not in _WORDS:
            raise BadInput(f"{where}: {_unknown(word, _WORDS, 'word')}.")
        if word not in (change, bound):
            better = "less" if of.less_is_better else "more"
            raise BadInput(f"{where}: {word} does not fit, as {better} is better here; write {change} or {bound}.")
    if not words:
        raise BadInput(f"{where} is empty: write {change} or {bound} below it.")
    allowed, limit, absolute = None, None, False
    if change in words:
        allowed, unit = _value(words[change], f"{where} {change}")
        wanted = ("", "points") if of.points else ("%", of.unit)
        if unit not in wanted:
            hint = 'points of 100, such as 0.5 or "0.5 points"' if of.points else f'"5 %" or "2 {of.unit}"'
            raise BadInput(f"{where} {change}: wanted {hint}, came {words[change]!r}.")
        absolute = not of.points and unit == of.unit
        if not absolute and not of.less_is_better and allowed >= 100:
            raise BadInput(f"{where} {change}: a drop is less than 100, came {words[change]!r}.")
    if bound in words:
        limit, unit = _value(words[bound], f"{where} {bound}")
        if unit not in (("", "points", "%") if of.points else (of.unit,)):
            hint = "points of 100, such as 60" if of.points else f'"30 {of.unit}"'
            raise BadInput(f"{where} {bound}: wanted {hint}, came {words[bound]!r}.")
        if of.points and not of.less_is_better and 0 < limit <= 1:
            raise BadInput(
                f"{where} {bound}: shares are written in points of 100 here: {100 * limit:g}, not {limit:g}."
            )
        if limit > 100 and of.points:
            raise BadInput(f"{where} {bound}: there are 100 points at most, came {limit:g}.")
        if limit <= 0 and not of.points:
            raise BadInput(f"{where} {bound}: wanted more than 0, came {words[bound]!r}.")
    return Rule(of, allowed, absolute, limit)


def _value(value: Any, where: str) -> tuple[float, str]:
    """A number and its unit."""
    found = _NUMBER.fullmatch(str(value)) if isinstance(value, int | float | str) else None
    if found is None or isinstance(value, bool):
        raise BadInput(f'{where}: wanted a number of at least 0, with its unit such as "5 %", came {value!r}.')
    return float(found[1]), found[2]


def _unknown(name: str, known: Collection[str], what: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"nearest is '{near[0]}'" if near else f"known are {', '.join(sorted(known))}"
    return f"'{name}' is no {what} here; {hint}"
