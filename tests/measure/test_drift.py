"""Baselines and drift: by numbers from elsewhere, on made-up cameras, and on a real model and real frames."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeseg.errors import BadInput, CannotTell
from edgeseg.measure.drift import LEAST, LEAST_DISTANCE, WINDOW, Baseline, Drift, baseline, distance, from_json
from tests.data.files import SHARED

MEAN = np.array([0.5, 0.3, 0.15, 0.05])


def scenes(count: int, seed: int = 0, mean: NDArray[np.float64] = MEAN, tight: float = 30) -> list[list[float]]:
    """Frames of many scenes, correlated not at all."""
    found: list[list[float]] = np.random.default_rng(seed).dirichlet(tight * mean, count).tolist()
    return found


def sureness(count: int, seed: int = 0, mean: float = 0.9) -> list[float | None]:
    return list(np.random.default_rng(seed).normal(mean, 0.02, count).clip(0, 1).tolist())


def made(count: int = 32) -> Baseline:
    return baseline(scenes(count), sureness(count))


def test_the_distance_by_its_definition() -> None:
    def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
        return sum(float(a * np.log2(a / b)) for a, b in zip(p, q, strict=True) if a > 0)

    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(5), 2)
        p = np.where(np.arange(5) == 2, 0.0, p) / (1 - p[2])
        middle = (p + q) / 2
        assert distance(p, q) == pytest.approx((divergence(p, middle) + divergence(q, middle)) / 2)
    assert distance(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0
    assert distance(MEAN, MEAN) == 0.0


def test_a_baseline_by_numpy() -> None:
    rows, sure = np.array(scenes(9)), np.array(sureness(9), np.float64)
    found = baseline(rows.tolist(), sure.tolist())
    away = [distance(rows[k], np.delete(rows, k, axis=0).mean(axis=0)) for k in range(9)]
    assert found.frames == 9
    np.testing.assert_allclose(found.shares, rows.mean(axis=0))
    np.testing.assert_allclose(found.spread, rows.std(axis=0))
    assert (found.distance, found.distance_high) == pytest.approx((np.median(away), np.quantile(away, 0.99)))
    assert found.confidence == pytest.approx(sure.mean())
    assert found.confidence_low == pytest.approx(np.quantile(sure, 0.01))


def test_too_few_frames() -> None:
    with pytest.raises(CannotTell, match="4 frames or more, there are 3"):
        baseline(scenes(3), sureness(3))


@given(st.integers(4, 40), st.booleans())
@settings(max_examples=20, deadline=None)
def test_json_there_and_back(count: int, scored: bool) -> None:
    found = baseline(scenes(count), sureness(count) if scored else [None] * count)
    assert from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert (found.confidence_limit is None) == (not scored)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "edgeseg.baseline/9"}, "schema"),
        ({"frames": 3}, "frames"),
        ({"frames": True}, "frames"),
        ({"shares": [0.5, 0.5]}, "shares"),
        ({"shares": [0.5, 0.3, 0.15, 0.5]}, "sum to 1"),
        ({"shares": [0.5, 0.3, 0.2, float("nan")]}, "shares"),
        ({"spread": "many"}, "spread"),
        ({"distance_high": None}, "distance_high"),
        ({"distance": -0.1}, "distance"),
        ({"confidence_low": None}, "confidence_low"),
        ({"confidence": "high"}, "confidence"),
    ],
)
def test_damaged_baselines_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        from_json({**made().to_json(), **change})


@pytest.mark.parametrize("value", [[], None, "x", {}])
def test_what_is_no_baseline_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match="schema"):
        from_json(value)


def fed(drift: Drift, rows: list[list[float]], sure: list[float | None]) -> Drift:
    for shares, confidence in zip(rows, sure, strict=True):
        drift.update(shares, confidence)
    return drift


def test_frames_like_those_of_the_calibration_are_not_told_of() -> None:
    for seed in range(1, 20):
        drift = fed(Drift(made()), scenes(300, seed), sureness(300, seed))
        assert drift.document()["alarms"] == 0, seed


def test_one_scene_that_the_calibration_has_too_is_not_told_of() -> None:
    """All frames of a stream alike, as from a car that stands: far from the mean, and yet nothing new."""
    rows = scenes(32)
    drift = Drift(made())
    for shares in rows:
        fed(drift, [shares] * 70, [0.9] * 70)
    assert drift.document()["alarms"] == 0


def test_another_world_is_told_of_once_there_are_frames_enough_and_taken_back() -> None:
    drift = Drift(made(), ["sky", "road", "car", "tree"])
    fed(drift, [[0.0, 0.05, 0.0, 0.95]] * (LEAST - 1), [0.9] * (LEAST - 1))
    assert drift.document()["warning"] is None
    drift.update([0.0, 0.05, 0.0, 0.95], 0.9)
    warning = drift.warning
    assert warning is not None
    assert "no longer shows" in warning
    assert "tree 5 → 95 %" in warning
    assert "sure" not in warning
    fed(drift, scenes(WINDOW, 5), sureness(WINDOW, 5))
    assert drift.warning is None
    assert drift.document()["alarms"] == 1


def test_a_few_odd_frames_are_not_told_of() -> None:
    drift = fed(Drift(made()), scenes(100, 1), sureness(100, 1))
    fed(drift, [[0.0, 0.0, 0.0, 1.0]] * 5, [0.2] * 5)
    fed(drift, scenes(100, 2), sureness(100, 2))
    assert drift.document()["alarms"] == 0


def test_confidence_alone_is_told_of() -> None:
    drift = fed(Drift(made()), scenes(100, 1), sureness(100, 1, 0.7))
    assert drift.warning is not None
    assert "% sure of its pixels" in drift.warning
    assert "shares" not in drift.warning
    without = fed(Drift(made()), scenes(100, 1), [None] * 100)
    assert without.warning is None
    assert without.document()["confidence"] is None


def test_classes_that_the_baseline_does_not_know() -> None:
    drift = Drift(made())
    fed(drift, [[*(0.6 * MEAN).tolist(), 0.1, 0.3]] * LEAST, [0.9] * LEAST)
    assert drift.warning is not None
    assert "any other class 0 → 40 %" in drift.warning


def test_a_fixed_camera_has_room() -> None:
    """Calibration frames all alike: their own spread would forbid a cloud."""
    alike = baseline([MEAN.tolist()] * 16, [0.95] * 16)
    assert alike.distance_limit == LEAST_DISTANCE
    assert fed(Drift(alike), [[0.45, 0.35, 0.15, 0.05]] * 100, [0.93] * 100).warning is None
    assert fed(Drift(alike), [[0.2, 0.6, 0.15, 0.05]] * 100, [0.93] * 100).warning is not None
    assert fed(Drift(alike), [MEAN.tolist()] * 100, [0.85] * 100).warning is not None


def test_the_window_is_the_mean_of_the_last_frames() -> None:
    rows, sure = scenes(WINDOW + 37, 3), sureness(WINDOW + 37, 3)
    against = made()
    document = fed(Drift(against), rows, sure).document()
    assert (document["frames"], document["window"]) == (WINDOW + 37, WINDOW)
    mean = np.array(rows[-WINDOW:]).mean(axis=0)
    assert document["distance"] == pytest.approx(distance(mean, np.array(against.shares)))
    assert document["confidence"] == pytest.approx(np.mean(np.array(sure[-WINDOW:], np.float64)))
    json.dumps(document, allow_nan=False)


@pytest.mark.skipif(
    not (SHARED / "camvid").is_dir() or not (SHARED / "models").is_dir(),
    reason="needs the trained model and frames of EDGESEG_SHARED",
)
def test_a_real_camera() -> None:
    """Baseline on CamVid train. Its val drive is fine; night, noise, darkness and inverted frames are not."""
    from edgeseg.backends.scores import Scored
    from edgeseg.data import fit, load_dataset, pick, read
    from edgeseg.data.street import render
    from edgeseg.export import fuse, to_onnx
    from edgeseg.intake import Torch, load
    from edgeseg.spec import read_spec

    spec = read_spec(SHARED / "models" / "unet_camvid.toml")
    model = load(SHARED / "models" / "unet_camvid.pt", spec)
    assert isinstance(model, Torch)
    dataset = load_dataset(SHARED / "camvid")

    def frames(split: str, count: int) -> list[NDArray[np.uint8]]:
        chosen = read(dataset.split(split), pick(len(dataset.split(split)), count), labels=False)
        return [fit(sample.pixels, spec.input.size) for sample in chosen]

    with Scored(fuse(to_onnx(model, spec, quick=True).graph, spec).graph, spec.output) as network:

        def seen(pictures: list[NDArray[np.uint8]]) -> tuple[list[list[float]], list[float | None]]:
            answers = [network.run(picture[None]) for picture in pictures]
            shares = [(np.bincount(mask.ravel(), minlength=11) / mask.size).tolist() for mask, _ in answers]
            return shares, [sure for _, sure in answers]

        against = baseline(*seen(frames("train", 32)))

        def warned(pictures: list[NDArray[np.uint8]]) -> bool:
            rows, sure = seen(pictures)
            repeated = -(-LEAST // len(rows))
            return fed(Drift(against, dataset.classes), rows * repeated, sure * repeated).warning is not None

        drive = frames("val", 60)
        few = drive[::4]
        rng = np.random.default_rng(0)
        assert not warned(drive)
        assert warned([render(spec.input.size, 4, k)[0] for k in range(0, 60, 5)])  # a street at night
        assert warned([rng.integers(0, 256, (180, 240, 3), dtype=np.uint8) for _ in range(6)])
        assert warned([255 - frame for frame in few])
        assert warned([frame // np.uint8(8) for frame in few])
        assert warned([frame[::-1].copy() for frame in few])  # mounted upside down
