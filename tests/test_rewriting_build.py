"""The rewritten network in a build: a second field of engines under the original's yardstick."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import edgeseg
from edgeseg.backends import Engine
from edgeseg.bundle import FP32, read_bundle
from edgeseg.cli import main
from edgeseg.errors import AccuracyFailed, BadInput
from edgeseg.measure.profile import profile
from edgeseg.pipeline import Built, build
from edgeseg.pipeline.engines import REWRITTEN, Tried, joined
from edgeseg.pipeline.rewriting.wish import Budget
from edgeseg.report.text import build_table
from edgeseg.trials.choose import Measured, choose
from edgeseg.types import Precision
from tests import rewriting

HARSH = replace(rewriting.UNTIMED, budget=Budget("macs", 0.2))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("building")
    rewriting.network(folder)
    rewriting.street(folder)
    return folder


def started(place: Path, **options: Any) -> Built:
    given: dict[str, Any] = {"data": place / "dataset.toml", "backend": "onnxruntime", "quick": True}
    return build(place / "net.pt2", console=rewriting.QUIET, **given | {"rewrite": rewriting.UNTIMED} | options)


@pytest.fixture(scope="module")
def made(place: Path) -> Built:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESEG_CACHE", str(place / "cache"))
        return started(place, out=place / "net.edgeseg", precision="int8", max_miou_drop=100.0)


def rows(made: Built) -> dict[str, Any]:
    return {row["name"]: row for row in made.report["engines"]}


def test_the_bundle_has_engines_of_both_networks(made: Built) -> None:
    assert made.path is not None
    bundle = read_bundle(made.path)
    names = [variant.name for variant in bundle.variants]
    assert names == [
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "rewritten-onnxruntime-fp32",
        "rewritten-onnxruntime-int8",
    ]
    for reference in bundle.references:  # what is expected is what the original answers, whoever won
        np.testing.assert_array_equal(reference.mask, reference.masks["onnxruntime-fp32"])
    operations = [profile(graph).macs for graph in (bundle.files[FP32], bundle.graph("rewritten-onnxruntime-fp32"))]
    assert operations[1] < 0.5 * operations[0]
    assert json.loads(json.dumps(dict(made.report), allow_nan=False)) == made.report


def test_agreement_is_with_the_original(made: Built) -> None:
    found = rows(made)
    assert found["onnxruntime-fp32"]["agreement"] == 1.0
    assert 0.5 < found["rewritten-onnxruntime-fp32"]["agreement"] < 1.0
    rewriting_ = made.report["rewriting"]
    assert rewriting_["schema"] == "edgeseg.rewrite/1"
    assert rewriting_["latency"]["precision"] in ("fp32", "int8")
    mine = f"rewritten-{rewriting_['latency']['backend']}-{rewriting_['latency']['precision']}"
    assert rewriting_["accuracy"]["after"] == found[mine]["miou"]
    assert rewriting_["accuracy"]["agreement"] == found[mine]["agreement"]
    assert rewriting_["latency"]["after"] == found[mine]["latency_ms"]
    assert rewriting_["macs"]["after"] <= 0.5 * rewriting_["macs"]["before"]
    assert any(row["rule"] for row in rewriting_["layers"])


@pytest.mark.parametrize("variant", ["rewritten-onnxruntime-fp32", "rewritten-onnxruntime-int8", "onnxruntime-int8"])
def test_its_engines_open_and_segment(made: Built, variant: str) -> None:
    assert made.path is not None
    bundle = read_bundle(made.path)
    with edgeseg.open(made.path, variant=variant) as segment:
        for reference in bundle.references:
            np.testing.assert_array_equal(segment(reference.frame), reference.masks[variant])
    assert any((r.masks[variant] != r.mask).any() for r in bundle.references)  # it is another network


def test_speed_in_the_table_is_against_the_original(made: Built) -> None:
    def slowed(row: dict[str, Any]) -> dict[str, Any]:
        fp32_of_the_original = row["precision"] == "fp32" and not row["name"].startswith("rewritten-")
        return row | {"latency_ms": row["latency_ms"] | {"p50": 8.0 if fp32_of_the_original else 2.0}}

    text = build_table({**made.report, "engines": [slowed(row) for row in made.report["engines"]]})
    rows = [line for line in text.splitlines() if line.endswith("B") and "rewritten-" in line]
    assert rows
    assert all("4.00x" in line for line in rows)


def test_one_that_loses_too_much_is_refused(place: Path) -> None:
    """The yardstick is the original: nothing may be lost, and at a fifth of the operations something is."""
    pictures = rewriting.pictures(place / "pictures", 14)  # without labels, so that all that differs is a loss
    done = started(place, data=pictures, rewrite=HARSH, max_miou_drop=0.0)
    assert done.report["chosen"] == "onnxruntime-fp32"
    reasons = " ".join(done.report["reasons"])
    assert "rewritten-onnxruntime-fp32 is out: it loses" in reasons
    assert "The rewritten network is not handed over: it loses too much accuracy" in reasons
    assert done.bundle.chosen == "onnxruntime-fp32"
    assert "rewritten-onnxruntime-fp32" in {variant.name for variant in done.bundle.variants}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic": True}, "rewritten for one size: build without --dynamic"),
        ({"data": None}, "rewriting needs real frames to fit to: say --data"),
        ({"rewrite": replace(rewriting.UNTIMED, rules=("magic",))}, "no rule 'magic'"),
    ],
)
def test_refusals_come_before_the_work(
    place: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeseg.pipeline.ingest", lambda *_, **__: pytest.fail("it was exported first"))
    with pytest.raises(BadInput, match=message):
        started(place, **options)


def test_a_graph_is_refused_before_the_work(street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeseg.pipeline.runtimes", lambda *_: pytest.fail("it was exported first"))
    with pytest.raises(BadInput, match="is an ONNX graph, and rewriting needs the network"):
        build(street / "net.onnx", data=street / "dataset.toml", rewrite=rewriting.UNTIMED)


def test_the_command_line(place: Path, tmp_path: Path) -> None:
    out, document, page = tmp_path / "o.edgeseg", tmp_path / "o.json", tmp_path / "o.html"
    arguments = ["build", place / "net.pt2", "--data", place / "dataset.toml", "--backend", "onnxruntime", "--quick"]
    more = ["--rewrite", "separable,bottleneck", "--macs", "0.6", "--untimed", "--align", "4", "-o", out]
    result = CliRunner().invoke(main, [str(word) for word in (*arguments, *more, "--json", document)])
    assert result.exit_code == 0, result.output
    assert "rewritten-onnxruntime-fp32" in result.stdout
    assert "rules: separable, bottleneck" in result.stdout
    assert f"bundle: {out}" in result.stdout
    report = json.loads(document.read_text(encoding="utf-8"))
    assert report["chosen"] == read_bundle(out).chosen
    assert report["rewriting"]["rules"] == ["separable", "bottleneck"]
    result = CliRunner().invoke(main, ["report", str(document), "-o", str(page)])
    assert result.exit_code == 0, result.output


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from edgeseg.cli import main
main({words!r})
"""


