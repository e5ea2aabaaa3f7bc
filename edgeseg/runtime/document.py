"""What a stream says of itself: while it runs (for the page and Prometheus) and at its end (for --json and compare)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeseg.bundle import Bundle, Variant
from edgeseg.evaluation import identity
from edgeseg.measure.drift import Baseline
from edgeseg.measure.flicker import Flicker
from edgeseg.measure.machine import machine, versions
from edgeseg.measure.sensors import MachineSample
from edgeseg.measure.slowdown import slowdowns
from edgeseg.measure.timeline import Timeline
from edgeseg.palette import Palette
from edgeseg.runtime.capture import Capture
from edgeseg.runtime.labels import Labels
from edgeseg.runtime.score import Scorer
from edgeseg.runtime.shares import Shares
from edgeseg.runtime.sources import Wanted
from edgeseg.runtime.tally import Tally, reasons
from edgeseg.runtime.values import STAGES
from edgeseg.runtime.watch import Watch
from edgeseg.segmenter import engine_of

SCHEMA = "edgeseg.stream/1"
_COUNTED = ("frames", "streaming_frames", "before_first", "skipped", "reasons")  # of the labels
HISTORY = 120  # windows that the page shows
RECENT_S = 10.0  # what the live figures cover


@dataclass(slots=True)
class Running:
    """The parts of a running stream, as far as they can be asked how it goes."""

    bundle: Bundle
    variant: Variant
    policy: str
    names: Sequence[str]
    palette: Palette
    wanted: Sequence[Wanted]
    captures: Sequence[Capture]
    tally: Tally
    timeline: Timeline
    shares: Shares
    flickers: Sequence[Flicker]
    labels: Labels | None
    scorer: Scorer | None
    watch: Watch | None
    baseline: Baseline | None  # what the calibration frames looked like
    started_ns: int
    started_at: float = field(default_factory=time.time)  # seconds since 1970: says when, measures nothing
    finished_ns: int | None = None
    ended: str | None = None  # why, once it has
    failure: Mapping[str, Any] | None = None
    sample: MachineSample | None = None
    address: str | None = None  # of the page
    warnings: list[str] = field(default_factory=list)
    sinks: list[dict[str, Any]] = field(default_factory=list)

    def seconds(self, now_ns: int) -> float:
        return max(0, (self.finished_ns or now_ns) - self.started_ns) / 1e9

    def all_warnings(self) -> list[str]:
        """What a person should know, each once."""
        parts = (self.watch, self.labels)
        found = [part.warning for part in parts if part is not None and part.warning is not None]
        if self.scorer is not None and (skipped := self.scorer.document())["skipped"]:
            found.append(f"{skipped['skipped']} labels could not be compared, such as: {skipped['reasons'][0]}")
        return list(dict.fromkeys([*self.warnings, *found]))

    @property
    def timed(self) -> bool:
        """Whether frames come by a clock: then what is seen at a moment means something, and not how fast files are."""
        return all(capture.live or capture.pace for capture in self.captures)

    def scores(self) -> dict[str, Any] | None:
        """What the scorer found; without a clock nothing is seen at a label's time."""
        if self.scorer is None:
            return None
        found = self.scorer.document()
        if not self.timed:
            found |= {"streaming_miou": None, "streaming_iou": None, "streaming_frames": 0, "before_first": 0}
        return found

    def quality(self) -> dict[str, Any]:
        scored = self.scores() or {}
        watched = self.watch.document() if self.watch is not None else {}
        flickers = [found for flicker in self.flickers if (found := flicker.document()["flicker"]) is not None]
        return {
            "miou": scored.get("miou"),
            "streaming_miou": scored.get("streaming_miou"),
            "agreement": watched.get("agreement"),
            "confidence": watched.get("confidence"),
            "flicker": sum(flickers) / len(flickers) if flickers else None,
        }


def live(running: Running, now_ns: int) -> dict[str, Any]:
    """The state that the page shows and Prometheus reads: plain JSON, from any thread."""
    rows = running.timeline.rows(last=HISTORY)
    recent = running.timeline.recent(RECENT_S)
    sources = _sources(running)
    known = running.baseline
    return {
        "schema": "edgeseg.stream.live/1",
        "name": running.bundle.spec.name,
        "variant": running.variant.name,
        "precision": running.variant.precision,
        "classes": list(running.names),
        "palette": [list(colour) for colour in running.palette],
        "seconds": running.seconds(now_ns),
        "policy": running.policy,
        "ended": running.ended is not None,
        "frames": running.tally.total(),
        "fps": _recent_fps(rows),
        "camera_fps": next((capture.fps for capture in running.captures if capture.fps), None),
        "deadline": running.tally.deadline(),
        "stages_ms": {
            stage: {key: getattr(found, key) for key in ("p50", "p90", "p99", "max")} if found else {}
            for stage, found in recent.items()
        },
        "history": [_history(row) for row in rows],
        "shares": running.shares.smoothed(running.names),
        "calibration_shares": dict(zip(running.names, known.shares, strict=False)) if known else None,
        "quality": running.quality(),
        "warnings": running.all_warnings(),
        "machine": asdict(running.sample) if running.sample is not None else {},
        "sources": [{**source, "fps": _rate(source, running.seconds(now_ns))} for source in sources],
    }


