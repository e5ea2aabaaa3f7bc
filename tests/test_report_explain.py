"""The table and the page of an explanation: worst first with reasons, escaped, standing alone, damage refused."""

from __future__ import annotations

import base64
import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgeseg.cli import main
from edgeseg.errors import BadInput
from edgeseg.report.explain import HEADER, explain_table, layer_cells
from edgeseg.report.html import write_document, write_report
from edgeseg.report.picture import png
from tests.test_report import NASTY, Page


def layer(node: str, snr: float | None, share: float | None, **more: Any) -> dict[str, Any]:
    end = None if snr is None else {"snr_db": snr, "agreement": 0.99, "broken": 0}
    read = {"tensor": "t", "from": "before", "scale": 0.0123456, "zero_point": 3, "low": 0.0, "high": 3.1}
    return {
        "node": node,
        "module": node.strip("/").replace("/", ".") or None,
        "snr_db": 31.25,
        "cosine": 0.999,
        "largest_error": 0.5,
        "broken": 0,
        "own": end,
        "share": share,
        "weights_alone": end,
        "inputs_alone": None,
        "without": None,
        "weights": {"snr_db": 40.0, "channel": 2, "channel_snr_db": 33.0, "gain": 1.0},
        "inputs": [{**read, "seen": [0.0, 3.0], "clipped": 0.00125, "avoidable_db": 0.0, "best_factor": 1.0}],
        "fault": False,
        "why": "",
        **more,
    }


def document() -> dict[str, Any]:
    picture = base64.b64encode(png(np.zeros((4, 4, 3), np.uint8))).decode()
    iou = {"sky": {"before": 0.9, "after": 0.89}, "car": {"before": None, "after": None}}
    return {
        "schema": "edgeseg.explain/1",
        "bundle": "net",
        "variant": "onnxruntime-int8",
        "backend": "onnxruntime",
        "precision": "int8",
        "reference": "the bundle's FP32 graph",
        "data": {"name": "town", "split": "val", "digest": "0"},
        "frames": 12,
        "labelled": 10,
        "skipped": [],
        "classes": ["sky", "car"],
        "agreement": {
            "overall": 0.98765,
            "bands": {"1": 0.9, "2": 0.95, "5": None},
            "band_share": {"1": 0.1, "2": 0.2, "5": 0.0},
            "classes": {
                "sky": {"agreement": 0.97, "pixels": 300, "becomes": "car"},
                "car": {"agreement": None, "pixels": 0, "becomes": None},
            },
        },
        "miou": {"before": 0.75, "after": 0.7425, "frames": 10, "iou": iou},
        "whole": {"snr_db": 20.5, "agreement": 0.9876, "broken": 0},
        "layers": [
            layer("/bad/Conv", 12.5, 0.75, why="channel 2 of its weights comes back 20 times as large: a wrong scale"),
            layer("/fine/Conv", 33.0, 0.25, broken=4),
            layer("/late/Conv", None, None, inputs=[], weights=None, snr_db=None),
        ],
        "float_layers": ["/first/Conv"],
        "layer_frames": 4,
        "emulation": {"how": "the graph in the bundle", "agreement": 0.999},
        "flicker": {
            "source": "video",
            "pairs": 9,
            "still": 0.5,
            "changed": {"fp32": 0.01, "deployed": 0.02},
            "wavering": {"fp32": 0.001, "deployed": None},
        },
        "gallery": [{"name": "frame 7", "agreement": 0.91, "png": picture}],
        "notes": ["time was up"],
        "says": ["98.77 % of the labels are those of the FP32 graph"],
        "seconds": {"masks": 1.5},
        "machine": {"cpu": "a processor", "architecture": "x", "isa": [], "cores_usable": None, "memory_mb": None},
        "versions": {"edgeseg": "1"},
    }


