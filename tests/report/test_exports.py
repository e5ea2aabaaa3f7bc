"""Exports: every number arrives under its name, at its time, once; read back with the tools people use."""

from __future__ import annotations

import csv
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeseg.cli import main
from edgeseg.errors import BadInput
from edgeseg.report.exports import log_mlflow, write_csv, write_tensorboard
from edgeseg.report.metrics import less_is_better, measured
from edgeseg.report.sources import Source, sources
from tests.report.documents import bench, build, evaluation, put

DAYS = [f"2026-03-{day:02d}T12:00:00Z" for day in (1, 2, 3)]


@pytest.fixture
def found(tmp_path: Path) -> list[Source]:
    """Three bench documents, the last first, an eval and a build."""
    some: list[Any] = [bench(DAYS[at], 10.0 + at) for at in (2, 0, 1)]
    some += [evaluation(DAYS[0]), build()]
    return sources([put(tmp_path / "in", f"{at}.json", one) for at, one in enumerate(some)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_have_plain_names(found: list[Source]) -> None:
    (bench_,) = measured(found[0])
    assert bench_.values["latency.p50"] == found[0].document["latency_ms"]["p50"]
    assert "latency.p99" not in bench_.values  # too few samples for one
    assert bench_.machine == "a processor, 2 cores"
    assert all(math.isfinite(value) for value in bench_.values.values())
    (eval_,) = measured(found[3])
    assert {"miou", "iou.road", "iou.pole", "pixel_accuracy"} <= set(eval_.values)
    assert [(m.variant, m.values["bytes"]) for m in measured(found[4])] == [
        ("openvino-fp32", 8e6),
        ("openvino-int8", 2e6),
    ]
    assert measured(Source(Path("x.json"), {"schema": "edgeseg.rewrite/1"})) == []


def test_nested_numbers_and_absent_ones() -> None:
    camera = {"fps": 30.0, "engine": {"missed_share": 0.25, "mask_age_ms": None, "late": True}}
    document = bench(camera=camera, scenario="camera", fps=float("nan"))
    (m,) = measured(Source(Path("x.json"), document))
    assert m.scenario == "camera"
    assert m.values["camera.engine.missed_share"] == 0.25
    assert not {"fps", "camera.engine.mask_age_ms", "camera.engine.late"} & set(m.values)


@pytest.mark.parametrize(
    ("metric", "less"),
    [
        ("latency.p50", True),
        ("end_to_end.p99", True),
        ("bytes", True),
        ("camera.engine.missed_share", True),
        ("frames.dropped", True),
        ("miou", False),
        ("fps", False),
        ("frames.processed", False),
    ],
)
def test_what_is_better(metric: str, less: bool) -> None:
    assert less_is_better(metric) is less


def test_one_table_of_all(found: list[Source], tmp_path: Path) -> None:
    (path,) = write_csv(found, tmp_path / "all.csv")
    rows = rows_of(path)
    assert list(rows[0])[-2:] == ["metric", "value"]
    speeds = [(row["time"], float(row["value"])) for row in rows if row["metric"] == "fps"]
    assert [time for time, _ in speeds] == DAYS  # in order of time
    wanted = {f"{one.document['fps']}" for one in found if one.kind == "bench"}
    assert {str(value) for _, value in speeds} == wanted
    assert {row["precision"] for row in rows if row["variant"] == "openvino-fp32"} == {"fp32"}


def test_a_table_for_each_kind_and_the_samples(found: list[Source], tmp_path: Path) -> None:
    written = write_csv(found, tmp_path / "tables")
    assert {path.name for path in written} == {"bench.csv", "eval.csv", "build.csv", "samples.csv"}
    assert len(rows_of(tmp_path / "tables/build.csv")) == 2
    (row,) = rows_of(tmp_path / "tables/eval.csv")
    assert float(row["iou.pole"]) == 0.5
    samples = [r for r in rows_of(tmp_path / "tables/samples.csv") if r["file"] == "0.json" and r["what"] == "engine"]
    assert [float(r["ms"]) for r in samples] == found[0].document["samples_ms"]["engine"]
    assert [int(r["index"]) for r in samples] == list(range(80))


def test_a_spreadsheet_runs_nothing(tmp_path: Path) -> None:
    nasty = '=HYPERLINK("http://example.org","x")'
    found = [Source(tmp_path / "a.json", bench(bundle=nasty, variant="-1+1"))]
    (path,) = write_csv(found, tmp_path / "x.csv")
    row = rows_of(path)[0]
    assert row["bundle"] == "'" + nasty
    assert row["variant"] == "'-1+1"
    assert all(line[:1] not in "=+-@" for line in path.read_text(encoding="utf-8").splitlines())


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no number"):
        write_csv(
            [Source(tmp_path / "x.json", {"schema": "edgeseg.rewrite/1", "machine": {"time": DAYS[0]}})], tmp_path
        )
    damaged = Source(tmp_path / "broken.json", {"schema": "edgeseg.bench/1", "machine": {"time": DAYS[0]}})
    with pytest.raises(BadInput, match=r"broken\.json is damaged"):
        write_csv([damaged], tmp_path / "x.csv")


def events_of(folder: Path) -> list[Any]:
    """The events in a run's files: records of a length, its checksum, a protobuf, its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_tensorboard_events(found: list[Source], tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="writes TensorBoard events")
    runs = write_tensorboard(found, tmp_path / "runs")
    assert {run.relative_to(tmp_path / "runs").as_posix() for run in runs} == {
        "net/openvino-int8/single-stream",
        "net/openvino-int8/val",
        "net/openvino-int8/build",
        "net/openvino-fp32/build",
    }
    for _ in range(2):  # the second time replaces the first
        folder = tmp_path / "runs/net/openvino-int8/single-stream"
        points, histograms = {}, 0
        for event in events_of(folder):
            for value in event.summary.value:
                if value.tag == "latency/p50":
                    points[event.step] = (event.wall_time, value.simple_value)
                histograms += value.tag == "samples_ms/engine" and value.histo.num == 80
        ordered = sorted((one for one in found if one.kind == "bench"), key=lambda one: str(one.time))
        for step, one in enumerate(ordered):
            assert one.time is not None
            assert points[step][0] == pytest.approx(one.time.timestamp())
            assert points[step][1] == pytest.approx(one.document["latency_ms"]["p50"])
        assert len(points) == histograms == 3
        assert len(list(folder.iterdir())) == 1
        write_tensorboard(found, tmp_path / "runs")


def test_a_run_stays_in_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="writes TensorBoard events")
    (run,) = write_tensorboard([Source(tmp_path / "a.json", bench(bundle="../..", variant="/x y"))], tmp_path / "runs")
    assert run.resolve().is_relative_to((tmp_path / "runs").resolve())
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) in (["runs"], ["cache", "runs"])


def test_mlflow_runs(found: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="logs to MLflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = str(tmp_path / "runs")
    made = log_mlflow(found, uri)
    assert len(made) == 6
    assert log_mlflow(found, uri) == []  # once is enough
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("net")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in runs} == set(made)
    assert {run.info.status for run in runs} == {"FINISHED"}
    (last,) = [run for run in runs if run.data.tags["edgeseg.file"] == "0.json"]
    assert last.data.metrics["latency.p50"] == pytest.approx(found[0].document["latency_ms"]["p50"])
    assert last.data.params["setting.arithmetic"] == "bf16"
    assert last.data.params["version.numpy"] == "2.4.0"
    (point,) = client.get_metric_history(last.info.run_id, "latency.p50")
    assert found[0].time is not None
    assert point.timestamp == int(found[0].time.timestamp() * 1000)
    assert point.step == 2  # the third of its series


def test_mlflow_that_refuses(found: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="logs to MLflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with pytest.raises(BadInput, match="MLflow at nonsense://"):
        log_mlflow(found, "nonsense://somewhere")


def test_the_command(found: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [str(one.path) for one in found]
    done = CliRunner().invoke(main, ["report", *files, "--csv", "x.csv"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "x.csv").is_file()
    assert not (tmp_path / "report.html").exists()  # only what was asked for
    done = CliRunner().invoke(main, ["report", *files, "--csv", "x.csv", "-o", "page.html"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.html").is_file()
    refused = CliRunner().invoke(main, ["report", *files, "--data", str(tmp_path), "-o", "page.html"])
    assert refused.exit_code == 2
    assert "give the bundle too" in refused.output
