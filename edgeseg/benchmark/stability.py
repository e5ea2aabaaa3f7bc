"""Whether the machine was the same all through a run: clocks, heat, other programs, and slow stretches told as such."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from edgeseg.measure.sensors import MachineSample
from edgeseg.measure.slowdown import clocks_moved, slowdowns
from edgeseg.measure.timeline import Timeline

_STAGE = "engine"
EVERY_S = 1.0  # between two samples of the machine
_OF_A_WINDOW = 12  # latencies, so that each window can state a median
_TOLD = (
    *("cpu_clock_mhz", "temperature_c", "cpu_percent", "cpu_percent_self", "memory_percent"),
    *("gpu_clock_mhz", "gpu_temperature_c", "gpu_percent", "power_w"),
)


class Watch:
    """Samples the machine between what is timed, a second apart or more. Call it after every round."""

    def __init__(self, sample: Callable[[], MachineSample] | None, clock: Callable[[], int]) -> None:
        self._sample, self._clock = sample, clock
        self._last: int | None = None
        self.seen: list[tuple[int, MachineSample]] = []

    def __call__(self) -> None:
        now = self._clock()
        if self._sample is not None and (self._last is None or now - self._last >= EVERY_S * 1e9):
            self._last = now
            self.seen.append((now, self._sample()))


def stability(
    samples_ns: Sequence[int], ended_ns: Sequence[int], machine: Sequence[tuple[int, MachineSample]]
) -> dict[str, Any] | None:
    """What is said about a run: samples, when each ended by the same clock, and the machine meanwhile.

    seconds: how long it went on. drift: median of the last third of the samples over that of the first, None with
    fewer than 33. moved: whether a clock, heat or throttling changed on the way, so that another run need not compare;
    None where no sample told. others_percent: CPU that other programs used, mean. machine: number → least, median,
    most. stretches: slow ones and their causes (measure.slowdown). text: all of it that matters, in words.
    None if there is nothing to say at all: too few samples, and no machine that tells.
    """
    if len(samples_ns) < 2 or len(samples_ns) != len(ended_ns):
        return None
    seconds = (ended_ns[-1] - ended_ns[0]) / 1e9
    third = len(samples_ns) // 3
    drift = None
    if third >= 11 and (before := statistics.median(samples_ns[:third])) > 0:
        drift = statistics.median(samples_ns[-third:]) / before
    rows = _rows(samples_ns, ended_ns, machine, max(1.0, _OF_A_WINDOW * seconds / len(samples_ns)))
    stretches = slowdowns(rows, stage=_STAGE)
    numbers = _numbers(machine)
    moved, words = clocks_moved([sample for _, sample in machine])
    if drift is None and not numbers and moved is None:
        return None
    others = [
        max(sample.cpu_percent - sample.cpu_percent_self, 0.0)
        for _, sample in machine
        if sample.cpu_percent is not None and sample.cpu_percent_self is not None
    ]
    text = [*words, *(stretch.text for stretch in stretches)]
    load = statistics.fmean(others) if others else None
    if load is not None and load >= 10.0:
        text.append(f"other programs used {load:.0f} % of the CPU meanwhile")
    if drift is not None and abs(drift - 1) >= 0.05:
        text.append(f"the last third took {drift:.2f} times as long as the first")
    return {
        "seconds": seconds,
        "drift": drift,
        "moved": moved,
        "others_percent": load,
        "machine": numbers,
        "throttled": _any([sample.throttled for _, sample in machine]),
        "throttle_reasons": sorted({reason for _, sample in machine for reason in sample.throttle_reasons}),
        "stretches": [
            {"start_s": s.start_s, "end_s": s.end_s, "slower": s.slower, "cause": s.cause, "text": s.text}
            for s in stretches
        ],
        "text": text,
    }


def _rows(
    samples_ns: Sequence[int], ended_ns: Sequence[int], machine: Sequence[tuple[int, MachineSample]], window_s: float
) -> list[dict[str, Any]]:
    """As windows of one timeline; both come in the order of their time."""
    timeline = Timeline((_STAGE,), window_s=window_s, start_ns=min([ended_ns[0], *(at for at, _ in machine[:1])]))
    waiting = list(machine)[::-1]
    for sample, ended in zip(samples_ns, ended_ns, strict=True):
        while waiting and waiting[-1][0] <= ended:
            timeline.machine(*waiting.pop())
        timeline.add(ended, {_STAGE: sample})
    return timeline.rows()


def _numbers(machine: Sequence[tuple[int, MachineSample]]) -> dict[str, dict[str, float]]:
    found = {}
    for name in _TOLD:
        values = [value for _, sample in machine if (value := sample.numbers().get(name)) is not None]
        if values:
            middle = statistics.median(values)
            found[name] = {
                key: round(v, 3) for key, v in (("min", min(values)), ("median", middle), ("max", max(values)))
            }
    return found


def _any(flags: Sequence[bool | None]) -> bool | None:
    known = [flag for flag in flags if flag is not None]
    return any(known) if known else None
