"""Histories: series of what compares, in order of time, with changes and with everything that was passed over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeseg.cli import main
from edgeseg.errors import BadInput
from edgeseg.report import svg
from edgeseg.report.history import history, history_table, write_history
from tests.report.documents import MACHINE, bench, build, evaluation, put
from tests.report.figures import pictures, said
from tests.test_report import Page, stands_alone


def day(at: int) -> str:
    return f"2026-03-{at + 1:02d}T12:00:00Z"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """24 days of bench and eval; 8 % slower from the 16th day on, less accurate from the 11th."""
    folder = tmp_path / "results"
    for at in range(24):
        level = (10.8 if at >= 15 else 10.0) + 0.01 * (at * 7 % 5)
        put(folder, f"deep/er/b{at * 37 % 24}.json", bench(day(at), level))  # names tell nothing about the order
        put(folder, f"e{at}.json", evaluation(day(at), 0.6 if at < 10 else 0.58))
    put(folder, "other.json", {"name": "not ours"})
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    return folder


def test_changes_are_found_at_their_time(results: Path) -> None:
    found = history([results])
    latency, miou = found.series
    assert (latency.metric, miou.metric) == ("latency.p50", "miou")
    assert found.documents == 48
    assert found.passed == {}
    for one, place, word in ((latency, 15, "worse"), (miou, 10, "worse")):
        assert [run.time for run in one.runs] == sorted(run.time for run in one.runs)
        assert [cut.index for cut in one.changes] == [place]
        assert one.runs[place].time.day == place + 1
        assert f"{one.metric} {word} from 2026-03-{place + 1:02d}" in history_table(found)
    assert "60 to 58 %, -2.00 points" in history_table(found)
    assert "ms, +8." in history_table(found)


def test_what_does_not_compare_is_a_series_of_its_own(results: Path) -> None:
    put(results, "x1.json", bench(day(3), 5.0, machine=MACHINE | {"cpu": "another", "time": day(3)}))
    put(results, "x2.json", bench(day(3), 5.0, variant="openvino-fp32"))
    put(results, "x3.json", bench(day(3), 5.0, bundle="other"))
    put(results, "x4.json", bench(day(3), 5.0, scenario="camera"))
    found = history([results], ["latency.p50"])
    assert sorted(len(one.runs) for one in found.series) == [1, 1, 1, 1, 24]
    assert len({one.title for one in found.series}) == 5
    assert "too short" in history_table(found)


def test_another_gpu_is_another_machine(tmp_path: Path) -> None:
    for at, gpu in enumerate((None, "GPU A", "GPU B", "GPU A")):
        here = MACHINE | {"time": day(at)} | ({"gpu": gpu} if gpu else {})
        put(tmp_path, f"{at}.json", bench(day(at), 5.0, machine=here))
    series = history([tmp_path], ["latency.p50"]).series
    assert {one.machine: len(one.runs) for one in series} == {
        "a processor, 2 cores": 1,
        "a processor, 2 cores, GPU A": 2,
        "a processor, 2 cores, GPU B": 1,
    }
    assert "GPU A" in history_table(history([tmp_path]))


def test_size_and_memory_less_is_better(tmp_path: Path) -> None:
    for at in range(16):
        grown = {"size_mb": 2.0, "memory_mb": (80.0 if at >= 8 else 60.0) + 0.01 * (at * 7 % 5)}
        put(tmp_path, f"{at}.json", bench(day(at), 5.0, **grown))
    found = history([tmp_path], ["memory_mb", "size_mb"])
    memory, size = found.series
    assert [cut.index for cut in memory.changes] == [8]
    assert size.changes == ()
    assert "memory_mb worse from 2026-03-09" in history_table(found)
    assert "to 80.015 MB, +33.3 %" in history_table(found)


def test_one_metric_of_many(results: Path) -> None:
    (series,) = history([results], ["iou.pole"]).series
    assert series.runs[0].value == pytest.approx(0.5)
    with pytest.raises(BadInput, match=r"'iou\.sky'.*there are: .*iou\.pole"):
        history([results], ["iou.sky"])


def test_faster_is_better_and_more_frames_too(tmp_path: Path) -> None:
    for at in range(20):
        put(tmp_path, f"{at}.json", bench(day(at), (10.0 if at < 10 else 8.0) + 0.01 * (at * 7 % 5)))
    text = history_table(history([tmp_path], ["latency.p50", "fps"]))
    assert "latency.p50 better from 2026-03-11" in text
    assert "fps better from 2026-03-11" in text


def test_damaged_files_are_named_and_strange_ones_passed_over(results: Path) -> None:
    (results / "torn.json").write_text('{"schema": "edgeseg.bench/2", "bun', encoding="utf-8")
    put(results, "lacking.json", {"schema": "edgeseg.bench/2", "bundle": "net"})
    found = history([results])
    assert {path.name for path in found.passed} == {"torn.json", "lacking.json"}
    assert found.documents == 48
    text = history_table(found)
    assert "passed over" in text
    assert "torn.json" in text
    assert "other.json" not in text
    with pytest.raises(BadInput, match=r"torn\.json"):
        history([results / "torn.json"])
    with pytest.raises(BadInput, match=r"other\.json"):
        history([results / "other.json"])


def test_without_a_time_the_file_s_counts(tmp_path: Path) -> None:
    for at, level in ((0, 30.0), (1, 10.0), (2, 20.0)):
        os.utime(put(tmp_path, f"{at}.json", bench(None, level)), (1e9 + level * 1e6, 1e9 + level * 1e6))
    found = history([tmp_path], ["latency.p50"])
    values = [run.value for run in found.series[0].runs]
    assert values == sorted(values)
    assert "3 values are placed by the time of their file" in history_table(found)


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no document with a metric"):
        history([tmp_path])
    path = put(tmp_path, "x.json", bench() | {"machine": MACHINE | {"time": "yesterday"}})
    with pytest.raises(BadInput, match=r"x\.json.*yesterday"):
        history([path])


def test_every_engine_of_a_build(tmp_path: Path) -> None:
    found = history([put(tmp_path, "b.json", build())], ["bytes"])
    assert {one.variant: one.runs[0].value for one in found.series} == {"openvino-fp32": 8e6, "openvino-int8": 2e6}


def test_the_page(results: Path, tmp_path: Path) -> None:
    text = write_history(history([results]), tmp_path / "h.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.balanced
    assert stands_alone(text)
    words = " ".join(page.words)
    assert "latency.p50 worse from 2026-03-16" in words
    assert words.count("worse: ") == 2
    if svg.available():
        drawn = said(pictures(text)[0])
        assert sum(label.startswith("latency.p50: 2026-03-") for label in drawn) == 24
        assert any(label.startswith("+8.") for label in drawn)


def test_the_command(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "page" / "h.html"
    done = CliRunner().invoke(main, ["history", str(results), "-o", str(out), "--metric", "miou"])
    assert done.exit_code == 0, done.output
    assert "miou worse from 2026-03-11" in done.output
    assert out.is_file()
    refused = CliRunner().invoke(main, ["history", str(results), "--metric", "speed"])
    assert refused.exit_code == 2
    assert "there are:" in refused.output


def test_names_cannot_inject(tmp_path: Path) -> None:
    nasty: dict[str, Any] = {"bundle": "<script>alert(1)</script>", "variant": "<b>"}
    paths = [put(tmp_path, f"{at}.json", bench(day(at), 10.0, **nasty)) for at in range(3)]
    text = write_history(history(paths), tmp_path / "h.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert Page(text).balanced
    assert json.loads(paths[0].read_text())["bundle"] in "".join(Page(text).words)
