"""Intervals against other ways to find them, where samples and frames are independent and those ways hold."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from edgeseg.compare import latency
from edgeseg.compare.accuracy import accuracy
from edgeseg.errors import BadInput
from edgeseg.measure.latency import ratio_interval
from tests.compare.making import made


def test_paired_latency_is_the_ratio_of_medians() -> None:
    chance = np.random.default_rng(0)
    a, b = 20 * np.exp(chance.normal(0, 0.1, (2, 400)))
    found = latency.of_pairs(
        [(made.bench_document(a, "r", paired=True), made.bench_document(1.05 * b, "r", paired=True))], "here"
    )["latency.p50"]
    slow = ratio_interval([round(1.05 * ms * 1e6) for ms in b], [round(ms * 1e6) for ms in a])
    low, high = found.bounds()
    assert found.change == pytest.approx(math.log(slow.ratio), abs=0.003)
    # That one knows nothing of the luck of an opening.
    width = math.hypot((math.log(slow.high) - math.log(slow.low)) / 3.92, latency.PLACEMENT) * 3.92
    assert high - low == pytest.approx(width, rel=0.25)


def test_neighbours_alike_widen_the_interval() -> None:
    chance = np.random.default_rng(0)

    def error(memory: float) -> float:
        a, b = (20 * np.exp(made.wander(chance, 600, memory, 0.1)) for _ in range(2))
        pair = made.bench_document(a, "r", paired=True), made.bench_document(b, "r", paired=True)
        return latency.of_pairs([pair], "here")["latency.mean"].error

    assert error(0.9) > 2 * error(0.0)


def test_accuracy_is_that_of_the_delta_method() -> None:
    """One class and independent frames: the error of a ratio of sums, from its first derivative."""
    chance = np.random.default_rng(0)
    union = chance.integers(500, 1500, 300)
    sides = [np.zeros((3, 300, len(made.CLASSES)), np.int64) for _ in range(2)]
    for side, share in zip(sides, (0.70, 0.68), strict=True):
        side[0, :, :] = np.round(union * (share + chance.normal(0, 0.03, 300)))[:, None]
        side[1, :, :] = union[:, None] - side[0, :, :]
    found = accuracy(made.eval_document(sides[0]), made.eval_document(sides[1]), "here")["miou"]
    score = [side[0, :, 0].sum() / union.sum() for side in sides]
    moved = [(side[0, :, 0] - share * union) / union.sum() for side, share in zip(sides, score, strict=True)]
    assert found.change == pytest.approx(100 * (score[1] - score[0]))
    assert found.error == pytest.approx(100 * np.std(moved[1] - moved[0]) * math.sqrt(300), rel=0.35)


def test_windows_of_a_real_run(tmp_path: Path) -> None:
    documents = list(made.paired_latency(0, 1.0))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(documents))
    assert made.score(made.windows(path, 100, 2, 1.5), "latency.p50") == made.Score(2, 2, 2, 0)
    assert made.score(made.windows(path, 100, 2, 1.0), None).failed == 0
    with pytest.raises(BadInput, match="at least 400 rounds, came 300"):
        list(made.windows(path, 400, 1, 1.0))
    path.write_text(json.dumps([documents[0], {**documents[1], "run": "other"}]))
    with pytest.raises(BadInput, match="took turns"):
        list(made.windows(path, 100, 1, 1.0))
