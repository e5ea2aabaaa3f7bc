"""`edgeseg rewrite` from a file to files and a document, on a tiny network."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from edgeseg import intake
from edgeseg.cli import main
from edgeseg.data import load_dataset
from edgeseg.data.street import CLASSES
from edgeseg.errors import BadInput
from edgeseg.pipeline import engines
from edgeseg.pipeline.frames import QUICK
from edgeseg.pipeline.rewriting import run as module
from edgeseg.pipeline.rewriting import students
from edgeseg.pipeline.rewriting.run import Rewritten, rewrite, shrunk
from edgeseg.pipeline.rewriting.wish import Budget, Wish
from edgeseg.report.html import write_report
from edgeseg.report.rewriting import rewrite_table
from edgeseg.rewrite.network import macs_of, parameters_of
from edgeseg.rewrite.save import MARK
from edgeseg.spec import spec_for
from edgeseg.types import Torch
from tests import rewriting
from tests.quantize import making

KEYS = {
    *("schema", "name", "size", "rules", "budget", "macs", "parameters", "layers", "exact", "fit", "latency"),
    *("accuracy", "recovery", "curve", "notes", "seconds", "peak_rss_mb", "machine", "versions"),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(module, "Effort", lambda: QUICK)


@dataclass(frozen=True)
class Run:
    folder: Path
    done: Rewritten

    @property
    def report(self) -> dict[str, Any]:
        return dict(self.done.report)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewriting")
    rewriting.network(folder)
    rewriting.street(folder)
    rewriting.pictures(folder / "pictures", 14)
    return folder


def started(place: Path, **options: Any) -> Rewritten:
    given: dict[str, Any] = {"data": place / "dataset.toml", "wish": rewriting.UNTIMED, "backend": "onnxruntime"}
    return rewrite(place / "net.pt2", console=rewriting.QUIET, **given | options)


@pytest.fixture(scope="module")
def labelled(place: Path) -> Run:
    """With labels, a row of budgets and a little recovery."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Effort", lambda: QUICK)
        patch.setattr(module, "CURVE", (0.6, 0.01, 0.005))  # the second cannot be reached: the row ends there
        patch.setenv("EDGESEG_CACHE", str(place / "cache"))
        wish = replace(rewriting.UNTIMED, minutes=0.02)
        return Run(place / "out", started(place, wish=wish, curve=True, out=place / "out" / "small.pt2"))


def test_what_was_asked_is_kept(labelled: Run) -> None:
    report = labelled.report
    assert report["macs"]["after"] <= 0.5 * report["macs"]["before"]
    assert report["macs"]["after"] == macs_of(labelled.done.network, rewriting.SIZE)
    assert report["parameters"]["after"] == parameters_of(labelled.done.network) < report["parameters"]["before"]


def test_the_document(labelled: Run) -> None:
    report = labelled.report
    assert set(report) == KEYS
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["schema"] == "edgeseg.rewrite/1"
    assert (report["name"], report["size"], report["budget"]) == ("tiny", [48, 64], {"kind": "macs", "value": 0.5})
    assert [row["name"] for row in report["layers"]] == ["first.0", "deep.0", "wide.0", "head"]
    changed = [row for row in report["layers"] if row["rule"]]
    assert changed
    for row in changed:
        assert row["reason"] is None
        assert row["ms"] is None  # untimed
        assert row["macs"][1] < row["macs"][0]
        assert row["damage"] > 0
        assert 0 < row["unexplained"] < 1
    assert all(row["reason"] for row in report["layers"] if not row["rule"])
    saved = sum(row["macs"][0] - row["macs"][1] for row in changed)
    assert report["macs"]["before"] - saved == pytest.approx(report["macs"]["after"], rel=0.02)
    assert report["fit"] == {"frames": 12, "held_out": 2, "variant": report["fit"]["variant"]}
    assert report["fit"]["variant"] in ("fitted", "rescaled")
    accuracy = report["accuracy"]
    assert (accuracy["metric"], accuracy["split"], accuracy["frames"]) == ("mIoU", "val", 3)
    for name in ("before", "after", "unrecovered", "agreement"):
        assert 0 <= accuracy[name] <= 1
    assert accuracy["agreement"] > 0.5
    for when in ("before", "after"):
        assert report["latency"][when]["p50"] > 0
    assert (report["latency"]["backend"], report["latency"]["precision"]) == ("onnxruntime", "fp32")
    assert report["recovery"]["frames"] == 12
    assert {"capture", "exact", "options", "choose", "fit", "recover", "race"} <= set(report["seconds"])


