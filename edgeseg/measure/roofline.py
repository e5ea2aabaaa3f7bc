"""How near work comes to what a machine can do: the roofline model (Williams, Waterman and Patterson, 2009).

Work of so many multiplications and bytes cannot take less than the multiplications at the peak of the arithmetic, nor
less than the bytes at the peak of the memory; the longer of the two is what bounds it. Both peaks are measured, so a
share can exceed 1: a layer may find its data in a cache, or have a faster kernel than the one that set the peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Peaks:
    """Of one machine, runtime and number of threads, measured. A MAC is a multiplication and an addition."""

    gmac_s: Mapping[str, float]  # by precision: "fp32", "int8", …
    gb_s: float  # bytes read and written by a copy that no cache holds, in 1e9 a second
    threads: int

    def to_json(self) -> dict[str, Any]:
        return {"gmac_s": dict(self.gmac_s), "gb_s": self.gb_s, "threads": self.threads}


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One layer as an engine ran it."""

    name: str
    op: str  # the engine's own word
    precision: str  # of its arithmetic, as in Peaks
    ms: float
    macs: int
    bytes: int  # of inputs, weights and outputs, each once


def least_ms(macs: int, moved: int, precision: str, peaks: Peaks) -> tuple[float, float] | None:
    """The least milliseconds that the arithmetic and the memory allow; None where that arithmetic's peak is not known.

    Without multiplications the arithmetic needs no time, whatever the precision.
    """
    peak = peaks.gmac_s.get(precision)
    if macs and not peak:
        return None
    return (macs / peak / 1e6 if macs and peak else 0.0), moved / peaks.gb_s / 1e6


def row(layer: LayerTime, peaks: Peaks | None) -> dict[str, Any]:
    """A layer and its place under the roof, ready for JSON.

    gmac_s, gb_s: achieved; None for a layer of no measurable time. intensity: MACs a byte. least_ms: what the peaks
    allow. share: of that in its time, 1 on the roof. bound: "compute" or "memory", whichever allows less; these three
    are None where a peak is not known.
    """
    allowed = None if peaks is None else least_ms(layer.macs, layer.bytes, layer.precision, peaks)
    return {
        "name": layer.name,
        "op": layer.op,
        "precision": layer.precision,
        "ms": layer.ms,
        "macs": layer.macs,
        "bytes": layer.bytes,
        "intensity": layer.macs / layer.bytes if layer.bytes else None,
        "gmac_s": layer.macs / layer.ms / 1e6 if layer.ms > 0 else None,
        "gb_s": layer.bytes / layer.ms / 1e6 if layer.ms > 0 else None,
        "least_ms": None if allowed is None else max(allowed),
        "share": None if allowed is None or layer.ms <= 0 else max(allowed) / layer.ms,
        "bound": None if allowed is None else "compute" if allowed[0] > allowed[1] else "memory",
    }
