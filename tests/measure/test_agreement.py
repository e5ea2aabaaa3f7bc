from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.errors import BadInput
from edgeseg.measure import Agreement, agreement, boundary_band
from edgeseg.types import Mask
from tests import reference

SIDE = st.integers(1, 12)


def blocks(seed: int, size: tuple[int, int]) -> Mask:
    """A class map of regions rather than of noise."""
    small = np.random.default_rng(seed).integers(0, 256, (size[0] // 4 + 1, size[1] // 4 + 1), dtype=np.uint8)
    return np.ascontiguousarray(small.repeat(4, axis=0).repeat(4, axis=1)[: size[0], : size[1]])


@given(st.integers(0, 10**6), st.tuples(SIDE, SIDE), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_the_band_as_found_by_loops(seed: int, size: tuple[int, int], width: int) -> None:
    mask = blocks(seed, size)
    assert (boundary_band(mask, width) == reference.boundary_band(mask, width)).all()


def test_the_band_of_one_edge() -> None:
    mask = np.zeros((5, 10), np.uint8)
    mask[:, 5:] = 200
    for width in range(5):
        assert np.flatnonzero(boundary_band(mask, width)[0]).tolist() == list(range(5 - width, 5 + width))


@given(st.integers(0, 10**6), st.tuples(SIDE, SIDE), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_agreement_counts(seed: int, size: tuple[int, int], width: int) -> None:
    first = blocks(seed, size)
    second = np.where(np.random.default_rng(seed).random(size) < 0.3, 7, first).astype(np.uint8)
    band = reference.boundary_band(first, width)
    found = agreement(first, second, width)
    same = first == second
    assert found == Agreement(first.size, int(same.sum()), int(band.sum()), int(same[band].sum()))


def test_sums_and_shares() -> None:
    total = Agreement(100, 99, 20, 10) + Agreement(300, 300, 0, 0)
    assert total == Agreement(400, 399, 20, 10)
    assert (total.overall, total.boundary) == (399 / 400, 0.5)
    assert (Agreement().overall, Agreement().boundary) == (1.0, 1.0)


def test_one_wrong_pixel_at_a_boundary_weighs_more_there() -> None:
    mask = np.zeros((50, 50), np.uint8)
    mask[:, 25:] = 1
    other = mask.copy()
    other[10, 25] = 0
    found = agreement(mask, other)
    assert found.overall == 1 - 1 / 2500
    assert found.boundary == 1 - 1 / 200


def test_refusals() -> None:
    mask = np.zeros((4, 4), np.uint8)
    with pytest.raises(BadInput, match=r"\(4, 4\) and \(2, 4\)"):
        agreement(mask, mask[:2])
    with pytest.raises(ValueError, match="got -1"):
        boundary_band(mask, -1)
