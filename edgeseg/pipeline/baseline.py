"""What the float network sees on calibration frames: what a running stream is compared with, kept in the bundle."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np

from edgeseg import __version__, cache
from edgeseg.backends.scores import Scored
from edgeseg.console import Console
from edgeseg.data import Reading, pick, read
from edgeseg.errors import DatasetError
from edgeseg.measure.drift import LEAST_FRAMES, SCHEMA, Baseline, baseline, from_json
from edgeseg.pipeline.frames import prepared
from edgeseg.types import OnnxModel

FRAMES, QUICK_FRAMES = 32, 8


def baseline_for(
    fp32: OnnxModel, reading: Reading | None, *, quick: bool, use_cache: bool, console: Console
) -> Baseline | None:
    """Class shares and confidence on frames spread over those to calibrate on; None where there are too few."""
    if reading is None or len(reading) < LEAST_FRAMES:
        return None
    indices = [reading.indices[k] for k in pick(len(reading), QUICK_FRAMES if quick else FRAMES)]
    key = cache.key("baseline", SCHEMA, __version__, fp32.digest, reading.split.digest(indices), repr(fp32.spec))
    with console.step("baseline") as step:
        if use_cache and (stored := cache.load("baseline", key)) is not None:
            found = from_json(json.loads(stored))
            step.note = f"reused: {_summary(found)}"
            return found
        classes = max(2, len(fp32.spec.output.classes))
        counts, sure = [], []
        with Scored(fp32.graph, fp32.spec.output) as network:
            for index in console.track(indices, len(indices), "baseline"):
                one = read(reading.split, [index], color=reading.color, labels=False)
                with suppress(DatasetError):  # one that cannot be read is named where all of them are
                    for frame in prepared(one, fp32.spec):
                        mask, confidence = network.run(frame[None])
                        counts.append(np.bincount(mask.ravel(), minlength=256) / mask.size)
                        sure.append(confidence)
        if len(counts) < LEAST_FRAMES:
            step.note = f"none: {len(counts)} of {len(indices)} frames could be read"
            return None
        rows = np.stack(counts)
        known = max(classes, int(np.flatnonzero(rows.any(axis=0)).max()) + 1)  # the classes need not be named
        found = baseline(rows[:, :known].tolist(), sure)
        if len(counts) == len(indices):
            cache.store("baseline", key, json.dumps(found.to_json()).encode())
        step.note = _summary(found)
    return found


def _summary(found: Baseline) -> str:
    sure = "no scores to be sure by" if found.confidence is None else f"{100 * found.confidence:.1f} % sure"
    return f"{found.frames} frames, {sure}"
