"""Two files as a user compares them: what is matched, told and refused, in every format."""

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgeseg.cli import main
from edgeseg.compare import compare, latency
from edgeseg.compare.junit import junit
from edgeseg.compare.text import markdown, summary
from edgeseg.errors import BadInput
from edgeseg.report.compare import compare_section
from tests.compare.making import gate_of, made, metrics, write

RUN = CliRunner()


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "RESAMPLES", 200)


@pytest.fixture
def timed() -> tuple[Any, Any]:
    """Paired, 20 % slower."""
    found: tuple[Any, Any] = made.paired_latency(7, 1.2)
    return found


@pytest.fixture
def judged() -> tuple[Any, Any]:
    """The same frames, two points worse."""
    found: tuple[Any, Any] = made.video(7, 2.0, frames=120)
    return found


def compared(tmp_path: Path, before: Any, after: Any, *, budget: str | None = None) -> dict[str, Any]:
    paths = write(tmp_path / "base.json", before), write(tmp_path / "new.json", after)
    file = tmp_path / "budget.toml"
    if budget is not None:
        file.write_text(budget, encoding="utf-8")
    return compare(*paths, budget=None if budget is None else file)


def run(*arguments: object) -> Result:
    return RUN.invoke(main, ["compare", *map(str, arguments)])


def test_itself_is_the_same_in_everything(tmp_path: Path, timed: Any, judged: Any) -> None:
    found = compared(tmp_path, [timed[0], judged[0]], [timed[0], judged[0]])
    assert gate_of(found) == ("passed", 0)
    told = {name: one["verdict"] for name, one in metrics(found).items()}
    assert {told.pop(name) for name in ("latency.p99", "end_to_end.p99")} == {"cannot tell"}  # too few samples
    assert set(told.values()) == {"same"}


def test_slower_fails_and_faster_passes(tmp_path: Path, timed: Any) -> None:
    slower = metrics(found := compared(tmp_path, *timed))["latency.p50"]
    assert gate_of(found) == ("failed", 1)
    assert (slower["verdict"], slower["gate"], slower["allowed"]) == ("worse", "failed", "+5 %")
    assert slower["interval"][0] < slower["change"] < slower["interval"][1]
    ratio = np.median(timed[1]["samples_ms"]["engine"]) / np.median(timed[0]["samples_ms"]["engine"])
    assert slower["change"] == pytest.approx(100 * (ratio - 1), abs=0.5)

    faster = compared(tmp_path, timed[1], timed[0])
    assert gate_of(faster) == ("passed", 0)
    assert metrics(faster)["latency.p50"]["verdict"] == "better"
    assert metrics(faster)["fps"]["verdict"] == "better"
    assert metrics(faster)["latency.p99"]["reason"].startswith("p99 needs 662 samples")


def test_lost_accuracy_fails(tmp_path: Path, judged: Any) -> None:
    found = compared(tmp_path, *judged)
    assert gate_of(found) == ("failed", 1)
    miou = metrics(found)["miou"]
    assert (miou["verdict"], miou["gate"]) == ("worse", "failed")
    assert miou["change"] == pytest.approx(100 * (judged[1]["miou"] - judged[0]["miou"]))
    assert miou["interval"][0] < miou["change"] < miou["interval"][1] < -0.5
    # An allowance that the interval holds cannot be told; a wide one passes.
    assert gate_of(compared(tmp_path, *judged, budget=f"[miou]\nmax_drop = {-miou['change']:.3f}")) == (
        "cannot tell",
        4,
    )
    assert gate_of(compared(tmp_path, *judged, budget="[miou]\nmax_drop = 5")) == ("passed", 0)


def test_what_a_budget_names_must_be_measured(tmp_path: Path, timed: Any) -> None:
    found = compared(tmp_path, *timed, budget='[latency.p99]\nmax_rise = "5 %"')
    assert gate_of(found) == ("cannot tell", 4)
    assert metrics(found)["latency.p99"]["gate_reason"].startswith("p99 needs 662 samples")
    assert compared(tmp_path, *timed, budget="[missed]\nmax_rise = 1")["exit_code"] == 4
    assert "missed" not in metrics(compared(tmp_path, *timed))


