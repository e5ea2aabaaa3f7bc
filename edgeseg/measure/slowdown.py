"""Which stretches of a run were slow, and what the machine did meanwhile: a thermal slow-down is told as one."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeseg.measure.sensors import MachineSample

SLOWER = 1.15  # of the fast part's median: less is not called slow
LEAST = 3  # windows: a shorter stretch is a hiccup
HOT_C = 85.0  # where Jetsons and CPUs begin to hold back; GPUs some degrees below
_CLOCK = 0.90  # of the fast part's: a lower clock explains slowness
_DRIFT = 0.05  # of a clock, from the first to the last third of a run
_OTHERS = 10.0  # points of CPU load by other programs, more than in the fast part
_CLOCKS = {"gpu_clock_mhz": "GPU clock", "cpu_clock_mhz": "CPU clock"}
_HEATS = {"gpu_temperature_c": "GPU", "temperature_c": "hottest zone"}

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A stretch of a run in which a stage was slow."""

    start_s: float  # since the start of the run
    end_s: float
    slower: float  # its median over that of the fast part; 1.3: it took 30 % longer
    cause: str | None  # "throttled", "clock", "temperature", "other load"; None if the samples show none
    text: str  # a sentence for people


def slowdowns(rows: Sequence[Row], *, stage: str = "infer", hot_c: float = HOT_C) -> list[Slowdown]:
    """The slow stretches in the rows of a Timeline, in order.

    The fast part is that tenth of the run, at least three windows in a row, whose median p50 is lowest. Slow is a
    stretch of at least three windows, each judged with its neighbours by their median, that lie 15 % above it, and
    three times the scatter from window to window: in a noisy run 15 % happen by chance. Windows without a p50 (fewer
    than 11 frames) are left out; with fewer than six others there is nothing to compare.

    A cause is what was otherwise in the fast part: throttling that was flagged, a clock lower by 10 %, a temperature
    of `hot_c` or more, other programs on the CPU; the first of these names it, and the text tells all.
    """
    told = [row for row in rows if row.get(stage) and row[stage]["p50"] is not None]
    times = [float(row[stage]["p50"]) for row in told]
    if len(told) < 2 * LEAST:
        return []
    span = max(LEAST, len(told) // 10)
    begin = min(range(len(times) - span + 1), key=lambda i: statistics.median(times[i : i + span]))
    fast, usual = told[begin : begin + span], statistics.median(times[begin : begin + span])
    if usual <= 0:
        return []
    limit = max(SLOWER * usual, usual + 3 * _scatter(times))
    smooth = [statistics.median(times[max(0, i - 1) : i + 2]) for i in range(len(times))]
    found = []
    for first, last in _stretches([time >= limit for time in smooth]):
        slow = told[first : last + 1]
        slower = statistics.median(times[first : last + 1]) / usual
        causes = _causes(fast, slow, hot_c)
        start, end = slow[0]["t"], slow[-1]["t"] + slow[-1]["seconds"]
        why = ", ".join(text for _, text in causes) or _nothing_seen(slow)
        text = f"{stage} was {100 * (slower - 1):.0f} % slower from {start:.0f} to {end:.0f} s: {why}"
        found.append(Slowdown(start, end, slower, causes[0][0] if causes else None, text))
    return found


def clocks_moved(samples: Sequence[MachineSample], hot_c: float = HOT_C) -> tuple[bool | None, list[str]]:
    """Whether clocks, heat or throttling changed in the course of these samples, and how, in words.

    Of a clock, the medians of the first and the last third must lie within 5 % of one another, and nine of ten samples
    within 10 % of its median. Heat counts from `hot_c` °C, if it was not so from the start. None if no sample tells a
    clock, a temperature or throttling, or there are fewer than three.
    """
    words: list[str] = []
    known = False
    if len(samples) < LEAST:
        return None, words
    for name, what in _CLOCKS.items():
        values = [value for sample in samples if (value := sample.numbers().get(name))]
        if len(values) >= LEAST:
            known = True
            third = max(1, len(values) // 3)
            first, last, middle = map(statistics.median, (values[:third], values[-third:], values))
            off = sum(abs(value - middle) > (1 - _CLOCK) * middle for value in values)
            if abs(last - first) > _DRIFT * first:
                words.append(f"{what} went from {first:.0f} to {last:.0f} MHz")
            elif off > len(values) / 10:
                words.append(f"{what} moved between {min(values):.0f} and {max(values):.0f} MHz")
    for name, what in _HEATS.items():
        heats = [value for sample in samples if (value := sample.numbers().get(name)) is not None]
        known = known or bool(heats)
        if heats and heats[0] < hot_c <= max(heats):
            words.append(f"{what} went from {heats[0]:.0f} to {max(heats):.0f} °C")
            break
    flags = [sample.throttled for sample in samples if sample.throttled is not None]
    known = known or bool(flags)
    if any(flags):
        reasons = sorted({reason for sample in samples for reason in sample.throttle_reasons})
        words.append(f"the machine throttled ({', '.join(reasons) or 'no reason given'})")
    return (bool(words) if known else None), words


def _scatter(times: Sequence[float]) -> float:
    """Standard deviation from window to window, by differences, so that a step or a slow climb does not count."""
    differences = [abs(b - a) for a, b in itertools.pairwise(times)]
    return 1.4826 * statistics.median(differences) / 2**0.5


def _stretches(slow: Sequence[bool]) -> list[tuple[int, int]]:
    """First and last index of each stretch that is long enough; those with a gap shorter than that are one."""
    joined: list[list[int]] = []
    for i, here in enumerate(slow):
        if here and joined and i - joined[-1][1] <= LEAST:
            joined[-1][1:] = [i, joined[-1][2] + 1]
        elif here:
            joined.append([i, i, 1])
    return [(first, last) for first, last, count in joined if count >= LEAST]


def _causes(fast: Sequence[Row], slow: Sequence[Row], hot_c: float) -> list[tuple[str, str]]:
    causes = []
    flagged, before = _share(slow), _share(fast)
    if flagged is not None and flagged - (before or 0.0) >= 0.3:
        reasons = sorted({reason for row in slow for reason in row.get("throttle_reasons", ())})
        causes.append(("throttled", f"the machine throttled ({', '.join(reasons) or 'no reason given'})"))
    for name, words in _CLOCKS.items():
        then, now = _typical(fast, name), _typical(slow, name)
        if then and now and now <= _CLOCK * then:
            causes.append(("clock", f"{words} {now:.0f} MHz instead of {then:.0f} MHz"))
    for name, words in _HEATS.items():
        then, now = _typical(fast, name), _typical(slow, name)
        if now is not None and now >= hot_c and (then is None or now > then):
            causes.append(("temperature", f"{words} at {now:.0f} °C" + (f", {then:.0f} °C before" if then else "")))
            break
    then, now = _typical(fast, "others"), _typical(slow, "others")
    if then is not None and now is not None and now - then >= _OTHERS:
        causes.append(("other load", f"other programs used {now:.0f} % of the CPU instead of {then:.0f} %"))
    return causes


def _nothing_seen(slow: Sequence[Row]) -> str:
    seen = any(row.get("machine") for row in slow)
    return "no cause seen in the machine's samples" if seen else "there are no samples of the machine at that time"


def _share(rows: Sequence[Row]) -> float | None:
    flags = [row["throttled"] for row in rows if row.get("throttled") is not None]
    return sum(flags) / len(flags) if flags else None


def _typical(rows: Sequence[Row], name: str) -> float | None:
    """The median over the windows that know this number of the machine; "others": CPU used by other programs."""
    read: Callable[[Mapping[str, float]], float | None] = _others if name == "others" else lambda found: found.get(name)
    values = [value for row in rows if (value := read(row.get("machine") or {})) is not None]
    return statistics.median(values) if values else None


def _others(found: Mapping[str, float]) -> float | None:
    everybody, own = found.get("cpu_percent"), found.get("cpu_percent_self")
    return None if everybody is None or own is None else max(everybody - own, 0.0)
