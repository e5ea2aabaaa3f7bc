"""Measuring: accuracy from one confusion matrix, agreement of label maps, latency as a distribution, the machine.

Knows neither models nor engines: arrays, samples and callables come in, frozen values go out.
"""

from __future__ import annotations

from edgeseg.measure.agreement import Agreement, agreement, boundary_band
from edgeseg.measure.confusion import Scores, confusion, scores
from edgeseg.measure.histogram import Histogram
from edgeseg.measure.latency import (
    InTurn,
    Latency,
    Percentile,
    RatioInterval,
    early_stopping_bound,
    interleave,
    percentile,
    ratio_interval,
    samples_needed,
    summarize,
)
from edgeseg.measure.machine import machine, peak_rss_mb, versions
from edgeseg.measure.sensors import MachineSample
from edgeseg.measure.slowdown import Slowdown, slowdowns
from edgeseg.measure.timeline import Timeline

__all__ = [
    "Agreement",
    "Histogram",
    "InTurn",
    "Latency",
    "MachineSample",
    "Percentile",
    "RatioInterval",
    "Scores",
    "Slowdown",
    "Timeline",
    "agreement",
    "boundary_band",
    "confusion",
    "early_stopping_bound",
    "interleave",
    "machine",
    "peak_rss_mb",
    "percentile",
    "ratio_interval",
    "samples_needed",
    "scores",
    "slowdowns",
    "summarize",
    "versions",
]