def test_a_class_has_its_floor(tmp_path: Path, judged: Any) -> None:
    share = 100 * judged[1]["iou"]["pedestrian"]
    for floor, gate in ((share - 1, "passed"), (share + 1, "failed")):
        found = compared(tmp_path, *judged, budget=f"[iou.pedestrian]\nmin = {floor:.2f}")
        assert found["gate"] == gate
    assert "pedestrian" in summary(found)


def test_a_ceiling_knows_how_sure_it_is(tmp_path: Path, timed: Any) -> None:
    after = timed[1]["latency_ms"]["p50"]
    for factor, gate in ((1.5, "passed"), (0.7, "failed"), (1.0, "cannot tell")):
        assert compared(tmp_path, *timed, budget=f'[latency.p50]\nmax = "{factor * after:.3f} ms"')["gate"] == gate


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": "other"}, "1 and 1 separate runs"),
        ({"run": "other", "machine": {"cpu": "another"}}, "another machine: cpu is simulated and another"),
        ({"run": "other", "frames_digest": "x"}, "other frames"),
        ({"paired": False}, "1 and 1 separate runs"),
        ({"run": "other", "slowdown": {"moved": True, "text": ["clock fell"]}}, "clocks moved: clock fell"),
    ],
)
def test_runs_that_say_little_about_each_other(tmp_path: Path, timed: Any, change: Any, reason: str) -> None:
    after = copy.deepcopy(timed[1])
    for key, value in change.items():
        rest: Any = {"seconds": 1.0, "drift": None, "others_percent": None, "machine": {}} if key == "slowdown" else {}
        after[key] = {**(after[key] or rest), **value} if isinstance(value, dict) else value
    found = compared(tmp_path, timed[0], after)
    assert gate_of(found) == ("cannot tell", 4)
    assert metrics(found)["latency.p50"]["verdict"] == "cannot tell"
    assert metrics(found)["latency.p50"]["reason"].startswith(reason)


def test_repeated_runs_decide_by_what_differs_between_them(tmp_path: Path) -> None:
    before, after = made.repeated_latency(3, 1.6)
    found = compared(tmp_path, before, after)
    assert gate_of(found) == ("failed", 1)
    assert found["groups"][0]["method"] == "repeated, 5 and 5 runs"
    logs = [[np.log(one["latency_ms"]["p50"]) for one in side] for side in (before, after)]
    assert metrics(found)["latency.p50"]["change"] == pytest.approx(
        100 * (np.exp(np.mean(logs[1]) - np.mean(logs[0])) - 1)
    )
    folder = tmp_path / "runs"
    folder.mkdir()
    for index, document in enumerate(before):
        write(folder / f"{index}.json", document)
    assert compare(folder, write(tmp_path / "new.json", after))["groups"] == found["groups"]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("data", {"name": "a", "split": "val", "digest": "x"}, "other data"), ("names", None, "other frames")],
)
def test_other_frames_say_nothing(tmp_path: Path, judged: Any, key: str, value: Any, reason: str) -> None:
    after = copy.deepcopy(judged[1])
    if value:
        after[key] = value
    else:
        after["per_frame"]["names"][0] = "another"
    found = compared(tmp_path, judged[0], after)
    assert gate_of(found) == ("cannot tell", 4)
    assert metrics(found)["miou"]["reason"].startswith(reason)


def test_classes_in_another_order_are_the_same(tmp_path: Path, judged: Any) -> None:
    after = copy.deepcopy(judged[1])
    after["iou"] = dict(reversed(after["iou"].items()))
    for key in ("tp", "fp", "fn"):
        after["per_frame"][key] = [row[::-1] for row in after["per_frame"][key]]
    assert metrics(compared(tmp_path, judged[0], after)) == metrics(compared(tmp_path, *judged))