@pytest.mark.parametrize("command", ["build", "rewrite"])
def test_without_torch_it_is_said_what_is_missing(place: Path, command: str, tmp_path: Path) -> None:
    words = [command, str(place / "net.pt2"), "--data", str(place / "dataset.toml"), "-o", str(tmp_path / "o.pt2")]
    words += ["--rewrite", "all"] if command == "build" else []
    code = WITHOUT_TORCH.format(words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "Rewriting a network needs the package 'torch'" in done.stderr
    assert "Traceback" not in done.stderr


def engine(name: str, precision: Precision = "fp32") -> Engine:
    return Engine(name, "onnxruntime", precision, "model.onnx", {"model.onnx": name.encode()}, {"threads": 1})


def tried(*names: str, value: int) -> Tried:
    masks = {name: np.full((2, 3, 4), value, np.uint8) for name in names}
    expected = np.full((2, 3, 4), 10 * value, np.uint8)
    rejected = [{"name": "openvino-int8", "why": f"reason {value}"}]
    return Tried(tuple(map(engine, names)), masks, expected, rejected, [f"{name}-one" for name in names])


def test_two_fields_as_one() -> None:
    first, second = tried("a-fp32", "b-int8", value=1), tried("a-fp32", value=2)
    both = joined(first, second)
    assert [e.name for e in both.engines] == ["a-fp32", "b-int8", f"{REWRITTEN}-a-fp32"]
    assert both.engines[:2] == first.engines
    assert replace(both.engines[2], name="a-fp32") == second.engines[0]
    assert {name: int(masks.max()) for name, masks in both.masks.items()} == {
        "a-fp32": 1,
        "b-int8": 1,
        "rewritten-a-fp32": 2,
    }
    np.testing.assert_array_equal(both.expected, first.expected)
    assert both.rejected == [
        {"name": "openvino-int8", "why": "reason 1"},
        {"name": "rewritten-openvino-int8", "why": "reason 2"},
    ]
    assert both.settings == ["a-fp32-one", "b-int8-one", "rewritten-a-fp32-one"]
    assert len(first.engines) == 2  # neither of them was changed
    assert second.engines[0].name == "a-fp32"
    assert list(second.masks) == ["a-fp32"]


def measured(name: str, ms: float, accuracy: float | None) -> Measured:
    return Measured(name, "onnxruntime", "int8" if "int8" in name else "fp32", ms, accuracy, name.startswith(REWRITTEN))


ORIGINAL = measured("fp32", 10.0, 60.0)
CASES: dict[str, tuple[list[Measured], Precision, str, list[str]]] = {
    "faster and good enough": (
        [ORIGINAL, measured("rewritten-fp32", 4.0, 59.2)],
        "fp32",
        "rewritten-fp32",
        ["2.50 times as fast as the fastest FP32 engine of the original"],
    ),
    "the rewritten FP32 is no yardstick": (
        [ORIGINAL, measured("rewritten-fp32", 4.0, 50.0), measured("rewritten-int8", 3.0, 49.5)],
        "int8",
        "fp32",
        [
            "rewritten-fp32 is out: it loses 10.00 points",
            "rewritten-int8 is out",
            "The rewritten network is not handed over: it loses too much accuracy, so the choice is fp32",
            "INT8 is not handed over: it loses too much",
        ],
    ),
    "slower": (
        [ORIGINAL, measured("rewritten-fp32", 11.0, 60.0)],
        "fp32",
        "fp32",
        ["The rewritten network is not handed over: rewritten-fp32 takes 11.00 ms, fp32 takes 10.00 ms"],
    ),
    "one of two is in time": (
        [ORIGINAL, measured("rewritten-fp32", 7.0, 60.0), measured("rewritten-int8", 3.0, 20.0)],
        "int8",
        "rewritten-fp32",
        ["rewritten-int8 is out", "1.43 times as fast", "INT8 is not handed over"],
    ),
    "the original in INT8 wins": (
        [ORIGINAL, measured("int8", 3.0, 59.9), measured("rewritten-fp32", 5.0, 60.0)],
        "int8",
        "int8",
        ["The rewritten network is not handed over: rewritten-fp32 takes 5.00 ms, int8 takes 3.00 ms", "3.33 times"],
    ),
    "nothing is known of accuracy": (
        [measured("fp32", 10.0, None), measured("rewritten-fp32", 5.0, None)],
        "fp32",
        "rewritten-fp32",
        ["no frames to evaluate on", "2.00 times"],
    ),
    "not a number is a loss": (
        [ORIGINAL, measured("rewritten-fp32", 5.0, float("nan"))],
        "fp32",
        "fp32",
        ["rewritten-fp32 is out", "loses too much accuracy"],
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("turned", [False, True])
def test_choose(case: str, turned: bool) -> None:
    engines, asked, expected, said = CASES[case]
    choice = choose(engines[::-1] if turned else engines, asked, 1.0)
    assert choice.name == expected
    assert len(choice.reasons) == len(said), choice.reasons
    for phrase in said:
        assert any(phrase in reason for reason in choice.reasons), choice.reasons


def test_where_even_the_original_fails_nothing_is_handed_over() -> None:
    nothing = float("nan")
    with pytest.raises(AccuracyFailed, match="rewritten-fp32 is out"):
        choose([measured("fp32", 9.0, nothing), measured("rewritten-fp32", 4.0, nothing)], "fp32", 1.0)
