"""Whether more frames would change the scales: told from one pass, and right about tensors that go on growing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import METHODS, Method, Recipe, Scheme, calibrate, load_recipe
from edgeseg.measure.convergence import MOVING, Convergence, Snapshots, convergence

SCHEMES = [Scheme(signed=False, symmetric=False), Scheme(signed=True, symmetric=True)]


def frames(count: int, growing: int = 0) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Two tensors that stay as they are, and some that grow by a tenth with every frame."""
    rng = np.random.default_rng(0)
    still = rng.uniform(-1, 1, 500)
    for k in range(count):
        grown = {f"grows{i}": still * 1.1**k for i in range(growing)}
        found = {"still": still * rng.uniform(0.999, 1), "zero": np.zeros(4), **grown}
        yield {name: value.astype(np.float32) for name, value in found.items()}


def judged(count: int, growing: int = 0, method: Method = "minmax", total: int | None = None) -> Convergence:
    snapshots = Snapshots(total or count)
    table = calibrate(frames(count, growing), Recipe("r", method), model="m", data="d", watch=snapshots)
    return convergence(snapshots, table, SCHEMES)


@pytest.mark.parametrize("method", METHODS)
def test_settled_scales_are_told(method: Method) -> None:
    found = judged(16, method=method)
    assert found.settled
    assert found.moving == ()
    assert [mark for mark, _ in found.worst] == [4, 8, 12]
    assert all(change < 0.01 for _, change in found.worst)
    assert found.sentence == "the scales moved by less than 1 % over the last 4 frames"


def test_growing_tensors_are_named_with_what_they_moved() -> None:
    found = judged(16, growing=7)
    assert not found.settled
    assert [name for name, _ in found.moving] == [f"grows{i}" for i in range(7)]
    for (mark, change), last in zip(found.worst, (4, 8, 12), strict=True):
        assert mark == last
        assert change == pytest.approx(1 - 1.1 ** (last - 16), rel=1e-5)
    assert found.sentence.startswith("7 of 9 scales still moved by more than 5 % over the last 4 frames: grows0 (32 %)")
    assert found.sentence.endswith("and 2 more. Give more frames")
    json.dumps(found.to_json(), allow_nan=False)
    assert found.to_json()["settled"] is False


def test_it_equals_calibrating_on_a_part() -> None:
    """The same scales as two calibrations give, of which the second runs all frames again."""
    snapshots = Snapshots(12)
    recipe = load_recipe("mse")
    whole = calibrate(frames(12, 1), recipe, model="m", data="d", watch=snapshots)
    part = calibrate(list(frames(12, 1))[:9], recipe, model="m", data="d")
    expected = max(
        abs(part.quantizer(name, scheme).scale / whole.quantizer(name, scheme).scale - 1)
        for name in whole.tensors
        for scheme in SCHEMES
    )
    assert convergence(snapshots, whole, SCHEMES).worst[-1] == (9, expected)
    assert expected > MOVING


def test_a_change_between_the_bounds_is_a_number() -> None:
    found = Convergence(64, ((16, 0.2), (32, 0.1), (48, 0.031)), (), 12)
    assert found.settled
    assert found.sentence == "the scales moved by at most 3.1 % over the last 16 frames"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_frames_cannot_tell(count: int) -> None:
    found = judged(count, growing=1)
    assert not found.settled
    assert "too few" in found.sentence


def test_marks_that_skipped_frames_leave_out_are_left_out() -> None:
    found = judged(12, growing=1, total=16)  # a quarter could not be read
    assert [mark for mark, _ in found.worst] == [4, 8]


def test_memory_is_of_three_snapshots() -> None:
    snapshots = Snapshots(200)
    calibrate(frames(200), load_recipe("minmax"), model="m", data="d", watch=snapshots)
    assert sorted(snapshots.kept) == [50, 100, 150]


def test_without_a_scheme_there_are_no_scales() -> None:
    table = calibrate(frames(4), load_recipe("minmax"), model="m", data="d")
    with pytest.raises(ValueError, match="at least one scheme"):
        convergence(Snapshots(4), table, [])
