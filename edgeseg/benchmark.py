"""Latency of bundles: the document that `edgeseg bench` writes. Several bundles take turns frame by frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.bundle import read_bundle
from edgeseg.console import Console
from edgeseg.data import fit, load_dataset, pick, read
from edgeseg.errors import BundleError
from edgeseg.evaluation import identity
from edgeseg.measure.latency import InTurn, interleave, summarize
from edgeseg.measure.machine import machine, versions
from edgeseg.segmenter import Segmenter, engine_of
from edgeseg.selfcheck import require_elsewhere
from edgeseg.types import Pixels

LEAST_SAMPLES = 64  # for a p90, by the early-stopping rule


def bench(
    bundles: str | Path | Sequence[str | Path],
    *,
    seconds: float = 10.0,
    variant: str | None = None,
    threads: int = 0,
    frames: Sequence[Pixels] = (),
    clock: Callable[[], int] = time.perf_counter_ns,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Measure each bundle for `seconds` in all, and until a p90 can be stated: one document for each.

    `latency_ms`: from a frame of the network's size to its mask, one frame at a time. `end_to_end_ms`: from a frame of
    the size that `frames` have, resizing included. Without `frames` (uint8 (H, W, 3), BGR) the bundle's own reference
    frames are used; never zeros. `cold_ms`: opening, and the first frame. Nothing is clipped.
    """
    paths = [bundles] if isinstance(bundles, str | Path) else list(bundles)
    console = console or Console()
    documents: list[dict[str, Any]] = []
    with ExitStack() as stack:
        opened: list[tuple[str, Segmenter, list[Pixels]]] = []
        for position, path in enumerate(paths):
            bundle = read_bundle(Path(path))
            chosen = bundle.variant(variant)
            start = clock()
            segmenter = stack.enter_context(Segmenter(engine_of(bundle, chosen, {"threads": threads}), bundle.spec))
            open_ms = (clock() - start) / 1e6
            rgb = bundle.spec.input.frame == "rgb"
            own = [np.ascontiguousarray(frame[..., ::-1]) if rgb else frame for frame in frames] or [
                reference.frame for reference in bundle.references
            ]
            if not own:
                raise BundleError(f"{path} has no reference frames to time with; give frames with --data")
            start = clock()
            segmenter(own[0])
            first_ms = (clock() - start) / 1e6
            require_elsewhere(bundle, chosen, segmenter)
            key = f"{position}:{chosen.name}"
            opened.append((key, segmenter, own))
            documents.append(
                {
                    "schema": "edgeseg.bench/1",
                    "bundle": bundle.spec.name,
                    "path": str(path),
                    "graph": identity(engine_of(bundle, chosen)),
                    "variant": chosen.name,
                    "backend": chosen.backend,
                    "precision": chosen.precision,
                    "settings": dict(chosen.settings),
                    "cold_ms": {"open": open_ms, "first_frame": first_ms},
                }
            )
        runs: dict[str, Callable[[], object]] = {}
        for key, segmenter, own in opened:
            runs[f"{key}/engine"] = InTurn(segmenter.run, [_prepared(segmenter, frame)[None] for frame in own])
            runs[f"{key}/whole"] = InTurn(segmenter, own)
        console.say(f"bench      {len(paths)} bundle(s), {seconds:g} s each, taking turns")
        times = interleave(runs, rounds=LEAST_SAMPLES, warmup=5, seconds=seconds * len(opened), clock=clock)
    for document, (key, _, own) in zip(documents, opened, strict=True):
        latency = summarize(times[f"{key}/engine"])
        document |= {
            "latency_ms": latency.to_json(),
            "end_to_end_ms": summarize(times[f"{key}/whole"]).to_json(),
            "fps": 1000.0 / latency.mean,
            "frame_size": list(own[0].shape[:2]),
            "samples": latency.count,
            "machine": machine(),
            "versions": versions(),
        }
    return documents


def frames_from(data: str | Path, split: str, count: int = 16) -> list[Pixels]:
    """Frames at their own size, BGR, spread over a split: to time with."""
    frames = load_dataset(data).split(split)
    return [sample.pixels for sample in read(frames, pick(len(frames), count), labels=False)]


def _prepared(segmenter: Segmenter, frame: Pixels) -> Pixels:
    return fit(frame, segmenter.spec.input.size, segmenter.spec.input.resize)
