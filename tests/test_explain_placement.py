"""What runs in INT8 and why: rows of the rules, of a search, of engines as they are found, and how they are told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeseg.backends import Engine
from edgeseg.bundle import read_bundle, write_bundle
from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.pipeline.explain import explain
from edgeseg.pipeline.explain.placed import edge_rows, found_row, placement_row, placements
from edgeseg.pipeline.explain.transplant import Deployed
from edgeseg.quantize import DIALECTS, place, quantize
from edgeseg.quantize.reasons import BY_SEARCH, FOUND_FLOAT, FOUND_INT8, rule
from edgeseg.report.explain import explain_section, explain_table
from edgeseg.report.html import write_document
from edgeseg.report.placement import edges_line, placement_line, placement_tables
from edgeseg.report.text import build_table
from edgeseg.types import FRAME, OnnxModel
from tests.quantize import making
from tests.test_explain import bundle_of
from tests.test_report import NASTY, Page

ENGINES = ["onnxruntime-x86", "onnxruntime-arm", "openvino", "tensorrt"]


@pytest.fixture(scope="module")
def network() -> tuple[OnnxModel, Any]:
    model = making.everything()
    return model, making.table_of(model)


def convolutions(model: OnnxModel) -> list[str]:
    return [node.name for node in Graph(model.graph).nodes if node.op_type in ("Conv", "ConvTranspose")]


def weights_in_integers(graph: bytes) -> set[str]:
    """Convolutions whose weights come from integers, by looking at the written graph alone."""
    opened = Graph(graph)
    found = set()
    for node in opened.nodes:
        if node.op_type in ("Conv", "ConvTranspose"):
            made = opened.producer(node.input[1])
            if made is not None and made.op_type == "DequantizeLinear":
                found.add(node.name)
    return found


@pytest.mark.parametrize("dialect", ENGINES)
@pytest.mark.parametrize("keep", [0, 2])
def test_a_row_says_what_the_written_graph_does(network: Any, dialect: str, keep: int) -> None:
    model, table = network
    told = replace(DIALECTS[dialect], fake=False)
    kept = frozenset(place(Graph(model.graph), told).convolutions[:keep])
    written = quantize(model, table, told, placement=place(Graph(model.graph), told, keep_float=kept)).graph
    row = placement_row(model, told, kept)
    inside = weights_in_integers(written)
    assert row["int8"] == len(inside)
    assert [layer["node"] for layer in row["float"]] == [n for n in convolutions(model) if n not in inside]
    assert {layer["node"] for layer in row["float"] if layer["reason"] == BY_SEARCH} == kept
    assert next(layer for layer in row["float"] if layer["node"] == "node_conv1")["reason"] == rule("image", told).why
    edges = list(edge_rows(Graph(model.graph), place(Graph(model.graph), told, keep_float=kept)))
    quantized = {edge["tensor"] for edge in edges if edge["kind"] == "quantized"}
    assert row["edges"] == {"quantized": len(quantized), "passed": len(edges) - len(quantized)}
    made = {tensor for node in Graph(model.graph).nodes for tensor in node.output}
    pairs = {node.input[0] for node in Graph(written).nodes if node.op_type == "QuantizeLinear"} & made
    assert quantized & pairs  # and pairs are nowhere but where they are said to be
    assert pairs <= {edge["tensor"] for edge in edges}
    assert all(edge["reason"] for edge in edges)


def test_edges_that_pass_integers_through_are_those_that_pooling_and_joining_give(network: Any) -> None:
    model = making.unet()
    graph = Graph(model.graph)
    for name in ("openvino", "tensorrt", "onnxruntime-x86"):
        passed = {e["tensor"] for e in edge_rows(graph, place(graph, DIALECTS[name])) if e["kind"] == "passed"}
        assert passed
        for tensor in passed:
            made = graph.producer(tensor)
            assert made is not None
            assert made.op_type in ("MaxPool", "Resize", "Concat")


def test_what_the_rules_leave_in_float_was_not_the_search_s_doing(network: Any) -> None:
    model, _ = network
    row = placement_row(model, DIALECTS["tensorrt"], frozenset({"node_conv1", "node_conv2"}))
    reasons = {layer["node"]: layer["reason"] for layer in row["float"]}
    assert reasons["node_conv1"] == rule("image", DIALECTS["tensorrt"]).why
    assert reasons["node_conv2"] == BY_SEARCH
    with pytest.raises(ModelError, match="no_such"):
        placement_row(model, DIALECTS["tensorrt"], frozenset({"no_such"}))


def test_rows_go_to_the_engines_in_int8_each_by_its_network() -> None:
    one, two = making.unet(), making.everything()

    def engine(name: str, precision: Any) -> Engine:
        return Engine(name, "onnxruntime", precision, "g", {"g": b""}, {}, "digest")

    engines = [
        engine("onnxruntime-fp32", "fp32"),
        engine("onnxruntime-int8", "int8"),
        engine("onnxruntime-int8-mixed", "int8"),
        engine("rewritten-onnxruntime-int8", "int8"),
    ]
    found = placements(engines, one, two, {"onnxruntime-int8-mixed": frozenset({"node_conv2"})})
    assert list(found) == [e.name for e in engines[1:]]
    count = {name: row["int8"] for name, row in found.items()}
    assert count["onnxruntime-int8-mixed"] == count["onnxruntime-int8"] - 1
    rewritten = found["rewritten-onnxruntime-int8"]
    assert rewritten["int8"] + len(rewritten["float"]) == len(convolutions(two))
    assert list(placements(engines, one, None, {})) == ["onnxruntime-int8", "onnxruntime-int8-mixed"]


@pytest.mark.parametrize("dialect", ["onnxruntime-x86", "tensorrt"])
def test_an_engine_is_described_as_it_was_found(network: Any, dialect: str) -> None:
    model, table = network
    told = DIALECTS[dialect]
    ruled = place(Graph(model.graph), told)
    changed = place(Graph(model.graph), told, keep_float={"node_conv4"}, also={"node_conv1"})
    deployed = Deployed(model.graph, quantize(model, table, told, placement=changed).graph)
    row = found_row(model.graph, told.engine, deployed, searched=False)
    by_name = {one["node"]: one for one in row["convolutions"]}
    assert list(by_name) == convolutions(model)
    assert (by_name["node_conv4"]["precision"], by_name["node_conv4"]["reason"]) == ("float", FOUND_FLOAT)
    assert by_name["node_conv1"]["precision"] == "int8"
    assert by_name["node_conv1"]["reason"].startswith(FOUND_INT8)
    assert row["int8"] == len(ruled.convolutions) == sum(r["precision"] == "int8" for r in by_name.values())
    assert any(edge["tensor"] == FRAME or "though the rules" in edge["reason"] for edge in row["edges"])
    searched = found_row(model.graph, told.engine, deployed, searched=True)
    assert {r["node"]: r["reason"] for r in searched["float"]}["node_conv4"] == BY_SEARCH
    whole = found_row(
        model.graph, told.engine, Deployed(model.graph, quantize(model, table, told).graph), searched=True
    )
    assert all("though" not in one["reason"] for one in (*whole["convolutions"], *whole["edges"]))
    for one in whole["convolutions"]:
        assert one["reason"] == ruled.reasons[one["node"]]
    rows = list(edge_rows(Graph(model.graph), ruled))
    assert [edge["tensor"] for edge in whole["edges"]] == [edge["tensor"] for edge in rows]


def test_explain_tells_it_in_all_three_ways(network: Any, tmp_path: Path) -> None:
    model, table = network
    told = DIALECTS["onnxruntime-x86"]
    kept = place(Graph(model.graph), told, keep_float={"node_conv4"})
    graph = quantize(model, table, told, placement=kept).graph
    path = bundle_of(model, tmp_path / "a.edgeseg", graph, settings={"optimization": "off"})
    opened = read_bundle(path)
    mixed = replace(opened.variants[1], name="onnxruntime-int8-mixed")
    opened = replace(opened, variants=(opened.variants[0], mixed), chosen=mixed.name)
    document = explain(write_bundle(opened, tmp_path / "b.edgeseg"))
    assert {row["precision"] for row in document["layers"]} <= {"int8", "float"}
    for row in document["layers"]:
        assert row["precision"] == ("int8" if row["weights"] else "float")
        assert row["reason"]
    text = explain_table(document)
    total = len(convolutions(model))
    assert f"placement: {document['placement']['int8']} of {total} convolutions in INT8; in float: " in text
    assert "node_conv4 (kept in float by the search)" in text
    assert "edges: " in text
    assert max(map(len, text.splitlines())) < 400
    page = Page(write_document(document, "a", tmp_path / "a.html").read_text(encoding="utf-8"))
    assert page.balanced
    section = explain_section(document)
    for one in (*document["placement"]["convolutions"], *document["placement"]["edges"]):
        assert one["reason"].split("'")[0] in section
    whole = explain(bundle_of(model, tmp_path / "c.edgeseg", opened.files["fp32.onnx"], name="onnxruntime-fp16"))
    assert whole["placement"] is None


def layers(count: int, reason: str) -> Iterator[dict[str, Any]]:
    for index in range(count):
        yield {"node": f"/{reason[:3]}{index}/Conv", "module": None, "reason": reason}


def test_a_line_names_a_few_of_each_reason() -> None:
    row = {"int8": 0, "float": [*layers(5, "reads the image, three channels"), *layers(1, "gives the scores: so")]}
    line = placement_line("e", row)
    assert line.startswith("e: 0 of 6 convolutions in INT8; in float: ")
    assert line.endswith("/rea2/Conv and 2 more (reads the image); /giv0/Conv (gives the scores)")
    many = {"int8": 1, "float": [one for index in range(9) for one in layers(2, f"{index} why")]}
    assert placement_line("e", many).endswith("; 10 more")
    assert placement_line("e", {"int8": 1, "float": []}) == "e: 1 of 1 convolution in INT8"
    assert edges_line([{"kind": "quantized"}]) == "edges: 1 tensor quantized"
    assert edges_line([{"kind": kind} for kind in ("passed", "quantized", "quantized")]) == (
        "edges: 2 tensors quantized, 1 more pass integers through"
    )


def test_a_build_has_a_line_for_each_engine_in_int8(built: Path, tmp_path: Path) -> None:
    report = dict(read_bundle(built).verdict)
    row = {
        "int8": 4,
        "float": [{"node": NASTY, "module": None, "reason": "reads it, so"}],
        "edges": {"quantized": 3, "passed": 2},
    }
    for engine in report["engines"]:
        if engine["precision"] == "int8":
            engine["placement"] = row
    lines = [line for line in build_table(report).splitlines() if "of 5 convolutions in INT8" in line]
    assert len(lines) == sum(engine["precision"] == "int8" for engine in report["engines"]) > 0
    assert lines[0].endswith("(reads it)")
    text = write_document(report, "a", tmp_path / "a.html").read_text(encoding="utf-8")
    assert Page(text).balanced
    assert "4 of 5 convolutions in INT8" in text
    section = placement_tables(row)
    assert "edges: 3 tensors quantized, 2 more pass integers through" in section
    assert Page(section).balanced
    assert not any("onmouseover" in attributes for _, attributes in Page(section).tags)
