"""The command line: exit codes, results on stdout and progress on stderr, documents with what DESIGN promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from edgeseg import __version__
from edgeseg.bundle import read_bundle
from edgeseg.cli import main
from edgeseg.cli.words import said
from edgeseg.data.street import CLASSES
from edgeseg.errors import AccuracyFailed, BadInput, CannotTell, EdgesegError, MissingOnMachine
from tests.quantize import making

COMMANDS = (
    "build",
    "rewrite",
    "eval",
    "bench",
    "stream",
    "profile",
    "compare",
    "report",
    "history",
    "export",
    "doctor",
    "explain",
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def loaded(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.output
        assert run(command, "--help").exit_code == 0
    assert set(main.commands) == set(COMMANDS)


def test_version() -> None:
    assert run("--version").output.strip() == f"edgeseg, version {__version__}"


@pytest.mark.parametrize(
    ("error", "code"), [(BadInput, 2), (AccuracyFailed, 1), (MissingOnMachine, 3), (CannotTell, 4), (EdgesegError, 2)]
)
def test_deliberate_errors_end_with_their_code_and_no_traceback(error: type[EdgesegError], code: int) -> None:
    @click.command()
    @said
    def fails() -> None:
        raise error("what was wanted, what came, what to do")

    result = CliRunner().invoke(fails)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == "edgeseg: what was wanted, what came, what to do\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(OSError(28, "No space left on device"), 2, "No space left"), (KeyboardInterrupt(), 130, "stopped")],
)
def test_a_full_disk_and_ctrl_c_are_no_failed_gate(error: BaseException, code: int, words: str) -> None:
    @click.command()
    @said
    def fails() -> None:
        raise error

    result = CliRunner().invoke(fails)
    assert result.exit_code == code
    assert words in result.stderr


def test_other_errors_are_not_hidden() -> None:
    @click.command()
    @said
    def fails() -> None:
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(fails).exception, ZeroDivisionError)


def test_build(street: Path, tmp_path: Path) -> None:
    out, document = tmp_path / "deep" / "o.edgeseg", tmp_path / "other" / "o.json"
    arguments = ["--data", street / "dataset.toml", "--backend", "onnxruntime", "--quick"]
    result = run("build", street / "net.onnx", *arguments, "-o", out, "--json", document)
    assert result.exit_code == 0, result.output
    assert "* onnxruntime-fp32" in result.stdout
    assert f"bundle: {out}" in result.stdout
    assert "export" in result.stderr
    assert "export " not in result.stdout
    assert read_bundle(out).chosen == "onnxruntime-fp32"
    report = loaded(document)
    assert report["schema"] == "edgeseg.build/1"
    assert {"machine", "versions", "engines", "chosen", "reasons"} <= set(report)
    assert report["asked"] == "fp32"  # the default


@pytest.mark.parametrize(("flag", "asked"), [((), "fp32"), (("--fp32",), "fp32"), (("--int8",), "int8")])
def test_precision_flags(
    flag: tuple[str, ...], asked: str, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def instead(_model: Path, **options: Any) -> None:
        seen.update(options)
        raise BadInput("enough")

    monkeypatch.setattr("edgeseg.pipeline.build", instead)
    monkeypatch.chdir(tmp_path)  # of what is asked, nothing may depend on the version of click
    assert run("build", street / "net.onnx", *flag).exit_code == 2
    assert seen["precision"] == asked
    assert seen["out"] == Path("net.edgeseg")
    assert seen["use_cache"] is True


def test_int8_without_data_is_bad_input(street: Path) -> None:
    result = run("build", street / "net.onnx", "--int8", "--quick")
    assert result.exit_code == 2
    assert "--data" in result.stderr
    assert result.stdout == ""


def test_bad_usage(street: Path, tmp_path: Path, built: Path) -> None:
    for arguments in (
        ("build", tmp_path / "nothing.pt"),
        ("build", street / "net.onnx", "--samples", "0"),
        ("build", street / "net.onnx", "--backend", "abacus"),
        ("eval", built),
        ("eval", built, "--data", street / "dataset.toml", "--split", "test"),
        ("eval", built, "--data", street / "dataset.toml", "--variant", "none"),
        ("bench",),
        ("bench", built, "--seconds", "0"),
        ("report",),
        ("unknown",),
        ("eval", street / "net.toml", "--data", street / "dataset.toml"),
        ("profile", street / "dataset.toml"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert not isinstance(result.exception, EdgesegError)
        assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["build", "rewrite", "profile"])
def test_a_document_that_is_a_folder_is_refused_before_the_work(command: str, street: Path, tmp_path: Path) -> None:
    data = [] if command == "profile" else ["--data", str(street / "dataset.toml")]
    result = CliRunner().invoke(main, [command, str(street / "net.onnx"), *data, "--json", str(tmp_path)])
    assert result.exit_code == 2
    assert f"'{tmp_path}' is a directory" in " ".join(result.output.split()).replace("Path ", "")


def test_a_missing_runtime_ends_with_3(street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("edgeseg.backends.installed", lambda: ())
    result = run("build", street / "net.onnx", "--backend", "onnxruntime", "--quick")
    assert result.exit_code == 3
    assert "pip install" in result.stderr


def test_eval(built: Path, street: Path, tmp_path: Path) -> None:
    result = run("eval", built, "--data", street / "dataset.toml", "--json", tmp_path / "e.json")
    assert result.exit_code == 0, result.output
    document = loaded(tmp_path / "e.json")
    assert {"schema", "machine", "versions", "miou", "pixel_accuracy", "dice", "iou", "frames"} <= set(document)
    assert document["schema"] == "edgeseg.eval/2"
    assert list(document["iou"]) == list(CLASSES)
    assert all(value is None or 0 <= value <= 1 for value in document["iou"].values())
    assert 0 <= document["miou"] <= 1
    assert document["frames"] == 4
    for name in CLASSES:
        assert f"\n{name} " in result.stdout
    assert f"{100 * document['pixel_accuracy']:.2f} %" in result.stdout
    assert "wrote" in result.stderr


def test_eval_of_another_variant(built: Path, street: Path, tmp_path: Path) -> None:
    for variant in ("onnxruntime-fp32", "onnxruntime-int8"):
        path = tmp_path / f"{variant}.json"
        data = street / "dataset.toml"
        assert run("eval", built, "--data", data, "--variant", variant, "--json", path, "--quiet").exit_code == 0
        assert loaded(path)["variant"] == variant
        rows = {row["name"]: row for row in read_bundle(built).verdict["engines"]}
        assert loaded(path)["miou"] == pytest.approx(rows[variant]["miou"])


def test_bench(built: Path, tmp_path: Path) -> None:
    result = run("bench", built, "--seconds", "0.1", "--json", tmp_path / "b.json", "--threads", "1")
    assert result.exit_code == 0, result.output
    document = loaded(tmp_path / "b.json")
    assert {"schema", "machine", "versions", "fps", "latency_ms", "end_to_end_ms", "cold_ms"} <= set(document)
    latency = document["latency_ms"]
    assert latency["p50"] <= latency["p90"] <= latency["max"]
    assert latency["min"] <= latency["p50"]
    assert latency["count"] >= 64
    if latency["count"] < 662:
        assert latency["p99"] is None
        assert "662" in latency["reasons"]["p99"]
        assert "p99 needs 662 samples" in result.stdout
    assert document["fps"] == pytest.approx(1000 / latency["mean"])
    assert document["end_to_end_ms"]["min"] > 0
    assert "frame to mask" in result.stdout


def test_bench_of_several_bundles_with_frames(built: Path, street: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    result = run("bench", built, built, "--seconds", "0.1", "--data", street / "dataset.toml", "--json", path)
    assert result.exit_code == 0, result.output
    one, two = loaded(path)
    assert one["samples"] == two["samples"]
    assert one["frame_size"] == [60, 80]  # of the data set, not of the network


def test_bench_writes_a_file_for_each_bundle(built: Path, tmp_path: Path) -> None:
    """As `edgeseg compare` takes them: of one run, in which the bundles took turns."""
    paths = [tmp_path / "base.json", tmp_path / "new.json"]
    result = run("bench", built, built, "--seconds", "0.1", "--json", paths[0], "--json", paths[1])
    assert result.exit_code == 0, result.output
    base, new = map(loaded, paths)
    assert base["run"] == new["run"]
    assert base["samples_ms"] != new["samples_ms"]
    result = run("bench", built, "--seconds", "0.1", "--json", paths[0], "--json", paths[1])
    assert result.exit_code == 2
    assert "2 files for 1 bundles" in result.stderr
    result = run("bench", built, built, "--json", paths[0], "--json", paths[0])
    assert result.exit_code == 2


def test_profile(built: Path, street: Path, tmp_path: Path) -> None:
    model = run("profile", street / "net.onnx", "--json", tmp_path / "p.json")
    assert model.exit_code == 0, model.output
    document = loaded(tmp_path / "p.json")
    assert {"schema", "machine", "versions"} <= set(document)
    bundle = run("profile", built)
    assert bundle.exit_code == 0
    expected = 48 * 64 * (3 * 8 * 9 + 20 * 8 * 9 + 8 * 10) + 24 * 32 * 8 * 12 * 9
    assert f"{expected:,}" in model.stdout or str(expected) in model.stdout
    assert f"{expected:,}" in bundle.stdout or str(expected) in bundle.stdout


def test_report(built: Path, street: Path, tmp_path: Path) -> None:
    for command, name in (("eval", "e.json"), ("bench", "b.json")):
        more = ["--data", street / "dataset.toml"] if command == "eval" else ["--seconds", "0.1"]
        assert run(command, built, *more, "--json", tmp_path / name, "--quiet").exit_code == 0
    out = tmp_path / "page" / "report.html"
    result = run("report", built, tmp_path / "e.json", tmp_path / "b.json", "-o", out)
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout
    page = out.read_text(encoding="utf-8")
    assert all(name in page for name in CLASSES)
    (tmp_path / "other.json").write_text('{"schema": "something/1"}', encoding="utf-8")
    assert run("report", tmp_path / "other.json", "-o", out).exit_code == 2
    (tmp_path / "other.json").write_text("no json", encoding="utf-8")
    assert run("report", tmp_path / "other.json", "-o", out).exit_code == 2


def test_a_bundle_may_be_a_folder(built: Path, street: Path, tmp_path: Path) -> None:
    from edgeseg.bundle import write_bundle

    folder = write_bundle(read_bundle(built), f"{tmp_path}/folder/")
    for arguments in (
        ("profile", folder),
        ("bench", folder, "--seconds", "0.1"),
        ("report", folder, "-o", tmp_path / "r.html"),
        ("eval", folder, "--data", street / "dataset.toml"),
    ):
        result = run(*arguments)
        assert result.exit_code == 0, (arguments, result.output)


def test_doctor() -> None:
    result = run("doctor")
    assert result.exit_code == 0
    assert "onnxruntime" in result.stdout


def test_a_whole_process(tmp_path: Path) -> None:
    """As people type it, in another folder, with a network beside its spec, and no data."""
    (tmp_path / "net.onnx").write_bytes(making.plain_network())
    (tmp_path / "net.toml").write_text(making.PLAIN_SPEC, encoding="utf-8")
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}

    def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgeseg", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    done = typed("build", "net.onnx", "--quick", "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    assert "bundle: net.edgeseg" in done.stdout
    assert "candidates" in done.stderr
    assert (tmp_path / "net.edgeseg").is_file()
    refused = typed("build", "net.onnx", "--int8")
    assert refused.returncode == 2
    assert refused.stderr.startswith("edgeseg: INT8 needs real frames")
    assert refused.stdout == ""


def test_profile_of_an_onnx_file_needs_no_spec(tmp_path: Path) -> None:
    # The layer of the lecture: 28x28x192, 5x5, 32 outputs, "120 million".
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.zeros((32, 192, 5, 5), np.float32), "w")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 192, 28, 28))
    taken = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 32, 28, 28))
    node = helper.make_node("Conv", ["x", "w"], ["y"], "layer", pads=[2, 2, 2, 2])
    graph = helper.make_graph([node], "layer", [given], [taken], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (tmp_path / "layer.onnx").write_bytes(model.SerializeToString())
    result = run("profile", tmp_path / "layer.onnx")
    assert result.exit_code == 0, result.output
    assert "120,422,400" in result.output