def test_refusals_name_file_and_key(tmp_path: Path, timed: Any, judged: Any) -> None:
    with pytest.raises(BadInput, match=r"new\.json, schema: holds eval, but .*base\.json holds bench"):
        compared(tmp_path, timed[0], judged[0])
    other = copy.deepcopy(judged[1])
    other["iou"] = {f"{name}s": share for name, share in other["iou"].items()}
    with pytest.raises(BadInput, match=r"new\.json, iou: its classes"):
        compared(tmp_path, judged[0], other)
    wrong = copy.deepcopy(judged[1])
    wrong["per_frame"]["tp"][0][0] += 5000
    with pytest.raises(BadInput, match=r"per_frame: its frames give .* the key miou says"):
        compared(tmp_path, judged[0], wrong)
    wrong = copy.deepcopy(timed[1])
    wrong["samples_ms"]["engine"] = timed[0]["samples_ms"]["engine"]
    with pytest.raises(BadInput, match=r"samples_ms\.engine: their median is"):
        compared(tmp_path, timed[0], wrong)
    with pytest.raises(BadInput, match="nothing in it"):
        compared(tmp_path, *timed, budget="[flicker]\nmax_rise = 1")
    offline = {**timed[1], "scenario": "offline"}
    with pytest.raises(BadInput, match="belongs to anything"):
        compared(tmp_path, timed[0], offline)
    with pytest.raises(BadInput, match="wanted two"):
        compare(write(tmp_path / "one.json", timed[0]))


def test_one_file_holds_both(tmp_path: Path, timed: Any) -> None:
    both = [timed[0], {**timed[1], "variant": "fp32"}]
    found = compare(write(tmp_path / "both.json", both))
    assert gate_of(found) == ("failed", 1)
    assert [found["groups"][0][side]["variant"] for side in ("before", "after")] == ["int8", "fp32"]
    # One bundle named twice in one call.
    assert gate_of(compare(write(tmp_path / "twice.json", list(timed)))) == ("failed", 1)


def test_what_has_no_partner_is_said(tmp_path: Path, timed: Any) -> None:
    found = compared(tmp_path, timed[0], [timed[1], {**timed[1], "variant": "fp32"}])
    assert found["notes"] == [f"only in {tmp_path / 'new.json'}: net, fp32 (bench, single-stream)"]


def test_all_formats(tmp_path: Path, timed: Any, judged: Any) -> None:
    base = write(tmp_path / "base.json", [timed[0], judged[0]])
    new = write(tmp_path / "new.json", [timed[1], judged[0]])
    out = {name: tmp_path / f"out.{name}" for name in ("json", "html", "markdown", "junit")}
    result = run(base, new, *(word for name, path in out.items() for word in (f"--{name}", path)))
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("Failed: latency.p50")
    document = json.loads(out["json"].read_text())
    assert document["schema"] == "edgeseg.compare/1"
    assert (document["gate"], document["exit_code"]) == ("failed", 1)
    assert {"machine", "versions", "command"} <= set(document)
    assert out["markdown"].read_text().startswith("**edgeseg compare** ❌ Failed: latency.p50")
    assert "Comparison</h2>" in out["html"].read_text()

    suites = ElementTree.parse(out["junit"]).getroot()
    suite = suites.find("testsuite")
    assert suite is not None
    assert (suites.tag, suite.get("tests"), suite.get("failures"), suite.get("skipped")) == (
        "testsuites",
        "2",
        "1",
        "0",
    )
    cases = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}
    assert cases == {"latency.p50": ["failure"], "miou": []}


