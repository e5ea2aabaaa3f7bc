"""The top and the end of a page: the numbers that matter, what compares with what, machines, and how to repeat it."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from edgeseg.cli.words import write_json
from edgeseg.errors import BadInput
from edgeseg.report import svg
from edgeseg.report.html import write_report
from edgeseg.report.machines import command_of, machines_section
from edgeseg.report.sources import Source, sources, worst_frames
from edgeseg.report.summary import entries_of, summary
from tests.report.documents import MACHINE, bench, build, evaluation, put
from tests.report.figures import pictures, said
from tests.test_report import Page, stands_alone


def given(*documents: Any) -> list[Source]:
    return [Source(Path(f"{at}.json"), document) for at, document in enumerate(documents)]


def words(markup: str) -> str:
    return re.sub(r"\s+", " ", " ".join(Page(markup).words))


def large(markup: str) -> list[str]:
    return re.findall(r"<li><b>(.*?)</b>", markup)


def test_a_build_in_three_numbers() -> None:
    found = summary(given(build()))
    assert large(found) == ["8.00 ms", "60.00 %", "2.00 MB"]
    text = words(found)
    assert "openvino-int8 is handed over." in text
    assert "2.50 times as fast as openvino-fp32" in text
    assert "-1.00 points against openvino-fp32" in text
    assert "0.25 of openvino-fp32" in text
    assert text.index("handed over") < text.index("8.00 ms") < text.index("Trade-off")


def test_without_labels_the_agreement_counts() -> None:
    unlabelled = build()
    for engine in unlabelled["engines"]:
        engine |= {"miou": None, "iou": None}
    found = summary(given(unlabelled))
    assert large(found) == ["8.00 ms", "99.00 %", "2.00 MB"]
    assert "labels as FP32" in words(found)


def test_bench_and_eval_of_one_engine_belong_together() -> None:
    judged = evaluation(miou=0.58, intervals={"miou": [0.55, 0.61]})
    timed = bench(level=9.0)
    entries = entries_of(given(build(), timed, judged))
    assert [(e.variant, e.timed is not None) for e in entries] == [
        ("openvino-fp32", True),
        ("openvino-int8", True),
        ("openvino-int8", True),
    ]
    own = entries[2]
    assert own.facts["p50"] == timed["latency_ms"]["p50"]
    assert own.facts["miou"] == 0.58
    assert own.facts["bytes"] == 2_000_000  # as its build said
    found = summary(given(build(), timed, judged))
    assert large(found) == [f"{timed['latency_ms']['p50']:.2f} ms", "58.00 %", "2.00 MB"]
    text = words(found)
    assert "95 %: 55.00 to 61.00; 12 frames of “val”" in text
    assert "times as fast as openvino-fp32" not in text  # other runs, other times


def test_a_stream_and_a_rewrite_in_numbers() -> None:
    latency = {"p50": 12.5, "p99": None}
    frames = {"captured": 200, "processed": 190, "dropped": 8, "failed": 2}
    stream = {"schema": "edgeseg.stream/1", "bundle": "net", "variant": "v", "latency_ms": latency, "fps": 29.97}
    found = summary(given(stream | {"frames": frames, "seconds": 7.0, "miou": 0.5}))
    assert large(found) == ["12.50 ms", "30.0", "50.00 %", "5.0 %"]
    rewrite = {
        "schema": "edgeseg.rewrite/1",
        "name": "<net>",
        "latency": {"backend": "openvino", "before": {"p50": 12.0}, "after": {"p50": 4.0}},
        "accuracy": {"metric": "mIoU", "frames": 101, "before": 0.6, "after": 0.5875},
        "macs": {"before": 1000, "after": 250},
    }
    found = summary(given(rewrite))
    assert large(found) == ["3.00 times", "-1.25 points", "25 %"]
    assert "&lt;net&gt;, rewritten" in found
    assert large(summary(given(rewrite | {"latency": None, "accuracy": None}))) == ["25 %"]


def test_another_graph_is_another_engine() -> None:
    entries = entries_of(given(bench(graph="one"), evaluation(graph="two")))
    assert len(entries) == 2
    assert "miou" not in entries[0].facts
    assert len(entries_of(given(evaluation(), bench()))) == 1


def test_two_networks_of_one_name_are_not_mixed() -> None:
    """A network and its rewrite are often called alike: what a build says holds for its own engine only."""
    made = build()
    made = made | {"engines": [engine | {"graph": engine["name"]} for engine in made["engines"]]}
    own, other = (bench(graph=graph) for graph in ("openvino-int8", "another"))
    entries = entries_of(given(made, own, other))
    assert [entry.facts.get("miou") for entry in entries] == [0.61, 0.6, 0.6, None]


def test_of_two_builds_it_is_not_known_which_was_evaluated() -> None:
    entries = entries_of(given(build(), build(), evaluation(miou=0.3, graph=None)))
    assert [entry.facts["miou"] for entry in entries] == [0.61, 0.6, 0.61, 0.6, 0.3]
    assert len({entry.title for entry in entries}) == 5  # told apart by their files


def test_throughput_is_no_latency() -> None:
    (entry,) = entries_of(given(bench(offline={"engine": {}}, scenario="offline")))
    assert entry.facts.get("p50") is None


@pytest.mark.skipif(not svg.available(), reason="plots need matplotlib")
def test_the_plot_has_all_engines() -> None:
    found = summary(given(build(), bench(level=9.0), evaluation(miou=0.58)))
    dots = said(pictures(found)[0])
    assert sum("MB" in text for text in dots) == 3
    assert any(text.startswith("net, openvino-fp32: 20.00 ms, 61.00 %, 8.00 MB") for text in dots)
    assert "times of different runs compare roughly" in found
    other = build(machine=MACHINE | {"cpu": "another"}, name="net2")
    assert "timed on several machines" in summary(given(build(), other))
    assert "judged on different frames" in summary(given(build(), bench(), evaluation(frames=99)))


@pytest.mark.skipif(not svg.available(), reason="plots need matplotlib")
def test_distributions_of_several_runs_in_one_plot() -> None:
    assert "Latency distributions" not in summary(given(bench()))
    found = summary(given(bench(), bench(level=12.0)))
    assert "Latency distributions" in found
    assert sum("the largest of 80" in text for picture in pictures(found)[:8] for text in said(picture)) >= 2


def test_machines_that_differ_are_shown() -> None:
    one = machines_section(given(bench(), evaluation()))
    assert one.count("<th>") == 2
    assert "do not compare" not in one
    two = machines_section(given(bench(), bench(versions={"edgeseg": "0.1.0", "numpy": "2.5.0"})))
    assert "<b>2.5.0</b>" in two
    assert "<b>0.1.0</b>" not in two
    assert "do not compare" in two
    assert "2026-03-01 00:00:00" in two


def test_commands() -> None:
    def of(document: Any) -> str:
        return command_of(given(document)[0])

    assert of(bench(command="edgeseg bench 'my net.edgeseg' --seconds 3")) == (
        "edgeseg bench 'my net.edgeseg' --seconds 3"
    )
    assert of(bench(path="a b")) == "edgeseg bench 'a b' --variant openvino-int8"
    assert of(evaluation()) == "edgeseg eval BUNDLE --data DATASET.toml --split val --variant openvino-int8"
    assert of(build(quick=True)) == (
        "edgeseg build MODEL --data DATASET.toml --split train --recipe mse --int8 --max-miou-drop 1 --quick -o 0.json"
    )
    assert of({"schema": "edgeseg.rewrite/1"}) == ""


def test_a_whole_page(tmp_path: Path) -> None:
    documents = [build(), bench(), evaluation()]
    paths = [put(tmp_path, f"{at}.json", document) for at, document in enumerate(documents)]
    text = write_report(paths, tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.balanced, (page.stack, page.wrong)
    assert stands_alone(text)
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads[0] == "Trade-off"
    assert heads[-2:] == ["Machine and versions", "How to make these numbers again"]
    assert "3 documents (1 build, 1 bench, 1 eval), measured 2026-03-01 00:00 UTC" in words(text)
    assert "matplotlib" not in text or not svg.available()


def test_without_matplotlib_all_tables_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "available", lambda: False)
    path = put(tmp_path, "x.json", [build(), bench(), evaluation()])
    text = write_report([path], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<svg" not in text
    assert "pip install 'edgeseg[report]'" in text
    assert text.count("<table") >= 6
    assert large(text)


@pytest.mark.parametrize("key", ["miou", "bytes", "latency_ms"])
def test_a_damaged_build_is_named(key: str, tmp_path: Path) -> None:
    document = deepcopy(build())
    del document["engines"][1][key]
    with pytest.raises(BadInput, match=r"broken\.json"):
        write_report([put(tmp_path, "broken.json", document)], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_sources_of_lists_and_of_other_files(tmp_path: Path) -> None:
    path = put(tmp_path, "two.json", [bench(), evaluation()])
    assert [one.kind for one in sources([path])] == ["bench", "eval"]
    for bad in ({}, [], "x", {"schema": 3}, [bench(), {"schema": "other/1"}]):
        with pytest.raises(BadInput, match=r"bad\.json"):
            sources([put(tmp_path, "bad.json", bad)])


def test_worst_frames_are_of_the_split() -> None:
    rows = [{"name": "b", "miou": 0.1}, {"name": "a", "miou": 0.2}]
    found = given(bench(), evaluation(worst_frames=rows))
    assert worst_frames(found, "val") == ["b", "a"]
    assert worst_frames(found, "train") == []
    assert worst_frames(given(bench()), "val") == []


def test_documents_know_their_command_without_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["edgeseg", "stream", "my net.edgeseg", "--source", "rtsp://me:secret@host/1?token=abc"]
    monkeypatch.setattr("sys.argv", typed)
    documents = [bench(), evaluation()]
    write_json(documents, tmp_path / "x.json")
    found = sources([tmp_path / "x.json"])
    wanted = "edgeseg stream 'my net.edgeseg' --source 'rtsp://me:***@host/1?token=***'"
    assert [command_of(one) for one in found] == [wanted, wanted]
    write_json(bench(), None)
    assert "secret" not in (tmp_path / "x.json").read_text(encoding="utf-8")
