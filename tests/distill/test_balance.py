"""Weights of classes against their formulas, pixel by pixel."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeseg.distill.balance import class_weights, count_classes
from edgeseg.errors import BadInput

COUNTS = np.array([[900, 90, 10, 0], [500, 0, 20, 0], [300, 600, 0, 0]])


def scaled(weights: list[float], counts: NDArray[np.int64]) -> list[float]:
    """So that the mean over all labelled pixels is 1."""
    pixels = [int(counts[:, c].sum()) for c in range(counts.shape[1])]
    mean = sum(w * n for w, n in zip(weights, pixels, strict=True)) / sum(pixels)
    return [w / mean for w in weights]


def test_counts_are_those_of_a_loop() -> None:
    random = np.random.default_rng(0)
    labels = [random.choice([0, 1, 2, 5, 255], (7, 9)).astype(np.uint8) for _ in range(4)]
    counts = count_classes(labels, 3)
    for n, label in enumerate(labels):
        for c in range(3):
            assert counts[n, c] == sum(int(value) == c for value in label.ravel().tolist())
    assert count_classes([], 3).shape == (0, 3)


def test_median_frequency() -> None:
    frequency = []
    for c in range(3):
        frames = [row for row in COUNTS.tolist() if row[c] > 0]
        frequency.append(sum(row[c] for row in frames) / sum(sum(row) for row in frames))
    expected = [statistics.median(frequency) / f for f in frequency] + [0.0]
    assert class_weights(COUNTS, "median") == pytest.approx(scaled(expected, COUNTS))


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, None])
def test_effective_number_of_samples(beta: float | None) -> None:
    """The number is also the sum of a geometric series: 1 + beta + ... + beta^(n - 1)."""
    used = 1 - 1 / int(COUNTS.sum()) if beta is None else beta
    expected = [1 / sum(used**k for k in range(int(COUNTS[:, c].sum()))) for c in range(3)] + [0.0]
    assert class_weights(COUNTS, "effective", beta=beta) == pytest.approx(scaled(expected, COUNTS))


def test_effective_number_between_its_limits() -> None:
    alike = class_weights(COUNTS, "effective", beta=0.0)
    assert alike[:3] == pytest.approx([1, 1, 1])
    inverse = class_weights(COUNTS, "effective", beta=1 - 1e-15)
    assert inverse[1] / inverse[0] == pytest.approx(1700 / 690, rel=1e-6)
    huge = class_weights(COUNTS * 10**9, "effective", beta=1 - 1e-14)  # beta^n taken naively is 1
    assert all(math.isfinite(weight) for weight in huge)
    assert huge[2] > huge[1] > huge[0] > 0


def test_root_and_none() -> None:
    shares = [1700 / 2420, 690 / 2420, 30 / 2420, 1e-4]
    assert class_weights(COUNTS, "root") == pytest.approx(scaled([1 / math.sqrt(s) for s in shares], COUNTS))
    assert class_weights(COUNTS, "none") == pytest.approx([1, 1, 1, 1])


def test_what_cannot_be_weighed_is_refused() -> None:
    with pytest.raises(BadInput, match="not by 'fair'"):
        class_weights(COUNTS, "fair")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="beta"):
        class_weights(COUNTS, "effective", beta=1.0)
    for counts in (np.zeros((2, 3), np.int64), np.array([1, 2]), np.array([[1, -1], [1, 1]])):
        with pytest.raises(BadInput, match="labelled pixel"):
            class_weights(counts, "median")
