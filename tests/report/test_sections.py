"""Sections of pages that have no test of their own command: layers on paper, a stream over time, a build."""

from __future__ import annotations

from typing import Any

import pytest

from edgeseg.report import svg
from edgeseg.report.build import build_section
from edgeseg.report.profile import profile_section
from edgeseg.report.streams import stream_section
from tests.report.documents import build
from tests.report.figures import pictures, said
from tests.test_report import NASTY, Page


def layer(name: str, macs: int) -> dict[str, Any]:
    return {
        "name": name,
        "op": "Conv",
        "detail": "3x3",
        "output": [1, 16, 180, 240],
        "macs": macs,
        "parameters": 448,
        "activations": 691_200,
    }


def test_layers_on_paper() -> None:
    text = profile_section({"layers": [layer(NASTY, 3_000_000), layer("b", 1_000_000)], "uncounted": ["lstm"]})
    page = Page(text)
    assert page.balanced
    assert NASTY not in text
    words = [word for word in page.words if word.strip()]
    assert words[words.index("together") + 1 :][:3] == ["4 M", "896", "1.38 M"]
    assert "width:33.3%" in text
    assert "lstm" in words[-1]
    assert Page(profile_section({"layers": [], "uncounted": []})).balanced


def test_a_build_names_what_its_layers_run_in() -> None:
    made = build()
    precisions = {"convolutions": {"int8": 15, "fp16": 2}, "layers": {"int8": 18, "fp16": 5}, "ms": {"int8": 1.5}}
    made["engines"][1]["built"] = {"summary": "INT8 mostly", "repairs": ["conv1 padded"], "precisions": precisions}
    text = build_section(made)
    page = Page(text)
    assert page.balanced
    words = [word for word in page.words if word.strip()]
    at = words.index("Precision of the layers") + 6
    assert words[at : at + 5] == ["openvino-int8", "int8", "18", "15", "1.500"]
    assert words[at + 5 : at + 10] == ["openvino-int8", "fp16", "5", "2", "–"]
    assert "openvino-int8 runs in INT8 mostly; conv1 padded" in words
    if svg.available():
        drawn = said(pictures(text)[0])
        assert set(drawn) == {
            f"{name}, {engine}: {value:.2f} IoU, %"
            for engine, miou in (("openvino-fp32", 61), ("openvino-int8", 60))
            for name, value in (("road", miou + 10), ("pole", miou - 10))
        }


@pytest.mark.skipif(not svg.available(), reason="plots need matplotlib")
def test_a_stream_over_time() -> None:
    latency = {"p50": 1.0, "p90": None, "p99": None, "max": 2.0, "count": 9}
    rows: list[dict[str, Any]] = [
        {"t": float(t), "age": {"p50": 10.0 + t, "p99": None, "max": 20.0}, "machine": {"temperature_c": 50.0 + t}}
        for t in range(5)
    ]
    rows[2]["age"] = None
    stream = {
        "bundle": NASTY,
        "variant": "v",
        "stages_ms": {"infer": latency},
        "latency_ms": latency,
        "deadline": {"of": 9, "missed": 1, "ms": 33.3},
        "frames": {"captured": 9, "processed": 9, "dropped": 0, "failed": 0},
        "fps": 3.0,
        "seconds": 3.0,
        "policy": "latest",
        "ended": "the sources ended",
        "timed": True,
        "quality": dict.fromkeys(("miou", "streaming_miou", "agreement", "confidence", "flicker")),
        "warnings": [NASTY],
        "timeline": rows,
        "class_shares": {NASTY: 1.0},
        "sources": [],
    }
    text = stream_section(stream)
    assert Page(text).balanced
    assert NASTY not in text
    age, _, temperature, _ = pictures(text)
    assert {"p50", "max"} <= set(said(age))
    assert "temperature, °C" in said(temperature)
    assert "GPU clock" not in text  # nobody measured it
    assert "Over time" not in stream_section(stream | {"timeline": rows[:1]})