@pytest.mark.parametrize(("code", "word"), [(0, "Passed"), (4, "Cannot tell")])
def test_exit_codes(tmp_path: Path, timed: Any, code: int, word: str) -> None:
    after = timed[0] if code == 0 else {**timed[1], "run": "other"}
    result = run(write(tmp_path / "a.json", timed[0]), write(tmp_path / "b.json", after), "--junit", tmp_path / "j.xml")
    assert result.exit_code == code
    assert result.stdout.startswith(word)
    skipped = ElementTree.parse(tmp_path / "j.xml").getroot().findall(".//skipped")
    assert len(skipped) == (code == 4)
    assert run(tmp_path / "a.json", write(tmp_path / "c.json", {"schema": "edgeseg.bench/9"})).exit_code == 2


def test_names_from_files_stay_names(tmp_path: Path, timed: Any) -> None:
    evil = "</td><script>|`@all\x07"
    found = compared(tmp_path, {**timed[0], "bundle": evil}, {**timed[1], "bundle": evil})
    assert "<script>" not in compare_section(found)
    text = markdown(found)
    assert "<script>" not in text
    assert "@all" not in text
    assert ElementTree.fromstring(junit(found)).tag == "testsuites"


def test_cold_starts_of_one_call_are_not_compared(tmp_path: Path, timed: Any) -> None:
    """The first to be opened loads the runtime, so the second always looks better."""
    cold = [{"open": 107.0, "first_frame": 54.0}, {"open": 28.0, "first_frame": 54.0}]
    pair = [one | {"cold_ms": times} for one, times in zip(timed, cold, strict=True)]
    row = metrics(compared(tmp_path, *pair))["cold.open"]
    assert (row["verdict"], row["interval"]) == ("cannot tell", None)
    assert row["reason"].startswith("opened in one call")
    apart = [pair[0], pair[1] | {"run": "another"}]
    assert metrics(compared(tmp_path, *apart))["cold.open"]["verdict"] == "better"


def test_size_and_memory_of_an_engine(tmp_path: Path, timed: Any) -> None:
    before, after = timed[0] | {"size_mb": 1.8, "memory_mb": 57.3}, timed[0] | {"size_mb": 7.2, "memory_mb": 57.4}
    budget = '[size]\nmax_rise = "10 %"\n[memory]\nmax_rise = "5 %"\nmax = "60 MB"\n'
    found = compared(tmp_path, before, after, budget=budget)
    rows = metrics(found)
    assert gate_of(found) == ("failed", 1)
    assert (rows["size"]["verdict"], rows["size"]["gate"], rows["size"]["change"]) == ("worse", "failed", 300.0)
    assert (rows["memory"]["verdict"], rows["memory"]["gate"]) == ("same", "passed")
    found = compared(tmp_path, before, before | {"memory_mb": 70.0}, budget=budget)
    assert (metrics(found)["memory"]["verdict"], metrics(found)["memory"]["gate"]) == ("worse", "failed")
    # Other processors have other kernels, that need other memory; files are of one size everywhere.
    elsewhere = after | {"run": "another", "machine": after["machine"] | {"cpu": "another"}}
    rows = metrics(compared(tmp_path, before, elsewhere, budget=budget))
    assert rows["memory"]["reason"].startswith("another machine: cpu")
    assert rows["size"]["verdict"] == "worse"
    # Older documents hold neither.
    rows = metrics(compared(tmp_path, timed[0], after, budget=budget))
    assert {rows[name]["reason"] for name in ("size", "memory")} == {"it was not measured on both sides"}


def test_another_gpu_is_another_machine_and_none_is_not(tmp_path: Path, timed: Any) -> None:
    def on(gpu: str | None) -> dict[str, Any]:
        found: dict[str, Any] = timed[1] | {"run": "another", "machine": timed[1]["machine"] | {"gpu": gpu}}
        return found

    before = timed[0] | {"machine": timed[0]["machine"] | {"gpu": "GPU A"}}
    told = metrics(compared(tmp_path, before, on("GPU B")))["latency.p50"]
    assert (told["interval"], told["reason"]) == (None, "another machine: gpu is GPU A and GPU B")
    for gpu in ("GPU A", None):
        assert metrics(compared(tmp_path, before, on(gpu)))["latency.p50"]["interval"] is not None
