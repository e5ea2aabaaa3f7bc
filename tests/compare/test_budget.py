"""Budgets are read as written; what does not fit is refused with what would."""

from pathlib import Path

import pytest

from edgeseg.compare.budget import Rule, read_budget
from edgeseg.compare.vocabulary import metric
from edgeseg.errors import BadInput

CLASSES = ("road", "pedestrian")


def budget(tmp_path: Path, text: str) -> dict[str, Rule]:
    path = tmp_path / "budget.toml"
    path.write_text(text, encoding="utf-8")
    return read_budget(path, classes=CLASSES)


def test_all_words(tmp_path: Path) -> None:
    found = budget(
        tmp_path,
        '[miou]\nmax_drop = 0.5\n[iou.pedestrian]\nmax_drop = "1 points"\nmin = 60\n'
        '[latency.p50]\nmax_rise = "5 %"\nmax = "30 ms"\n[latency.p90]\nmax_rise = "2ms"\n[fps]\nmax_drop = "10%"\n',
    )
    assert found == {
        "miou": Rule(metric("miou"), 0.5),
        "iou.pedestrian": Rule(metric("iou.pedestrian"), 1.0, limit=60.0),
        "latency.p50": Rule(metric("latency.p50"), 5.0, limit=30.0),
        "latency.p90": Rule(metric("latency.p90"), 2.0, absolute=True),
        "fps": Rule(metric("fps"), 10.0),
    }
    assert found["iou.pedestrian"].text == "-1 points, at least 60 points"
    assert found["latency.p90"].allowed_from(20.0) == 10.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[miuo]\nmax_drop = 1", r"\[miuo\].*nearest is 'miou'"),
        ("[iou.pedestrain]\nmax_drop = 1", "nearest is 'iou.pedestrian'"),
        ("[miou]\nmax_dorp = 1", "nearest is 'max_drop'"),
        ("[miou]\nmax_rise = 1", "more is better here; write max_drop or min"),
        ('[latency.p50]\nmax_drop = "5 %"', "less is better here; write max_rise or max"),
        ("[latency.p50]\nmax_rise = 5", 'wanted "5 %" or "2 ms"'),
        ('[miou]\nmax_drop = "5 %"', "wanted points of 100"),
        ("[iou.road]\nmin = 0.6", "60, not 0.6"),
        ("[iou.road]\nmin = 160", "100 points at most"),
        ('[latency.p50]\nmax = "30 s"', 'wanted "30 ms"'),
        ("[miou]\nmax_drop = -1", "at least 0"),
        ("[miou]\nmax_drop = true", "wanted a number"),
        ("[miou]\nmax_drop = nan", "wanted a number"),
        ('[fps]\nmax_drop = "100 %"', "less than 100"),
        ("[miou]", "is empty"),
        ("max_drop = 1", "outside of any metric"),
        ("", "names no metric"),
        ("[miou", "is not TOML"),
    ],
)
def test_refusals(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadInput, match=told) as raised:
        budget(tmp_path, text)
    assert "budget.toml" in str(raised.value)
