"""The state of a stream as Prometheus reads it. Base units: seconds, bytes, hertz, ratios of 0 to 1.

Stage times are gauges with a `quantile` label and not a summary: they are percentiles of the last ten seconds, and a
summary's sum and count are not known. What the state does not have is left out, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeseg.runtime.values import STAGES

if TYPE_CHECKING:
    from prometheus_client import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OUTCOMES = ("captured", "processed", "dropped", "failed")
_QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99", "max": "1"}
# name, words, where in the state, factor to the base unit
_GAUGES: tuple[tuple[str, str, tuple[str, ...], float], ...] = (
    ("uptime_seconds", "Time since the stream began", ("seconds",), 1),
    ("ended", "1 after the stream has ended", ("ended",), 1),
    ("fps", "Frames processed a second", ("fps",), 1),
    ("camera_fps", "Frames a second that the camera gives", ("camera_fps",), 1),
    ("deadline_seconds", "Age from which a mask is late", ("deadline", "ms"), 1e-3),
    ("miou", "Mean intersection over union against the labels", ("quality", "miou"), 1),
    ("streaming_miou", "mIoU of what the consumer sees, stale masks included", ("quality", "streaming_miou"), 1),
    ("agreement", "Share of pixels that agree with the FP32 model", ("quality", "agreement"), 1),
    ("flicker", "Share of pixels whose class changes and should not", ("quality", "flicker"), 1),
    ("confidence", "Mean confidence of the decision", ("quality", "confidence"), 1),
    ("cpu_ratio", "Share of the CPU in use", ("machine", "cpu_percent"), 1e-2),
    ("resident_memory_bytes", "Resident memory of the process", ("machine", "rss_mb"), 2**20),
    ("temperature_celsius", "Temperature of the processor", ("machine", "temperature_c"), 1),
    ("gpu_utilization_ratio", "Share of the GPU in use", ("machine", "gpu_percent"), 1e-2),
    ("gpu_clock_hertz", "Clock of the GPU", ("machine", "gpu_clock_mhz"), 1e6),
    ("power_watts", "Power drawn", ("machine", "power_w"), 1),
    ("throttled", "1 while the machine slows itself down", ("machine", "throttled"), 1),
)


def exposition(state: Mapping[str, Any]) -> bytes:
    """The text exposition format 0.0.4 of `state` ("edgeseg.stream.live/1"; keys may be missing)."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Families(state))
    return generate_latest(registry)


class _Families:
    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge

        state = self._state
        info = Gauge("edgeseg_info", "What runs", labels=["name", "variant", "precision"])
        info.add_metric([str(state.get(key, "")) for key in ("name", "variant", "precision")], 1)
        yield info
        for name, words, path, factor in _GAUGES:
            value = number(_at(state, *path))
            if value is not None:
                yield Gauge(f"edgeseg_{name}", words, value=value * factor)
        yield Gauge("edgeseg_warnings", "Warnings in force", value=len(_at(state, "warnings") or ()))

        frames = Counter(
            "edgeseg_frames", "Frames by what became of them", labels=["stream", "source", "outcome"]
        )  # captured = processed + dropped + failed
        up = Gauge("edgeseg_source_up", "1 while the source gives frames", labels=["stream", "source"])
        fps = Gauge("edgeseg_source_fps", "Frames processed a second", labels=["stream", "source"])
        outages = Counter("edgeseg_source_outages", "Times that the source broke", labels=["stream", "source"])
        for row in _rows(state):
            where = [str(row.get("stream", 0)), str(row.get("name", ""))]
            for outcome in _OUTCOMES:
                _add(frames, [*where, outcome], row.get(outcome))
            _add(up, where, row.get("state") == "live")
            _add(fps, where, row.get("fps"))
            _add(outages, where, row.get("outages"))
        yield from (family for family in (frames, up, fps, outages) if family.samples)

        for key, name, words in (
            ("missed", "edgeseg_deadline_missed", "Frames whose mask came late"),
            ("of", "edgeseg_deadline_frames", "Frames whose deadline was watched"),
        ):
            value = number(_at(state, "deadline", key))
            if value is not None:
                yield Counter(name, words, value=value)

        stages = Gauge("edgeseg_stage_seconds", "Time in a stage, last 10 s", labels=["stage", "quantile"])
        age = Gauge("edgeseg_age_seconds", "Age of a mask, from glass to mask, last 10 s", labels=["quantile"])
        for key, quantile in _QUANTILES.items():
            for stage in STAGES:
                _add(stages, [stage, quantile], _at(state, "stages_ms", stage, key), 1e-3)
            _add(age, [quantile], _at(state, "stages_ms", "age", key), 1e-3)
        shares = Gauge("edgeseg_class_share", "Share of pixels, last second", labels=["class"])
        expected = Gauge("edgeseg_class_calibration_share", "Share of pixels in the calibration set", labels=["class"])
        for family, key in ((shares, "shares"), (expected, "calibration_shares")):
            for name, share in (_at(state, key) or {}).items():
                _add(family, [str(name)], share)
        yield from (family for family in (stages, age, shares, expected) if family.samples)


def number(value: Any) -> float | None:
    """A finite number (also NumPy's, also a bool) as float; None for everything else."""
    if value is None or isinstance(value, str | bytes | Mapping | Sequence):
        return None
    value = float(value)
    return value if math.isfinite(value) else None


def _add(family: Any, labels: Sequence[str], value: Any, factor: float = 1.0) -> None:
    value = number(value)
    if value is not None:
        family.add_metric(labels, value * factor)


def _at(state: Mapping[str, Any], *path: str) -> Any:
    """What lies at a path of keys, None where it ends early."""
    here: Any = state
    for key in path:
        here = here.get(key) if isinstance(here, Mapping) else None
    return here


def _rows(state: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = _at(state, "sources") or ()
    return rows
