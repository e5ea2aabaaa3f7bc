"""The plateau against torch's scheduler, the early end against a look back at all scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.distill.patience import Patience, Watch, over, watch
from edgeseg.errors import BadInput

scores = st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=1, max_size=60)


@given(scores, st.integers(1, 6), st.sampled_from([0.0, 0.1]))
@settings(max_examples=80, deadline=None)
def test_the_rate_falls_as_torchs(values: list[float], slower: int, gain: float) -> None:
    """torch waits for one epoch more than its patience says."""
    patience = Patience(slower=slower, end=1000, factor=0.5, least=0.01, gain=gain)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", factor=0.5, patience=slower - 1, threshold=gain, threshold_mode="abs", min_lr=0.01
    )
    seen = Watch()
    for value in values:
        theirs.step(value)
        seen = watch(seen, value, patience)
        assert seen.speed == pytest.approx(optimizer.param_groups[0]["lr"])


@given(scores, st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_the_end_comes_after_so_many_epochs_without_a_better_score(values: list[float], end: int) -> None:
    patience, seen = Patience(end=end), Watch()
    for position, value in enumerate(values):
        seen = watch(seen, value, patience)
        first_best = values[: position + 1].index(max(values[: position + 1]))
        assert over(seen, patience) == (position - first_best >= end)
        assert seen.best == max(values[: position + 1])


def test_five_and_ten() -> None:
    patience, seen = Patience(), Watch()
    speeds = []
    for score in [0.5] + [0.4] * 10:
        assert not over(seen, patience)
        seen = watch(seen, score, patience)
        speeds.append(seen.speed)
    assert over(seen, patience)
    assert speeds == pytest.approx([1] * 5 + [0.1] * 5 + [0.01])


def test_no_number_is_never_better() -> None:
    seen = watch(Watch(), math.nan, Patience())
    assert (seen.best, seen.worse) == (-math.inf, 1)
    assert watch(seen, -7.0, Patience()).best == -7.0


def test_wrong_patience_is_refused() -> None:
    for wrong in ({"slower": 0}, {"end": 0}, {"factor": 1.0}, {"least": 2.0}, {"gain": -1.0}):
        with pytest.raises(BadInput, match="patience wants"):
            Patience(**wrong)