def test_the_row_of_budgets_ends_where_nothing_is_cheaper(labelled: Run) -> None:
    rows = {row["label"]: row for row in labelled.report["curve"]}
    assert set(rows) == {"original", "rewritten", "0.6"}
    assert rows["original"]["budget"] == 1
    assert rows["0.6"]["budget"] <= 0.6
    assert all(row["ms"] > 0 and 0 <= row["miou"] <= 1 for row in rows.values())


def test_the_files_are_read_again_and_give_the_same(labelled: Run) -> None:
    files = labelled.done.files
    assert [path.name for path in files] == ["small.pt2", "small.pt", "small.py", "small.toml"]
    assert all(path.parent == labelled.folder for path in files)
    image = torch.randn(1, 3, *rewriting.SIZE, generator=torch.Generator().manual_seed(0))
    for path in files[:2]:
        spec = spec_for(path)
        source = intake.load(path, spec)
        assert isinstance(source, Torch)
        with torch.no_grad():
            assert torch.equal(source.module(image), labelled.done.network(image))
        assert spec.output.classes == CLASSES
        assert spec.input == rewriting.SPEC.input


def test_it_can_be_rewritten_again(labelled: Run, tmp_path: Path) -> None:
    """What was written is a network like any other; a chain's layers are known by their paths."""
    wish = replace(rewriting.UNTIMED, budget=Budget("macs", 1.0))
    data = labelled.folder.parent / "dataset.toml"
    again = rewrite(labelled.done.files[0], data=data, wish=wish, backend="onnxruntime", console=rewriting.QUIET)
    assert again.report["macs"]["before"] == labelled.report["macs"]["after"]
    assert again.report["accuracy"]["before"] == pytest.approx(labelled.report["accuracy"]["after"])
    assert again.files == ()


def test_the_report_page_and_the_table(labelled: Run, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(labelled.report, allow_nan=False), encoding="utf-8")
    page = write_report([path], tmp_path / "report.html").read_text(encoding="utf-8")
    text = rewrite_table(labelled.report)
    for word in ("deep.0", "wide.0", "mIoU"):
        assert word in page
        assert word in text