def document(running: Running, now_ns: int) -> dict[str, Any]:
    """What `--json` writes; with the machine's extremes, as the mean of a long window hides a short throttling."""
    rows = running.timeline.rows(ranges=True)
    frames, seconds = running.tally.total(), running.seconds(now_ns)
    scored = running.scores()
    age = running.timeline.total("age")
    found = slowdowns(rows)
    return {
        "schema": SCHEMA,
        "bundle": running.bundle.spec.name,
        "variant": running.variant.name,
        "backend": running.variant.backend,
        "precision": running.variant.precision,
        "settings": dict(running.variant.settings),
        "graph": identity(engine_of(running.bundle, running.variant)),
        "policy": running.policy,
        "timed": running.timed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(running.started_at)),
        "seconds": seconds,
        "ended": running.ended,
        "failure": running.failure,
        "frames": frames,
        "failures": reasons(running.tally.streams),
        "fps": frames["processed"] / seconds if seconds > 0 else 0.0,
        # From the camera to the mask: what a consumer waits for. Queues are in it, sinks are not.
        "latency_ms": age.to_json() if age.count else _nothing("no frame was processed"),
        "stages_ms": {
            stage: total.to_json() if (total := running.timeline.total(stage)).count else _nothing("no frame")
            for stage in STAGES
        },
        "deadline": running.tally.deadline(),
        **{key: (scored or {}).get(key) for key in ("miou", "iou", "streaming_miou", "streaming_iou")},
        "labels": {key: scored[key] for key in _COUNTED} if scored is not None else None,
        "quality": running.quality(),
        "watch": running.watch.document() if running.watch is not None else None,
        "class_shares": running.shares.mean(running.names),
        "classes": list(running.names),
        "sources": _sources(running),
        "sinks": list(running.sinks),
        "timeline": rows,
        "slowdowns": [asdict(slow) for slow in found],
        "warnings": [*running.all_warnings(), *(slow.text for slow in found)],
        "machine": machine(),
        "versions": versions(),
    }


def _sources(running: Running) -> list[dict[str, Any]]:
    found = []
    for stream, (wanted, capture, counts) in enumerate(
        zip(running.wanted, running.captures, running.tally.streams, strict=True)
    ):
        outages = capture.outages
        found.append(
            {
                "stream": stream,
                "name": wanted.shown,
                "kind": wanted.kind,
                "state": capture.state,
                **counts.frames(),
                "fps_nominal": capture.fps,
                "fps_captured": counts.rate,
                "size": list(counts.size) if counts.size else None,
                "size_changes": counts.sizes,
                "outages": outages.count,
                "outage_seconds": outages.seconds,
                "reopened": outages.reopened,
                "last_outage": outages.last,
                "complaint": capture.complaint,
            }
        )
    return found


def _nothing(why: str) -> dict[str, Any]:
    return {"count": 0, "p50": None, "p90": None, "p99": None, "reasons": dict.fromkeys(("p50", "p90", "p99"), why)}


def _recent_fps(rows: Sequence[Mapping[str, Any]]) -> float:
    """Over the last full windows that cover RECENT_S, the one under way left out where there are others."""
    frames = seconds = 0.0
    for row in reversed(rows[:-1] or rows):
        frames, seconds = frames + row["frames"], seconds + row["seconds"]
        if seconds >= RECENT_S:
            break
    return frames / seconds if seconds > 0 else 0.0


def _history(row: Mapping[str, Any]) -> dict[str, Any]:
    age, here = row["age"] or {}, row["machine"]
    return {
        "t": row["t"],
        "age_p50": age.get("p50"),
        "age_p99": age.get("p99"),
        "age_max": age.get("max"),
        "fps": row["fps"],
        "temperature_c": here.get("temperature_c"),
        "clock_mhz": here.get("gpu_clock_mhz") or here.get("cpu_clock_mhz"),
    }


def _rate(source: Mapping[str, Any], seconds: float) -> float:
    return float(source["processed"]) / seconds if seconds > 0 else 0.0