def test_the_table_has_everything_worst_first() -> None:
    text = explain_table(document())
    lines = text.splitlines()
    rows = [line for line in lines if re.match(r"/\w+/Conv ", line)]
    assert [row.split()[0] for row in rows] == ["/bad/Conv", "/fine/Conv", "/late/Conv"]
    assert " ".join(rows[0].split()) == "/bad/Conv bad.Conv 12.5 99.00 75.0 31.2 40.0 0.125 0.0123"
    assert "broken" in rows[1]
    assert rows[2].split()[2:] == ["–"] * 7
    assert "without dB" not in text
    for words in (
        "a wrong scale",
        "note: time was up",
        "12 frames of 'val' of town, 10 of them labelled",
        "in float: /first/Conv",
        "within 1 pixel of a boundary ",
        "within 2 pixels of a boundary",
        "it agrees with the engine on 99.90 %",
        "all layers together: 20.5 dB",
        "1.00 % change class in FP32 and 2.00 % deployed",
        "frame 7 (91.00 %)",
    ):
        assert words in text
    assert re.search(r"sky +97\.00 +100\.00 +car +90\.00 +89\.00 +-1\.00", text)
    assert re.search(r"mean +75\.00 +74\.25 +-0\.75", text)
    assert len(layer_cells(document()["layers"][0])) == len(HEADER)
    left = document()
    left["layers"] = [layer("/bad/Conv", 12.5, 0.75, module=None)]
    left["layers"][0]["without"] = {"snr_db": None, "agreement": 1, "broken": 0}
    assert " ".join(explain_table(left).partition("/bad/Conv")[2].split()[:5]) == "12.5 99.00 75.0 exact 31.2"


def test_parts_may_be_absent() -> None:
    bare = document() | {"miou": None, "layers": [], "flicker": None, "gallery": [], "notes": [], "whole": None}
    bare |= {
        "data": None,
        "labelled": 0,
        "float_layers": [],
        "emulation": {"how": "no quantization", "agreement": None},
    }
    text = explain_table(bare)
    assert "the bundle's references, none labelled" in text
    assert "layers: no quantization" in text
    assert "IoU" not in text
    assert "None" not in text


def test_the_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    odd = document() | {"bundle": NASTY, "notes": [NASTY], "says": [NASTY]}
    odd["layers"] = [layer(NASTY, 1.0, 1.0, why=NASTY, module=NASTY)]
    odd["layers"][0]["inputs"][0] |= {"tensor": NASTY, "from": NASTY}
    odd["agreement"]["classes"] = {NASTY: {"agreement": 0.5, "pixels": 1, "becomes": NASTY}}
    odd["miou"]["iou"] = {NASTY: {"before": 0.5, "after": 0.5}}
    odd["gallery"][0]["name"] = NASTY
    text = write_document(odd, NASTY, tmp_path / "a.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.balanced
    assert not any("onmouseover" in attributes for _, attributes in page.tags)
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1
    assert images[0].startswith("data:image/png;base64,")
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", text)


def test_report_takes_the_document(tmp_path: Path) -> None:
    path = tmp_path / "explain.json"
    path.write_text(json.dumps(document()), encoding="utf-8")
    text = write_report([path], tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Layers, worst first" in text
    assert text.index("/bad/Conv") < text.index("/fine/Conv")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("layers"),
        lambda d: d["layers"][0].pop("own"),
        lambda d: d["gallery"][0].update(png="'><script>"),
        lambda d: d["gallery"][0].update(png=base64.b64encode(b"<svg/>").decode()),
        lambda d: d.update(agreement=None),
    ],
)
def test_a_damaged_document_is_refused(tmp_path: Path, spoil: Any) -> None:
    spoiled = deepcopy(document())
    spoil(spoiled)
    path = tmp_path / "explain.json"
    path.write_text(json.dumps(spoiled), encoding="utf-8")
    with pytest.raises(BadInput, match="damaged"):
        write_report([path], tmp_path / "a.html")


def test_the_command_writes_table_page_and_document(built: Path, street: Path, tmp_path: Path) -> None:
    page, path = tmp_path / "a.html", tmp_path / "a.json"
    options = ["--data", street / "dataset.toml", "--variant", "onnxruntime-int8", "--html", page, "--json", path]
    result = CliRunner().invoke(main, ["explain", *map(str, [built, *options])])
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["schema"] == "edgeseg.explain/1"
    assert result.stdout.strip() == explain_table(found).strip()
    assert Page(page.read_text(encoding="utf-8")).balanced
    assert CliRunner().invoke(main, ["explain", str(built), "--variant", "other"]).exit_code == 2
