"""The baseline that a build puts into its bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeseg.backends.onnxruntime import probe
from edgeseg.bundle import FP32, read_bundle
from edgeseg.console import Console
from edgeseg.data import load_dataset, pick, read
from edgeseg.errors import DatasetError
from edgeseg.measure.drift import baseline
from edgeseg.pipeline.baseline import QUICK_FRAMES, baseline_for
from edgeseg.runtime.watch import baseline_of
from edgeseg.types import LOGITS, MASK, OnnxModel


def test_a_build_stores_it(built: Path, street: Path) -> None:
    bundle = read_bundle(built)
    found = baseline_of(bundle)
    assert found is not None
    assert "baseline" in bundle.verdict["seconds"]
    split = load_dataset(street).split("train")
    frames = [sample.pixels[None] for sample in read(split, pick(len(split), QUICK_FRAMES), labels=False)]
    shares, sure = [], []
    for inside in probe(bundle.files[FP32], [MASK, LOGITS], frames):
        scores = inside[LOGITS][0].astype(np.float64)
        shares.append([float(np.mean(inside[MASK] == k)) for k in range(len(scores))])
        sure.append(float(np.mean(np.exp(scores).max(axis=0) / np.exp(scores).sum(axis=0))))
    expected = baseline(shares, list(sure))
    assert found.frames == QUICK_FRAMES
    np.testing.assert_allclose(found.shares, expected.shares, atol=1e-9)
    assert found.distance_high == pytest.approx(expected.distance_high)
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-5)
    assert found.confidence_low == pytest.approx(expected.confidence_low, abs=1e-5)


def test_it_is_used_again_and_told(built: Path, street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = read_bundle(built)
    model = OnnxModel(bundle.files[FP32], bundle.spec)
    reading = read(load_dataset(street).split("train"), labels=False)
    console = Console(quiet=False)
    first = baseline_for(model, reading, quick=True, use_cache=True, console=console)
    assert first is not None
    assert baseline_for(model, reading, quick=True, use_cache=True, console=console) == first
    more = baseline_for(model, reading, quick=False, use_cache=True, console=console)
    assert more is not None
    assert (first.frames, more.frames) == (8, 12)
    lines = capsys.readouterr().err.splitlines()
    assert ["reused" in line for line in lines] == [False, True, False]
    assert "% sure" in lines[0]


def test_without_frames_there_is_none(built: Path, street: Path) -> None:
    bundle = read_bundle(built)
    model = OnnxModel(bundle.files[FP32], bundle.spec)
    split = load_dataset(street).split("train")
    for reading in (None, read(split, [0, 1, 2])):
        assert baseline_for(model, reading, quick=True, use_cache=False, console=Console()) is None


def test_frames_that_cannot_be_read_do_not_stop_a_build(built: Path, tmp_path: Path) -> None:
    """Few or many: to judge that is for those who read all of them."""
    from tests.test_pipeline import images

    images(tmp_path, 9)
    for k in range(3):
        (tmp_path / f"frames/{k:03d}.png").write_bytes(b"")
    bundle = read_bundle(built)
    model = OnnxModel(bundle.files[FP32], bundle.spec)
    reading = read(load_dataset(tmp_path).split("train"), labels=False)
    with pytest.raises(DatasetError):
        list(reading)
    found = baseline_for(model, reading, quick=False, use_cache=True, console=Console())
    assert found is not None
    assert found.frames == 6
