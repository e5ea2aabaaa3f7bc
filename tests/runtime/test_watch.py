"""Watching a stream beside it: what is compared is what was offered, and nothing that goes wrong reaches the stream."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeseg.backends.scores import Scored
from edgeseg.bundle import FP32, Bundle, Variant
from edgeseg.errors import BadInput, BundleError
from edgeseg.measure.agreement import Agreement, agreement
from edgeseg.measure.drift import LEAST, baseline
from edgeseg.runtime.values import Shot
from edgeseg.runtime.watch import Watch, baseline_of
from edgeseg.types import Frames, Mask
from tests.quantize import making

MODEL = making.unet()
FRAMES = making.frames(8)
WAIT_S = 30.0


def answers() -> list[tuple[Mask, float]]:
    with Scored(MODEL.graph, MODEL.spec.output, threads=1) as network:
        found = [network.run(frame[None]) for frame in FRAMES]
    return [(mask, sure) for mask, sure in found if sure is not None]


ANSWERS = answers()


def bundle(**verdict: Any) -> Bundle:
    variant = Variant("onnxruntime-fp32", "onnxruntime", "fp32", (FP32,))
    return Bundle(MODEL.spec, (variant,), variant.name, {FP32: MODEL.graph}, verdict=verdict)


def shot(k: int, mask: Mask | None = None, stream: int = 0) -> Shot:
    return Shot(stream, FRAMES[k % 8][None].copy(), (ANSWERS[k % 8][0] if mask is None else mask).copy())


def patiently(watch: Watch, shots: list[Shot]) -> None:
    """Offer one after the other, each when the one before was looked at."""
    for one in shots:
        watch.offer(one)
        one.input[:] = 0  # the stream uses its buffers again
        one.mask[:] = 0
        until(lambda: not watch._busy)


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_agreement_and_confidence_are_those_of_the_float_network() -> None:
    rng = np.random.default_rng(0)
    masks = [np.where(rng.random(mask.shape) < 0.1, 0, mask).astype(np.uint8) for mask, _ in ANSWERS]
    with Watch(bundle(), 1.0) as watch:
        patiently(watch, [shot(k, mask) for k, mask in enumerate(masks)])
        document = watch.document()
    total = sum((agreement(ANSWERS[k][0], mask) for k, mask in enumerate(masks)), Agreement())
    assert 0.85 < document["agreement"] < 0.99
    assert (document["agreement"], document["boundary"]) == (total.overall, total.boundary)
    assert document["confidence"] == pytest.approx(np.mean([sure for _, sure in ANSWERS]))
    assert (document["asked"], document["frames"], document["failed"]) == (8, 8, 0)
    assert document["drift"] == []
    assert document["baseline"] is False
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize("seed", [0, 1])
def test_one_frame_of_each_block_by_chance(seed: int) -> None:
    taken = []
    with Watch(bundle(), 0.1, seed=seed) as watch:
        for k in range(200):
            before = watch.document()["asked"]
            patiently(watch, [shot(k)])
            if watch.document()["asked"] > before:
                taken.append(k)
    assert [k // 10 for k in taken] == list(range(20))
    assert len({k % 10 for k in taken}) > 4
    assert watch.document()["frames"] == 20


def test_frames_go_by_while_it_is_busy() -> None:
    with Watch(bundle(), 1.0) as watch:
        begun, go, real = threading.Event(), threading.Event(), watch._network

        class Slow:
            def run(self, frames: Frames) -> tuple[Mask, float | None]:
                begun.set()
                assert go.wait(WAIT_S)
                return real.run(frames)

        watch._network = Slow()  # type: ignore[assignment]
        watch.offer(shot(0))
        assert begun.wait(WAIT_S)
        for k in range(1, 5):
            watch.offer(shot(k, np.zeros(making.SIZE, np.uint8)))
        go.set()
        until(lambda: not watch._busy)
        document = watch.document()
        watch._network = real
    assert (document["asked"], document["frames"], document["skipped_busy"]) == (5, 1, 4)
    assert document["agreement"] == 1.0  # what came meanwhile was not written over what it works on


def test_what_goes_wrong_is_told_and_does_not_spread() -> None:
    with Watch(bundle(), 1.0) as watch:
        real = watch._network

        class Broken:
            def run(self, frames: Frames) -> tuple[Mask, float | None]:
                raise RuntimeError("out of memory")

        watch._network = Broken()  # type: ignore[assignment]
        patiently(watch, [shot(0), shot(1)])
        watch._network = real
        patiently(watch, [shot(2)])
        watch.offer(Shot(0, np.zeros((1, 5, 5, 3), np.uint8), np.zeros((5, 5), np.uint8)))
        document = watch.document()
    assert (document["asked"], document["frames"], document["failed"]) == (4, 1, 3)
    assert document["error"] == "RuntimeError: out of memory"


def test_drift_of_one_of_two_cameras() -> None:
    shares = [(np.bincount(mask.ravel(), minlength=4) / mask.size).tolist() for mask, _ in ANSWERS]
    against = baseline(shares, [sure for _, sure in ANSWERS])
    grey = np.full((1, *making.SIZE, 3), 128, np.uint8)  # which this network is not sure of
    with Watch(bundle(baseline=against.to_json()), 1.0) as watch:
        for k in range(LEAST):
            patiently(watch, [shot(k, stream=0), Shot(1, grey.copy(), np.zeros(making.SIZE, np.uint8))])
        document, warning = watch.document(), watch.warning
    first, second = document["drift"]
    assert document["baseline"] is True
    assert (first["stream"], first["warning"], first["frames"]) == (0, None, LEAST)
    assert second["warning"] is not None
    assert warning == f"stream 1: {second['warning']}"


def test_a_frame_that_was_taken_is_looked_at_before_the_end() -> None:
    watch = Watch(bundle(), 1.0)
    watch.offer(shot(0))
    watch.close()
    assert watch.document()["frames"] == 1
    watch.offer(shot(1))
    assert watch.document()["asked"] == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "watch"]


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(BadInput, match="share"):
        Watch(bundle(), share)


def test_a_bundle_without_the_float_network() -> None:
    with pytest.raises(BundleError, match=r"no fp32\.onnx"):
        Watch(replace(bundle(), files={}), 0.5)


def test_baselines_of_old_and_damaged_bundles() -> None:
    assert baseline_of(bundle()) is None
    assert baseline_of(bundle(baseline=None)) is None
    with pytest.raises(BundleError, match="schema"):
        baseline_of(bundle(baseline={"schema": "other"}))
