"""Samples as parts of the document edgeseg.bench/2."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgeseg.benchmark.plan import Plan
from edgeseg.benchmark.scenarios import Arrivals
from edgeseg.measure.latency import CONFIDENCE, early_stopping_bound, summarize


def latency_of(samples_ns: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Summaries, raw samples in order, and upper bounds of the percentiles: of "engine" and of "whole"."""
    bounds = {
        kind: {f"p{100 * p:g}": early_stopping_bound(samples, p) for p in (0.5, 0.9, 0.99)}
        for kind, samples in samples_ns.items()
    }
    return {
        "latency_ms": summarize(samples_ns["engine"]).to_json(),
        "end_to_end_ms": summarize(samples_ns["whole"]).to_json(),
        # The true percentile lies below with this confidence: MLPerf's early-stopping estimate.
        "bounds_ms": {"confidence": CONFIDENCE, **bounds},
        "samples_ms": {kind: [round(ns / 1e6, 4) for ns in samples] for kind, samples in samples_ns.items()},
    }


def multi_stream_of(plan: Plan, service_ns: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What is particular to multi-stream. `service_ns`: how long the queries took once begun.

    load: share of the period that a query takes, on average; above 1 the queue grows without end. None without a rate.
    """
    parts: dict[str, Any] = {"streams": plan.streams, "fps": plan.rate}
    for kind, service in service_ns.items():
        mean = statistics.fmean(service)
        parts[kind] = {
            "frames_per_second": plan.streams * 1e9 / mean,  # that it could do, not that came
            "load": None if plan.rate is None else mean * plan.rate / 1e9,
        }
    return parts


def camera_of(arrivals: Mapping[str, Arrivals], plan: Plan) -> dict[str, Any]:
    """What became of the camera's frames.

    Of `arrived` frames, `processed` + `dropped`; `late`: processed, but not within the deadline; `missed`: late or
    dropped, and their share. mask_age_ms: how long ago its frame came when a mask is replaced by the next one, the
    oldest that it gets; when it is new that is the latency. service_ms: how long a frame took once begun. wake_ms: how
    late the system woke the waiting program, in the median; that is part of the latency, as with a camera's program.
    """
    assert plan.rate is not None
    deadline_ms = plan.deadline_ms or 1000.0 / plan.rate
    parts: dict[str, Any] = {"fps": plan.rate, "deadline_ms": deadline_ms}
    for kind, came in arrivals.items():
        late = came.late(round(deadline_ms * 1e6))
        parts[kind] = {
            "arrived": came.arrived,
            "processed": len(came.latency),
            "dropped": came.dropped,
            "late": late,
            "missed": late + came.dropped,
            "missed_share": (late + came.dropped) / came.arrived,
            "mask_age_ms": summarize(came.ages).to_json() if came.ages else None,
            "service_ms": summarize(came.service).to_json(),
            "wake_ms": statistics.median(came.woken) / 1e6 if came.woken else None,
        }
    return parts
