"""Rooflines of bundles: this machine's peaks, measured, and how near each layer of each engine comes to them.

Measured after the latencies and in sessions of its own, so it disturbs none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from edgeseg.benchmark.layer_times import layer_times
from edgeseg.benchmark.opened import Opened
from edgeseg.benchmark.probe import blas_counts, convolution_peak, copy_peak, product_peak
from edgeseg.benchmark.scenarios import Clock, Until, in_turns
from edgeseg.bundle import FP32
from edgeseg.errors import ModelError
from edgeseg.measure.profile import Profile, profile
from edgeseg.measure.roofline import LayerTime, Peaks, least_ms, row
from edgeseg.types import Precision

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_PROBED: tuple[Precision, ...] = ("fp32", "int8", "bf16", "fp16")
_RUNS = 21  # in turns, like the latencies


def rooflines(
    opened: Sequence[Opened], *, clock: Clock = time.perf_counter_ns, say: Callable[[str], object] | None = None
) -> list[dict[str, Any] | None]:
    """One for each engine; None for one whose graph cannot be counted, and `say` why. Peaks of what is alike once."""
    memory: dict[int, float] = {}
    known: dict[tuple[object, ...], float | str] = {}
    found: list[dict[str, Any] | None] = []
    runs = {str(number): one.works()[0] for number, one in enumerate(opened)}
    took = in_turns(runs, Until(0.0, _RUNS), clock=clock).samples
    for number, one in enumerate(opened):
        try:
            counted = _counted(one)
        except ModelError as error:
            if say is not None:
                say(f"roofline   none of {one.head['path']}: {error}")
            found.append(None)
            continue
        assert one.engine is not None
        notes: list[str] = []
        layers = layer_times(one.engine, one.threads, one.prepared)
        peaks = None
        if layers is None:
            notes.append(f"the peaks of {one.engine.backend}, and its layers, are not measured here")
        else:
            needed = {layer.precision for layer in layers if layer.macs} | {one.engine.precision}
            rates: dict[str, float] = {}
            for precision in _PROBED:
                if precision in needed:
                    peak = _peak(one, precision, known, clock)
                    if isinstance(peak, str):
                        notes.append(f"no peak of {precision}: {peak}")
                    else:
                        rates[precision] = peak
            if one.threads not in memory:
                memory[one.threads] = copy_peak(one.threads, clock)
            peaks = Peaks(rates, memory[one.threads], one.threads)
        ms = statistics.median(took[str(number)]) / 1e6
        found.append(roofline(counted, layers, peaks, one.engine.precision, ms, notes))
    return found


def roofline(
    counted: Profile,
    layers: Sequence[LayerTime] | None,
    peaks: Peaks | None,
    precision: str,
    ms: float,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What a document says under "roofline".

    `counted`: of the FP32 network. `ms`: of a frame, the engine alone. bundle: macs, bytes (each tensor and weight as
    often as a layer reads or writes it), ms, gmac_s, gb_s, share of what the peaks allow and what bounds it. peaks:
    measured, or null. layers: rows of measure.roofline, or null. notes: what to know about them.
    """
    said = list(notes)
    rows = None if layers is None else [row(layer, peaks) for layer in layers]
    if layers:
        moved = sum(layer.bytes for layer in layers)
        total = sum(layer.ms for layer in layers)
        said.append(f"all layers together take {total:.2f} ms under the profiler, a frame {ms:.2f} ms without it")
    else:
        size = _BYTES.get(precision, 4)
        moved = size * (2 * counted.activations + counted.parameters)
        said.append("bytes are estimated: each layer's output written once and read once, weights read once")
    allowed = None if peaks is None else least_ms(counted.macs, moved, precision, peaks)
    least: float | None = None
    by: str | None = None
    if rows and all(one["least_ms"] is not None for one in rows):
        least = sum(one["least_ms"] for one in rows)  # a layer's slack is no help to another
        bound = {b: sum(one["least_ms"] for one in rows if one["bound"] == b) for b in ("compute", "memory")}
        by = max(bound, key=lambda b: bound[b])
    elif allowed is not None:
        least, by = max(allowed), "compute" if allowed[0] > allowed[1] else "memory"
    return {
        "bundle": {
            "macs": counted.macs,
            "bytes": moved,
            "ms": ms,
            "gmac_s": counted.macs / ms / 1e6 if ms > 0 else None,
            "gb_s": moved / ms / 1e6 if ms > 0 else None,
            "least_ms": least,
            "share": least / ms if least is not None and ms > 0 else None,
            "bound": by,
        },
        "peaks": None if peaks is None else peaks.to_json(),
        "layers": rows,
        "notes": said,
    }


def _counted(one: Opened) -> Profile:
    if one.bundle is None or one.engine is None:
        raise ModelError("it is not an engine of a bundle")
    return profile(one.bundle.files.get(FP32) or one.bundle.graph())


def _peak(one: Opened, precision: Precision, known: dict[tuple[object, ...], float | str], clock: Clock) -> float | str:
    """GMAC/s, or why there is none."""
    assert one.engine is not None
    key = (one.engine.backend, precision, one.threads, tuple(sorted(one.engine.settings.items())))
    if key not in known:
        try:
            peak = convolution_peak(one.engine.backend, precision, one.threads, one.engine.settings, clock)
            if precision == "fp32" and blas_counts(one.threads):
                peak = max(peak, product_peak(clock))
            known[key] = peak
        except ModelError as error:
            known[key] = str(error)
    return known[key]
