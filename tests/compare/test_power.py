"""False alarms and what is found, over many simulated comparisons; `tools/bench compare` is the large version."""

import numpy as np
import pytest

from edgeseg.compare import latency
from edgeseg.compare.accuracy import accuracy
from edgeseg.compare.budget import default_budget
from edgeseg.compare.chance import Estimate, holm
from edgeseg.compare.verdict import Judged, judge
from edgeseg.compare.vocabulary import metric
from tests.compare.making import made

TRIALS = 20


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "RESAMPLES", 200)


def verdicts(found: dict[str, Estimate]) -> dict[str, str]:
    rows = judge([Judged(metric(name), 1.0, 1.0, change) for name, change in found.items()], default_budget())
    return {row.metric.name: row.verdict for row in rows}


@pytest.mark.parametrize(("slower", "least", "most"), [(1.0, 0, 0), (1.05, TRIALS - 1, TRIALS)])
def test_paired_latency(slower: float, least: int, most: int) -> None:
    pairs = [made.paired_latency(seed, slower) for seed in range(1000, 1000 + TRIALS)]
    worse = [verdicts(latency.of_pairs([pair], "here"))["latency.p50"] == "worse" for pair in pairs]
    assert least <= sum(worse) <= most


@pytest.mark.parametrize(("loss", "least", "most"), [(0.0, 0, 0), (0.5, TRIALS - 1, TRIALS)])
def test_accuracy(loss: float, least: int, most: int) -> None:
    pairs = [made.video(seed, loss, frames=240) for seed in range(1000, 1000 + TRIALS)]
    worse = [verdicts(accuracy(a, b, "here"))["miou"] == "worse" for a, b in pairs]
    assert least <= sum(worse) <= most


def test_separate_runs_that_differ_by_luck_do_not_alarm() -> None:
    chance = np.random.default_rng(1)
    alarms = 0
    for _ in range(400):
        before, after = chance.normal(0, 0.05, 3).tolist(), chance.normal(0, 0.05, 3).tolist()
        alarms += holm([latency.of_runs("latency.p50", before, after).chance_equal()])[0]
    assert alarms <= 12  # 4 are expected

    def told(change: float) -> bool:
        return holm([latency.of_runs("latency.p50", [0.0], [change]).chance_equal()])[0]

    assert not told(np.log(1.3))
    assert told(np.log(1.6))
    assert told(-np.log(1.6))