def test_frames_without_labels(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One split: some frames to fit to, others to decide by, others for the verdict, and none in two of them."""
    seen: dict[str, list[bytes]] = {}
    original = students.prepare, engines.measured_accuracy

    def prepare(*args: Any, **kwargs: Any) -> Any:
        work = original[0](*args, **kwargs)
        seen["fit"], seen["held"] = ([frame.tobytes() for frame in part.frames] for part in (work.fit, work.held))
        return work

    def accuracy(made: Any, spec: Any, dataset: Any, reading: Any, *rest: Any) -> Any:
        seen["verdict"] = [sample.pixels.tobytes() for sample in reading]
        return original[1](made, spec, dataset, reading, *rest)

    monkeypatch.setattr(module, "prepare", prepare)
    monkeypatch.setattr(module, "measured_accuracy", accuracy)
    report = started(place, data=place / "pictures").report
    assert {name: len(frames) for name, frames in seen.items()} == {"fit": 8, "held": 2, "verdict": 4}
    assert len({frame for frames in seen.values() for frame in frames}) == 14
    json.dumps(report, allow_nan=False)
    accuracy_row = report["accuracy"]
    assert (accuracy_row["metric"], accuracy_row["split"], accuracy_row["before"]) == ("agreement", "all", 1.0)
    assert accuracy_row["after"] == accuracy_row["agreement"] < 1
    assert accuracy_row["unrecovered"] is None
    assert report["recovery"] is None
    assert report["curve"] == []


def test_a_budget_in_time(place: Path) -> None:
    """For real. Whatever is faster here and whatever not, it is said of every layer."""
    report = started(place, wish=replace(rewriting.UNTIMED, budget=Budget("speedup", 1.05), timed=True)).report
    json.dumps(report, allow_nan=False)
    for row in report["layers"]:
        if row["rule"] is not None:
            assert row["ms"][1] < row["ms"][0]
    assert report["budget"] == {"kind": "speedup", "value": 1.05}


def test_int8(place: Path) -> None:
    report = started(place, precision="int8").report
    assert report["latency"]["precision"] == "int8"
    assert report["accuracy"]["agreement"] > 0.5
    json.dumps(report, allow_nan=False)


def test_a_network_made_smaller_without_a_target(place: Path) -> None:
    work, found = shrunk(
        place / "net.pt2",
        rewriting.named(),
        load_dataset(place / "dataset.toml"),
        "train",
        rewriting.UNTIMED,
        None,
        False,
        rewriting.QUIET,
    )
    assert macs_of(found.network, rewriting.SIZE) <= 0.5 * work.whole.macs
    assert {change.rule for change in found.exact} <= {change.rule for change in work.exact}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wish": Wish(Budget("macs", 0.001), timed=False)}, "wanted at most .* the smallest that can be reached"),
        ({"wish": replace(rewriting.UNTIMED, rules=("magic",))}, "no rule 'magic'"),
        ({"out": "small.onnx"}, "NAME.pt2"),
        ({"data": "one"}, "too few frames"),
    ],
)
def test_refusals(place: Path, options: dict[str, Any], message: str) -> None:
    if options.get("data") == "one":
        options = {"data": rewriting.pictures(place / "one", 1)}
    with pytest.raises(BadInput, match=message):
        started(place, **options)


@pytest.mark.parametrize("name", ["net.pt2", "net.pt", "dataset.pt2", "other.pt2", "made.pt2"])
def test_what_is_read_is_not_overwritten(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network, its spec, another spec, the data set and the factory, also by what stands beside the result."""
    monkeypatch.setattr(module, "ingest", lambda *_, **__: pytest.fail("it was exported first"))
    rewriting.street(tmp_path)
    spec = tmp_path / "other.toml"
    rewriting.network(tmp_path, toml=making.PLAIN_SPEC)
    spec.write_text(f'factory = "made:network"\n{making.PLAIN_SPEC}', encoding="utf-8")
    (tmp_path / "made.py").write_text(f'"""{MARK}."""\n', encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(BadInput, match="is read by this run, and it is not overwritten"):
        rewrite(tmp_path / "net.pt2", data=tmp_path / "dataset.toml", spec=spec, out=tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_graph_is_refused_before_anything_is_computed(street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ingest", lambda *_, **__: pytest.fail("it was exported first"))
    with pytest.raises(BadInput, match="is an ONNX graph, and rewriting needs the network"):
        rewrite(street / "net.onnx", data=street / "dataset.toml")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_line(place: Path, tmp_path: Path) -> None:
    out, document, page = tmp_path / "deep" / "small.pt2", tmp_path / "r.json", tmp_path / "page.html"
    arguments = ["--data", place / "dataset.toml", "--backend", "onnxruntime", "--macs", "0.6", "--untimed"]
    more = ["--rules", "separable,bottleneck", "--align", "4", "--samples", "8", "--seed", "2"]
    result = invoke("rewrite", place / "net.pt2", *arguments, *more, "-o", out, "--json", document)
    assert result.exit_code == 0, result.output
    assert "rules: separable, bottleneck" in result.stdout
    assert f"wrote {out}" in result.stdout
    assert "options" in result.stderr
    report = json.loads(document.read_text(encoding="utf-8"))
    assert set(report) == KEYS | {"command"}
    assert {row["rule"].split()[0] for row in report["layers"] if row["rule"]} <= {"separable", "bottleneck"}
    assert report["rules"] == ["separable", "bottleneck"]
    assert all(
        path.is_file() for path in (out, out.with_suffix(".pt"), out.with_suffix(".py"), out.with_suffix(".toml"))
    )
    result = invoke("report", document, "-o", page)
    assert result.exit_code == 0, result.output
    assert "Rewrite of tiny" in page.read_text(encoding="utf-8")
    assert np.isfinite(report["accuracy"]["after"])
